"""What a preparation read, kept and dropped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msm4sr.errors import InputError

if TYPE_CHECKING:
    from msm4sr.data.preparation.rules import Rules


@dataclass
class Drop:
    """What was dropped for one reason, with the first case."""

    reason: str
    count: int
    example: str


@dataclass
class PrepareReport:
    """What was read, kept and dropped; `provenance.json` of the folder holds the same.

    Attributes:
        out: the prepared folder.
        rules: which interactions and items are kept.
        items_read: None without a table of items: the items are those of the interactions.
        with_urls: items whose images include a URL that is yet to be fetched.
        order: what the order of a history is based on.
        steps: name of each step, with the number of interactions, users and seen items after it.
    """

    out: Path
    rules: Rules
    interactions_read: int = 0
    interactions_kept: int = 0
    users: int = 0
    items_read: int | None = None
    items_kept: int = 0
    with_title: int = 0
    with_text: int = 0
    with_categories: int = 0
    with_image: int = 0
    with_urls: int = 0
    order: str = ""
    steps: list[dict[str, int | str]] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, count: int, example: str) -> None:
        """Count what is dropped; of each reason the first example stays."""
        known = next((drop for drop in self.dropped if drop.reason == reason), None)
        if known is not None:
            known.count += count
        elif count:
            self.dropped.append(Drop(reason, count, example))

    def step(self, name: str, interactions: int, users: int | None = None, items: int | None = None) -> None:
        """Record what is left after a step."""
        counts = {"interactions": interactions, "users": users, "items": items}
        self.steps.append({"step": name, **{key: count for key, count in counts.items() if count is not None}})

    def nothing_left(self, path: Path, advice: str = "") -> InputError:
        """The error where no interaction is left: says what was dropped."""
        why = "; ".join(f"{drop.count} {drop.reason}" for drop in self.dropped) or "the file has no rows"
        return InputError(f"{path}: no interaction is left of {self.interactions_read:,} ({why}){advice}")

    def lines(self) -> list[str]:
        """The report, one fact a line, to be printed."""
        read = "those of the interactions" if self.items_read is None else f"{self.items_read:,} read"
        kept = f"{self.interactions_kept:,} kept of {self.interactions_read:,}"
        return [
            f"interactions  {kept}, {self.users:,} users",
            f"order         {self.order}",
            f"items         {self.items_kept:,} kept ({read}): {self.with_title:,} with title, "
            f"{self.with_text:,} text, {self.with_categories:,} categories, {self.with_image:,} image",
            *(f"dropped       {drop.count:,} {drop.reason} (first: {drop.example})" for drop in self.dropped),
            *(f"note          {note}" for note in self.notes),
            f"written       {self.out}",
        ]
