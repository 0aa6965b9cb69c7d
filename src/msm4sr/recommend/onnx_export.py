"""The model of a run as ONNX, for programs without PyTorch; `README` describes the files."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim

from msm4sr.errors import InputError
from msm4sr.files import atomic_folder
from msm4sr.models.base import ContentModel, FactorizedModel, Model
from msm4sr.models.capabilities import has_content, is_factorized
from msm4sr.models.item_encoder import ItemEncoder

README = """# {model} of {run} as ONNX

- `histories.onnx` encodes histories: `embeddings` float32 [items, {m}, {d}] of the distinct items of the histories,
  `histories` int64 [batch, length], positions in `embeddings`, oldest item first, padded at the end, at most the
  latest {max_history}, and `lengths` int64 [batch], to `queries` float32 [batch, {q}].
{items}- `catalogue.safetensors` has the `embeddings` [{n}, {m}, {d}] and `item_vectors` [{n}, {q}] of the items in
  `items.json`, and the `seen_item_bias` [1].

The score of an item after a history is its item vector times the query, plus the seen-item bias (0 if the model learns
none) if the history has the item:

```python
import json
import numpy as np, onnxruntime
from safetensors.numpy import load_file

catalogue, item_ids = load_file("catalogue.safetensors"), json.load(open("items.json"))["item_ids"]
row = {{item_id: number for number, item_id in enumerate(item_ids)}}
histories = onnxruntime.InferenceSession("histories.onnx")

seen = [row[item_id] for item_id in item_ids[:3]][-{max_history}:]  # a history, oldest item first
distinct, places = np.unique(seen, return_inverse=True)
inputs = {{
    "embeddings": catalogue["embeddings"][distinct], "histories": places[None], "lengths": np.array([len(seen)])
}}
scores = catalogue["item_vectors"] @ histories.run(None, inputs)[0][0]
scores[distinct] += catalogue["seen_item_bias"]
print([item_ids[item] for item in np.argsort(-scores)[:10]])
```
"""
ITEMS = """- `items.onnx` encodes new items: {inputs}, of each
  modality the features of all items, one after another, and how many each item has, to `embeddings` float32
  [items, {m}, {d}] and `item_vectors` float32 [items, {q}].
"""


class HistoryEncoder(nn.Module):
    """Encodes histories with a factorized model."""

    def __init__(self, model: FactorizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor, histories: Tensor, lengths: Tensor) -> Tensor:
        """Rows [B, L] of embeddings [n, M, D], of which the first `lengths` [B] are read, to queries [B, Q]."""
        prefixes = self.model.encode_histories(histories, embeddings)  # [B, L, Q]
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, prefixes.shape[2])
        return prefixes.gather(1, last).squeeze(1)


class NewItemEncoder(nn.Module):
    """`ContentModel.encode_new_items`, without shapes that depend on the data."""

    def __init__(self, model: ContentModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, lengths: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features [R, D_in] of each modality and how many an item has [M, n], to embeddings and item vectors."""
        modalities = zip(self.model.content_modalities, rows, lengths, strict=True)
        content = [self.encode(*modality) for modality in modalities]
        embeddings = torch.stack([*content, torch.zeros_like(content[0])], dim=1)
        return embeddings, self.model.scoring_vectors(embeddings)

    def encode(self, modality: str, rows: Tensor, lengths: Tensor) -> Tensor:
        """Equations 3 to 5: [n, D], zeros for an item without features."""
        encoder = self.model.get_submodule(f"encoders.{modality}")
        assert isinstance(encoder, ItemEncoder)
        rows = self.model.prepare_rows(modality, rows)
        ends = lengths.cumsum(0).unsqueeze(1)  # [n, 1]
        slot = torch.arange(rows.shape[0], device=rows.device)
        own = (slot >= ends - lengths.unsqueeze(1)) & (slot < ends)  # [n, R]
        alpha = encoder.pooling.scores(rows).masked_fill(~own, -1e30).softmax(dim=1)
        return torch.where(lengths.unsqueeze(1) > 0, encoder.experts(alpha @ rows), 0)


