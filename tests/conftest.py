"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
