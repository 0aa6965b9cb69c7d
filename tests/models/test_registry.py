"""Models by name, and a model of another package that is found by its entry point."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from plugins import plugin_environment

from msm4sr.models.base import Model
from msm4sr.models.registry import MODELS, register_model

QUICK = ("--set", "finetune.epochs=1", "--set", "model.dim=8")


def test_models_are_listed_with_ours_first_and_non_learned_baselines_last() -> None:
    assert next(iter(MODELS)) == "msm4sr"
    assert list(MODELS)[-2:] == ["itemknn", "popularity"]
    assert list(MODELS)[1:-2] == sorted(list(MODELS)[1:-2])


def test_names_are_known_without_importing_a_model_and_are_those_that_register() -> None:
    assert sorted(MODELS.names()) == sorted(MODELS)
    code = "import sys; from msm4sr.models.registry import MODELS; print(len(MODELS.names()), 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(len(MODELS)), "False"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_declares_what_lists_and_tables_show(name: str) -> None:
    model = MODELS[name]
    assert model.Config.model_fields["name"].default == name
    assert model.label
    assert model.label.lower().replace("-", "") == name
    assert set(model.tasks) <= {"pretrain", "finetune"}


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two entries named 'sasrec'"):
        register_model("sasrec")(Model)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return plugin_environment(tmp_path)


def test_a_model_of_another_package_runs_and_is_compared(tmp_path: Path, environment: dict[str, str]) -> None:
    def call(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "msm4sr", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    data = tmp_path / "ring"  # after item i comes item i + 1
    data.mkdir()
    events = [(f"u{u}", f"i{(u + step) % 12}", step) for u in range(20) for step in range(6)]
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        data / "interactions.parquet"
    )
    call("run", data, "--model", "markov", "--out", tmp_path / "run", *QUICK)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["model"] == "markov"
    assert re.search(r"\bi\d+\b", call("recommend", tmp_path / "run", "--user", "u3"))
    (tmp_path / "two.yaml").write_text("rows: [{name: markov, model: markov}, {name: popularity, model: popularity}]")
    assert "markov" in call("compare", tmp_path / "two.yaml", "--data", data, "--out", tmp_path / "grid", *QUICK)
    assert (tmp_path / "grid" / "cells" / "ring" / "markov" / "seed-0" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [("import no_such_module", "No module named"), ("", "the module registers no model of that name")],
)
def test_a_broken_package_is_named(tmp_path: Path, environment: dict[str, str], code: str, message: str) -> None:
    broken = tmp_path / "site" / "msm4sr_examples"  # before the example on the path
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "markov.py").write_text(code)
    command = [sys.executable, "-m", "msm4sr", "run", tmp_path, "--model", "markov", "--out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: entry point markov = msm4sr_examples.markov of msm4sr.models: " + message)
