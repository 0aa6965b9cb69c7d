"""Real data through other programs' formats and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from msm4sr.data.export import export_csv, export_recbole
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.schema import read_interactions, read_items
from msm4sr.data.sources.recbole import RecBole
from msm4sr.data.sources.tables import Tables

pytestmark = pytest.mark.real


def test_movielens_100k_through_recbole_and_back_is_identical(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ml-100k")
    export_recbole(folder, tmp_path / "ml-100k")
    prepare(RecBole(inter=tmp_path / "ml-100k", images=folder), tmp_path / "back")
    assert_same(folder, tmp_path / "back")
    before, after = (pl.read_parquet(path / "interactions.parquet") for path in (folder, tmp_path / "back"))
    assert before["rating"].equals(after["rating"])


def test_movielens_100k_through_csv_and_back_is_identical(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("ml-100k")
    export_csv(folder, tmp_path / "csv")
    csv = tmp_path / "csv"
    source = Tables(interactions=csv / "interactions.csv", items=csv / "items.csv", images=folder)
    prepare(source, tmp_path / "back")
    assert_same(folder, tmp_path / "back")


def assert_same(before: Path, after: Path) -> None:
    assert read_interactions(after).equals(read_interactions(before))
    items = read_items(before)
    assert read_items(after).equals(items)
    images = [path for paths in items["image"].drop_nulls() for path in paths]
    assert len(images) == 1436
    assert all((after / path).read_bytes() == (before / path).read_bytes() for path in images)
