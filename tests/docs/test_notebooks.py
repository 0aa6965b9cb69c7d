"""The notebooks under docs/notebooks run from top to bottom, and show progress."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


def run(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """Execute a notebook in a folder. Returns the outputs of each code cell."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = jupytext.reads(text, fmt="md")
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.write(notebook, folder / "executed.ipynb")
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs: list[dict[str, Any]]) -> list[str]:
    """What a cell displays or prints, as text."""
    return [output.get("text") or output["data"]["text/plain"] for output in outputs if output.output_type != "error"]


@pytest.mark.slow
def test_quickstart_trains_shows_bars_and_recommends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run((NOTEBOOKS / "quickstart.md").read_text(encoding="utf-8"), tmp_path, monkeypatch)
    bars = [output for cell in outputs for output in cell if "<progress" in output.get("data", {}).get("text/html", "")]
    ended = [bar["data"]["text/plain"] for bar in bars]
    assert [text.split(" ")[0] for text in ended] == ["encoding", "encoding", "pretrain", "finetune"], ended
    assert ended[0].startswith("encoding sentences  200/200"), ended
    assert not any(output.get("name") == "stderr" for cell in outputs for output in cell), outputs
    (metrics,) = shown(outputs[4])
    assert eval(metrics)["recall@10"] > 0.2, metrics
    images = [output for output in outputs[6] if "image/png" in output.get("data", {})]
    assert len(images) >= 6


@pytest.mark.slow
def test_compare_models_reads_what_the_grid_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run((NOTEBOOKS / "compare-models.md").read_text(encoding="utf-8"), tmp_path, monkeypatch)
    assert "MSM4SR" in "".join(shown(outputs[1]))
    assert "shape: (5, " in shown(outputs[3])[0], "four systems, and the improvement"
    assert "over 30" in shown(outputs[5])[0]
    assert "MSM4SR - SASRec: " in shown(outputs[6])[0]


def test_a_bar_is_one_output_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "```python\n"
        "from msm4sr.progress import NotebookProgress\n"
        "with NotebookProgress().task('encode <b>', 4, 'items') as update:\n"
        "    for _ in range(3):\n"
        "        update(1)\n"
        "    update(1, title='encoded')\n"
        "```\n\n"
        "```python\n"
        "with NotebookProgress().task('unknown total') as update:\n"
        "    update(7, status='loss 0.5')\n"
        "```\n"
    )
    (bar,), (unknown,) = run(text, tmp_path, monkeypatch)
    assert bar["data"]["text/plain"].startswith("encoded  4/4  ")
    assert 'value="4" max="4"' in bar["data"]["text/html"]
    assert unknown["data"]["text/plain"] == "unknown total  7  loss 0.5  0 s"
    assert "value=" not in unknown["data"]["text/html"]
