"""Run by `test_sharding.py`: Ray Train starts two workers, which train SASRec together.

python ray_workers.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

TESTS = Path(__file__).resolve().parents[1]


def train(config: dict[str, str]) -> None:
    """What each worker runs."""
    sys.path[:0] = config["path"].split(":")
    import sharded_training

    sharded_training.main(2, Path(config["folder"]), "sasrec")


if __name__ == "__main__":
    folder = sys.argv[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    path = ":".join(map(str, (TESTS / "training", TESTS)))
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": folder, "path": path},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=folder, name="ray"),
    )
    trainer.fit()
    ray.shutdown()
