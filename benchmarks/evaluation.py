"""Full ranking with exact metrics here, and RecBole's evaluation of the same scores of the same users and items.

    python benchmarks/evaluation.py --data DATA/ml-1m                  # users, items and histories of a prepared folder
    python benchmarks/evaluation.py --users 6000 --items 30000         # generated ones

The model has a random vector for each user and item, the user's with a part of its target's, so that the metrics are
not those of chance. Each library evaluates it twice: from stored scores (a row is copied for each user) and from the
vectors, whose products are then a part of the time. Ours: `rank_targets` and the means of Recall and NDCG at 5, 10, 20
and 50 and of MRR, from the exact rank of every target, ties at their mean. RecBole's: `Trainer.evaluate`, with its own
data loader, collector (the 50 best items) and metrics Recall, NDCG, MRR and Hit at the same numbers. The seen items are
included by RecBole's evaluation of sequential models and excluded by that of all others. Not timed: reading, sorting
and exporting data, creating model and loaders, a first evaluation. Both have the same number of threads, one runs after
the other, the best of several repeats counts. RecBole's time depends on its batch: its default and the fastest of
several are printed. Memory is what the first evaluation adds to the resident memory at its peak (Linux with glibc).

RecBole has its own environment (.venv-recbole, created on first use: some minutes, 2 GB).
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import typer
from common import Threads, describe, memory_now, memory_peak, reset_memory_peak
from parity.environment import Environment, ensure_environment, run_recbole
from parity.export import DATA, NAME, export_dataset
from torch import Tensor

from msm4sr.cli.console import handle_errors
from msm4sr.data.dataset import Dataset, load_dataset, test_targets
from msm4sr.evaluation.metrics import CUTOFFS, mean_metrics
from msm4sr.evaluation.ranking import Protocol, rank_targets
from msm4sr.models.base import Scorer
from msm4sr.ragged import Ragged

MAX_HISTORY = 50
USERS_AT_ONCE = (64, 512, 4096)  # of RecBole
DEFAULT_BATCH = 4096  # RecBole's: users of a sequential model, scores of another
KINDS: Mapping[Protocol, str] = {"seen_included": "sequential", "seen_excluded": "general"}
TOLERANCE = 1e-3  # of metrics: products of two shapes differ in their last digits, and may swap neighbours


@dataclass(frozen=True)
class Measured:
    """An evaluation."""

    seconds: float
    memory: float
    """MiB."""
    metrics: dict[str, float]


class GivenScores(Scorer):
    """A model whose scores are given: a table of them, or the vectors of users and items."""

    max_history = MAX_HISTORY

    def __init__(self, users: Tensor, items: Tensor, table: Tensor | None) -> None:
        super().__init__()
        self.users, self.items, self.table = users, items, table

    def encode_items(self) -> Tensor:
        return self.items.unsqueeze(1)

    def score(
        self, histories: Tensor, lengths: Tensor, embeddings: Tensor, item_vectors: Tensor, users: Tensor | None = None
    ) -> Tensor:
        assert users is not None
        return self.users[users] @ item_vectors.T if self.table is None else self.table[users]


def main(
    data: Annotated[Path | None, typer.Option("--data", help="A prepared folder; none: generated.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Generated users.")] = 6_000,
    items: Annotated[int, typer.Option(min=100, help="Generated items.")] = 30_000,
    length: Annotated[int, typer.Option(min=3, max=50, help="Generated items of a history.")] = 20,
    dim: Annotated[int, typer.Option(min=1, help="Dimension of the vectors.")] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Threads = 2,
    environment: Environment = Path(".venv-recbole"),
) -> None:
    torch.set_num_threads(threads)
    with handle_errors():
        python = ensure_environment(environment)
        dataset = load_dataset(data) if data else generate(users, items, length)
        print(f"# Full ranking of {dataset.n_users} users x {dataset.n_items} items, {dim}-d vectors\n\n{describe()}\n")
        user_vectors, item_vectors = random_vectors(dataset, dim)
        table = user_vectors @ item_vectors.T
        models = {
            "vectors": GivenScores(user_vectors, item_vectors, None),
            "stored scores": GivenScores(user_vectors, item_vectors, table),
        }
        report_header()
        with tempfile.TemporaryDirectory() as folder:
            export_dataset(dataset, Path(folder))
            for name, values in (("user_vectors", user_vectors), ("item_vectors", item_vectors), ("scores", table)):
                np.save(Path(folder) / f"{name}.npy", values.numpy())
            for protocol in KINDS:
                ours = {source: measure(model, dataset, protocol, repeats) for source, model in models.items()}
                theirs = measure_recbole(python, Path(folder), protocol, dataset.n_items, threads, repeats)
                for source in models:
                    report(source, protocol, ours[source], theirs[source])


def generate(users: int, items: int, length: int) -> Dataset:
    """Users with histories of `length` distinct items: an arithmetic progression modulo the number of items."""
    rng = np.random.default_rng(0)
    first, step = rng.integers(0, items, users), rng.integers(1, items // length, users)
    histories = ((first[:, None] + step[:, None] * np.arange(length)) % items).astype(np.int32)
    item_ids = [str(item) for item in range(items)]
    return Dataset(
        folder=Path("generated"),
        user_ids=[str(user) for user in range(users)],
        item_ids=item_ids,
        histories=Ragged.from_lengths(histories.ravel(), np.full(users, length)),
        items=pl.DataFrame({"item_id": item_ids}),
        dropped={},
    )


def random_vectors(dataset: Dataset, dim: int) -> tuple[Tensor, Tensor]:
    """Vectors of users and items; the target scores about three standard deviations above the other items."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(dataset.n_items, dim, generator=generator)
    targets = torch.from_numpy(test_targets(dataset).targets)
    return torch.randn(dataset.n_users, dim, generator=generator) + 3 / dim**0.5 * items[targets], items


