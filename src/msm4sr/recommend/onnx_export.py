"""A run's model as ONNX, for programs without PyTorch.

OUT/histories.onnx       vectors of distinct items [items, M, D], histories of them [batch, length] and their lengths
                         [batch] to queries [batch, Q]
OUT/items.onnx           what the frozen encoders say of items to their vectors [items, M, D] and keys [items, Q]; of
                         the method's model alone
OUT/catalogue.safetensors    `vectors` [N, M, D] and `keys` [N, Q] of the run's items
OUT/items.json           their ids and titles, in this order
OUT/README.md            how to use them

The score of an item is its key times the query, plus the seen-item bias where the model has one and the history
holds the item. The vectors may belong to items that were added later; pass the latest `max_history` items of a history,
oldest first.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from msm4sr.errors import InputError
from msm4sr.files import atomic_folder
from msm4sr.models.base import FactorizedModel, Model
from msm4sr.models.capabilities import is_factorized
from msm4sr.models.item_encoder import ItemEncoder
from msm4sr.models.msm4sr import MSM4SR

README = """# {model} of {run} as ONNX

- `histories.onnx` makes a query of each history: `vectors` float32 [items, {m}, {d}] of the distinct items of the
  histories, `histories` int64 [batch, length], their places in it, oldest first, padded behind, at most {max_history},
  the latest, and `lengths` int64 [batch], to `queries` float32 [batch, {q}].
{items}- `catalogue.safetensors` has the `vectors` [{n}, {m}, {d}] and `keys` [{n}, {q}] of the items in `items.json`.

An item's score after a history is its key times the query{repeat}:

```python
import json
import numpy as np, onnxruntime
from safetensors.numpy import load_file

catalogue, item_ids = load_file("catalogue.safetensors"), json.load(open("items.json"))["item_ids"]
row = {{item_id: number for number, item_id in enumerate(item_ids)}}
histories = onnxruntime.InferenceSession("histories.onnx")

taken = [row[item_id] for item_id in item_ids[:3]][-{max_history}:]  # a history, oldest first
distinct, places = np.unique(taken, return_inverse=True)
told = {{"vectors": catalogue["vectors"][distinct], "histories": places[None], "lengths": np.array([len(taken)])}}
scores = catalogue["keys"] @ histories.run(None, told)[0][0]
{add}print([item_ids[item] for item in np.argsort(-scores)[:10]])
```
"""
ITEMS = """- `items.onnx` makes vectors and keys of items that came later: {inputs},
  of each modality the encoder's rows of all items, one after another, and how many of each an item has, to `vectors`
  float32 [items, {m}, {d}] and `keys` float32 [items, {q}].
"""


class HistoryEncoder(nn.Module):
    """A product model's side of the history."""

    def __init__(self, model: FactorizedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, histories: Tensor, lengths: Tensor) -> Tensor:
        """Rows [B, L] of vectors [n, M, D], the first `lengths` [B] of each read, to queries [B, Q]."""
        prefixes = self.model.encode_histories(histories, vectors)  # [B, L, Q]
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, prefixes.shape[2])
        return prefixes.gather(1, last).squeeze(1)


