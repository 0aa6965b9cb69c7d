"""The generated reference is complete: every setting, command, option and public name."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import msm4sr
from msm4sr.cli import app
from msm4sr.experiments.settings import RunSettings, _keys
from msm4sr.models.registry import MODELS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import api_reference as api  # noqa: E402
import reference  # noqa: E402


@pytest.mark.parametrize("model", list(MODELS))
def test_every_setting_of_a_model_has_a_row_with_a_description(model: str) -> None:
    page = reference.settings_page()
    section = page[page.index(f"\n## model: {model}\n") :].split("\n## ")[1]
    for name in _keys(RunSettings, model):
        (row,) = [
            line for line in (section if name.startswith("model.") else page).splitlines() if f"| `{name}`{{" in line
        ] or [""]
        cells = row.replace(r"\|", "").split("|")
        assert len(cells) == 6, name
        assert all(cell.strip() for cell in cells[2:5]), row


def test_a_setting_has_its_bounds_and_the_values_of_the_presets() -> None:
    page = reference.settings_page()
    assert "| integer ≥ 0 | `200`, `80` | Upper bound; 0 skips the stage. |" in page
    assert "| number ≥ 0, < 1 or `null` | `null` | Dropout in equation 4; null: `dropout`. |" in page
    assert "`finetune.epochs=150`" in page


def test_every_option_of_every_command_has_a_row_with_a_description() -> None:
    page = reference.command_line_page()
    sections = {part.splitlines()[0]: part for part in page.split("\n## ")[1:]}
    root = typer.main.get_command(app)
    assert {name.split()[1] for name in sections} == set(root.list_commands(SimpleNamespace(obj=None)))
    assert sections.keys() >= {"msm4sr prepare csv", "msm4sr export onnx", "msm4sr data info"}
    for name, command, _ in reference.commands():
        rows = [row.replace(r"\|", "").split("|") for row in sections[name].splitlines() if row.startswith("| `")]
        names = [cells[1] for cells in rows]
        for part in command.params:
            if part.param_type_name == "option" and part.name != "help":
                assert sum(f"`{part.opts[0]}`" in shown for shown in names) == 1, (name, part.opts)
        assert all(cells[4].strip() for cells in rows), name
    assert "| `--time-unit` | auto or s or ms" in sections["msm4sr prepare csv"]
    assert "| `--port` | int ≥ 0, ≤ 65535 | `8000` |" in sections["msm4sr serve"]


def test_every_public_name_is_documented_on_a_page_and_has_docstrings() -> None:
    documented = {api.public_name(path) for page in api.API.values() for path in page.names}
    assert documented >= {f"msm4sr.{name}" for name in msm4sr.__all__}
    assert not api.undocumented()
    pages = api.api_pages()
    assert "| [`finetune`](training.md#msm4sr.training.stages.finetune) |" in pages["index.md"]


def test_every_parameter_of_a_public_function_is_documented() -> None:
    functions = [getattr(msm4sr, name) for name in msm4sr.__all__ if inspect.isfunction(getattr(msm4sr, name))]
    functions += [getattr(msm4sr.Recommender, name) for name in ("recommend", "recommend_batch", "similar_items")]
    for function in functions:
        text = inspect.getdoc(function) or ""
        for name in inspect.signature(function).parameters:
            assert name == "self" or re.search(rf"^ +{name}: ", text, re.MULTILINE), (function.__qualname__, name)
    assert len(functions) > 10


def test_a_name_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msm4sr.Recommender.explain, "__doc__", None)
    monkeypatch.setattr(msm4sr.Item, "__doc__", None)
    assert set(api.undocumented()) == {"msm4sr.data.items.Item", "msm4sr.recommend.recommender.Recommender.explain"}


def test_records_are_listed_by_their_titles() -> None:
    page = reference.records_page(ROOT / "docs" / "adr")
    assert "- 0001: [`recommend` does not know runs](0001-recommend-does-not-know-runs.md)" in page
