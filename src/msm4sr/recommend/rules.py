"""Rules on recommendations: which items may be recommended, boosts, and diversity.

**Boosts** are added to scores: with s the score of an item after a history, and b its boosts,

    s' = s + sigma * sum(b)

where sigma is the standard deviation of the scores of the run's items after this history (`scoring.score_deviation`).
Scores are inner products: they may be negative, and their scale depends on model and history. A factor would lower a
negative score, and a fixed bonus would be too small for one history and too large for another. In units of sigma, a
boost of 1 lifts an average item to the level that about 16 % of the items exceed (if scores are normally distributed).

**Diversity** re-ranks the best items by maximal marginal relevance (`diversity.diversify`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import Catalogue, UnknownItem, closest_names, no_such_item

MAX_BOOST = 100.0


@dataclass(frozen=True)
class Rules:
    """What may be recommended, and what is preferred. Categories and ids that the catalogue lacks match no item.

        recommender.recommend(history, rules=Rules(include_categories=["Puzzles"], diversity=0.3))

    Raises InputError for a number out of range, or one text in place of several.
    """

    include_categories: Collection[str] | None = None  # only items with one of them; None: of any category
    exclude_categories: Collection[str] = ()  # no item with one of them
    candidates: Collection[str] | None = None  # ids of the only items to rank; None: all
    exclude_items: Collection[str] = ()  # ids
    boost_categories: Mapping[str, float] = field(default_factory=dict)  # category to boost, -100 to 100
    boost_items: Mapping[str, float] = field(default_factory=dict)  # id to boost; boosts of one item add up
    diversity: float = 0.0  # 0: in the order of the scores; 1: each item as dissimilar to the earlier ones as possible

    def __post_init__(self) -> None:
        for name in ("include_categories", "exclude_categories", "candidates", "exclude_items"):
            if isinstance(value := getattr(self, name), str):
                raise InputError(f"{name} is the text {value!r}: give a list, such as [{value!r}]")
        for name in ("boost_categories", "boost_items"):
            for key, boost in getattr(self, name).items():
                if not abs(boost) <= MAX_BOOST:  # nor for NaN
                    raise InputError(f"{name}: {key!r} has the boost {boost}: give a number from -100 to 100")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity}: give a number from 0 to 1")

    def rows(self, catalogue: Catalogue, strict: bool = False) -> RowRules:
        """These rules for the rows of a catalogue.

        With `strict`, raises InputError for an unknown category and UnknownItem for an unknown id.
        """
        if strict:
            self._check_names(catalogue)
        others = self.exclude_categories or self.exclude_items or self.candidates is not None
        categories = None if others else self.include_categories
        return RowRules(self._allowed(catalogue), self._bonus(catalogue), self.diversity, categories)

    def _allowed(self, catalogue: Catalogue) -> Tensor | None:
        excluded = [catalogue.category_rows(name) for name in self.exclude_categories]
        excluded.append(_item_rows(catalogue, self.exclude_items))
        included = []
        if self.include_categories is not None:
            included.append([catalogue.category_rows(name) for name in self.include_categories])
        if self.candidates is not None:
            included.append([_item_rows(catalogue, self.candidates)])
        if not included and not any(map(len, excluded)):
            return None
        allowed = torch.ones(len(catalogue), dtype=torch.bool)
        for some in included:
            chosen = torch.zeros(len(catalogue), dtype=torch.bool)
            for rows in some:
                chosen[rows] = True
            allowed &= chosen
        for rows in [*excluded, catalogue.excluded_rows]:
            allowed[rows] = False
        return allowed

    def _bonus(self, catalogue: Catalogue) -> Tensor | None:
        if not self.boost_categories and not self.boost_items:
            return None
        bonus = torch.zeros(len(catalogue))
        for name, boost in self.boost_categories.items():
            bonus[catalogue.category_rows(name)] += boost
        for item_id, boost in self.boost_items.items():
            bonus[_item_rows(catalogue, [item_id])] += boost
        return bonus

    def _check_names(self, catalogue: Catalogue) -> None:
        for name in (*(self.include_categories or ()), *self.exclude_categories, *self.boost_categories):
            if not len(catalogue.category_rows(name)):
                near = closest_names(name, catalogue.categories) or catalogue.categories[:3]
                hint = f"did you mean {', '.join(map(repr, near))}?" if near else "no item has a category"
                raise InputError(f"no category {name!r} in the catalogue: {hint}")
        for item_id in (*(self.candidates or ()), *self.exclude_items, *self.boost_items):
            if catalogue.row(item_id) is None:
                raise UnknownItem(no_such_item(item_id, catalogue.items))


NO_RULES = Rules()


@dataclass(frozen=True, eq=False)
class RowRules:
    """`Rules` for the rows of one catalogue."""

    allowed: Tensor | None = None  # bool [rows]; None: all may be recommended
    bonus: Tensor | None = None  # float32 [rows], in standard deviations of the scores; None: 0
    diversity: float = 0.0
    only_categories: Collection[str] | None = None  # what is allowed, if it is what has one of these categories

    @cached_property
    def allowed_rows(self) -> Tensor | None:
        """int64, ascending; None: all rows."""
        return None if self.allowed is None else self.allowed.nonzero().squeeze(1)

    @cached_property
    def raised_rows(self) -> Tensor:
        """The rows with a positive bonus that may be recommended: int64, ascending."""
        if self.bonus is None:
            return torch.zeros(0, dtype=torch.int64)
        raised = self.bonus > 0
        return (raised if self.allowed is None else raised & self.allowed).nonzero().squeeze(1)


def _item_rows(catalogue: Catalogue, item_ids: Iterable[str]) -> Tensor:
    """The rows of the items that the catalogue has: int64."""
    rows = [row for row in catalogue.rows_of(item_ids) if row is not None]
    return torch.tensor(rows, dtype=torch.int64)
