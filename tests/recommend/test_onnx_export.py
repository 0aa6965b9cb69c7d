"""ONNX Runtime gives what PyTorch gives."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from builders import make_model, wrong_modes
from services import train

from msm4sr.errors import InputError
from msm4sr.experiments.loading import export_run
from msm4sr.models.base import FactorizedModel
from msm4sr.models.registry import MODELS, from_pretrained
from msm4sr.ragged import Ragged
from msm4sr.recommend.onnx_export import export_onnx, write_graphs

PRODUCTS = [name for name in MODELS if isinstance(make_model(name), FactorizedModel)]


GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "onnx.md"
EXPORT = "shop-onnx"  # the folder of the export in the guide


def lines_of(page: Path) -> str:
    """The Python on a page that reads an export."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if ".onnx" in code)
    return str(code)


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", PRODUCTS)
def test_histories_of_any_number_and_length_score_as_in_pytorch(name: str, tmp_path: Path) -> None:
    model = make_model(name).eval()
    write_graphs(model, tmp_path)
    graph = session(tmp_path / "histories.onnx")
    with torch.no_grad():
        embeddings = model.encode_items()
        item_vectors = model.scoring_vectors(embeddings)
        for wanted in ([1], [3], [1, 4, 2], [50, 1]):
            lengths = [min(length, model.max_history) for length in wanted]
            rows = torch.randint(0, model.n_items, (len(lengths), max(lengths)))
            expected = model.score(rows, torch.tensor(lengths), embeddings, item_vectors)
            distinct, places = rows.unique(return_inverse=True)
            inputs = {"embeddings": embeddings[distinct], "histories": places, "lengths": torch.tensor(lengths)}
            (queries,) = graph.run(None, {name: array.numpy() for name, array in inputs.items()})
            np.testing.assert_allclose(queries @ item_vectors.numpy().T, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("whiten", [0, 3])
def test_new_items_are_encoded_as_in_pytorch_whatever_they_lack(whiten: int, tmp_path: Path) -> None:
    model = make_model("msm4sr", whiten=whiten).eval()
    write_graphs(model, tmp_path)
    graph = session(tmp_path / "items.onnx")
    for counts in (
        {"text": [2, 0, 1], "visual": [1, 3, 0]},
        {"text": [1], "visual": [0]},
        {"text": [0], "visual": [5]},
    ):
        features = {
            name: Ragged(torch.randn(sum(lengths), model.encoder_dims[name]), torch.tensor([0, *lengths]).cumsum(0))
            for name, lengths in counts.items()
        }
        inputs = {name: rows.values.numpy() for name, rows in features.items()}
        inputs["lengths"] = np.array([counts[name] for name in model.content_modalities])
        encoded, item_vectors = graph.run(None, inputs)
        with torch.no_grad():
            expected = model.encode_new_items(features)
            np.testing.assert_allclose(encoded, expected.numpy(), atol=1e-4)
            np.testing.assert_allclose(item_vectors, model.scoring_vectors(expected).numpy(), atol=1e-4)


def test_an_exported_run_ranks_as_the_run_by_the_lines_of_its_readme(
    run_folder: Path, tmp_path: Path, umask: None
) -> None:
    files = export_run(run_folder, tmp_path / EXPORT)
    assert not wrong_modes(tmp_path)
    assert [file.name for file in files] == [
        "README.md",
        "catalogue.safetensors",
        "histories.onnx",
        "items.json",
        "items.onnx",
    ]
    printed = [
        subprocess.run(
            [sys.executable, "-c", lines_of(page)], cwd=cwd, capture_output=True, text=True, check=True
        ).stdout
        for page, cwd in ((tmp_path / EXPORT / "README.md", tmp_path / EXPORT), (GUIDE, tmp_path))
    ]
    model = from_pretrained(run_folder / "model")
    item_ids = json.loads((tmp_path / EXPORT / "items.json").read_text())["item_ids"]
    with torch.no_grad():
        embeddings = model.encode_items()
        scores = model.score(
            torch.tensor([[0, 1, 2]]), torch.tensor([3]), embeddings, model.scoring_vectors(embeddings)
        )
    best = [item_ids[item] for item in scores[0].argsort(descending=True)[:10]]
    assert [ast.literal_eval(lines) for lines in printed] == [best, best]


def test_a_model_without_vectors_and_a_full_folder_are_refused(run_folder: Path, tmp_path: Path, toyshop: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match="name a new or an empty folder"):
        export_run(run_folder, tmp_path / "full")
    with pytest.raises(InputError, match="itemknn encodes no history"):
        export_run(train(toyshop, tmp_path / "itemknn", "itemknn"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_lines_of_the_readme_and_of_the_docs_add_the_seen_item_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose item vectors are its embeddings."""
    model = make_model("sasrec", seen_item_bias=True).eval()
    names = [f"i{row}" for row in range(model.n_items)]
    export_onnx(model, names, names, tmp_path / EXPORT, "run")
    with torch.no_grad():
        embeddings = model.encode_items()
        expected = model.score(torch.tensor([[0, 1, 2]]), torch.tensor([3]), embeddings, embeddings.flatten(1))[0]
        assert abs(float(model.seen_bias)) > 0.1  # type: ignore[attr-defined]
    for page, folder in ((tmp_path / EXPORT / "README.md", tmp_path / EXPORT), (GUIDE, tmp_path)):
        monkeypatch.chdir(folder)
        variables: dict[str, Any] = {}
        exec(lines_of(page), variables)
        np.testing.assert_allclose(variables["scores"], expected.numpy(), atol=1e-4, err_msg=str(page))
