"""Extraction shared by real processes under a launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
from PIL import Image

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.processes import launched
from msm4sr.features.extract import extract_features
from msm4sr.features.settings import FeatureSettings


def test_two_launched_processes_leave_the_store_of_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    ids = [f"i{i}" for i in range(150)]  # two chunks
    for i, name in enumerate(ids):
        Image.new("RGB", (16, 16), (i, 255 - i, i)).save(data / f"{name}.png")
    pl.DataFrame({"item_id": ids, "image": [f"{name}.png" for name in ids]}).write_parquet(data / "items.parquet")
    log = {"user_id": ["u"] * 3, "item_id": ids[:3], "position": pl.Series([0, 1, 2], dtype=pl.Int32)}
    pl.DataFrame(log).write_parquet(data / "interactions.parquet")

    pooled = FeatureSettings.model_validate({"visual": {"kind": "pooled"}})
    extract_features(load_dataset(data), tmp_path / "alone", pooled)
    run = tmp_path / "run"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "msm4sr"]
    options = ["extract", str(data), "--out", str(run), "--set", "features.visual.kind=pooled"]
    ended = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    # chunks of 128 and 22 items: the first is that of the first process, and only this process prints
    assert ended.stdout.count("shard 1/2 is done (128 items)") == 2
    assert "shard 2/2" not in ended.stdout
    assert ended.stdout.count("visual: 150 of 150 items, 150 vectors") == 1
    assert (run / "config.yaml").exists()

    alone = {path.relative_to(tmp_path / "alone"): path for path in (tmp_path / "alone").rglob("*") if path.is_file()}
    assert len(alone) == 2 * 4 + 1 + 2  # two stores, one of them with the names of its images, and two locks
    for name, path in alone.items():
        assert (run / "features" / name).read_bytes() == path.read_bytes(), name
    assert not list((run / "features").glob("*.chunks"))


def test_a_process_without_a_launcher_is_alone() -> None:
    assert launched() is None
