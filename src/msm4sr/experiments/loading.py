"""Load a run folder: as a `Recommender`, or to export its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from msm4sr.data.dataset import Dataset
from msm4sr.data.items import Items
from msm4sr.data.schema import ITEM_COLUMNS, read_interactions, read_items
from msm4sr.errors import InputError, command
from msm4sr.experiments.content import run_keywords
from msm4sr.experiments.model_folder import StoredItems, read_stored_items
from msm4sr.experiments.run import Run, open_run, read_metrics
from msm4sr.features.content import ContentEncoder
from msm4sr.features.settings import store_names
from msm4sr.features.store import load_features, read_rows
from msm4sr.models.base import Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.models.registry import from_pretrained
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.index import IndexedItems, IndexSettings, open_index
from msm4sr.recommend.onnx_export import export_onnx
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.scoring import make_queries
from msm4sr.recommend.users import UserHistories
from msm4sr.tensor_files import read_checksum

logger = logging.getLogger(__name__)

QUERIES = 500  # histories to measure the recall of an approximate index
RANDOM_LENGTH = 10  # items of a random history


def load_recommender(
    folder: str | Path, index: IndexSettings = IndexSettings(), strict: bool = False, data: Path | None = None
) -> Recommender:
    """The recommender of a finished run.

    Only the model folder is needed; texts and images are read from the data set if it still exists, and the histories
    of its users when one is asked for.

    Args:
        folder: the run folder.
        index: how the best items are found; an approximate index is stored beside the model, or in Qdrant.
        strict: whether unknown ids in histories and rules are errors; see `Recommender`.
        data: the prepared folder, if it is no longer where the run was made.

    Raises:
        InputError: there is no finished run, it was not fine-tuned, the weights of the model are not finite, or the
            index cannot be opened.
    """
    run = open_run(Path(folder), data=data)
    return recommender_of(run, _fine_tuned_model(run), index, strict)


def _fine_tuned_model(run: Run) -> Model:
    model = from_pretrained(run.folder / "model")
    if not run.settings.is_fine_tuned(model):
        raise InputError(
            f"{run.folder}: not fine-tuned (finetune.epochs is 0): it can be evaluated, but does not recommend; "
            "make a run with finetune.epochs above 0"
        )
    return model


def recommender_of(run: Run, model: Model, index: IndexSettings = IndexSettings(), strict: bool = False) -> Recommender:
    """The recommender of the stored model of a run; `index` and `strict` are those of `load_recommender`."""
    stored = read_stored_items(run)
    identity = (read_metrics(run.folder) or {}).get("identity", {})
    if identity.get("model.safetensors") not in (None, read_checksum(run.folder / "model" / "model.safetensors")):
        raise InputError(f"{run.folder / 'model'}: of another run; {command('evaluate', run.folder)} writes it again")
    items, keywords_of = _with_content(run, stored), identity.get("keywords", "")
    catalogue = Catalogue.of_model(model, items, stored.interactions, str(run.folder / "model"))
    found = encoder = None
    if is_factorized(model):

        def queries() -> Tensor:
            with torch.inference_mode():
                made = make_queries(model, catalogue, sample_histories(run, items))
                return torch.stack([query.vector for query in made if query.vector is not None])

        vectors, folder = catalogue.tensors.item_vectors, run.folder / "model"
        found = open_index(IndexedItems(vectors, items.item_ids, items.categories, queries, folder), index)
    if has_content(model):
        encoder = ContentEncoder(run.features, run.settings.features, model.encoder_dims, run.precomputed, keywords_of)
    users = UserHistories(partial(_run_data, run), items.item_ids)
    keywords = image_keywords(run, keywords_of)
    return Recommender(model, catalogue, encoder, run.data, found, keywords, strict, users)


def _run_data(run: Run) -> Dataset:
    from msm4sr.experiments.stages import load_run_data  # imports the trainer, which a service does not need

    return load_run_data(run)


def export_run(folder: Path, out: Path) -> list[Path]:
    """Export the model of a run as ONNX; see `recommend.onnx_export.export_onnx`."""
    run = open_run(folder)
    model = _fine_tuned_model(run).eval()
    stored = read_stored_items(run)
    return export_onnx(model, stored.item_ids, stored.titles, out, run.folder.resolve().name)


def _with_content(run: Run, stored: StoredItems) -> Items:
    """The items of the stored model, with their texts and images if the data set can be read."""
    schema = {name: ITEM_COLUMNS[name] for name in ("item_id", "text", "image")}
    try:
        known = read_items(run.data).select(*schema)
    except InputError as error:
        logger.warning("%s; the run is loaded without the texts and images of its items", error)
        known = pl.DataFrame(schema=schema)
    frame = pl.DataFrame({"item_id": stored.item_ids}).join(known, on="item_id", how="left", maintain_order="left")
    # the stored title of an item without one is its id
    named = [None if title == item_id else title for title, item_id in zip(stored.titles, stored.item_ids, strict=True)]
    categories = pl.Series("categories", stored.categories, pl.List(pl.String))
    return Items.from_frame(frame.with_columns(pl.Series("title", named, pl.String), categories))


def image_keywords(run: Run, keywords_of: str) -> Mapping[str, list[str]]:
    """Item id to the keywords of its images, best first; empty for a run without keywords, or if they are gone.

    `keywords_of` is what `run_keywords` was when the run was evaluated.
    """
    if (now := run_keywords(run)) is None:
        return {}
    if now != keywords_of:
        logger.warning("%s: features of other items or settings; keywords of images are not shown", run.features)
        return {}
    folder = run.features / store_names(run.settings.features)["visual"]
    try:
        features, table = load_features(folder), read_rows(folder)
    except InputError:
        return {}
    if table is None or "words" not in table.columns:
        return {}
    words = table["words"].to_list()
    return {
        item_id: list(dict.fromkeys(chain.from_iterable(words[start:end])))
        for item_id, (start, end) in zip(features.item_ids, pairwise(features.offsets.tolist()), strict=True)
        if end > start
    }


def sample_histories(run: Run, items: Items) -> list[list[int]]:
    """Histories of the data set (rows, oldest first), or random ones if it cannot be read or has none of the items."""
    try:
        histories = _known_histories(run.data, items)
    except InputError:
        histories = []
    return histories or np.random.default_rng(0).integers(0, len(items), (QUERIES, RANDOM_LENGTH)).tolist()


def _known_histories(data: Path, items: Items) -> list[list[int]]:
    """What some users of a data set did with the items."""
    log = read_interactions(data)
    users = log["user_id"].unique(maintain_order=True)
    chosen = users.sample(min(QUERIES, len(users)), seed=0)
    log = log.filter(pl.col("user_id").is_in(chosen.implode())).sort("order", maintain_order=True)
    named = log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    histories = [[row for item_id in history if (row := items.rows.get(item_id)) is not None] for history in named]
    return [history for history in histories if history]
