"""Train a model of RecBole and record the results. Runs in RecBole's environment and does not import this package.

    .venv-recbole/bin/python benchmarks/parity/run_recbole.py JOB.json

JOB.json: {"model": "SASRec", "dataset": the name, "out": a folder, "epochs": n, "threads": n, "parts": ["validation"],
"config": RecBole's settings; "pretrain_epochs": of S3Rec; "every": epochs between two evaluations, default 1;
"weights": true to keep them}.
Writes into `out`: data.json (training rows, users, items, the target of each user); epochs.jsonl, a line per epoch
(training seconds, RecBole's own metrics); for each split and evaluated epoch the scores of all items for all users as
`scores-PART-EPOCH.npy`, float32 [users, items], numbered as exported; and weights.npz: the weights by name, and under
`users` and `items` the exported number of each of RecBole's rows 1, 2, ...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed
from scipy.sparse import dok_matrix

if not hasattr(dok_matrix, "_update"):  # RecBole's graph models call it; scipy removed it
    dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    out = Path(job["out"])
    quiet = {"show_progress": False, "state": "ERROR", "use_gpu": False, "save_dataset": False}
    config = Config(
        model=job["model"],
        dataset=job["dataset"],
        config_dict=job["config"] | quiet | {"checkpoint_dir": str(out / "saved"), "epochs": job["epochs"]},
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, validation, test = data_preparation(config, dataset)
    parts = {"validation": validation, "test": test}
    init_seed(config["seed"], config["reproducibility"])
    if job.get("pretrain_epochs"):
        pretrain(config, train, job["pretrain_epochs"], out / "pretrained.pth")
    trainer = new_trainer(config, train)
    model = trainer.model
    users = dataset.field2id_token["user_id"][1:].astype(np.int64)  # row 0 is padding; ours of theirs
    items = dataset.field2id_token["item_id"][1:].astype(np.int64)
    targets = {part: targets_of(loader, dataset) for part, loader in parts.items()}
    about = {"rows": len(train._dataset), "users": len(users), "items": len(items), "targets": targets}
    (out / "data.json").write_text(json.dumps(about))

    trainer.eval_collector.data_collect(train)
    with (out / "epochs.jsonl").open("w") as lines:
        for epoch in range(job["epochs"]):
            began = time.perf_counter()
            loss = trainer._train_epoch(train, epoch)
            seconds = time.perf_counter() - began
            record = {"epoch": epoch + 1, "seconds": seconds, "loss": loss / len(train)}
            due = (epoch + 1) % job.get("every", 1) == 0 or epoch + 1 == job["epochs"]
            for part in job["parts"] if due else ():
                scores, own = evaluate(trainer, parts[part])
                table = np.empty((len(users), len(items)), dtype=np.float32)
                for user, row in scores:
                    table[np.ix_(users[user - 1], items)] = row[:, 1:]
                np.save(out / f"scores-{part}-{epoch + 1}.npy", table)
                record[part] = {name.lower(): float(value) for name, value in own.items()}
            lines.write(json.dumps(record) + "\n")
            lines.flush()
    if job.get("weights"):
        weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
        np.savez(out / "weights.npz", users=users, items=items, **weights)


def new_trainer(config: Config, train: Any) -> Any:
    model = get_model(config["model"])(config, train._dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def pretrain(config: Config, train: Any, epochs: int, file: Path) -> None:
    """Run the first stage of S3Rec and set the second to start from `file`."""
    config["train_stage"] = "pretrain"
    trainer = new_trainer(config, train)
    for epoch in range(epochs):
        trainer._train_epoch(train, epoch)
    torch.save({"state_dict": trainer.model.state_dict()}, file)
    config["train_stage"], config["pre_model_path"] = "finetune", str(file)


def evaluate(trainer: Any, loader: Any) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """The scores that RecBole ranks (users, rows), and its metrics."""
    scores = []
    rank = trainer._full_sort_batch_eval

    def listen(batch: Any) -> Any:
        interaction, table, positive_u, positive_i = rank(batch)
        scores.append((interaction["user_id"].numpy(), table.numpy().copy()))
        return interaction, table, positive_u, positive_i

    trainer._full_sort_batch_eval = listen
    try:
        return scores, trainer.evaluate(loader, load_best_model=False)
    finally:
        trainer._full_sort_batch_eval = rank


def targets_of(loader: Any, dataset: Any) -> list[int]:
    """The target of each user 0, 1, ... as exported."""
    rows = loader._dataset.inter_feat
    user = dataset.field2id_token["user_id"][rows["user_id"].numpy()].astype(np.int64)
    item = dataset.field2id_token["item_id"][rows["item_id"].numpy()].astype(np.int64)
    return [int(i) for i in item[np.argsort(user)]]


if __name__ == "__main__":
    job_file = Path(sys.argv.pop())  # RecBole would parse it too
    main(json.loads(job_file.read_text()))
