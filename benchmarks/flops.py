"""Floating-point operations: counted while a step runs, and computed from shapes.

Matrix products count as executed (a multiplication and an addition for each term), forward and backward, padded slots
included. Attention with dropout multiplies full tables; the fused kernel, without dropout, computes only the half below
the diagonal of the causal mask, and its backward recomputes the scores. Element-wise work (norms, dropout, softmax,
GELU, the optimiser) does not count, so that a share of the peak is a share of what matrix products alone could reach.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from msm4sr.data.batches import Batch
from msm4sr.models.baselines.sasrec import SASRec
from msm4sr.models.item_encoder import ItemEncoder
from msm4sr.models.layers import ItemFeatures
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.models.transformer import CausalTransformer, TransformerLayer
from msm4sr.training.settings import PretrainSettings

aten = torch.ops.aten

# -- counted ---------------------------------------------------------------------------------------------------------


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, extended by the CPU's fused attention; it also counts inside `autograd.Function`."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def _attention(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    return int(sdpa_flop_count(q, k, v)) // (2 if causal else 1)


def _attention_backward(
    gradient: Any, q: Any, k: Any, v: Any, out: Any, logsumexp: Any, dropout: float, causal: bool, **_: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v)) // (2 if causal else 1)


# -- by hand: P pairs, C distinct next items, N items, R rows of features, D and Q widths ------------------------------


def pretrain_by_hand(model: MSM4SR, batch: Batch, settings: PretrainSettings) -> int:
    """Of one step of pre-training on `batch`."""
    next_items = batch.targets[batch.mask]
    items = torch.cat([batch.items.flatten(), next_items]).unique()
    pairs, columns, dim, n = len(next_items), len(next_items.unique()), model.config.dim, len(model.modalities)
    tables = {"cross": 1, "within": 3}[settings.negatives] if settings.cmcl_weight else 0
    views, contrasts = (n * n, n * (n - 1)) if model.projections else (n, n * (n - 1) // 2)
    losses = n * n * product(pairs, dim, dim) * bool(model.projections)  # equation 6, every view into every space
    losses += views * product(pairs, dim, columns) * (settings.nip_weight > 0)  # equation 7
    losses += contrasts * tables * product(pairs, dim, pairs)  # equation 9
    rows, length = batch.items.shape
    slots = _transformer(model.transformer, model.config.attention_dropout, n * rows, length)
    return slots + 3 * losses + sum(_encoder(model, a, items) for a in model.modalities)


def finetune_by_hand(model: MSM4SR | SASRec, batch: Batch) -> int:
    """Of one step of fine-tuning on `batch`, with the softmax over the complete catalogue."""
    scored = model.content_modalities if isinstance(model, MSM4SR) else ("id",)
    n_items = model.item_embedding.num_embeddings
    softmax = 3 * product(int(batch.mask.sum()), len(scored) * model.config.dim, n_items)  # equation 12, gradients
    rows, length = batch.items.shape
    slots = _transformer(model.transformer, model.config.attention_dropout, len(scored) * rows, length)
    if isinstance(model, SASRec):
        return softmax + slots
    return softmax + slots + sum(_encoder(model, a, torch.arange(n_items)) for a in scored)


def product(rows: int, inner: int, columns: int) -> int:
    """[rows, inner] times [inner, columns]."""
    return 2 * rows * inner * columns


def _transformer(transformer: CausalTransformer, attention_dropout: float, rows: int, length: int) -> int:
    """Forward and backward; the gradient of a product is two products."""
    total = 0
    for layer in transformer.layers:
        assert isinstance(layer, TransformerLayer)
        maps = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        total += 3 * sum(product(rows * length, m.in_features, m.out_features) for m in maps)
        table = product(length, layer.attention.out.in_features, length)  # all heads
        dropped = 6 * table  # scores and mixing, each with two products backward
        fused = (2 + 5) * table // 2  # backward recomputes the scores; half of each table is masked
        total += rows * (dropped if attention_dropout else fused)
    return total


def _encoder(model: MSM4SR, modality: str, items: Tensor) -> int:
    """Equations 3 to 5. Features have no gradient, so a product with them has one gradient less."""
    features, encoder = model.features[modality], model.encoders[modality]
    assert isinstance(features, ItemFeatures)
    assert isinstance(encoder, ItemEncoder)
    experts = encoder.experts
    lengths = features.offsets.diff()[items]
    rows, present, wide = int(lengths.sum()), int((lengths > 0).sum()), features.values.shape[1]
    n_experts, dim = experts.shape
    maps = product(present, wide, n_experts * dim) + product(present, wide, n_experts)
    mix = 3 * product(present, n_experts, dim)
    if rows == present:  # one row each: no pooling
        return 2 * maps + mix
    return 3 * maps + mix + 2 * product(rows, wide, 1) + 3 * product(1, dim, wide)
