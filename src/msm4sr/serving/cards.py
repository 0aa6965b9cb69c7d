"""Lists of items: the search by words of the title, and the card of an item."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote

from msm4sr.data.items import Items, is_url
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.reports.pages.thumbnails import initial_of, tint_of
from msm4sr.serving.schemas import Card


def find_rows(catalogue: Catalogue, search: str) -> Sequence[int]:
    """Rows whose title has every word of `search`, or whose id it is.

    Added items come first, the latest before the others; then items with an image, then those without.
    """
    n = len(catalogue.items)
    order, titles = _search_index(catalogue.items)
    rows = [*range(len(catalogue) - 1, n - 1, -1), *(row for row in order if row not in catalogue.removed)]
    words, wanted = search.casefold().split(), search.strip()
    if not words:
        return rows

    def fits(row: int) -> bool:
        title = titles[row] if row < n else catalogue.name(row).casefold()
        return all(word in title for word in words) or catalogue.item_id(row) == wanted

    return [row for row in rows if fits(row)]


@lru_cache(maxsize=2)
def _search_index(items: Items) -> tuple[list[int], list[str]]:
    """The rows of a run's items, those with an image first, and the title of each row for the search."""
    order = sorted(range(len(items)), key=lambda row: not _has_image(items.images[row]))
    return order, [items.name(row).casefold() for row in range(len(items))]


def _has_image(paths: Sequence[str]) -> bool:
    return not all(map(is_url, paths))


def make_card(catalogue: Catalogue, row: int) -> Card:
    """The card of an item."""
    item_id, title, added = catalogue.item_id(row), catalogue.name(row), catalogue.is_added(row)
    has_image = bool(catalogue.item(row).images) if added else _has_image(catalogue.items.images[row])
    image, page = image_path(item_id) if has_image else None, f"/item/{quote(item_id, safe='')}"
    return Card(item_id, title, image, page, initial_of(title), tint_of(item_id), added)


def image_path(item_id: str) -> str:
    """The path of an item's images."""
    return f"/items/{quote(item_id, safe='')}/image"
