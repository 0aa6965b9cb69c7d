"""Whitening: the components against numpy and scipy, and what happens to a model's features when it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from msm4sr.models.whitening import CHUNK, WhitenedFeatures, Whitening, whiten
from msm4sr.ragged import Ragged


def crowded_rows(n: int = 400, dim: int = 5, seed: int = 0) -> Tensor:
    """Rows with a large common part, and far more variance in some directions than in others."""
    draw = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=draw)).Q
    sizes = torch.tensor([3.0, 1.0, 0.3, 0.1, 0.0]).repeat(dim // 5)
    return torch.randn(n, dim, generator=draw) @ torch.diag(sizes) @ rotation + 20


def make_ragged(rows: Tensor) -> Ragged:
    return Ragged(rows, torch.arange(len(rows) + 1))


@pytest.mark.parametrize("components", [1, 3, 5, 8])
def test_components_are_those_of_a_principal_component_analysis_of_nearly_unit_variance(components: int) -> None:
    rows = crowded_rows()
    white = Whitening.fit(rows, components)(rows).double().detach().numpy()
    covariance = np.cov(rows.double().numpy(), rowvar=False, bias=True)
    sizes, directions = np.linalg.eigh(covariance)
    sizes, directions = sizes[::-1][:components], directions[:, ::-1][:, :components]
    expected = (
        (rows.double().numpy() - rows.double().numpy().mean(0)) @ directions / np.sqrt(sizes + np.trace(covariance) / 5)
    )
    np.testing.assert_allclose(np.abs(white), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(white.var(0), sizes / (sizes + np.trace(covariance) / 5), atol=1e-4)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)


def test_all_components_keep_the_distances_of_full_whitening() -> None:
    rows = crowded_rows()
    covariance = torch.cov(rows.T, correction=0) + torch.trace(torch.cov(rows.T, correction=0)) / 5 * torch.eye(5)
    centred = rows - rows.mean(0)
    expected = centred @ torch.linalg.inv(covariance) @ centred.T  # the Mahalanobis product
    white = Whitening.fit(rows, 5)(rows)
    torch.testing.assert_close(white @ white.T, expected, atol=1e-3, rtol=1e-3)


def test_directions_have_one_sign_on_every_machine() -> None:
    matrix = Whitening.fit(crowded_rows(), 4).matrix
    largest = matrix.gather(0, matrix.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_rows_without_variance_are_whitened_to_zero() -> None:
    for rows in (torch.ones(3, 4), torch.zeros(0, 4)):
        white = Whitening.fit(rows, 2)(rows)
        torch.testing.assert_close(white, torch.zeros(len(rows), 2), atol=1e-3, rtol=0)


def test_a_common_offset_changes_nothing() -> None:
    rows = crowded_rows(100)
    first, second = (Whitening.fit(rows + shift, 3)(rows + shift) for shift in (0.0, 100.0))
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2)


def test_many_rows_are_compressed_in_chunks_to_half_precision() -> None:
    rows = crowded_rows(CHUNK + 10)
    kept = whiten(make_ragged(rows), 3)
    assert kept.values.dtype == torch.float16
    torch.testing.assert_close(kept.values.float(), kept.whitening(rows), rtol=1e-3, atol=1e-3)
    assert whiten(kept, 2) is kept  # not twice


def test_features_follow_the_whitening_of_another_catalogue() -> None:
    """A checkpoint brings its own: that of this catalogue is replaced, and the rows are computed again."""
    rows, others = crowded_rows(50), crowded_rows(80, seed=1)
    features = WhitenedFeatures(whiten(make_ragged(rows), 3))
    other = Whitening.fit(others, 3)
    with torch.no_grad():
        features.whitening.mean.copy_(other.mean)
        features.whitening.matrix.copy_(other.matrix)
    features.update()
    read, segments = features.read(features.locate(torch.tensor([2, 4])))
    torch.testing.assert_close(read, other(rows[[2, 4]]), rtol=1e-3, atol=1e-3)
    assert segments.items == 2
    assert torch.equal(features.prepare(others), other(others))