def measure(model: Scorer, dataset: Dataset, protocol: Protocol, repeats: int) -> Measured:
    """Our evaluation."""
    targets = test_targets(dataset)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that earlier evaluations have freed
    reset_memory_peak()
    before = memory_now()
    rank_targets(model, targets, (protocol,))
    memory, seconds = memory_peak() - before, []
    for _ in range(repeats):
        began = time.perf_counter()
        ranks = rank_targets(model, targets, (protocol,))[protocol]
        metrics = mean_metrics(ranks)
        seconds.append(time.perf_counter() - began)
    return Measured(min(seconds), memory, metrics | truncated_mrr(ranks))


def truncated_mrr(ranks: npt.NDArray[np.float64]) -> dict[str, float]:
    """RecBole's: a rank beyond the cut-off counts as 0."""
    return {f"mrr@{k}": float(np.where(ranks <= k, 1 / ranks, 0).mean()) for k in CUTOFFS}


def measure_recbole(
    python: Path, folder: Path, protocol: Protocol, n_items: int, threads: int, repeats: int
) -> dict[str, dict[int, Measured]]:
    """RecBole's evaluation from vectors and from stored scores, by users at a time, its default first."""
    default = DEFAULT_BATCH if KINDS[protocol] == "sequential" else max(1, DEFAULT_BATCH // (n_items + 1))
    job = {
        "dataset": NAME,
        "kind": KINDS[protocol],
        "users_at_once": [default, *(users for users in USERS_AT_ONCE if users != default)],
        "repeats": repeats,
        "config": DATA
        | {
            "metrics": ["Recall", "NDCG", "MRR", "Hit"],
            "topk": list(CUTOFFS),
            "repeatable": protocol == "seen_included",
            "train_neg_sample_args": None,
            "MAX_ITEM_LIST_LENGTH": MAX_HISTORY,
        },
    }
    found = run_recbole(python, job, folder, threads, "evaluate_recbole.py")
    return {
        source: {int(users): Measured(**measured) for users, measured in by_users.items()}
        for source, by_users in found.items()
    }


def report_header() -> None:
    columns = [
        "msm4sr, s",
        "MiB",
        "RecBole's default, s",
        "MiB",
        "ratio",
        "its fastest batch, s",
        "ratio",
        "difference",
    ]
    print(f"| scores | seen items | {' | '.join(columns)} |\n|---|---|{'--:|' * len(columns)}", flush=True)


def report(source: str, protocol: Protocol, ours: Measured, theirs: Mapping[int, Measured]) -> None:
    """Print a row. Raises RuntimeError if metrics differ by more than rounding."""
    default = next(iter(theirs.values()))
    users = min(theirs, key=lambda users: theirs[users].seconds)
    named = {name.replace("hit", "recall"): value for name, value in default.metrics.items()}  # one relevant item
    difference = max(abs(ours.metrics[name] - value) for name, value in named.items())
    cells = [
        source,
        protocol.removeprefix("seen_"),
        f"{ours.seconds:.3f}",
        f"{ours.memory:.0f}",
        f"{default.seconds:.3f}",
        f"{default.memory:.0f}",
        f"{default.seconds / ours.seconds:.1f}",
        f"{theirs[users].seconds:.3f} ({users} users)",
        f"{theirs[users].seconds / ours.seconds:.1f}",
        f"{difference:.0e}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    if difference > TOLERANCE:
        raise RuntimeError(f"the metrics of the two libraries differ: {named} in RecBole, {ours.metrics} here")


if __name__ == "__main__":
    typer.run(main)
