"""What is exported gives PyTorch's scores, in the lines that the docs print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from services import train

from msm4sr.errors import InputError
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.serving.onnx import export_onnx
from msm4sr.serving.recommender import Recommender

pytestmark = pytest.mark.slow  # torch's exporter takes some ten seconds


def test_scores_are_those_of_pytorch(run_folder: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(run_folder)
    written = export_onnx(run_folder, tmp_path / "onnx")
    names = ["about.json", "catalogue.safetensors", "histories.onnx", "items.json", "items.onnx"]
    assert [path.name for path in written] == names
    folder = tmp_path / "onnx"
    ids = json.loads((folder / "items.json").read_text())["item_ids"]
    catalogue = load_file(folder / "catalogue.safetensors")
    histories = onnxruntime.InferenceSession(folder / "histories.onnx")
    for batch in ([[3]], [[1, 2, 3, 4, 5], [7, 8], [9]], [list(range(50))]):
        lengths = np.array([len(history) for history in batch])
        rows = np.array([history + [0] * (lengths.max() - len(history)) for history in batch])
        (queries,) = histories.run(None, {"histories": catalogue["items"][rows], "lengths": lengths})
        scores = queries @ catalogue["keys"].T
        for history, row in zip(batch, scores, strict=True):
            found = recommender.recommend([ids[item] for item in history], 60, exclude_seen=False).items
            np.testing.assert_allclose(row[[one.item for one in found]], [one.score for one in found], atol=1e-4)


def test_items_are_encoded_as_the_model_encodes_them(run_folder: Path, tmp_path: Path) -> None:
    model = Recommender.load(run_folder).model
    assert isinstance(model, MSM4SR)
    export_onnx(run_folder, tmp_path / "onnx")
    catalogue = load_file(tmp_path / "onnx" / "catalogue.safetensors")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "items.onnx")
    for items in ([0], [5, 1, 30], list(range(60))):
        inputs = {"ids": model.item_embedding.weight[items].detach().numpy()}
        for name in model.scored:
            parts = [model.content_rows(name, item).vectors.numpy() for item in items]
            padded = np.zeros((len(items), max(1, *map(len, parts), 1), parts[0].shape[1]), np.float32)
            for place, part in enumerate(parts):
                padded[place, : len(part)] = part
            inputs |= {f"{name}_rows": padded, f"{name}_lengths": np.array([len(part) for part in parts])}
        made, keys = session.run(None, inputs)
        np.testing.assert_allclose(made, catalogue["items"][items], atol=1e-4)
        np.testing.assert_allclose(keys, catalogue["keys"][items], atol=1e-4)
    assert torch.is_inference_mode_enabled() is False


def test_another_model_is_refused(toyshop: Path, tmp_path: Path) -> None:
    run = train(toyshop, tmp_path / "run", "popularity")
    with pytest.raises(InputError, match="a model Popularity; msm4sr alone is exported"):
        export_onnx(run, tmp_path / "onnx")
