"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from services import train

from msm4sr.data.toyshop import generate_toyshop

if TYPE_CHECKING:
    from postgresql import PostgreSQL
    from ray.cluster_utils import Cluster

# Cases of a property test: the same ones in each `make test`, others in each `make test-all`. None may fail because the
# machine is slow.
for profile, cases in {"fast": 25, "thorough": 200}.items():
    settings.register_profile(
        profile,
        max_examples=cases,
        derandomize=profile == "fast",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


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
def umask() -> Iterator[None]:
    """002: neither the mode that safetensors gives a file (0600) nor that of SQLite (0644) follows it."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster of two nodes, of one CPU each. A test that adds a node removes it."""
    from clusters import two_nodes  # Ray takes a second to import

    with two_nodes() as made:
        yield made


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL server. A test makes a database of its own, and leaves the server running."""
    from postgresql import BIN, postgresql

    if not BIN:
        pytest.skip("PostgreSQL is not installed")
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def toyshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 toys and 60 users, with images and texts."""
    folder = tmp_path_factory.mktemp("data") / "toyshop"
    generate_toyshop(folder, users=60, items=60)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, toyshop: Path) -> Path:
    """A finished run of msm4sr on the toy shop. Not to be changed."""
    return train(toyshop, tmp_path_factory.mktemp("runs") / "msm4sr")
