"""Time RecBole's evaluation of given scores. Runs in RecBole's environment and does not import this package.

    .venv-recbole/bin/python benchmarks/parity/evaluate_recbole.py JOB.json

JOB.json: {"dataset": the name, "out": a folder, "threads": n, "kind": "sequential" (seen items included) or "general"
(excluded), "users_at_once": [n, ...], "repeats": n, "config": RecBole's settings}.
Reads from `out` user_vectors.npy and item_vectors.npy and their products scores.npy, float32 [users, items], numbered
as exported. Writes data.json: for "vectors" and "stored scores" and each number of users at a time the seconds (of the
best repeat), the MiB that the first evaluation adds to the resident memory, and the metrics. `Trainer.evaluate` is
timed: its data loader, the scores of a batch, its collector and its metrics.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import InputType, init_seed
from torch import Tensor


class GivenScores:
    """A model whose scores are given: a table of them, or the tables of the users' and the items' vectors."""

    input_type = InputType.POINTWISE
    tables: tuple[Tensor, ...]

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.weight = torch.nn.Parameter(torch.zeros(1))  # for the optimiser

    def full_sort_predict(self, interaction: Any) -> Tensor:
        rows = self.tables[0][interaction["user_id"]]
        return rows @ self.tables[1].T if len(self.tables) > 1 else rows


class Sequential(GivenScores, SequentialRecommender):
    """Evaluated like every sequential model: seen items included."""


class General(GivenScores, GeneralRecommender):
    """Evaluated like every other model: seen items excluded."""


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    model_class = Sequential if job["kind"] == "sequential" else General
    quiet = {"show_progress": False, "state": "ERROR", "use_gpu": False, "save_dataset": False}
    settings = job["config"] | quiet | {"checkpoint_dir": str(out / "saved")}
    config = Config(model=model_class, dataset=job["dataset"], config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    model = model_class(config, train._dataset)
    found: dict[str, dict[int, Any]] = {}
    for source, read in (("vectors", read_vectors), ("stored scores", read_scores)):
        model.tables = read(out, dataset)
        found[source] = {}
        for users in job["users_at_once"]:
            # The batch of a sequential model is a number of users, of another one a number of scores.
            config["eval_batch_size"] = users * (1 if job["kind"] == "sequential" else dataset.item_num)
            loader = FullSortEvalDataLoader(config, test._dataset, test._sampler)
            found[source][users] = evaluate(Trainer(config, model), loader, job["repeats"])
    (out / "data.json").write_text(json.dumps(found))


def evaluate(trainer: Trainer, loader: FullSortEvalDataLoader, repeats: int) -> dict[str, Any]:
    before = reset_memory_peak()
    trainer.evaluate(loader, load_best_model=False)
    memory = memory_status("VmHWM") - before
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        metrics = trainer.evaluate(loader, load_best_model=False)
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "memory": memory, "metrics": {k: float(v) for k, v in metrics.items()}}


def exported_numbers(dataset: Any) -> list[np.ndarray]:
    """The exported number of each of RecBole's users and items 1, 2, ...; 0 is padding."""
    return [dataset.field2id_token[name][1:].astype(np.int64) for name in ("user_id", "item_id")]


def read_vectors(out: Path, dataset: Any) -> tuple[Tensor, ...]:
    tables = zip(("user", "item"), exported_numbers(dataset), strict=True)
    vectors = (np.load(out / f"{name}_vectors.npy")[numbers] for name, numbers in tables)
    return tuple(torch.from_numpy(np.pad(rows, ((1, 0), (0, 0)))) for rows in vectors)


def read_scores(out: Path, dataset: Any) -> tuple[Tensor, ...]:
    users, items = exported_numbers(dataset)
    scores, table = np.load(out / "scores.npy", mmap_mode="r"), torch.zeros(len(users) + 1, len(items) + 1)
    for row, user in enumerate(users, start=1):
        table[row, 1:] = torch.from_numpy(scores[user][items])
    return (table,)


def reset_memory_peak() -> float:
    """Measure the peak from now on; the resident memory now, MiB."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that earlier evaluations have freed
    Path("/proc/self/clear_refs").write_text("5")
    return memory_status("VmRSS")


def memory_status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    job_file = Path(sys.argv.pop())  # RecBole would parse it too
    main(json.loads(job_file.read_text()))
