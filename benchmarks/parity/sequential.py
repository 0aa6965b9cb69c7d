"""SASRec, S3-Rec or SINE of this package and of RecBole, on the same split with the same settings and the same rows.

    python benchmarks/parity/sequential.py sasrec --data DATA/ml-100k                     # 3 seeds of 5 epochs
    python benchmarks/parity/sequential.py sine --data DATA/ml-100k --seeds 1 --epochs 1  # a smoke test

First RecBole's trained weights are copied into our model: the scores must agree to 1e-5. Then both are trained with one
row per prefix (`finetune.pairs=last`). Printed is NDCG@10 of the epoch that validates best, mean and deviation over the
seeds. Our evaluation ranks all scores, seen items included. A history is its last 10 items, fewer than any user of
ml-100k has: no ranked row has padding, to which RecBole's SINE attends. S3-Rec is pre-trained first: RecBole masks the
prefixes of a history one by one, we the history; ours has proportionally more epochs, for as many masked items. RecBole
has its own environment (.venv-recbole, created on first use: some minutes, 2 GB).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from environment import Environment, ensure_environment, run_recbole
from export import DATA, NAME, as_recbole_training, as_recbole_transformer, check_same_data, export_dataset
from report import PARTS, Data, Reached, Seeds, Threads, best_epoch, compare, ndcg_of
from torch import Tensor

from msm4sr.cli.console import handle_errors
from msm4sr.data.batches import pad_histories
from msm4sr.data.dataset import Dataset, Targets, test_targets, training_histories, validation_targets
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.models.base import FactorizedModel
from msm4sr.models.baselines.s3rec import S3Rec
from msm4sr.training.stages import finetune, pretrain
from msm4sr.training.trainer import TrainerOptions

HISTORY = 10


class Name(StrEnum):
    """The models that both libraries have."""

    sasrec = "sasrec"
    s3rec = "s3rec"
    sine = "sine"


THEIRS = {Name.sasrec: "SASRec", Name.s3rec: "S3Rec", Name.sine: "SINE"}


def main(
    model: Annotated[Name, typer.Argument()],
    data: Data,
    seeds: Seeds = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both.")] = 5,
    pretrain_epochs: Annotated[int, typer.Option(min=1, help="Pre-training epochs of RecBole's S3-Rec.")] = 1,
    threads: Threads = 2,
    environment: Environment = Path(".venv-recbole"),
) -> None:
    torch.set_num_threads(threads)
    with handle_errors():
        comparison = SequentialComparison(ensure_environment(environment), model, epochs, pretrain_epochs)
        compare(comparison, f"{THEIRS[model]} on {data.name}, {epochs} epochs", data, seeds)


@dataclass(frozen=True)
class SequentialComparison:
    python: Path
    """RecBole's."""
    name: Name
    epochs: int
    pretrain_epochs: int

    def settings(self, seed: int) -> RunSettings:
        fixed = {
            "model.max_history": HISTORY,
            "finetune.epochs": self.epochs,
            "finetune.patience": self.epochs,
            "finetune.max_steps": 0,
            "finetune.batch_pairs": 1024,
            "finetune.pairs": "last",
            "finetune.learning_rate": 1e-3,
            "finetune.schedule": "constant",
            "finetune.select": "ndcg@10",
            "device.accelerator": "cpu",
        }
        if self.name == Name.sine:
            fixed |= {"model.recency": False, "model.prototypes": 50, "model.interests": 4}  # RecBole's
        else:
            fixed |= {"model.dropout": 0.2, "model.attention_dropout": 0.2}
        return resolve_settings("seed", self.name, [f"{key}={value}" for key, value in fixed.items()], seed)

    def train_ours(self, dataset: Dataset, settings: RunSettings) -> Reached:
        model = build_model(settings, dataset, {})
        assert isinstance(model, FactorizedModel)
        if isinstance(model, S3Rec):
            histories = training_histories(dataset)
            prefixes = sum(min(end, HISTORY) for n in np.diff(histories.offsets) for end in range(1, n))
            epochs = round(self.pretrain_epochs * prefixes / len(histories.values))
            stage = settings.pretrain.model_copy(update={"epochs": epochs, "max_steps": 0, "validate_every": epochs})
            pretrain(model, dataset, stage, TrainerOptions(seed=settings.seed, device=settings.device))
        finetune(model, dataset, settings.finetune, TrainerOptions(seed=settings.seed, device=settings.device))
        parts = (validation_targets(dataset), test_targets(dataset))
        validation, test = (ndcg_of(scores_of(model, part), part.targets) for part in parts)
        return validation, test

    def train_theirs(self, dataset: Dataset, settings: RunSettings, folder: Path) -> tuple[Reached, float]:
        export_dataset(dataset, folder)
        job = {
            "model": THEIRS[self.name],
            "dataset": NAME,
            "epochs": self.epochs,
            "pretrain_epochs": self.pretrain_epochs if self.name == Name.s3rec else 0,
            "parts": PARTS,
            "weights": True,
            "config": DATA | as_recbole(self.name, settings, self.pretrain_epochs),
        }
        about = run_recbole(self.python, job, folder, torch.get_num_threads())
        pairs = int(np.maximum(np.diff(training_histories(dataset).offsets) - 1, 0).sum())
        check_same_data(about, dataset, pairs)
        best = best_epoch(folder, range(1, self.epochs + 1), dataset, lambda scores, of: ndcg_of(scores, of.targets))
        model = build_model(settings, dataset, {})
        assert isinstance(model, FactorizedModel)
        stored = np.load(folder / "weights.npz")
        copy = {Name.sine: sine_weights}.get(self.name, transformer_weights)
        model.load_state_dict(model.state_dict() | copy({key: torch.from_numpy(stored[key]) for key in stored}))
        theirs = np.load(folder / f"scores-validation-{self.epochs}.npy")
        return best, float(np.abs(theirs - scores_of(model, validation_targets(dataset))).max())


