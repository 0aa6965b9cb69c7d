"""Small data sets, features and models, shared by the tests of models, evaluation and training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from msm4sr.data.batches import Batch
from msm4sr.data.dataset import Dataset, training_histories
from msm4sr.models.base import FactorizedModel, Inputs, Model, as_tensors
from msm4sr.models.baselines.dualgnn import DualGNN, DualGNNConfig
from msm4sr.models.baselines.grcn import GRCN, GRCNConfig
from msm4sr.models.baselines.itemknn import ItemKNN, ItemKNNConfig
from msm4sr.models.baselines.lightgcn import LightGCN, LightGCNConfig
from msm4sr.models.baselines.popularity import Popularity, PopularityConfig
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig
from msm4sr.models.registry import MODELS, build
from msm4sr.ragged import Ragged
from msm4sr.training.settings import PretrainSettings
from msm4sr.training.tasks import multimodal_contrastive, mutual_information, next_item
from msm4sr.training.tasks.multimodal_contrastive import PretrainStep
from msm4sr.training.tasks.mutual_information import MaskedWindows
from msm4sr.training.tasks.next_item import FinetuneStep

TINY: dict[str, Any] = {"dim": 8, "layers": 2, "heads": 2, "inner_dim": 16, "max_history": 6}
CALM: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
SMALLER: dict[str, Any] = {"experts": 3, "prototypes": 6, "interests": 2, "attribute_dim": 4}

N_ITEMS = 12
HISTORIES = [[1, 5, 0, 7, 2], [3, 4, 10, 7], [6, 8, 9, 10, 2], [0, 1]]
"""The histories of the users of `every_input`; item 11 is in none of them."""
CATEGORIES = [[0, 2], [1], [], [0], [0, 1, 2], [2], [], [1, 2], [0], [1], [2], []]


def ragged(sequences: Sequence[Sequence[int]]) -> Ragged:
    return Ragged.from_rows(sequences, np.int32)


def make_dataset(sequences: Sequence[Sequence[int]], n_items: int) -> Dataset:
    """Users with these histories (3 items at least each, validation and test item included)."""
    names = [f"i{item}" for item in range(n_items)]
    return Dataset(
        folder=Path("nowhere"),
        user_ids=[f"u{user}" for user in range(len(sequences))],
        item_ids=names,
        histories=ragged(sequences),
        items=pl.DataFrame({"item_id": names}),
        dropped={},
    )


def random_sequences(users: int, n_items: int, longest: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_items, rng.integers(3, longest + 1)).tolist() for _ in range(users)]


def cycle_dataset(users: int, n_items: int, longest: int = 12, seed: int = 0) -> Dataset:
    """Item i + 1 follows item i for every user, from a random start."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(0, n_items, users), rng.integers(6, longest + 1, users)
    sequences = [[(start + step) % n_items for step in range(n)] for start, n in zip(starts, lengths, strict=True)]
    return make_dataset([[int(item) for item in s] for s in sequences], n_items)


