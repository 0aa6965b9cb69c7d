"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from services import train

from msm4sr.data.toyshop import generate_toyshop
from msm4sr.recommend.recommender import ItemTable


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("ml-100k")`: that folder in $MSM4SR_DATA (else ../shared/data); skips where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("MSM4SR_DATA", beside))

    def folder(name: str) -> Path:
        if not (root / name / "interactions.parquet").is_file():
            pytest.skip(f"no {name} in {root}; set MSM4SR_DATA to the folder of the real data sets")
        return root / name

    return folder


@pytest.fixture
def shop(tmp_path: Path) -> ItemTable:
    """Six items; item 0 has a red picture, item 1 a broken file, item 2 a tall picture, the others none."""
    Image.new("RGB", (64, 60), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    Image.new("RGB", (400, 900), "blue").save(tmp_path / "tall.png")
    return ItemTable(
        item_ids=["cup-1", "cup-2", "pot-1", "pan-1", "jar-1", "x"],
        titles=["Red cup", "Blue cup", "Tea pot", "Frying pan", "<script>alert('jar')</script>", "x"],
        images=[["red.png"], ["broken.jpg"], ["tall.png"], [], [], []],
        folder=tmp_path,
    )


@pytest.fixture(scope="session")
def toyshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 toys and 60 users, with pictures and texts."""
    folder = tmp_path_factory.mktemp("data") / "toyshop"
    generate_toyshop(folder, users=60, items=60)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, toyshop: Path) -> Path:
    """A finished run of msm4sr on the toy shop. Not to be changed."""
    return train(toyshop, tmp_path_factory.mktemp("runs") / "msm4sr")
