"""`msm4sr doctor` distinguishes a complete installation from a damaged one."""

from __future__ import annotations

from collections import namedtuple
from importlib import import_module
from importlib.metadata import PackageNotFoundError

import pytest
from calling import call
from packaging.requirements import Requirement

doctor = import_module("msm4sr.cli.doctor")  # the package has the command under this name


def test_a_complete_installation_is_ready() -> None:
    called = call("doctor")
    assert called.code == 0, called
    for found in ("python", "msm4sr", "core packages ok", "cpu", "encoder minilm ok 384-d", "1280-d", "free disk ok"):
        assert found in called.out
    assert "ready" in called.out


def test_a_core_package_of_another_version_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.1" if name == "polars" else real(name))
    called = call("doctor")
    assert called.code == 1
    assert "polars 0.1, not >=1.20" in called.out
    assert "-> pip install msm4sr" in called.out


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "optuna":
            raise PackageNotFoundError(name)
        return "999"

    monkeypatch.setattr(doctor, "version", version)
    (tune,) = [check for check in doctor.check_extras() if check.name == "extra tune"]
    assert (tune.state, tune.remedy) == ("missing", "pip install 'msm4sr[tune]'")
    assert "msm4sr tune: optuna is not installed" in tune.found


@pytest.mark.parametrize("installed", ["tensorboard", "tensorboardX", None])
def test_either_package_is_enough_for_tensorboard(monkeypatch: pytest.MonkeyPatch, installed: str | None) -> None:
    def version(name: str) -> str:
        if name == installed:
            return "999"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr("msm4sr.experiments.loggers.find_spec", lambda name: name if name == installed else None)
    (found,) = [check for check in doctor.check_extras() if check.name == "extra tensorboard"]
    assert found.state == ("ok" if installed else "missing")


def test_a_full_disk_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
    (disk,) = doctor.check_disk()
    assert disk.state == "broken"


def test_every_extra_of_the_package_for_users_is_checked() -> None:
    core = {requirement.name for requirement in doctor.requirements("")}
    assert {"torch", "polars", "typer"} <= core
    assert "aiohttp" not in core
    for extra in doctor.EXTRAS:
        assert doctor.requirements(extra), f"pyproject.toml has no extra {extra}"
        assert all(isinstance(one, Requirement) and one.name not in core for one in doctor.requirements(extra))
