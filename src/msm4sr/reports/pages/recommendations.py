"""A page of recommendations for some users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msm4sr.data.items import Item
from msm4sr.reports.pages.page import render
from msm4sr.reports.pages.thumbnails import Thumbnails

SHOWN_HISTORY = 10  # items of a history on a page: the latest, which say most about what comes next


@dataclass(frozen=True)
class ExampleUser:
    """A user, or any history, and what is recommended: a section of a page."""

    label: str
    history: Sequence[Item]  # oldest first
    recommended: Sequence[tuple[Item, float]]  # with scores, best first
    target: Item | None = None  # that the user interacted with next, where it is known; marked if it is recommended

    @property
    def latest(self) -> Sequence[Item]:
        """The part of the history that is shown."""
        return self.history[-SHOWN_HISTORY:]

    def is_target(self, item: Item) -> bool:
        return self.target is not None and item.item_id == self.target.item_id

    @property
    def target_rank(self) -> int | None:
        """The rank of the target among the recommended items, from 1."""
        return next((rank for rank, (item, _) in enumerate(self.recommended, 1) if self.is_target(item)), None)


def recommendation_page(title: str, users: Sequence[ExampleUser], folder: Path | None) -> str:
    """One HTML page: each user's history as a strip of images, the recommendations as a grid of cards.

    Images are read from `folder`, that of the data set; None: no images.
    """
    return render("recommendations.html.jinja", title=title, users=users, thumbnails=Thumbnails(folder))
