"""The operations that the benchmarks divide by seconds: what the counter sees is what shapes say."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from builders import finetune_loss, generator, make_msm4sr, make_sasrec, pretrain_loss, ragged, random_sequences
from flops import finetune_by_hand, flop_counter, pretrain_by_hand, product
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.models.baselines.sasrec import SASRec
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.models.transformer import CausalAttention
from msm4sr.objectives import next_item_cross_entropy
from msm4sr.training.settings import PretrainSettings

N_ITEMS = 40
SETTINGS = {"dim": 16, "inner_dim": 32, "max_history": 9}


def a_batch() -> Batch:
    histories = ragged(random_sequences(30, N_ITEMS, 12))
    return next(epoch_batches(histories, max_history=9, batch_pairs=100, rng=np.random.default_rng(0)))


def counted(loss: Any) -> int:
    with flop_counter() as counter:
        loss().backward()
    return int(counter.get_total_flops())


def test_the_counter_sees_inside_the_chunks_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msm4sr.objectives.SCORES_AT_ONCE", 3 * N_ITEMS)
    prefixes, items = torch.randn(10, 8, requires_grad=True), torch.randn(N_ITEMS, 8, requires_grad=True)
    loss = lambda: next_item_cross_entropy(prefixes, items, torch.arange(10))  # noqa: E731
    assert counted(loss) == 3 * product(10, 8, N_ITEMS)


@pytest.mark.parametrize(("dropout", "tables"), [(0.5, 6), (0.0, 3.5)])
def test_the_counter_sees_attention_fused_or_not(dropout: float, tables: float) -> None:
    attention, x = CausalAttention(16, 2, dropout), torch.randn(3, 64, 16, requires_grad=True)
    maps = 3 * product(3 * 64, 16, 3 * 16) + 3 * product(3 * 64, 16, 16)
    assert counted(lambda: attention(x).sum()) == maps + 3 * tables * product(64, 16, 64)


@pytest.mark.parametrize("negatives", ["cross", "within"])
@pytest.mark.parametrize(("projections", "dropout"), [("pretrain", 0.0), ("none", 0.2)])
def test_a_step_of_pretraining_counts_what_its_shapes_say(
    negatives: Literal["cross", "within"], projections: str, dropout: float
) -> None:
    model = make_msm4sr(N_ITEMS, **SETTINGS, projections=projections, attention_dropout=dropout)
    batch, settings = a_batch(), PretrainSettings(negatives=negatives)
    loss = lambda: pretrain_loss(model.train(), batch, settings, generator())  # noqa: E731
    assert counted(loss) == pytest.approx(pretrain_by_hand(model, batch, settings), rel=1e-3)


@pytest.mark.parametrize("make", [make_msm4sr, make_sasrec])
def test_a_step_of_finetuning_counts_what_its_shapes_say(make: Any) -> None:
    model: MSM4SR | SASRec = make(N_ITEMS, **SETTINGS)
    batch = a_batch()
    loss: Any = lambda: _loss(model, batch)  # noqa: E731
    assert counted(loss) == pytest.approx(finetune_by_hand(model, batch), rel=1e-3)


def _loss(model: MSM4SR | SASRec, batch: Batch) -> Tensor:
    return finetune_loss(model.train(), batch)
