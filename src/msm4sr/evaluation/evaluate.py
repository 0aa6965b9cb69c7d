"""A model's metrics on the validation or the test items of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from msm4sr.data.dataset import Dataset
from msm4sr.evaluation.metrics import mean_metrics
from msm4sr.evaluation.ranking import OnLists, Protocol, Ranks, rank_targets
from msm4sr.evaluation.users import Part, targets_of
from msm4sr.models.base import Scorer
from msm4sr.progress import Advance
from msm4sr.strict import Strict


class EvaluationSettings(Strict):
    """The protocol, the same for every row of a comparison."""

    exclude_seen: bool = Field(False, description="do not rank items that the user has already interacted with")

    @property
    def protocol(self) -> Protocol:
        """The protocol of validation and of the main metrics."""
        return "seen_excluded" if self.exclude_seen else "seen_included"


def evaluate(
    model: Scorer, dataset: Dataset, part: Part, settings: EvaluationSettings = EvaluationSettings()
) -> dict[str, float]:
    """Recall and NDCG at 5, 10, 20, 50 and MRR: means over users of a ranking of all items (`rank_users`)."""
    return mean_metrics(rank_users(model, dataset, part, (settings.protocol,))[settings.protocol])


def rank_users(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    protocols: Sequence[Protocol] = ("seen_included",),
    advance: Advance = lambda users: None,
    on_lists: OnLists | None = None,
) -> dict[Protocol, Ranks]:
    """Each user's rank of the target among all items, by each protocol (`rank_targets`).

    Validation ranks each user's second-last item given the training part, test the last item given all before it. The
    lists of `on_lists` are as for `rank_targets`.
    """
    was_training = model.training
    model.eval()
    ranks = rank_targets(model, targets_of(dataset, part), protocols, advance=advance, on_lists=on_lists)
    model.train(was_training)
    return ranks
