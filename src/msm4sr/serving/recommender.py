"""From a history to the next items: the ranking that the command line and the pages share."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from msm4sr.data.dataset import Dataset
from msm4sr.errors import InputError
from msm4sr.models.base import Scorer

# difflib needs about 10 us a candidate; beyond this many, only those that share most letters are compared.
CLOSE_CANDIDATES = 5_000


@dataclass(frozen=True)
class ItemTable:
    """What people see of the catalogue; row i of every list is item i of the model.

    `images` holds each item's picture paths relative to `folder`. Leave both out where there are no pictures.
    """

    item_ids: list[str]
    titles: list[str]
    images: list[list[str]] | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.titles), len(self.images or self.item_ids)}
        if len(lengths) > 1:
            raise ValueError("item_ids, titles and images must have one entry per item")

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> ItemTable:
        """The items of a data set; an item without a title goes by its id."""
        return cls.from_items(dataset.items, dataset.folder)

    @classmethod
    def from_items(cls, items: pl.DataFrame, folder: Path) -> ItemTable:
        """The items of a catalogue, as `read_items` gives it."""
        item_ids: list[str] = items["item_id"].to_list()
        titles: list[str | None] = items["title"].to_list()
        images: list[list[str] | None] = items["image"].to_list()
        return cls(
            item_ids=item_ids,
            titles=[
                title if title and title.strip() else item_id for title, item_id in zip(titles, item_ids, strict=True)
            ],
            images=[[path for path in paths or [] if path] for paths in images],
            folder=folder,
        )

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """Item id -> row."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its row, its id and title, its score, and its rank from 1."""

    item: int
    item_id: str
    title: str
    score: float
    rank: int


def recommend(
    model: Scorer,
    items: ItemTable,
    history: Sequence[str],
    k: int = 10,
    exclude_history: bool = True,
    *,
    catalogue: Tensor | None = None,
) -> list[Recommendation]:
    """The `k` items with the highest scores after `history` (item ids, oldest first), best first.

    The score is the dot product of the history's vector with the item's, equation (12). Equal scores rank by
    item row. The model reads the last `max_history` items; `exclude_history` (default) keeps the whole
    history out of the list, older items too. Fewer than `k` come back only where the catalogue has no more.
    `catalogue` is `model.encode_items()` if the caller already has it, so that many histories share it.

    Raises InputError for an unknown item id (with the nearest ones), an empty history, k < 1, a model whose
    items are not those of `items`, and scores that are not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}: ask for at least 1 recommendation")
    rows = history_rows(items, history)
    scores = score_items(model, rows, catalogue)
    if len(scores) != len(items):
        raise InputError(
            f"the model knows {len(scores)} items, the item table has {len(items)}: they are not of one run"
        )
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the model's scores are not finite: its weights are damaged or its training diverged")

    hidden = set(rows) if exclude_history else set()
    order: list[int] = torch.sort(scores, descending=True, stable=True).indices[: k + len(hidden)].tolist()
    best = [item for item in order if item not in hidden][:k]
    return [
        Recommendation(item, items.item_ids[item], items.titles[item], float(scores[item]), rank)
        for rank, item in enumerate(best, start=1)
    ]


def score_items(model: Scorer, rows: Sequence[int], catalogue: Tensor | None = None) -> Tensor:
    """Every item's score [N], float32 on the CPU, after a history of item rows, oldest first."""
    with torch.inference_mode(), _evaluating(model):
        if catalogue is None:
            catalogue = model.encode_items()
        batch = torch.tensor([rows[-model.max_history :]], dtype=torch.int64, device=catalogue.device)  # [1, L]
        length = torch.tensor([batch.shape[1]], device=catalogue.device)
        return model.score(batch, length, catalogue, model.scoring_vectors(catalogue))[0].float().cpu()


def history_rows(items: ItemTable, history: Sequence[str]) -> list[int]:
    """The rows of a history's item ids. Raises InputError for an empty history and for unknown ids."""
    if not history:
        raise InputError("the history is empty: give at least one item id")
    unknown = [item_id for item_id in dict.fromkeys(history) if item_id not in items.rows]
    if unknown:
        raise InputError("\n".join(_unknown_item(items, item_id) for item_id in unknown))
    return [items.rows[item_id] for item_id in history]


def user_history(dataset: Dataset, user_id: str) -> list[str]:
    """The item ids that a user took, oldest first. Raises InputError for an unknown user."""
    try:
        user = dataset.user_ids.index(user_id)
    except ValueError:
        near = _nearest(user_id, dataset.user_ids)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"ids look like {dataset.user_ids[0]!r}"
        where = f"the {dataset.n_users} users of {dataset.folder}"
        raise InputError(f"no user {user_id!r} among {where}: {hint}") from None
    return [dataset.item_ids[item] for item in dataset.history(user)]


def _unknown_item(items: ItemTable, item_id: str) -> str:
    near = [items.rows[name] for name in _nearest(item_id, items.item_ids)]
    # People type titles where ids are asked for: show which id such a title has.
    wanted = set(_nearest(item_id, items.titles))
    near += [row for row, title in enumerate(items.titles) if title in wanted][:3]
    names = [
        repr(name) if title == name else f"{name!r} ({title})"
        for name, title in ((items.item_ids[row], items.titles[row]) for row in dict.fromkeys(near))
    ]
    hint = f"did you mean {', '.join(names)}?" if names else f"ids look like {items.item_ids[0]!r}"
    return f"no item {item_id!r} in the catalogue of {len(items)}: {hint}"


def _nearest(name: str, candidates: Sequence[str], n: int = 3) -> list[str]:
    """The `n` candidates most like `name`, letter case aside; none where none is much like it."""
    folded = name.casefold()
    by_folded: dict[str, str] = {}
    for candidate in candidates:
        by_folded.setdefault(candidate.casefold(), candidate)
    pool = list(by_folded)
    if len(pool) > CLOSE_CANDIDATES:
        letters = set(folded)
        pool = heapq.nsmallest(CLOSE_CANDIDATES, pool, key=lambda other: len(letters ^ set(other)))
    return [by_folded[near] for near in difflib.get_close_matches(folded, pool, n=n, cutoff=0.6)]


@contextmanager
def _evaluating(model: Scorer) -> Iterator[None]:
    """Dropout off while recommending, and the model left as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
