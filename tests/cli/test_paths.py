"""Folders and files may have any name: characters of patterns, blanks and `=` mean nothing in a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from calling import QUICK, Cli


def test_every_step_works_in_a_folder_with_any_name(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "shops [1-3] a=b {x} * ?"
    raw, data, grid = folder / "raw", folder / "data", folder / "grid"
    assert cli("prepare", "toyshop", raw, "--csv", "--users", "60", "--items", "60").code == 0
    ids = pl.read_csv(raw / "items.csv", glob=False)["item_id"]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 4)).tolist()
    pl.DataFrame({"item_id": ids, "vector": vectors}).write_parquet(folder / "audio.parquet")
    pl.DataFrame({"customer": ["user-00001"], "age": [20]}).write_csv(raw / "users.csv")

    columns = ("--user", "customer", "--item", "sku", "--time", "date", "--users", raw / "users.csv")
    prepared = cli("prepare", "csv", raw / "log.csv", raw / "items.csv", data, "--images", raw / "photos", *columns)
    assert prepared.code == 0, prepared
    run = cli("run", data, "--out", folder / "run", "--features", f"audio={folder}/audio.parquet", *QUICK)
    assert run.code == 0, run
    assert cli("recommend", folder / "run", "--user", "user-00001").code == 0
    best = cli("run", data, "--out", folder / "best", "--model", "popularity")
    assert best.code == 0, best
    compared = cli("compare", "comparison", "--data", data, "--out", grid, "--rows", "popularity", "--rows", "itemknn")
    assert compared.code == 0, compared
    assert cli("report", grid).code == 0
