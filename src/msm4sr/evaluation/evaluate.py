"""A model's metrics on the validation or the test items of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from msm4sr.data.dataset import Dataset, test_targets, validation_targets
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import rank_protocols
from msm4sr.evaluation.users import Part
from msm4sr.models.base import Scorer


class EvaluationSettings(BaseModel):
    """The protocol, the same for every row of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclude_seen: bool = Field(False, description="never rank items that the user already took")


def evaluate(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    settings: EvaluationSettings = EvaluationSettings(),
    on_progress: Callable[[int], object] = lambda users: None,
) -> dict[str, float]:
    """Recall, NDCG at 5, 10, 20, 50 and MRR, means over users, ranking all items; see `rank_users`."""
    return mean_metrics(rank_users(model, dataset, part, settings, on_progress))


def rank_users(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    settings: EvaluationSettings = EvaluationSettings(),
    on_progress: Callable[[int], object] = lambda users: None,
) -> npt.NDArray[np.float64]:
    """Each user's rank of the target among all items: float64 [users].

    Validation ranks each user's second-last item given the training part, test the last item given all before it.
    """
    excludes = settings.exclude_seen or not model.ranks_seen_items
    (ranks,) = _rank(model, dataset, part, (excludes,), on_progress)
    return ranks


def rank_users_both(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    settings: EvaluationSettings = EvaluationSettings(),
    on_progress: Callable[[int], object] = lambda users: None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """`rank_users` as the settings say, and with the history left out: the same where they say so or the model does."""
    excludes = settings.exclude_seen or not model.ranks_seen_items
    ranks, left_out = _rank(model, dataset, part, (excludes, True), on_progress)
    return ranks, left_out


def _rank(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    exclude_seen: Sequence[bool],
    on_progress: Callable[[int], object],
) -> list[npt.NDArray[np.float64]]:
    targets = validation_targets(dataset) if part == "validation" else test_targets(dataset)
    was_training = model.training
    model.eval()
    ranks = rank_protocols(model, targets, exclude_seen, on_progress=on_progress)
    model.train(was_training)
    return ranks
