"""LightGCN of this package and of RecBole, on the same split with the same hyper-parameters.

    python benchmarks/parity/lightgcn.py --data DATA/ml-100k                                  # 3 seeds of 200 epochs
    python benchmarks/parity/lightgcn.py --data DATA/ml-100k --seeds 1 --epochs 4 --every 2   # a smoke test

First RecBole's trained weights are copied into our model: the scores must agree to 1e-5. Then both are trained from
weights of the same distribution (Xavier). Printed is NDCG@10 of the epoch that validates best, mean and deviation over
the seeds. Our evaluation ranks all scores, seen items excluded. RecBole has its own environment (.venv-recbole, created
on first use: some minutes, 2 GB).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from environment import Environment, ensure_environment, run_recbole
from export import DATA, NAME, as_recbole_training, check_same_data, export_dataset
from report import PARTS, Data, Reached, Seeds, Threads, best_epoch, compare, ndcg_of
from torch import nn

from msm4sr.cli.console import handle_errors
from msm4sr.data.dataset import Dataset, Targets, test_targets, validation_targets
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.models.baselines.lightgcn import LightGCN
from msm4sr.training.stages import finetune
from msm4sr.training.trainer import TrainerOptions


def main(
    data: Data,
    seeds: Seeds = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="Epochs between two validations.")] = 5,
    threads: Threads = 2,
    environment: Environment = Path(".venv-recbole"),
) -> None:
    torch.set_num_threads(threads)
    with handle_errors():
        comparison = LightGCNComparison(ensure_environment(environment), epochs, every)
        compare(comparison, f"LightGCN on {data.name}, {epochs} epochs", data, seeds)


@dataclass(frozen=True)
class LightGCNComparison:
    python: Path
    """RecBole's."""
    epochs: int
    every: int

    def settings(self, seed: int) -> RunSettings:
        """The authors' settings of the model and of its training."""
        fixed = {
            "model.hops": 3,
            "model.l2": 1e-4,
            "finetune.epochs": self.epochs,
            "finetune.patience": self.epochs,
            "finetune.max_steps": 0,
            "finetune.validate_every": self.every,
            "finetune.batch_pairs": 2048,
            "finetune.learning_rate": 1e-3,
            "finetune.schedule": "constant",
            "finetune.select": "ndcg@10",
            "device.accelerator": "cpu",
        }
        return resolve_settings("seed", "lightgcn", [f"{key}={value}" for key, value in fixed.items()], seed)

    def train_ours(self, dataset: Dataset, settings: RunSettings) -> Reached:
        model = new_model(dataset, settings)
        finetune(model, dataset, settings.finetune, TrainerOptions(seed=settings.seed, device=settings.device))
        scores = scores_of(model)
        return ndcg_unseen(scores, validation_targets(dataset)), ndcg_unseen(scores, test_targets(dataset))

    def train_theirs(self, dataset: Dataset, settings: RunSettings, folder: Path) -> tuple[Reached, float]:
        export_dataset(dataset, folder)
        job = {
            "model": "LightGCN",
            "dataset": NAME,
            "epochs": self.epochs,
            "every": self.every,
            "parts": PARTS,
            "weights": True,
            "config": DATA | as_recbole(settings),
        }
        about = run_recbole(self.python, job, folder, torch.get_num_threads())
        check_same_data(about, dataset, dataset.n_interactions - 2 * dataset.n_users)
        validated = sorted({*range(self.every, self.epochs + 1, self.every), self.epochs})
        best = best_epoch(folder, validated, dataset, ndcg_unseen)
        return best, difference_of(dataset, settings, folder, self.epochs)


def as_recbole(settings: RunSettings) -> dict[str, Any]:
    """The same settings by RecBole's names."""
    model = settings.model.model_dump()
    return {
        "embedding_size": model["dim"],
        "n_layers": model["hops"],
        "reg_weight": model["l2"],
        "require_pow": True,  # half the squared norm, as in the paper; RecBole's default is the norm
        "repeatable": False,  # negatives are unseen items; with true, any item but the positive one
        **as_recbole_training(settings),
    }


def new_model(dataset: Dataset, settings: RunSettings) -> LightGCN:
    """Our model, with initial weights of RecBole's distribution."""
    model = build_model(settings, dataset, {})
    assert isinstance(model, LightGCN)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        for table in (model.user_embedding, model.item_embedding):
            nn.init.xavier_uniform_(table.weight)
    return model


def scores_of(model: LightGCN) -> np.ndarray:
    """[users, items]."""
    with torch.no_grad():
        users, items = model.eval().nodes()
        return (users @ items.T).numpy()


def ndcg_unseen(scores: np.ndarray, targets: Targets) -> float:
    """NDCG@10, seen items excluded."""
    unseen = torch.from_numpy(scores.copy())
    histories = targets.histories
    rows = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    unseen[rows, histories.values.astype(np.int64)] = -torch.inf
    return ndcg_of(unseen.numpy(), targets.targets)


def difference_of(dataset: Dataset, settings: RunSettings, folder: Path, epoch: int) -> float:
    """The largest difference between RecBole's scores of unseen items and ours with its weights."""
    model, stored = new_model(dataset, settings), np.load(folder / "weights.npz")
    with torch.no_grad():
        for table, name, order in (
            (model.user_embedding, "user_embedding.weight", stored["users"]),
            (model.item_embedding, "item_embedding.weight", stored["items"]),
        ):
            table.weight[torch.from_numpy(order)] = torch.from_numpy(stored[name][1:])  # row 0 is padding
    theirs = np.load(folder / f"scores-validation-{epoch}.npy")
    shown = np.isfinite(theirs)
    return float(np.abs(theirs - scores_of(model))[shown].max())


if __name__ == "__main__":
    typer.run(main)
