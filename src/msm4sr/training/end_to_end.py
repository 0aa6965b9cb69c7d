"""End to end, the paper's variant without stages: the losses of both, summed, on the same histories at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.ragged import Ragged
from msm4sr.training.finetune import FinetuneSettings, FinetuneTask
from msm4sr.training.pretrain import PretrainSettings, PretrainTask, pretrain_loss
from msm4sr.training.trainer import StageSettings


@dataclass  # not frozen: Lightning Fabric refuses to pass frozen ones on in mixed precision
class DoubleBatch:
    """The same rows of histories twice: whole, as fine-tuning reads them, and after sequence random drop.

    The fields are those of `Batch`; a row of what is left [B, L'] is made of the same row of the whole [B, L].
    """

    items: Tensor
    targets: Tensor
    mask: Tensor
    left_items: Tensor
    left_targets: Tensor
    left_mask: Tensor

    @property
    def whole(self) -> Batch:
        return Batch(self.items, self.targets, self.mask)

    @property
    def left(self) -> Batch:
        return Batch(self.left_items, self.left_targets, self.left_mask)

    def to(self, device: torch.device) -> DoubleBatch:
        whole, left = self.whole.to(device), self.left.to(device)
        return DoubleBatch(whole.items, whole.targets, whole.mask, left.items, left.targets, left.mask)


class EndToEndTask(FinetuneTask):
    """`finetune_loss` + `pretrain_loss`, as a task; validated as fine-tuning is.

    With several processes the mean over pairs is weighted by the pairs of the whole histories in both parts.

    Raises:
        InputError: no loss of pre-training is left, see `PretrainTask`.
    """

    model: MSM4SR

    def __init__(self, model: MSM4SR, settings: FinetuneSettings, pretraining: PretrainSettings) -> None:
        super().__init__(model, settings)
        PretrainTask(model, pretraining)  # for what it refuses
        self.pretraining = pretraining

    def forward(self, batch: DoubleBatch, generator: torch.Generator) -> Tensor:  # type: ignore[override]
        pretraining = pretrain_loss(self.model, batch.left, self.pretraining, generator, self.gather)
        return super().forward(batch.whole, generator) + pretraining

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[DoubleBatch]:
        """All pairs once, and what sequence random drop leaves of them."""
        seed = int(rng.integers(2**62))

        def rows(drop: float) -> Iterator[Batch]:
            """The same rows whatever is dropped, which is drawn after them."""
            return epoch_batches(
                histories,
                max_history=self.model.max_history,
                batch_pairs=settings.batch_pairs,
                pairs=settings.pairs,
                drop=drop,
                rng=np.random.default_rng(seed),
            )

        for whole, left in zip(rows(0.0), rows(self.pretraining.drop), strict=True):
            yield DoubleBatch(whole.items, whole.targets, whole.mask, left.items, left.targets, left.mask)
