"""A model's metrics on the validation or the test items of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from msm4sr.data.dataset import Dataset, Targets, of_known_users
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
    """The metrics of `evaluation.metrics` of a ranking of all items: means over the `known_users`.

        evaluate(model, dataset, "test", EvaluationSettings(exclude_seen=True))["ndcg@10"]

    Args:
        model: a trained model.
        dataset: that it was trained on.
        part: "validation" or "test".
        settings: whether seen items are ranked.
    """
    targets = of_known_users(dataset, targets_of(dataset, part))
    ranks = _rank(model, targets, (settings.protocol,))[settings.protocol]
    return mean_metrics(ranks, targets.target_users)


def rank_users(
    model: Scorer,
    dataset: Dataset,
    part: Part,
    protocols: Sequence[Protocol] = ("seen_included",),
    advance: Advance = lambda users: None,
    on_lists: OnLists | None = None,
) -> dict[Protocol, Ranks]:
    """The rank of each target among all items, by each protocol (`rank_targets`).

    Validation ranks the items of the validation part given the training part, test those of the test part given all
    before it.

    Args:
        model: a trained model.
        dataset: that it was trained on.
        part: "validation" or "test".
        protocols: "seen_included", "seen_excluded" or both.
        advance: called with how many more users are ranked.
        on_lists: called with the recommended lists, as by `rank_targets`.
    """
    return _rank(model, targets_of(dataset, part), protocols, advance, on_lists)


def _rank(
    model: Scorer,
    targets: Targets,
    protocols: Sequence[Protocol],
    advance: Advance = lambda users: None,
    on_lists: OnLists | None = None,
) -> dict[Protocol, Ranks]:
    """`rank_targets` in evaluation mode; each module of the model is then in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    ranks = rank_targets(model, targets, protocols, advance=advance, on_lists=on_lists)
    for module in training:
        module.training = True
    return ranks
