"""Adam against PyTorch's, and against the formulas row by row; clipping of dense and sparse gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from msm4sr.training.optimizer import Adam, clip_gradients


def make_table(rows: int = 6, dim: int = 3) -> nn.Embedding:
    table = nn.Embedding(rows, dim, sparse=True)
    with torch.no_grad():
        table.weight.copy_(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)))
    return table


def take_step(table: nn.Embedding, optimizer: torch.optim.Optimizer, rows: list[int], step: int) -> None:
    """Minimise a function of these rows, which may repeat."""
    optimizer.zero_grad()
    ((table(torch.tensor(rows)) - step) ** 2).sum().backward()
    clip_gradients([table.weight], max_norm=1e9)  # coalesces
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_table_that_is_read_completely_at_every_step_moves_as_with_dense_gradients(weight_decay: float) -> None:
    table, dense = make_table(), make_table()
    dense.sparse = False
    ours = Adam([table.weight], 0.1, weight_decay)
    theirs = torch.optim.Adam([dense.weight], 0.1, weight_decay=weight_decay)
    for step in range(5):
        rows = [0, 1, 2, 3, 4, 5, step]
        take_step(table, ours, rows, step)
        take_step(dense, theirs, rows, step)
    torch.testing.assert_close(table.weight, dense.weight, atol=1e-5, rtol=1e-4)  # 0.999**step in float32


def test_rows_that_a_step_does_not_read_keep_their_values_and_moments() -> None:
    table = make_table()
    optimizer = Adam([table.weight], 0.1, 0.0)
    take_step(table, optimizer, [0, 1, 2], 0)
    before = table.weight.detach().clone()
    moments = [optimizer.state[table.weight][name].clone() for name in ("exp_avg", "exp_avg_sq")]
    take_step(table, optimizer, [1, 4], 1)
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(table.weight[kept], before[kept])
    assert not torch.isclose(table.weight[[1, 4]], before[[1, 4]]).any()
    for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        assert torch.equal(optimizer.state[table.weight][name][kept], moment[kept])


def test_a_row_moves_by_its_moments_for_as_many_steps_as_it_was_not_read() -> None:
    """One number in one row, computed by hand: read in steps 1, 2 and 5."""
    table = nn.Embedding(2, 1, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = Adam([table.weight], 0.1, 0.0)
    value, mean, square, last = 1.0, 0.0, 0.0, 0
    for step in range(1, 6):
        read = step in (1, 2, 5)
        take_step(table, optimizer, [0] if read else [1], step)
        gradient = 2 * (value - step) if read else 0.0
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        if read:
            move = 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
            value -= sum(move * (0.9 / math.sqrt(0.999)) ** j for j in range(step - last))
            last = step
        assert table.weight[0].item() == pytest.approx(value, abs=1e-5)


def test_dense_weights_are_updated_as_by_pytorch() -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = Adam(ours.parameters(), 0.01, 0.1), torch.optim.Adam(theirs.parameters(), 0.01, weight_decay=0.1)
    for step in range(3):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(step))).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_dense_and_sparse_gradients_are_clipped_together(max_norm: float) -> None:
    def gradients(sparse: bool) -> list[Tensor]:
        table, layer = make_table(), nn.Linear(3, 2)
        nn.init.ones_(layer.weight)
        table.sparse = sparse
        layer(table(torch.tensor([1, 1, 4]))).square().sum().backward()
        weights = [table.weight, layer.weight]
        if sparse:
            clip_gradients(weights, max_norm)
        else:
            nn.utils.clip_grad_norm_(weights, max_norm)
        return [w.grad.to_dense() for w in weights if w.grad is not None]

    torch.manual_seed(0)
    expected = gradients(sparse=False)
    torch.manual_seed(0)
    for ours, theirs in zip(gradients(sparse=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_rarely_read_row_goes_as_far_as_with_dense_adam() -> None:
    """Rows that are read every tenth step, with the same gradient: both move them equally fast."""
    table, dense = make_table(), make_table()
    dense.sparse = False
    start = table.weight[0].detach().clone()
    for embedding, kind in ((table, Adam([table.weight], 1e-3, 0.0)), (dense, torch.optim.Adam([dense.weight], 1e-3))):
        for step in range(1000):
            kind.zero_grad()
            embedding(torch.tensor([0 if step % 10 == 0 else 1])).sum().backward()
            clip_gradients([embedding.weight], max_norm=1e9)
            kind.step()
    ours, theirs = table.weight[0] - start, dense.weight[0] - start
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)