def export_onnx(model: Model, item_ids: Sequence[str], titles: Sequence[str], out: Path, name: str) -> list[Path]:
    """Export a model in evaluation mode into a new or empty folder, completely or not at all; return the files.

    `item_ids` and `titles` are those of the model's items, `name` is that of the run. Raises InputError if the model is
    not factorized, `out` is not empty, or the exporter is not installed.
    """
    if find_spec("onnxscript") is None:
        raise InputError("the export needs the extra 'onnx': pip install 'msm4sr[onnx]'")
    kind = model.config.model_dump()["name"]
    if not is_factorized(model):
        raise InputError(f"{name}: {kind} encodes no history, so there is nothing to export")
    with atomic_folder(out) as folder:
        inputs = write_graphs(model, folder)
        with torch.inference_mode():
            embeddings = model.encode_items()
            item_vectors = model.scoring_vectors(embeddings)
            bias = torch.zeros(1) if model.seen_bias is None else model.seen_bias.reshape(1)
        item_vectors = item_vectors.clone()  # may be a view
        tensors = {"embeddings": embeddings.contiguous(), "item_vectors": item_vectors, "seen_item_bias": bias}
        (folder / "catalogue.safetensors").write_bytes(save(tensors))
        names = json.dumps({"item_ids": item_ids, "titles": titles}, ensure_ascii=False)
        (folder / "items.json").write_text(names, encoding="utf-8")
        sizes = {"m": embeddings.shape[1], "d": embeddings.shape[2], "q": item_vectors.shape[1]}
        readme = README.format(
            model=kind,
            run=name,
            items=ITEMS.format(inputs=inputs, **sizes) if inputs else "",
            n=len(item_vectors),
            max_history=model.max_history,
            **sizes,
        )
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return sorted(out.iterdir())


def write_graphs(model: FactorizedModel, folder: Path) -> str:
    """Write histories.onnx, and items.onnx of a model that encodes content; describe the inputs of the latter."""
    with torch.no_grad():
        embeddings = model.encode_items()[:7]
    batch = Dim("batch")
    length = {1: Dim("length", max=model.max_history)} if model.max_history > 1 else {}
    example = torch.arange(2 * min(3, model.max_history)).view(2, -1) % len(embeddings)
    examples = (embeddings, example, torch.tensor([2, example.shape[1]]))
    shapes: dict[str, Any] = {"embeddings": {0: Dim("items")}, "histories": {0: batch, **length}, "lengths": {0: batch}}
    names = {"input_names": list(shapes), "output_names": ["queries"]}
    _export(HistoryEncoder(model), examples, folder / "histories.onnx", shapes, **names)
    if not has_content(model):
        return ""
    dims = model.encoder_dims
    features = (torch.tensor([[3, 1]] * len(dims)), *(torch.zeros(4, dim) for dim in dims.values()))
    shapes = {"lengths": {1: Dim("items")}, "rows": tuple({0: Dim(f"{modality}_rows")} for modality in dims)}
    names = {"input_names": ["lengths", *dims], "output_names": ["embeddings", "item_vectors"]}
    _export(NewItemEncoder(model), features, folder / "items.onnx", shapes, **names)
    inputs = [f"`{modality}` float32 [rows, {dim}]" for modality, dim in dims.items()]
    return f"{', '.join(inputs)}, and `lengths` int64 [{len(dims)}, items]"


def _export(
    module: nn.Module, example: tuple[Tensor, ...], file: Path, shapes: dict[str, Any], **names: list[str]
) -> None:
    """Export a module without the progress and the warnings of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            options: dict[str, Any] = {"dynamic_shapes": shapes, "dynamo": True, "external_data": False, **names}
            torch.onnx.export(module.eval(), example, file, **options)
    finally:
        logging.disable(before)