def make_rows(lengths: Sequence[int], dim: int, seed: int = 0) -> Ragged:
    """Random features: item i has `lengths[i]` rows of dimension `dim`."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(sum(lengths), dim, generator=generator)
    return Ragged(vectors, torch.tensor([0, *lengths]).cumsum(0))


def make_features(n_items: int, modalities: Sequence[str] = ("text", "visual"), seed: int = 0) -> dict[str, Ragged]:
    """Zero to three rows per item, each modality missing for some items, each of another dimension."""
    rng = np.random.default_rng(seed)
    features = {}
    for number, name in enumerate(modalities):
        lengths = rng.integers(1, 4, n_items)
        lengths[number :: len(modalities) + 2] = 0
        features[name] = make_rows(lengths.tolist(), 5 + number, seed + number)
    return features


def as_ragged(sequences: Sequence[Sequence[int]]) -> Ragged:
    values = [item for sequence in sequences for item in sequence]
    return Ragged(torch.tensor(values, dtype=torch.int64), torch.tensor([0, *map(len, sequences)]).cumsum(0))


def every_input(modalities: Sequence[str] = ("text", "visual"), **changes: Any) -> Inputs:
    """Inputs of every kind for N_ITEMS items; the last one has no text, no category and no interaction."""
    features = make_features(N_ITEMS, modalities)
    if modalities:
        vectors, offsets = features[modalities[0]].values, features[modalities[0]].offsets
        features[modalities[0]] = Ragged(vectors[: offsets[-2]], torch.cat([offsets[:-1], offsets[-2:-1]]))
    everything: dict[str, Any] = {
        "n_users": len(HISTORIES),
        "histories": as_ragged(HISTORIES),
        "features": features,
        "categories": as_ragged(CATEGORIES),
        "n_categories": 3,
    }
    return Inputs(N_ITEMS, **(everything | changes))


def training_inputs(dataset: Dataset) -> Inputs:
    """Inputs of every kind for a data set without features and categories: both are random."""
    rng = np.random.default_rng(0)
    return Inputs(
        dataset.n_items,
        dataset.n_users,
        histories=as_tensors(training_histories(dataset)),
        features=make_features(dataset.n_items),
        categories=as_ragged([rng.permutation(4)[: rng.integers(0, 3)].tolist() for _ in range(dataset.n_items)]),
        n_categories=4,
    )


def tiny_config(name: str, **changes: Any) -> Any:
    """The config of a model without dropout, with the settings of TINY, CALM, SMALLER and `changes` that it has."""
    wanted, config = TINY | CALM | SMALLER | changes, MODELS[name].Config
    return config(**{key: value for key, value in wanted.items() if key in config.model_fields})


def make_model(name: str, inputs: Inputs | None = None, seed: int = 0, **changes: Any) -> Model:
    """A tiny model by name, without dropout, with weights large enough for every input to matter."""
    model = build(tiny_config(name, **changes), inputs or every_input(), seed)
    torch.manual_seed(seed)
    enlarge(model)
    return model


def make_msm4sr(
    n_items: int = 12, modalities: Sequence[str] = ("text", "visual"), seed: int = 0, **changes: Any
) -> MSM4SR:
    """A tiny model without dropout, with weights large enough for every input to matter."""
    torch.manual_seed(seed)
    config = MSM4SRConfig(**({"experts": 3} | TINY | CALM | changes))
    model = MSM4SR(config, Inputs(n_items, features=make_features(n_items, modalities, seed)))
    enlarge(model)
    return model


def make_sasrec(n_items: int = 12, seed: int = 0, **changes: Any) -> SASRec:
    torch.manual_seed(seed)
    model = SASRec(SASRecConfig(**(TINY | CALM | changes)), Inputs(n_items))
    enlarge(model)
    return model


INTERACTIONS = [[1, 5, 0], [3, 4, 11, 3], [2, 2], [7, 8, 9, 0, 1], [5, 6, 1]]
"""Training histories of five users over twelve items: item 10 is in none, items 2 and 3 are twice in one."""


def make_inputs(
    histories: Sequence[Sequence[int]] = INTERACTIONS, n_items: int = 12, modalities: Sequence[str] = ()
) -> Inputs:
    return Inputs(n_items, len(histories), as_ragged(histories), make_features(n_items, modalities))


def make_lightgcn(inputs: Inputs | None = None, seed: int = 0, **changes: Any) -> LightGCN:
    torch.manual_seed(seed)
    model = LightGCN(LightGCNConfig(**({"dim": 8} | changes)), inputs or make_inputs())
    enlarge(model)
    return model


def make_grcn(inputs: Inputs | None = None, seed: int = 0, **changes: Any) -> GRCN:
    torch.manual_seed(seed)
    model = GRCN(GRCNConfig(**({"dim": 8} | changes)), inputs or make_inputs(modalities=("text", "visual")))
    enlarge(model)
    return model


def make_dualgnn(inputs: Inputs | None = None, seed: int = 0, **changes: Any) -> DualGNN:
    torch.manual_seed(seed)
    config = DualGNNConfig(**({"dim": 8, "neighbours": 2} | changes))
    model = DualGNN(config, inputs or make_inputs(modalities=("text", "visual")))
    enlarge(model)
    return model


def make_itemknn(inputs: Inputs | None = None, **changes: Any) -> ItemKNN:
    return ItemKNN(ItemKNNConfig(**changes), inputs or make_inputs())


def make_popularity(counts: Sequence[int]) -> Popularity:
    """Popularity over a history that has item i `counts[i]` times."""
    history = [item for item, count in enumerate(counts) for _ in range(count)]
    return Popularity(PopularityConfig(), Inputs(len(counts), histories=as_ragged([history])))


def enlarge(model: torch.nn.Module) -> None:
    """Enlarge weights: those of N(0, 0.02) hide mistakes under the tolerance of a comparison, zero biases hide all."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # not what features are whitened or centred by
                weight.add_(0.3 * torch.randn_like(weight))


def make_batch(sequences: Sequence[Sequence[int]]) -> Batch:
    """One row per sequence; the target of each item but the last is the item after it."""
    width = max(len(s) for s in sequences) - 1
    items = torch.zeros(len(sequences), width, dtype=torch.int64)
    targets, mask = torch.zeros_like(items), torch.zeros_like(items, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        pairs = len(sequence) - 1
        items[row, :pairs] = torch.tensor(sequence[:-1])
        targets[row, :pairs] = torch.tensor(sequence[1:])
        mask[row, :pairs] = True
    return Batch(items, targets, mask)


def finetune_loss(model: FactorizedModel, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """The fine-tuning loss of a batch over all items."""
    return next_item.finetune_loss(model, FinetuneStep.over_all(model, [batch], 0, model.n_items, generator))


def sampled_finetune_loss(model: FactorizedModel, batch: Batch, sample: Tensor, probabilities: Tensor) -> Tensor:
    """The fine-tuning loss of a batch over the items of the batch and of a sample."""
    return next_item.finetune_loss(model, FinetuneStep.over_sample(model, [batch], 0, sample, probabilities))


def pretrain_loss(model: MSM4SR, batch: Batch, settings: PretrainSettings, generator: torch.Generator) -> Tensor:
    """The pre-training loss of a batch."""
    step = PretrainStep.of(model, [batch], 0, settings.mixup, generator)
    return multimodal_contrastive.pretrain_loss(model, step, settings)


def s3rec_loss(model: S3Rec, batch: Batch, generator: torch.Generator) -> Tensor:
    """The pre-training loss of a batch."""
    return mutual_information.s3rec_loss(model, MaskedWindows.draw(model, batch, generator))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wrong_modes(folder: Path) -> dict[str, str]:
    """The files and folders in `folder` whose modes do not follow the umask."""
    mask = os.umask(0)
    os.umask(mask)
    modes = {path: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    return {str(path): oct(mode) for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask}
