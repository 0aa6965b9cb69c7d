"""What the recommended lists are like, besides accurate: coverage, concentration, novelty, diversity.

L_u is the list of the k best items for user u, without seen items where they are excluded; a list is shorter than k
where fewer items are ranked. "Interactions" are those that the model was trained on. Means are over users.

    coverage@k    share of the catalogue that is in any list. Ge, Delgado-Battenfeld and Jannach, RecSys 2010.
    gini@k        Gini index of how often each item of the catalogue is listed: 0 if all are listed equally often, near
                  1 if a few have all places. Fleder and Hosanagar, Management Science 55, 2009.
    novelty@k     self-information of the listed items: the mean over L_u of log2(users / users who interacted with the
                  item); an item without interactions counts as one with a single user. Zhou et al., PNAS 107, 2010.
    popularity@k  mean number of interactions of the listed items. Yin et al., VLDB 2012.
    cold@k        share of the listed items that have no interactions.
    diversity_content@k, diversity_categories@k
                  mean of 1 - cosine over all pairs of items of L_u, of their content vectors (Zhang and Hurley, RecSys
                  2008), and of their binary vectors of categories. Items without content (categories) make no pair;
                  a list without a pair does not count.

The lists of a chunk of users are added to sums, so that memory does not depend on the number of users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from msm4sr.data.dataset import Dataset, item_categories, training_counts, training_histories
from msm4sr.data.remaining import pairs_of
from msm4sr.evaluation.metrics import CUTOFFS
from msm4sr.evaluation.ranking import NO_ITEM, Lists

MEASURES = ("coverage", "gini", "novelty", "popularity", "cold", "diversity_content", "diversity_categories")
LISTS_AT_ONCE = 128  # whose vectors are compared at a time: 20 MiB of 384-d content

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
UnitVectors = Callable[[Ints], Any]
"""Items [n] to their vectors of length 1, or 0 for items without one: float64 [n, D], an array or a sparse matrix."""


@dataclass(frozen=True)
class ItemFacts:
    """What the metrics need to know of the N items of a catalogue."""

    interactions: Ints
    """The training interactions of each item [N]."""
    users: Ints
    """The number of users among them [N]."""
    n_users: int
    """How many users have training interactions."""
    vectors: dict[str, UnitVectors] = field(default_factory=dict)
    """The vectors that lists are compared by: "content", "categories"."""

    @staticmethod
    def of(dataset: Dataset, content: npt.NDArray[np.float32] | None = None) -> ItemFacts:
        """The items of a data set; `content` has a vector of each [N, D], 0 for an item without content."""
        vectors: dict[str, UnitVectors] = {}
        if content is not None and content.any():
            vectors["content"] = lambda items: _unit(content[items].astype(np.float64))
        rows, names = item_categories(dataset)
        if names:
            lengths = np.repeat(rows.lengths, rows.lengths)
            matrix = csr_matrix((lengths**-0.5, rows.values, rows.offsets), (dataset.n_items, len(names)))
            vectors["categories"] = lambda items: matrix[items]
        histories = training_histories(dataset)
        n_users = int((histories.lengths > 0).sum())
        return ItemFacts(training_counts(dataset), _users_of_items(dataset), n_users, vectors)


def _unit(vectors: Floats) -> Floats:
    """Each row divided by its length; rows of 0 stay."""
    lengths = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _users_of_items(dataset: Dataset) -> Ints:
    """The number of users who interacted with each item in training."""
    counts = np.zeros(dataset.n_items, dtype=np.int64)
    last: Ints = np.zeros(0, dtype=np.int64)  # of the user whose history the chunk before may have cut
    for users, items in pairs_of(training_histories(dataset)):
        pairs = users.astype(np.int64) * dataset.n_items + items
        new = np.setdiff1d(pairs, last)  # each pair once
        np.add.at(counts, new % dataset.n_items, 1)
        last = np.concatenate([last, new])
        last = last[last // dataset.n_items == users[-1]]
    return counts


class BeyondAccuracy:
    """Sums over lists of recommended items, from which the metrics of this module follow."""

    def __init__(self, facts: ItemFacts) -> None:
        self._facts = facts
        self._novelty = np.log2(max(1, facts.n_users)) - np.log2(np.maximum(facts.users, 1))
        self._listed = np.zeros((len(CUTOFFS), len(facts.interactions)), dtype=np.int64)
        self._sums: dict[str, float] = {}
        self._lists: dict[str, int] = {}

    def add(self, lists: Lists) -> None:
        """Add the lists of a chunk of users, as long as the largest k."""
        there = lists != NO_ITEM
        items = np.where(there, lists, 0)
        values = {
            "novelty": self._novelty[items],
            "popularity": self._facts.interactions[items].astype(np.float64),
            "cold": (self._facts.interactions[items] == 0).astype(np.float64),
        }
        for number, k in enumerate(CUTOFFS):
            self._listed[number] += np.bincount(lists[:, :k][there[:, :k]], minlength=self._listed.shape[1])
            lengths = there[:, :k].sum(axis=1)
            for name, value in values.items():
                sums = np.where(there[:, :k], value[:, :k], 0.0).sum(axis=1)
                self._add(f"{name}@{k}", sums[lengths > 0] / lengths[lengths > 0])
        for name, vectors in self._facts.vectors.items():
            for start in range(0, len(lists), LISTS_AT_ONCE):
                self._add_diversity(f"diversity_{name}", vectors, lists[start : start + LISTS_AT_ONCE])

    def _add_diversity(self, name: str, vectors: UnitVectors, lists: Lists) -> None:
        """Cosines without pairs: those of all pairs sum to (|sum of the unit vectors|^2 - their number) / 2."""
        rows, places = np.nonzero(lists != NO_ITEM)
        items, columns = np.unique(lists[rows, places], return_inverse=True)
        found = vectors(items)  # [n, D]
        described = np.asarray((found != 0).sum(axis=1)).ravel() > 0
        for k in CUTOFFS:
            first = (places < k) & described[columns]
            members = csr_matrix((np.ones(first.sum()), (rows[first], columns[first])), (len(lists), len(items)))
            total = members @ found  # [B, D]
            squared = total.multiply(total) if isinstance(total, csr_matrix) else total**2
            count = np.bincount(rows[first], minlength=len(lists))
            paired = count > 1
            cosines = np.asarray(squared.sum(axis=1)).ravel()[paired] - count[paired]
            self._add(f"{name}@{k}", 1 - cosines / (count * (count - 1))[paired])

    def _add(self, name: str, of_lists: Floats) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(of_lists.sum())
        self._lists[name] = self._lists.get(name, 0) + len(of_lists)

    def metrics(self) -> dict[str, float]:
        """The metrics of all lists that were added; without those of which no list has a value."""
        found = {f"coverage@{k}": float((row > 0).mean()) for k, row in zip(CUTOFFS, self._listed, strict=True)}
        found |= {f"gini@{k}": gini(row) for k, row in zip(CUTOFFS, self._listed, strict=True)}
        return found | {name: total / self._lists[name] for name, total in self._sums.items() if self._lists[name]}


def gini(counts: npt.NDArray[Any]) -> float:
    """The Gini index of counts [N]: sum over i of (2 i - N - 1) c_i / (N sum c), with c ascending; 0 if all are 0."""
    ascending, n = np.sort(counts).astype(np.float64), len(counts)
    total = ascending.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) * ascending).sum() / (n * total)) if total else 0.0
