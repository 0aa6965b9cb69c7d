"""The settings of the two stages of training; defaults are the paper's."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field

from msm4sr.strict import Strict

SAMPLE_OVER = 2000  # items; a smaller catalogue is hardly larger than the items of a batch and the samples


class StageSettings(Strict):
    """Settings that both stages have."""

    stage: ClassVar[str]
    """The name of the stage, in settings, records, messages and checkpoints."""

    epochs: int = Field(200, ge=0, description="upper bound; 0 skips the stage")
    max_steps: int = Field(0, ge=0, description="upper bound on steps, in complete epochs (at least one); 0: unlimited")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of Adam")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of Adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="cosine: warm up over 5 % of all steps, at least 100 (but no more than a quarter), then fall to 0",
    )
    averaging: bool = Field(
        False,
        description="validate and keep an average of the weights, over about the last ninth of the steps (polynomial "
        "decay, Shamir and Zhang 2013)",
    )
    batch_pairs: int = Field(1024, ge=1, description="pairs (prefix, next item) in a batch")
    pairs: Literal["all", "last"] = Field(
        "all", description="all: every prefix of a history window in one pass; last: one prefix per row"
    )
    max_gradient_norm: float = Field(5.0, gt=0, description="longer gradients are scaled down to this norm")
    patience: int = Field(20, ge=1, description="stop after this many validations without an improvement")
    validate_every: int = Field(1, ge=1, description="epochs between two validations; the last epoch always has one")
    select: str = Field(
        "recall@20",
        pattern=r"^((recall|ndcg|map|precision)@(5|10|20|50)|mrr)$",
        description="the validation metric that selects the best epoch: recall, ndcg, map or precision @5, @10, @20 or "
        "@50, or mrr",
    )
    checkpoint_every: float = Field(
        60.0, ge=0, description="seconds between two checkpoints inside an epoch; each epoch ends with one"
    )

    def reduced(self, budget: float, learning_rate: float = 1.0) -> Self:
        """With this share of epochs, steps and patience (at least one, unless 0), and this factor of the rate."""
        numbers = {name: getattr(self, name) for name in ("epochs", "max_steps", "patience")}
        changes: dict[str, float] = {name: max(1, round(budget * n)) if n else 0 for name, n in numbers.items()}
        if not budget:
            changes["epochs"] = 0
        return self.model_copy(update={**changes, "learning_rate": learning_rate * self.learning_rate})

    def epochs_within(self, steps_per_epoch: int) -> int:
        """How many epochs fit into `epochs` and `max_steps`."""
        return min(self.epochs, max(1, self.max_steps // steps_per_epoch)) if self.max_steps else self.epochs


class PretrainSettings(StageSettings):
    """Pre-training. A task reads what applies to it: mixup and contrast are MSM4SR's."""

    stage: ClassVar[str] = "pretrain"

    nip_weight: float = Field(1.0, ge=0, description="weight of next-item prediction; 0: without NIP")
    cmcl_weight: float = Field(0.01, ge=0, description="lambda of equation 11; 0: without CMCL")
    negatives: Literal["cross", "within"] = Field("cross", description="of CMCL; cross: the paper, within: its code")
    drop: float = Field(0.2, ge=0, lt=1, description="sequence random drop: each row's probability is U(0, drop)")
    mixup: float = Field(0.5, ge=0, le=0.5, description="complementary mixup: each batch's rho is U(0, mixup)")
    end_to_end: bool = Field(
        False, description="no separate stage; fine-tuning adds the pre-training loss to its own at every step"
    )
    init_from: Annotated[str, AfterValidator(os.path.abspath)] | None = Field(
        None, description="a run folder, of any data set: start from its pre-trained weights (without its item IDs)"
    )


class FinetuneSettings(StageSettings):
    """Fine-tuning, the second stage; for most baselines the only one."""

    stage: ClassVar[str] = "finetune"

    candidates: Literal["auto", "all", "sampled"] = Field(
        "auto",
        description="items of the softmax: the full catalogue, or those of the batch and a sample of the others; auto: "
        "sampled over 2,000 items",
    )
    samples: int = Field(1536, ge=1, description="items drawn per step when candidates are sampled")

    def samples_of(self, n_items: int) -> int | None:
        """How many items to draw from a catalogue of `n_items`; None: all items are candidates."""
        sampled = self.candidates == "sampled" or (self.candidates == "auto" and n_items > SAMPLE_OVER)
        return self.samples if sampled else None
