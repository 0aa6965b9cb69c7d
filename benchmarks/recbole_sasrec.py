"""SASRec of this package and of RecBole: same size, settings, data and number of training pairs, one after the other.

    python benchmarks/recbole_sasrec.py --data DATA/ml-100k                # 10 epochs each
    python benchmarks/recbole_sasrec.py --data DATA/ml-100k --epochs 2     # a smoke test

RecBole has its own environment (.venv-recbole, created on first use: some minutes, 2 GB). It reads our users, items and
order; the script checks that both have the same number of training pairs and the same targets. RecBole has a row per
prefix, we have a row per window; a pair is a prefix with its next item in both. Seconds exclude evaluation and
checkpoints. Our evaluation ranks RecBole's scores after every epoch; its own NDCG@10 is compared with ours of the same
scores.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import Changes, Data, Plot, Preset, Threads, describe, matrix_peak, new_figure, save_figure
from parity.environment import Environment, ensure_environment, run_recbole
from parity.export import DATA, NAME, as_recbole_transformer, check_same_data, export_dataset
from parity.report import ndcg_of

from msm4sr.cli.console import handle_errors
from msm4sr.data.dataset import Dataset, load_dataset, training_histories, validation_targets
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.training.stages import finetune
from msm4sr.training.trainer import TrainerOptions


@dataclass(frozen=True)
class Epochs:
    """The epochs of one library, an entry each."""

    seconds: list[float]
    """Training seconds."""
    ndcg: list[float]
    """NDCG@10 on validation."""


def main(
    data: Data,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both.")] = 10,
    preset: Preset = "seed",
    changes: Changes = [],
    threads: Threads = 2,
    environment: Environment = Path(".venv-recbole"),
    out: Plot = Path("docs/images/recbole.png"),
) -> None:
    torch.set_num_threads(threads)
    with handle_errors():
        python = ensure_environment(environment)
        fixed = [f"finetune.epochs={epochs}", f"finetune.patience={epochs}", "device.accelerator=cpu"]
        settings = resolve_settings(preset, "sasrec", [*changes, *fixed])
        dataset = load_dataset(data, settings.dataset)
        pairs = int(np.maximum(np.diff(training_histories(dataset).offsets) - 1, 0).sum())
        print(f"# SASRec on {data.name}: {epochs} epochs of {pairs} pairs, preset {preset}", *changes, sep=", ")
        print(f"\n{describe()}\n", flush=True)
        peaks = [matrix_peak()]
        ours = train_ours(dataset, settings)
        peaks.append(matrix_peak())
        with tempfile.TemporaryDirectory() as folder:
            theirs, difference = train_theirs(python, dataset, settings, threads, pairs, Path(folder))
        peaks.append(matrix_peak())
        report({"msm4sr": ours, "RecBole": theirs}, pairs)
        shown = ", ".join(f"{peak / 1e9:.0f}" for peak in peaks)
        print(f"\nFloat32 matrix-product peak before, between and after: {shown} GFLOP/s.")
        print(f"RecBole's NDCG@10 and ours of the same scores differ by {difference:.1e} at most.")
        plot({"msm4sr": ours, "RecBole": theirs}, out)


def train_ours(dataset: Dataset, settings: RunSettings) -> Epochs:
    records = finetune(
        build_model(settings, dataset, {}),
        dataset,
        settings.finetune.model_copy(update={"validate_every": 1, "max_steps": 0}),
        TrainerOptions(seed=settings.seed, device=settings.device),
    )
    return Epochs([r.seconds for r in records], [r.validation["ndcg@10"] for r in records])


def train_theirs(
    python: Path, dataset: Dataset, settings: RunSettings, threads: int, pairs: int, folder: Path
) -> tuple[Epochs, float]:
    """RecBole's epochs, ranked by our evaluation, and the largest difference from its own NDCG@10."""
    export_dataset(dataset, folder)
    epochs = settings.finetune.epochs
    job = {
        "model": "SASRec",
        "dataset": NAME,
        "epochs": epochs,
        "parts": ["validation"],
        "config": DATA | as_recbole_transformer(settings),
    }
    about = run_recbole(python, job, folder, threads)
    check_same_data(about, dataset, pairs)
    records = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    targets = validation_targets(dataset).targets
    ndcg = [ndcg_of(np.load(folder / f"scores-validation-{n}.npy"), targets) for n in range(1, epochs + 1)]
    own = [record["validation"]["ndcg@10"] for record in records]
    return Epochs([r["seconds"] for r in records], ndcg), float(np.abs(np.subtract(own, ndcg)).max())


def report(runs: dict[str, Epochs], pairs: int) -> None:
    print("| library | speed | median epoch | training, s | best validation N@10 | after epoch | after s |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    speeds = {}
    for name, run in runs.items():
        best = int(np.argmax(run.ndcg))
        speeds[name] = pairs * len(run.seconds) / sum(run.seconds)
        print(
            f"| {name} | {speeds[name]:.0f} pairs/s | {pairs / np.median(run.seconds):.0f} pairs/s "
            f"| {sum(run.seconds):.1f} | {run.ndcg[best]:.4f} | {best + 1} | {sum(run.seconds[: best + 1]):.1f} |"
        )
    ours, theirs = speeds.values()
    print(f"\nOur pairs/s over theirs: {ours / theirs:.1f}.")


def plot(runs: dict[str, Epochs], file: Path) -> None:
    """Validation NDCG@10 by seconds of training."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name, run in runs.items():
        axes.plot(np.cumsum(run.seconds), run.ndcg, "o-", markersize=3, label=f"SASRec, {name}")
    axes.set(xlabel="seconds of training", ylabel="validation NDCG@10", xscale="log", ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, file)


if __name__ == "__main__":
    typer.run(main)
