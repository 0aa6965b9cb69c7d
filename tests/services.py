"""Recommenders over models that are built in the test, with an encoder that needs no network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from builders import every_input, make_model

from msm4sr.data.items import Item, Items
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import begin_run, plan_run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, train_stage
from msm4sr.features.content import ContentEncoder
from msm4sr.features.settings import FeatureSettings
from msm4sr.models.base import ContentModel, Model
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.index import VectorIndex
from msm4sr.recommend.recommender import Recommender


class HashingEncoder(ContentEncoder):
    """A row for each sentence and each image, computed from the bytes."""

    def __init__(self, dims: dict[str, int]) -> None:
        super().__init__(Path("nowhere"), FeatureSettings(), dims)

    def encode(self, items: Sequence[Item]) -> list[Item]:
        return [self._encode(item) for item in items]

    def _encode(self, item: Item) -> Item:
        sentences = [part for part in (item.title, item.text) if part]
        rows = {
            "text": [self._vector("text", sentence.encode()) for sentence in sentences],
            "visual": [self._vector("visual", image) for image in item.images if isinstance(image, bytes)],
        }
        stacked = {name: np.array(rows[name], np.float32).reshape(-1, dim) for name, dim in self.dims.items()}
        return replace(item, features=stacked, sentences=sentences)

    def _vector(self, modality: str, data: bytes) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(data)).normal(size=self.dims[modality]).astype(np.float32)


def make_catalogue(model: Model) -> Catalogue:
    """Items i0, i1, ...; the categories of item i are "even" or "odd"."""
    n = model.n_items
    items = Items(
        item_ids=[f"i{row}" for row in range(n)],
        titles=[f"Title {row}" for row in range(n)],
        texts=[f"A text of item {row}." for row in range(n)],
        categories=[("odd",) if row % 2 else ("even",) for row in range(n)],
        images=[() for _ in range(n)],
    )
    return Catalogue.of_model(model, items, [(7 * row) % 5 for row in range(n)])


def make_recommender(name: str = "msm4sr", index: VectorIndex | None = None, **changes: object) -> Recommender:
    """Over the twelve items of `every_input`."""
    model = make_model(name, every_input(), **changes).eval()
    encoder = None
    if isinstance(model, ContentModel):
        encoder = HashingEncoder(model.encoder_dims)
    return Recommender(model, make_catalogue(model), encoder, index=index)


def slow_scores(recommender: Recommender, history: Sequence[int]) -> torch.Tensor:
    """The scores that the model itself computes for the items of the run."""
    model = recommender.model
    latest = torch.tensor([list(history)[-model.max_history :]])
    with torch.no_grad():
        embeddings = model.encode_items()
        item_vectors = model.scoring_vectors(embeddings)
        return model.score(latest, torch.tensor([latest.shape[1]]), embeddings, item_vectors)[0]


def new_item(name: str = "n0", title: str | None = None, image: bytes | None = None, **more: object) -> Item:
    return Item(name, title or f"Title of {name}", images=[image] if image else [], **more)  # type: ignore


def train(data: Path, out: Path, model: str = "msm4sr", *changes: str) -> Path:
    """The stages of `msm4sr run`, quickly."""
    quick = ["finetune.epochs=1", "model.dim=16"] if model not in ("popularity", "itemknn") else []
    if model == "msm4sr":
        quick += ["pretrain.epochs=1", "features.visual.kind=pooled"]
    settings = resolve_settings("seed", model, [*quick, *changes], seed=0)
    run = plan_run(data, out, settings, "seed", out.parent / "features")
    dataset = load_run_data(run)
    network = build_model(settings, dataset, extract_stage(run, dataset))
    begin_run(run)
    for stage in ("pretrain", "finetune"):
        train_stage(run, stage, dataset, network)
    evaluate_stage(run, dataset, network)
    return out
