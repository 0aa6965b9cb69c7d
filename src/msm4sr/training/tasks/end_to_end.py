"""End to end, the paper's variant without stages: at every step the sum of both losses on the same histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.ragged import Ragged
from msm4sr.training.settings import FinetuneSettings, PretrainSettings, StageSettings
from msm4sr.training.tasks.multimodal_contrastive import PretrainStep, check_losses, pretrain_loss
from msm4sr.training.tasks.next_item import FinetuneStep, NextItemTask


@dataclass  # not frozen: Lightning Fabric cannot convert frozen dataclasses in mixed precision
class DoubleBatch:
    """The same histories twice: complete for fine-tuning, and after sequence random drop for pre-training.

    The fields are those of `Batch`; row b of the kept items [B, L'] is a part of row b of the complete ones [B, L].
    """

    items: Tensor
    targets: Tensor
    mask: Tensor
    kept_items: Tensor
    kept_targets: Tensor
    kept_mask: Tensor

    @property
    def complete(self) -> Batch:
        """The batch of fine-tuning."""
        return Batch(self.items, self.targets, self.mask)

    @property
    def kept(self) -> Batch:
        """The batch of pre-training."""
        return Batch(self.kept_items, self.kept_targets, self.kept_mask)

    @classmethod
    def of(cls, complete: Batch, kept: Batch) -> DoubleBatch:
        return cls(complete.items, complete.targets, complete.mask, kept.items, kept.targets, kept.mask)


@dataclass  # not frozen, as `DoubleBatch`
class EndToEndStep:
    """What a step of both losses reads."""

    finetuning: FinetuneStep
    pretraining: PretrainStep


class EndToEndTask(NextItemTask):
    """Minimises `finetune_loss` + `pretrain_loss`; validated as fine-tuning is.

    With several processes both means are weighted by the pairs of the complete histories.

    Raises:
        InputError: as `check_losses`.
    """

    pretraining_task: ClassVar[str] = "multimodal_contrastive"
    """The task whose loss is added."""
    model: MSM4SR

    def __init__(self, model: MSM4SR, settings: FinetuneSettings, pretraining: PretrainSettings) -> None:
        super().__init__(model, settings)
        check_losses(model, pretraining)
        self.pretraining = pretraining

    def prepare(self, parts: Sequence[DoubleBatch], rank: int, generator: torch.Generator) -> EndToEndStep:
        kept, settings = [part.kept for part in parts], self.pretraining
        pretraining = PretrainStep.of(self.model, kept, rank, settings.mixup, generator)
        pretraining = pretraining if self.limits is None else pretraining.pad(self.limits)
        return EndToEndStep(super().prepare([part.complete for part in parts], rank, generator), pretraining)

    def forward(self, step: EndToEndStep) -> Tensor:
        pretraining = pretrain_loss(self.model, step.pretraining, self.pretraining, self.gather)
        return super().forward(step.finetuning) + pretraining

    def batches(self, histories: Ragged, settings: StageSettings, rng: np.random.Generator) -> Iterator[DoubleBatch]:
        """All pairs once, complete and after sequence random drop."""
        self.prepare_sampler(histories)
        seed = int(rng.integers(2**62))
        complete, kept = (
            epoch_batches(
                histories,
                max_history=self.model.max_history,
                batch_pairs=settings.batch_pairs,
                pairs=settings.pairs,
                drop=drop,
                rng=np.random.default_rng(seed),  # the same rows for both: drops are drawn after the rows
            )
            for drop in (0.0, self.pretraining.drop)
        )
        for rows in zip(complete, kept, strict=True):
            yield DoubleBatch.of(*rows)
