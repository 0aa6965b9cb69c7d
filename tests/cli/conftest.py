"""A tiny toyshop, its features read once, and a finished run on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import QUICK, Cli, Trained, call

from msm4sr.data.toyshop import generate_toyshop


@pytest.fixture(scope="session")
def cli() -> Cli:
    return call


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Calls a command that must end with exit code 2; its message."""

    def message(*arguments: str | Path) -> str:
        called = call(*arguments)
        assert called.code == 2, called
        assert called.err.startswith("error: "), called
        assert "Traceback" not in called.err
        return called.err

    return message


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 toys and 60 users, with images and texts."""
    folder = tmp_path_factory.mktemp("data") / "toyshop"
    generate_toyshop(folder, users=60, items=60)
    return folder


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the features of the shop are kept; the first run of the session fills it."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shop: Path, features: Path) -> Trained:
    """A finished run of msm4sr on the shop. Not to be changed: `copy_of_run` makes a copy."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    called = call("run", shop, "--out", folder, "--features", features, *QUICK)
    assert called.code == 0, called
    return Trained(folder, called)


@pytest.fixture
def copy_of_run(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))