def as_recbole(name: Name, settings: RunSettings, pretrain_epochs: int) -> dict[str, Any]:
    """The same settings by RecBole's names."""
    model, training = settings.model.model_dump(), as_recbole_training(settings)
    common = training | {"MAX_ITEM_LIST_LENGTH": HISTORY, "train_neg_sample_args": None, "layer_norm_eps": 1e-5}
    if name == Name.sine:
        return common | {
            "embedding_size": model["dim"],
            "prototype_size": model["prototypes"],
            "interest_size": model["interests"],
            "tau_ratio": model["interest_temperature"],
            "reg_loss_ratio": model["prototype_weight"],
            "loss_type": "NLL",  # RecBole's CE omits the term that keeps the prototypes apart
        }
    sizes = common | as_recbole_transformer(settings)
    if name == Name.sasrec:
        return sizes
    weights = {key: model[key] for key in ("aap_weight", "mip_weight", "map_weight", "sp_weight")}
    attributes = {"load_col": {**DATA["load_col"], "item": ["item_id", "class"]}, "item_attribute": "class"}
    return sizes | weights | attributes | {"mask_ratio": model["mask_probability"], "pretrain_epochs": pretrain_epochs}


def scores_of(model: FactorizedModel, targets: Targets) -> np.ndarray:
    """[users, items]."""
    items, lengths = pad_histories(targets.histories, model.max_history)
    with torch.inference_mode():
        catalogue = model.eval().encode_items()
        return model.score(items, lengths, catalogue, model.scoring_vectors(catalogue)).numpy()


def item_vectors(theirs: Mapping[str, Tensor]) -> Tensor:
    """The item embedding in our order. Row 0 is padding, the last row of S3-Rec the mask."""
    order = theirs["items"]
    return torch.empty(len(order), theirs["item_embedding.weight"].shape[1]).index_copy_(
        0, order, theirs["item_embedding.weight"][1 : len(order) + 1]
    )


def transformer_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RecBole's weights of SASRec, or of a fine-tuned S3-Rec, by our names."""
    names = {"position_embedding.weight": "transformer.position.weight"}
    kinds = ("weight", "bias")
    names |= {f"LayerNorm.{kind}": f"transformer.norm.{kind}" for kind in kinds}
    modules = {
        "multi_head_attention.dense": "attention.out",
        "multi_head_attention.LayerNorm": "attention_norm",
        "feed_forward.dense_1": "feed_forward.0",
        "feed_forward.dense_2": "feed_forward.2",
        "feed_forward.LayerNorm": "feed_forward_norm",
    }
    ours = {"item_embedding.weight": item_vectors(theirs)}
    layer = 0
    while f"trm_encoder.layer.{layer}.feed_forward.dense_1.weight" in theirs:
        place, here = f"trm_encoder.layer.{layer}", f"transformer.layers.{layer}"
        for kind in kinds:
            names |= {f"{place}.{module}.{kind}": f"{here}.{own}.{kind}" for module, own in modules.items()}
            qkv = [theirs[f"{place}.multi_head_attention.{part}.{kind}"] for part in ("query", "key", "value")]
            ours[f"{here}.attention.qkv.{kind}"] = torch.cat(qkv)
        layer += 1
    return ours | {own: theirs[name] for name, own in names.items()}


def sine_weights(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RecBole's weights of SINE by our names.

    Its interests begin with the least active concept, ours with the most active. The bias of its ln2 has no effect,
    because it is the same for all concepts.
    """
    return {
        "item_embedding.weight": item_vectors(theirs),
        "prototypes.weight": theirs["C.weight"],
        "activation.inner.weight": theirs["w1"].T,
        "activation.outer": theirs["w2"].unsqueeze(0),
        "concept.weight": theirs["w3"].T,
        "next_concept.weight": theirs["w4"].unsqueeze(0),
        "importance.inner.weight": theirs["w_k_1"].flip(0).transpose(1, 2).flatten(0, 1),
        "importance.outer": theirs["w_k_2"].flip(0),
        "concept_norm.weight": theirs["ln2.weight"],
        "next_norm.weight": theirs["ln4.weight"],
        "next_norm.bias": theirs["ln4.bias"],
    }


if __name__ == "__main__":
    typer.run(main)