class NewItems(nn.Module):
    """The method's side of the item: what `encode_new_items` says, without shapes that depend on the data."""

    def __init__(self, model: MSM4SR) -> None:
        super().__init__()
        self.model = model

    def forward(self, lengths: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of each modality rows [R, D_in] and how many an item has, [M, n] of all, to vectors [n, M + 1, D] and keys
        [n, Q]."""
        parts = zip(self.model.scored, rows, lengths, strict=True)
        content = [self.encode(*part) for part in parts]
        vectors = torch.stack([*content, torch.zeros_like(content[0])], dim=1)
        return vectors, self.model.scoring_vectors(vectors)

    def encode(self, modality: str, rows: Tensor, lengths: Tensor) -> Tensor:
        """Equations 3 to 5: [n, D]."""
        encoder = self.model.encoders[modality]
        assert isinstance(encoder, ItemEncoder)
        ends = lengths.cumsum(0).unsqueeze(1)  # [n, 1]
        slot = torch.arange(rows.shape[0], device=rows.device)
        own = (slot >= ends - lengths.unsqueeze(1)) & (slot < ends)  # [n, R]
        # Of an item without rows it is no number that counts: the stand-in takes its place.
        alpha = encoder.pooling.scores(rows).masked_fill(~own, -1e30).softmax(dim=1)
        return torch.where(lengths.unsqueeze(1) > 0, encoder.experts(alpha @ rows), encoder.missing)


def export_onnx(model: Model, item_ids: Sequence[str], titles: Sequence[str], out: Path, name: str) -> list[Path]:
    """Write the model of a run as ONNX into `out`, whole or not at all; the files.

    Raises InputError: no run there, a model whose scores are no products (there is nothing to encode), `out` is not
    empty, or the package that exports is not installed.
    """
    if find_spec("onnxscript") is None:
        raise InputError("exporting needs onnxscript: pip install 'msm4sr[onnx]'")
    if not is_factorized(model):
        raise InputError(f"{name}: {model.config.model_dump()['name']} encodes no history: there is nothing to export")
    with atomic_folder(out) as folder:
        inputs = write_graphs(model, folder)
        with torch.inference_mode():
            vectors = model.encode_items()
            keys = model.scoring_vectors(vectors)
        save_file({"vectors": vectors.contiguous(), "keys": keys.contiguous()}, folder / "catalogue.safetensors")
        names = json.dumps({"item_ids": item_ids, "titles": titles}, ensure_ascii=False)
        (folder / "items.json").write_text(names, encoding="utf-8")
        sizes = {"m": vectors.shape[1], "d": vectors.shape[2], "q": keys.shape[1]}
        readme = README.format(
            model=model.config.model_dump()["name"],
            run=name,
            items=ITEMS.format(inputs=inputs, **sizes) if inputs else "",
            n=len(keys),
            repeat="" if model.seen_bias is None else ", and a number more where the history holds it",
            add="" if model.seen_bias is None else f"scores[distinct] += {float(model.seen_bias):.6g}\n",
            max_history=model.max_history,
            **sizes,
        )
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return sorted(out.iterdir())


def write_graphs(model: FactorizedModel, folder: Path) -> str:
    """histories.onnx and, of the method's model, items.onnx; what the inputs of the latter are, for people."""
    with torch.no_grad():
        vectors = model.encode_items()
    batch = Dim("batch")
    length = {1: Dim("length", max=model.max_history)} if model.max_history > 1 else {}
    example = torch.arange(2 * min(3, model.max_history)).view(2, -1) % len(vectors[:7])
    _export(
        HistoryEncoder(model),
        (vectors[:7], example, torch.tensor([2, example.shape[1]])),
        folder / "histories.onnx",
        {"vectors": {0: Dim("items")}, "histories": {0: batch, **length}, "lengths": {0: batch}},
        ["queries"],
    )
    return _export_items(model, folder / "items.onnx") if isinstance(model, MSM4SR) else ""


def _export_items(model: MSM4SR, file: Path) -> str:
    """items.onnx; what its inputs are, for people."""
    widths = {modality: model.content_rows(modality).values.shape[1] for modality in model.scored}
    lengths = torch.tensor([[3, 1]] * len(widths))
    rows = tuple(torch.zeros(4, width) for width in widths.values())
    dims = tuple({0: Dim(f"{modality}_rows")} for modality in widths)
    shapes = {"lengths": {1: Dim("items")}, "rows": dims}
    _export(NewItems(model), (lengths, *rows), file, shapes, ["vectors", "keys"], ["lengths", *widths])
    said = [f"`{modality}` float32 [rows, {width}]" for modality, width in widths.items()]
    return f"{', '.join(said)}, and `lengths` int64 [{len(widths)}, items]"


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    file: Path,
    shapes: dict[str, Any],
    outputs: Sequence[str],
    inputs: Sequence[str] | None = None,
) -> None:
    with _silence():
        torch.onnx.export(
            module.eval(),
            example,
            str(file),
            input_names=list(inputs or shapes),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
        )


@contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporter tells of its progress and of versions of operators."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
