"""Our LightGCN beside RecBole's, on the same split with the same hyper-parameters.

    python benchmarks/parity/lightgcn.py --data DATA/ml-100k                             # 3 seeds of 200 epochs each
    python benchmarks/parity/lightgcn.py --data DATA/ml-100k --seeds 1 --epochs 4 --every 2   # to see that it works

First RecBole's trained weights are copied into our model: the scores must agree to 1e-5. Then both are trained from
weights of the same distribution (Xavier), and each takes the epoch that validates best; what is printed is NDCG@10 of
both parts, with the mean and deviation over the seeds. All scores are ranked by our evaluation; both leave a user's own
items out. RecBole gets an environment of its own (.venv-recbole, made on first use: some minutes, 2 GB).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from environment import ensure_environment, run_recbole
from export import DATA, NAME, as_recbole_training, check_same_data, export_dataset
from report import Reached, compare, ndcg_of
from torch import nn

from msm4sr.cli.console import told
from msm4sr.data.dataset import Dataset, Targets, load_dataset, test_targets, validation_targets
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.models.baselines.lightgcn import LightGCN
from msm4sr.training.finetune import finetune

PARTS = ("validation", "test")


def main(
    data: Annotated[Path, typer.Option(help="A prepared folder.", show_default=False)],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of both.")] = 200,
    every: Annotated[int, typer.Option(min=1, help="Epochs between two validations.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of PyTorch.")] = 2,
    environment: Annotated[Path, typer.Option(help="RecBole's.")] = Path(".venv-recbole"),
) -> None:
    torch.set_num_threads(threads)
    with told():
        python = ensure_environment(environment)

        def train(seed: int) -> tuple[Reached, Reached, float]:
            settings = as_authors(epochs, every, seed)
            dataset = load_dataset(data, settings.dataset)
            ours = train_ours(dataset, settings)
            with tempfile.TemporaryDirectory() as folder:
                theirs, difference = train_theirs(python, dataset, settings, threads, Path(folder))
            return ours, theirs, difference

        compare(f"LightGCN on {data.name}, {epochs} epochs", seeds, train)


def as_authors(epochs: int, every: int, seed: int) -> RunSettings:
    """The authors' settings of the model and of its training."""
    fixed = {
        "model.hops": 3,
        "model.l2": 1e-4,
        "finetune.epochs": epochs,
        "finetune.patience": epochs,
        "finetune.max_steps": 0,
        "finetune.validate_every": every,
        "finetune.batch_pairs": 2048,
        "finetune.learning_rate": 1e-3,
        "finetune.schedule": "constant",
        "finetune.select": "ndcg@10",
        "device.accelerator": "cpu",
    }
    return resolve_settings("seed", "lightgcn", [f"{key}={value}" for key, value in fixed.items()], seed)


def as_recbole(settings: RunSettings) -> dict[str, Any]:
    """The same in RecBole's words."""
    model = settings.model.model_dump()
    return {
        "embedding_size": model["dim"],
        "n_layers": model["hops"],
        "reg_weight": model["l2"],
        "require_pow": True,  # half the squared length, as the paper has it; its default is the length
        **as_recbole_training(settings),
    }


def new_model(dataset: Dataset, settings: RunSettings) -> LightGCN:
    """Ours, with first weights as RecBole draws them."""
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


def ndcg_of_others(scores: np.ndarray, targets: Targets) -> float:
    """NDCG@10, a user's own items left out."""
    left = torch.from_numpy(scores.copy())
    histories = targets.histories
    rows = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    left[rows, histories.values.astype(np.int64)] = -torch.inf
    return ndcg_of(left.numpy(), targets.targets)


def train_ours(dataset: Dataset, settings: RunSettings) -> Reached:
    """NDCG@10 on validation and test of the epoch that validates best."""
    model = new_model(dataset, settings)
    finetune(model, dataset, settings.finetune, seed=settings.seed, device=settings.device)
    scores = scores_of(model)
    return ndcg_of_others(scores, validation_targets(dataset)), ndcg_of_others(scores, test_targets(dataset))


def train_theirs(
    python: Path, dataset: Dataset, settings: RunSettings, threads: int, folder: Path
) -> tuple[Reached, float]:
    """The same of RecBole, and how far our scores with its last weights are from its own."""
    export_dataset(dataset, folder)
    epochs, every = settings.finetune.epochs, settings.finetune.validate_every
    job = {
        "model": "LightGCN",
        "dataset": NAME,
        "epochs": epochs,
        "every": every,
        "parts": PARTS,
        "weights": True,
        "config": DATA | as_recbole(settings),
    }
    about = run_recbole(python, job, folder, threads)
    check_same_data(about, dataset, dataset.n_interactions - 2 * dataset.n_users)
    targets = {"validation": validation_targets(dataset), "test": test_targets(dataset)}
    validated = sorted({*range(every, epochs + 1, every), epochs})
    found = [
        tuple(ndcg_of_others(np.load(folder / f"scores-{part}-{epoch}.npy"), targets[part]) for part in PARTS)
        for epoch in validated
    ]
    best = max(found, key=lambda values: values[0])
    return (best[0], best[1]), difference_of(dataset, settings, folder, epochs)


def difference_of(dataset: Dataset, settings: RunSettings, folder: Path, epoch: int) -> float:
    """The largest difference between RecBole's scores and ours with its weights, own items apart."""
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
