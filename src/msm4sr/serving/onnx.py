"""A model for other programs: its two encoders as ONNX, and the catalogue that they make.

items.onnx            rows of each modality (and ID vectors) -> items, keys
histories.onnx        the items of histories -> queries
catalogue.safetensors items [N, M + 1, D], keys [N, M * D]: what items.onnx gives for the run's items
items.json            their ids and titles, in row order
about.json            the modalities, in the order of the inputs, and the longest history

A score is queries @ keys.T, as in equation (12). What is ragged in the model is padded here: rows [n, S, D_in] and
lengths [n] (0: the item lacks the modality), histories [B, L, M + 1, D] and lengths [B].
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from msm4sr.data.files import new_folder
from msm4sr.errors import InputError
from msm4sr.experiments.run import open_run
from msm4sr.models.layers import ItemEncoder
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.models.registry import from_pretrained

OPSET = 18


class PaddedItems(nn.Module):
    """Equations 3 to 5 over padded rows, and [F + E]; what has no weight is left out by -inf."""

    def __init__(self, model: MSM4SR) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *rows_and_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """ids [n, D]; rows [n, S, D_in] and lengths [n] of each modality -> items [n, M + 1, D], keys [n, M * D]."""
        content = []
        for place, name in enumerate(self.model.scored):
            rows, lengths = rows_and_lengths[2 * place], rows_and_lengths[2 * place + 1]
            encoder = self.model.encoders[name]
            assert isinstance(encoder, ItemEncoder)
            content.append(_encode(encoder, rows, lengths))
        items = torch.stack([*content, ids], dim=1)
        return items, self.model.scoring_vectors(items)


def _encode(encoder: ItemEncoder, rows: Tensor, lengths: Tensor) -> Tensor:
    inner = encoder.pooling.inner(rows)
    scores = encoder.pooling.outer(inner.relu() if encoder.pooling.activation == "relu" else inner).squeeze(2)  # [n, S]
    there = torch.arange(rows.shape[1]) < lengths.unsqueeze(1)  # [n, S]
    alpha = scores.masked_fill(~there, -1e30).softmax(dim=1) * there
    pooled = (alpha.unsqueeze(1) @ rows).squeeze(1)  # [n, D_in]
    encoded: Tensor = encoder.experts(pooled)
    return torch.where((lengths > 0).unsqueeze(1), encoded, encoder.missing)


class PaddedHistories(nn.Module):
    """The Transformer over the items of histories."""

    def __init__(self, model: MSM4SR) -> None:
        super().__init__()
        self.model = model

    def forward(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, M + 1, D], oldest first and padded on the right, and lengths [B] >= 1 -> queries [B, M * D]."""
        rows = torch.arange(histories.shape[0] * histories.shape[1]).view(histories.shape[:2])
        return self.model.encode_last(rows, lengths, histories.flatten(0, 1))


def export_onnx(run: str | Path, out: Path) -> list[Path]:
    """Write the folder `out`, which must be new or empty; what was written.

    Raises InputError for another model than msm4sr, and where onnxscript is missing.
    """
    opened = open_run(Path(run))
    model = from_pretrained(opened.folder / "model")
    if not isinstance(model, MSM4SR):
        raise InputError(f"{run}: a model {type(model).__name__}; msm4sr alone is exported")
    with new_folder(out) as folder, torch.inference_mode():
        catalogue = model.encode_items()
        tensors = {"items": catalogue, "keys": model.scoring_vectors(catalogue)}
        save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "catalogue.safetensors")
        shutil.copy(opened.folder / "model" / "items.json", folder / "items.json")
        _export_items(model, folder / "items.onnx")
        _export_histories(model, catalogue, folder / "histories.onnx")
        about = {"modalities": model.scored, "max_history": model.max_history, "run": str(run)}
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return sorted(out.iterdir())


def _export_items(model: MSM4SR, file: Path) -> None:
    n, some = torch.export.Dim("n"), 3
    rows: list[Tensor] = []
    shapes: list[Any] = [{0: n}]
    names = ["ids"]
    for name in model.scored:
        rows += [torch.randn(4, some, model.content_rows(name).vectors.shape[1]), torch.tensor([1, some, 0, 2])]
        shapes += [{0: n, 1: torch.export.Dim(f"rows_{name}")}, {0: n}]
        names += [f"{name}_rows", f"{name}_lengths"]
    ids = torch.randn(4, model.config.dim)
    _export(PaddedItems(model), (ids, *rows), (shapes[0], tuple(shapes[1:])), names, ["items", "keys"], file)


def _export_histories(model: MSM4SR, catalogue: Tensor, file: Path) -> None:
    histories = catalogue[torch.arange(6) % len(catalogue)].view(2, 3, *catalogue.shape[1:]).clone()
    length = torch.export.Dim("length", max=model.max_history)
    batch = torch.export.Dim("batch")
    shapes = ({0: batch, 1: length}, {0: batch})
    arguments = (histories, torch.tensor([3, 2]))
    _export(PaddedHistories(model), arguments, shapes, ["histories", "lengths"], ["queries"], file)


def _export(module: nn.Module, arguments: Any, shapes: Any, inputs: list[str], outputs: list[str], file: Path) -> None:
    if find_spec("onnxscript") is None:
        raise InputError("exporting needs onnxscript; pip install 'msm4sr[onnx]'")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of a torchvision that nobody needs here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter itself does
        torch.onnx.export(
            module.eval(),
            arguments,
            str(file),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
