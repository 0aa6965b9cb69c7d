"""The items: search, details, similar items, images; add and remove.

FastAPI runs functions that are not async in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated
from urllib.parse import quote

import polars as pl
from fastapi import APIRouter, Form, Query, Request, Response

from msm4sr.data.items import LONGEST_ID, Item, Items, has_image
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.reports.pages.thumbnails import initial_of, tint_of
from msm4sr.serving.bodies import BoundedRoute
from msm4sr.serving.dependencies import (
    BOUNDED,
    CurrentService,
    ItemPath,
    as_file,
    as_json,
    change_in_thread,
    check_sizes,
)
from msm4sr.serving.problems import Refused, described
from msm4sr.serving.schemas import (
    FoundItems,
    ItemChange,
    ItemDetails,
    ItemSummary,
    Modality,
    NewItem,
    SimilarItems,
    Words,
)
from msm4sr.serving.service import Service
from msm4sr.serving.thumbnails import ThumbnailCache

PAGE = 60  # items of a slice

router = APIRouter(prefix="/items", tags=["items"], route_class=BoundedRoute, dependencies=BOUNDED)


@router.get("", response_model=FoundItems)
def list_items(
    service: CurrentService,
    q: Annotated[Words, Query(description="Words of the title, or the id.")] = "",
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = PAGE,
) -> Response:
    """Find items by words of their titles: added items first, the latest before the others, then those with images."""
    catalogue, root = service.recommender.catalogue, service.settings.root_path
    found = find_rows(catalogue, q)
    return as_json(
        FoundItems(len(found), [item_summary(catalogue, row, root) for row in found[offset : offset + limit]])
    )


@router.post("", response_model=ItemDetails, status_code=201, responses=described(401, 409))
async def add_item(
    service: CurrentService, request: Request, new: Annotated[NewItem, Form(media_type="multipart/form-data")]
) -> Response:
    """Add an item. From the next request on, it is recommended by its content, without training."""
    settings = service.settings
    if len(new.text) > settings.max_text:
        raise Refused(422, f"text has {len(new.text):,} characters; send at most {settings.max_text:,}")
    files = [image for image in new.images if image.filename or image.size]
    if len(files) > settings.max_images:
        raise Refused(422, f"{len(files)} images; send at most {settings.max_images}")
    names = tuple(name for name in new.categories if name.strip())
    data = [file.file.read() for file in files]
    item = Item(
        new.item_id, new.title if new.title.strip() else None, new.text if new.text.strip() else None, names, data
    )

    def add() -> ItemDetails:
        service.add([item])
        return _details(service, new.item_id)

    return as_json(await change_in_thread(request, add), 201)


@router.get(
    "/{item_id:id}/image",
    response_class=Response,
    responses={**described(404), 200: {"content": {"image/jpeg": {}}}, 304: {"description": "Not modified"}},
)
def image(
    item_id: ItemPath,
    request: Request,
    number: Annotated[int, Query(ge=0, le=1000)] = 0,
    side: Annotated[int, Query(ge=1, le=2000, description="Pixels of the longer side, rounded to 240 or 640.")] = 240,
) -> Response:
    """A small version of an image of an item."""
    thumbnails: ThumbnailCache = request.app.state.thumbnails
    if (thumbnail := thumbnails.get(item_id, number, side)) is None:
        raise Refused(404, f"item {item_id[:LONGEST_ID]!r} has no readable image {number}")
    return as_file(request, *thumbnail, "image/jpeg", "no-cache")  # an id may have another image soon


@router.get("/{item_id:id}/similar", response_model=SimilarItems, responses=described(404))
def similar(
    item_id: ItemPath,
    service: CurrentService,
    k: Annotated[int, Query(ge=1, description="Number of items.")] = 10,
    by: Annotated[Modality, Query(description="text, visual, both or collaborative.")] = "both",
) -> Response:
    """The items most similar to an item."""
    check_sizes(service.settings, [], k)
    return as_json(SimilarItems(service.recommender.similar_items(item_id, k, by)))


@router.get("/{item_id:id}", response_model=ItemDetails, responses=described(404))
def get_item(item_id: ItemPath, service: CurrentService) -> Response:
    """The details of an item."""
    return as_json(_details(service, item_id))


def _details(service: Service, item_id: str) -> ItemDetails:
    recommender = service.recommender
    catalogue = recommender.catalogue
    row = catalogue.known_row(item_id)
    item, added = catalogue.item(row), catalogue.is_added(row)
    keywords = recommender.keywords(item)
    available = item_id not in catalogue.unavailable
    return ItemDetails(item_id, item.name, item.text, item.categories, len(item.images), added, available, keywords)


@router.patch("/{item_id:id}", response_model=ItemDetails, responses=described(401, 404))
async def change_item(item_id: ItemPath, body: ItemChange, service: CurrentService, request: Request) -> Response:
    """Switch an item off, so that it is not recommended, or on again."""

    def change() -> ItemDetails:
        service.set_available([item_id], body.available)
        return _details(service, item_id)

    return as_json(await change_in_thread(request, change))


@router.delete("/{item_id:id}", status_code=204, responses=described(401, 404))
async def remove_item(item_id: ItemPath, service: CurrentService, request: Request) -> Response:
    """Remove an item from the recommendations."""
    thumbnails: ThumbnailCache = request.app.state.thumbnails

    def remove() -> None:
        files = thumbnails.files(item_id)
        service.remove(item_id)
        for file in files:
            with suppress(OSError):
                file.unlink()

    await change_in_thread(request, remove)
    return Response(status_code=204)


def find_rows(catalogue: Catalogue, search: str) -> Sequence[int]:
    """Rows whose title has every word of `search`, or whose id it is.

    Added items come first, the latest before the others; then items with an image, then those without.
    """
    words, wanted, known = search.casefold().split(), search.strip(), _search_table(catalogue.items)
    added: Iterator[int] = reversed(range(len(catalogue.items), len(catalogue)))
    if words:
        in_title = pl.all_horizontal(pl.col("title").str.contains(word, literal=True) for word in words)
        known = known.filter(in_title | (pl.col("item_id").str.strip_chars() == wanted))
        added = (row for row in added if _fits(catalogue, row, words, wanted))
    rows = known["row"].to_list()
    return [*added, *(row for row in rows if row not in catalogue.removed)] if catalogue.removed else [*added, *rows]


def _fits(catalogue: Catalogue, row: int, words: Sequence[str], wanted: str) -> bool:
    title = catalogue.name(row).casefold()
    return all(word in title for word in words) or catalogue.item_id(row).strip() == wanted


@lru_cache(maxsize=2)
def _search_table(items: Items) -> pl.DataFrame:
    """The row, the title as it is searched and the ID of each of a run's items, those with an image first."""
    order = sorted(range(len(items)), key=lambda row: not has_image(items.images[row]))
    titles, ids = [items.name(row).casefold() for row in order], [items.item_ids[row] for row in order]
    return pl.DataFrame({"row": order, "title": titles, "item_id": ids})


def item_summary(catalogue: Catalogue, row: int, root: str) -> ItemSummary:
    """An item as lists show it, with paths below `root`."""
    item_id, title, added = catalogue.item_id(row), catalogue.name(row), catalogue.is_added(row)
    shown = bool(catalogue.item(row).images) if added else has_image(catalogue.items.images[row])
    image, page = image_path(item_id, root) if shown else None, f"{root}/item/{quote(item_id, safe='')}"
    available = item_id not in catalogue.unavailable
    return ItemSummary(item_id, title, image, page, initial_of(title), tint_of(item_id), added, available)


def image_path(item_id: str, root: str) -> str:
    """The path of an item's images."""
    return f"{root}/items/{quote(item_id, safe='')}/image"
