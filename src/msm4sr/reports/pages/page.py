"""Pages from templates, with one stylesheet and a policy that forbids all else; the page of recommendations."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from msm4sr.data.items import Item
from msm4sr.reports.pages.thumbnails import Thumbnails, initial_of, tint_of
from msm4sr.reports.tables import metric_name

T = TypeVar("T")
SHOWN_HISTORY = 10  # items of a history on a page: the latest, which say most about what comes next


def number(value: float) -> str:
    """A metric with four decimals; a count with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def with_bars(scored: Sequence[tuple[T, float]]) -> list[tuple[T, float, float]]:
    """Add to each entry and its score the length of a bar, 0 to 100, that compares the scores of one list.

    Bars start at zero if no score is negative, else at the lowest score.
    """
    scores = [score for _, score in scored]
    low, high = min([0.0, *scores]), max([0.0, *scores])
    span = (high - low) or 1.0
    return [(thing, score, round(100 * (score - low) / span, 1)) for thing, score in scored]


def render(template: str, **values: object) -> str:
    """A page from a template; `values` are escaped there."""
    style = files("msm4sr.reports.pages").joinpath("templates", "style.css").read_text(encoding="utf-8")
    # The policy names the stylesheet by its hash: no other style, and no script at all, can take effect.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    loader = PackageLoader("msm4sr.reports.pages")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"metric_name": metric_name, "number": number, "with_bars": with_bars}
    environment.filters |= {"initial": initial_of, "tint": tint_of}
    return environment.get_template(template).render(style=Markup(style), style_hash=digest, **values)


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
