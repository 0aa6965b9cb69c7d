"""Whitening of frozen embeddings: their leading principal components, of the same size.

Shape letters: R rows of all items in one modality, D_in encoder dimension, k components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msm4sr.models.layers import ItemFeatures
from msm4sr.models.located_items import FeatureRows, Segments
from msm4sr.ragged import Ragged

CHUNK = 1 << 15  # rows that are converted at once
FIT_ROWS = 1 << 17  # rows, evenly spaced, that the components are computed from


class Whitening(nn.Module):
    """z = (x - mean) V_k / sqrt(lambda_k + c): V_k [D_in, k] the directions of largest variance lambda_k.

    It removes what all embeddings of an encoder have in common, gives rare directions the weight of common ones, and
    drops the weakest, which carry little: the item encoder is cheaper and learns the same or more. c, the mean variance
    of a direction, keeps directions with almost no variance small.

    Reference: whitening of frozen text embeddings for sequential recommendation, Zhang et al. 2024, arXiv 2402.10602.
    """

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        # parameters without a gradient: checkpoints and transferred models keep them with the weights
        self.mean = nn.Parameter(mean, requires_grad=False)  # [D_in]
        self.matrix = nn.Parameter(matrix, requires_grad=False)  # [D_in, k]

    @classmethod
    def fit(cls, rows: Tensor, components: int) -> Whitening:
        """Of `rows` [R, D_in], with k the smaller of `components` and D_in."""
        sample = rows[:: -(-len(rows) // FIT_ROWS) or 1]
        chunks = torch.split(sample, CHUNK)
        mean = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / max(1, len(sample))
        centred = (chunk.double() - mean for chunk in chunks)
        covariance = torch.stack([chunk.T @ chunk for chunk in centred]).sum(dim=0) / max(1, len(sample))
        sizes, directions = (part.flip(-1) for part in torch.linalg.eigh(covariance))  # largest first
        signs = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True)).sign()  # eigh leaves them open
        shrunk = sizes.clamp(min=0) + sizes.mean().clamp(min=1e-6)
        matrix = directions * signs * shrunk.rsqrt()
        return cls(mean.float(), matrix[:, :components].float().contiguous())

    def forward(self, rows: Tensor) -> Tensor:
        """[R, D_in] to [R, k]."""
        return F.linear(rows, self.matrix.T, -self.mean @ self.matrix)

    def as_tensor(self) -> Tensor:
        """A copy of mean and matrix: [D_in, 1 + k]."""
        return torch.cat([self.mean.unsqueeze(1), self.matrix], dim=1).detach()

    def compress(self, rows: Tensor) -> Tensor:
        """As `forward`, chunk by chunk and without gradients, as float16."""
        like = self.matrix
        result = torch.empty(len(rows), like.shape[1], dtype=torch.float16, device=like.device)
        with torch.no_grad():
            for start in range(0, len(rows), CHUNK):
                result[start : start + CHUNK] = self(rows[start : start + CHUNK].to(like))
        return result


@dataclass(frozen=True, eq=False)
class Whitened(Ragged):
    """Rows that are whitened already, float16 [R, k]."""

    whitening: Whitening
    embeddings: Tensor | None = None
    """What they were computed from [R, D_in], where the caller has it, such as in a mapped file; None: unknown."""


def whiten(rows: Ragged, components: int) -> Whitened:
    """The leading `components` of the frozen encoder's embeddings; rows that are whitened already as they are."""
    if isinstance(rows, Whitened):
        return rows
    whitening = Whitening.fit(rows.values, components)
    return Whitened(whitening.compress(rows.values), rows.offsets, whitening, rows.values)


class WhitenedFeatures(ItemFeatures):
    """The whitened embeddings of N items in one modality."""

    _applied: Tensor

    def __init__(self, rows: Whitened) -> None:
        super().__init__(rows)
        self.whitening = rows.whitening
        self._embeddings = rows.embeddings
        self.register_buffer("_applied", self.whitening.as_tensor(), persistent=False)

    @property
    def source(self) -> Ragged:
        return self.rows if self._embeddings is None else Ragged(self._embeddings, self.offsets)

    @property
    def source_dim(self) -> int:
        return len(self.whitening.mean)

    def read(self, where: FeatureRows | None = None) -> tuple[Tensor, Segments]:
        rows, segments = super().read(where)
        return rows.to(self.whitening.matrix.dtype), segments

    def prepare(self, rows: Tensor) -> Tensor:
        return self.whitening(rows)  # type: ignore[no-any-return]

    def update(self) -> None:
        """Whiten again if `whitening` was replaced by that of other items."""
        if self._embeddings is not None and not torch.equal(self._applied, self.whitening.as_tensor()):
            self.values = self.whitening.compress(self._embeddings)
            self._applied = self.whitening.as_tensor()
