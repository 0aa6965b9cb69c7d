"""What a `Recommender` needs of a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch

from msm4sr.data.schema import read_interactions, read_items
from msm4sr.errors import InputError
from msm4sr.experiments.model_folder import read_item_names
from msm4sr.experiments.run import Run, open_run
from msm4sr.features.content import ContentEncoder
from msm4sr.features.extract import store_names
from msm4sr.features.store import load_features, read_rows
from msm4sr.models.base import ContentModel, Model, ProductModel
from msm4sr.models.registry import from_pretrained
from msm4sr.recommend.catalogue import Base, Catalogue, Vectors
from msm4sr.recommend.index import ApproximateIndex, IndexSettings
from msm4sr.recommend.onnx_export import export_onnx
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.scoring import encode_histories

QUERIES = 500  # histories by which an approximate index is measured
DRAWN = 10  # items of a history that is drawn


def load_recommender(folder: str | Path, index: IndexSettings = IndexSettings()) -> Recommender:
    """The recommender of a finished run; images, texts and categories come from its data set, where it still exists.

    Raises:
        InputError: there is no finished run, or the weights of the model are not finite.
    """
    run = open_run(Path(folder))
    model = from_pretrained(run.folder / "model")
    base = read_base(run, model)
    found = None
    if isinstance(model, ProductModel) and index.approximates(len(base)):
        with torch.inference_mode():
            queries = encode_histories(model, Catalogue.of(base), sample_histories(run, base))
        found = ApproximateIndex.open(run.folder / "model", base.vectors.keys, queries, index)
    return Recommender(model, base, open_encoder(run, model), run.data, found, picture_words(run))


def export_run(folder: Path, out: Path) -> list[Path]:
    """Export the model of a run as ONNX; see `recommend.onnx_export.export_onnx`."""
    run = open_run(folder)
    model = from_pretrained(folder / "model").eval()
    return export_onnx(model, *read_item_names(run), out, run.folder.resolve().name)


def read_base(run: Run, model: Model) -> Base:
    """The run's items with their vectors, and what the data set says of them, where it is still there.

    Raises InputError when model and items.json are not of one run, and for numbers that are not finite.
    """
    item_ids, titles = read_item_names(run)
    if len(item_ids) != model.n_items:
        raise InputError(
            f"{run.folder / 'model'}: the model knows {model.n_items} items, items.json {len(item_ids)}: they are not "
            "of one run; `msm4sr evaluate RUN` makes both anew"
        )
    frame = pl.DataFrame({"item_id": item_ids})
    try:
        frame = frame.join(read_items(run.data), on="item_id", how="left", maintain_order="left")
    except InputError:
        nothing = [pl.lit(None, pl.List(pl.String)).alias(name) for name in ("categories", "image")]
        frame = frame.with_columns(pl.lit(None, pl.String).alias("text"), *nothing)
    vectors = vectors_of_all(model)
    if not bool(torch.isfinite(vectors.keys).all()):
        raise InputError(f"{run.folder}: the model's weights are damaged or its training diverged: they are not finite")
    return Base(
        item_ids,
        titles,
        frame["text"].to_list(),
        [tuple(names or ()) for names in frame["categories"].to_list()],
        [tuple(path for path in paths or () if path) for paths in frame["image"].to_list()],
        vectors,
    )


@torch.inference_mode()
def vectors_of_all(model: Model) -> Vectors:
    """The catalogue as the model sees it."""
    catalogue = model.encode_items()
    keys = model.scoring_vectors(catalogue).contiguous()
    if not isinstance(model, ContentModel):
        return Vectors(catalogue, keys, torch.zeros(len(keys), 0, dtype=torch.bool))
    present = [model.content_rows(name).lengths > 0 for name in model.content_modalities]
    return Vectors(catalogue, keys, torch.stack(present, dim=1))


def open_encoder(run: Run, model: Model) -> ContentEncoder | None:
    """What encodes new items as the run's were; None for a model that cannot take any."""
    if not isinstance(model, ContentModel):
        return None
    widths = {name: model.content_rows(name).vectors.shape[1] for name in model.content_modalities}
    return ContentEncoder(run.features, run.settings.features, widths, run.precomputed)


def picture_words(run: Run) -> Mapping[str, list[str]]:
    """The words that were found for each item's pictures, best first; nothing for a run that looks for none."""
    if run.settings.features.visual.kind != "keywords" or "visual" in run.precomputed:
        return {}
    folder = run.features / store_names(run.settings.features)["visual"]
    try:
        features, table = load_features(folder), read_rows(folder)
    except InputError:
        return {}
    if table is None or "words" not in table.columns:
        return {}
    words, bounds = table["words"].to_list(), features.offsets.tolist()
    return {
        item_id: list(dict.fromkeys(word for line in words[bounds[place] : bounds[place + 1]] for word in line))
        for place, item_id in enumerate(features.item_ids)
        if bounds[place + 1] > bounds[place]
    }


def sample_histories(run: Run, base: Base) -> list[list[int]]:
    """Ragged of the log (rows, oldest first), or drawn ones where the log is not there."""
    try:
        log = read_interactions(run.data)
    except InputError:
        drawn: list[list[int]] = np.random.default_rng(0).integers(0, len(base), (QUERIES, DRAWN)).tolist()
        return drawn
    users = log["user_id"].unique(maintain_order=True)
    chosen = users.sample(min(QUERIES, len(users)), seed=0)
    taken = log.filter(pl.col("user_id").is_in(chosen.implode())).sort("order", maintain_order=True)
    named = taken.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    histories = [[row for item_id in history if (row := base.rows.get(item_id)) is not None] for history in named]
    return [history for history in histories if history]
