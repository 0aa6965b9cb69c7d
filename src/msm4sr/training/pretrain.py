"""Pre-training: content alone, with drop, mixup, next-item prediction and cross-modality contrast (equation 11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from msm4sr.data.batches import Batch, epoch_batches
from msm4sr.data.dataset import Dataset, Histories
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer
from msm4sr.models.layers import take
from msm4sr.models.msm4sr import MSM4SR
from msm4sr.objectives import cross_modality_contrast, next_item_prediction
from msm4sr.training.loop import EpochRecord, StageSettings
from msm4sr.training.stage import StageOptions, Task, train_stage


class PretrainSettings(StageSettings):
    """The first stage; defaults are the paper's."""

    nip_weight: float = Field(1.0, ge=0, description="weight of next-item prediction; 0: without NIP")
    cmcl_weight: float = Field(0.01, ge=0, description="lambda of equation 11; 0: without CMCL")
    negatives: Literal["cross", "within"] = Field("cross", description="of CMCL: as printed, or as released")
    drop: float = Field(0.2, ge=0, lt=1, description="sequence random drop: each row's probability is U(0, drop)")
    mixup: float = Field(0.5, ge=0, le=0.5, description="complementary mixup: each batch's rho is U(0, mixup)")


def mix_up(inputs: Tensor, rho: float, generator: torch.Generator) -> Tensor:
    """Complementary mixup: at each position, with probability `rho`, the sequences exchange their vectors.

    Two modalities swap. With more, each takes that of the next one (or the one after, ...: the same rotation for
    all at a position, so that no vector is lost or doubled). Inputs and result [M, B, L, D].
    """
    modalities, rows, length = inputs.shape[:3]
    swapped = torch.rand(rows, length, generator=generator, device=inputs.device) < rho
    if modalities == 1:
        return inputs
    if modalities == 2:
        return torch.where(swapped[..., None], inputs.flip(0), inputs)
    turn = torch.randint(1, modalities, (rows, length), generator=generator, device=inputs.device) * swapped
    source = (torch.arange(modalities, device=inputs.device)[:, None, None] + turn) % modalities  # [M, B, L]
    return inputs.gather(0, source.unsqueeze(-1).expand_as(inputs))


def pretrain_loss(model: MSM4SR, batch: Batch, settings: PretrainSettings, generator: torch.Generator) -> Tensor:
    """L = sum over modalities of NIP + lambda CMCL (equation 11).

    Each distinct item of the batch is encoded once. With a single modality there is nothing to mix or to contrast:
    what remains is NIP.
    """
    next_item = batch.targets[batch.mask]  # [P]
    everything, place = torch.unique(torch.cat([batch.items.flatten(), next_item]), return_inverse=True)
    content = torch.stack([model.encode_content(a, everything) for a in model.modalities], dim=1)  # [n, M, D]
    inputs = take(content, place[: batch.items.numel()].view_as(batch.items)).permute(2, 0, 1, 3)  # [M, B, L, D]
    rho = settings.mixup * float(torch.rand((), generator=generator, device=inputs.device))
    hidden = model.encode_sequences(mix_up(inputs, rho, generator))[:, batch.mask]  # [M, P, D]
    columns, target, counts = torch.unique(
        place[batch.items.numel() :], return_inverse=True, return_counts=True
    )  # the distinct next items: [C], [P], [C]

    next_content = take(content, columns)  # [C, M, D]

    loss = hidden.new_zeros(())
    for i, modality in enumerate(model.modalities):
        views = list(model.project(hidden, modality))  # [P, D] each: the history through every modality
        own = views.pop(i)
        if settings.nip_weight:
            loss = loss + settings.nip_weight * next_item_prediction(
                [own, *views], next_content[:, i], target, counts, model.config.temperature
            )
        if settings.cmcl_weight and views:
            contrasts = [
                cross_modality_contrast(own, other, next_item, model.config.temperature, settings.negatives)
                for other in views
            ]
            loss = loss + settings.cmcl_weight * torch.stack(contrasts).mean()
    return loss


class ContentMatcher(Scorer):
    """The pre-trained model as a recommender without IDs: sum over modalities and views of cos(m, z).

    It ranks by what NIP trains, so that pre-training can stop by a validation metric; and any catalogue that has
    features, brand-new items included, can be ranked by it.
    """

    def __init__(self, model: MSM4SR) -> None:
        super().__init__()
        self.model = model
        self.max_history = model.max_history

    def encode_items(self) -> Tensor:
        """[N, M, D]."""
        return torch.stack([self.model.encode_content(a) for a in self.model.modalities], dim=1)

    def encode_histories(self, histories: Tensor, catalogue: Tensor) -> Tensor:
        """Item rows [B, L] to [B, L, M * D]: in each modality's space the sum of the normalised views."""
        hidden = self.model.encode_sequences(take(catalogue, histories).permute(2, 0, 1, 3))  # [M, B, L, D]
        spaces = [F.normalize(self.model.project(hidden, a), dim=-1).sum(0) for a in self.model.modalities]
        return torch.cat(spaces, dim=-1)

    def scoring_vectors(self, catalogue: Tensor) -> Tensor:
        """[N, M * D]."""
        return F.normalize(catalogue, dim=-1).flatten(1)


class PretrainTask(Task):
    """`pretrain_loss`, as a task; validated by `ContentMatcher`.

    Raises:
        InputError: no loss is left: NIP is off, and CMCL is off or has but one modality.
    """

    def __init__(self, model: MSM4SR, settings: PretrainSettings) -> None:
        super().__init__(model)
        if not settings.nip_weight and (not settings.cmcl_weight or len(model.modalities) == 1):
            raise InputError(
                "pretrain.nip_weight is 0 and nothing else is to be learnt: CMCL needs pretrain.cmcl_weight over 0 and "
                f"two modalities (there is {' and '.join(model.modalities)}); leave the stage out with "
                "pretrain.epochs=0"
            )
        self.model: MSM4SR = model
        self.settings = settings

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return pretrain_loss(self.model, batch, self.settings, generator)

    def batches(self, histories: Histories, settings: StageSettings, rng: np.random.Generator) -> Iterator[Batch]:
        """All pairs once, in what sequence random drop leaves of the histories."""
        return epoch_batches(
            histories,
            max_history=self.model.max_history,
            batch_pairs=settings.batch_pairs,
            pairs=settings.pairs,
            drop=self.settings.drop,
            rng=rng,
        )

    @property
    def scorer(self) -> Scorer:
        return ContentMatcher(self.model)


def pretrain(
    model: MSM4SR, dataset: Dataset, settings: PretrainSettings = PretrainSettings(), **options: Unpack[StageOptions]
) -> list[EpochRecord]:
    """Train the item and sequence encoders on the training parts of the histories; the best epoch's weights remain.

    See `train_stage` for the options and `PretrainTask` for what is refused.
    """
    return train_stage("pretrain", PretrainTask(model, settings), dataset, settings, **options)
