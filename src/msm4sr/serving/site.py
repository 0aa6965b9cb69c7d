"""The page of a service: a wall of items to click, what is recommended for them, a page an item, and thumbnails.

The wall, its search and the items' pages are HTML from here; a script makes the clicks take effect. Nothing is asked of
any other host, and the content security policy allows nothing else.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import anyio.to_thread
import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.responses import Response as PlainResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from msm4sr.data.items import Items
from msm4sr.data.sources.images import is_url
from msm4sr.errors import InputError
from msm4sr.features.images import BrokenImage, decode_image
from msm4sr.files import atomic_file
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.recommender import Recommender
from msm4sr.reports.pages.thumbnails import initial_of, small_jpeg, tint_of
from msm4sr.serving.messages import CardsOut, RecommendRequest, check_sizes
from msm4sr.serving.problems import Refused, described
from msm4sr.serving.service import Service

ON_THE_WALL = 60  # items at a time
LIKE_IT = 12  # similar items on an item's page
SIDES = (240, 640)  # pixels of a thumbnail's longer side: on a card, on an item's page
DECODING = 2  # pictures at once, so that recommendations find a core
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = {"style.css": "text/css", "shop.css": "text/css", "shop.js": "text/javascript"}


@dataclass(frozen=True)
class Card:
    """What the wall shows of an item: its picture, where it has one, else its initial on a tint."""

    item_id: str
    title: str
    picture: str | None
    page: str
    initial: str
    tint: int
    added: bool


def add_pages(app: FastAPI, service: Service) -> None:
    """The page and what it asks for. Before the routes of single items: theirs would take these paths for ids."""
    thumbnails = Thumbnails(service)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def wall(q: str = "", page: int = 1) -> Response:
        return await anyio.to_thread.run_sync(wall_page, q[:200], max(1, page))

    def wall_page(search: str, page: int) -> Response:
        recommender = service.recommender
        found = find_rows(recommender.catalogue, search)
        pages = max(1, -(-len(found) // ON_THE_WALL))
        page = min(page, pages)
        shown = found[(page - 1) * ON_THE_WALL : page * ON_THE_WALL]
        return render(
            "shop.html.jinja",
            cards=[card(recommender.catalogue, row) for row in shown],
            search=search,
            total=len(found),
            page=page,
            pages=pages,
            previous="/?" + urlencode({"q": search, "page": page - 1}),
            following="/?" + urlencode({"q": search, "page": page + 1}),
            modalities=recommender.modalities,
            takes_new_items=recommender.takes_new_items,
            needs_key=service.settings.api_key is not None,
        )

    @app.get("/item/{item_id:path}", response_class=HTMLResponse, include_in_schema=False)
    async def item_page(item_id: str, request: Request) -> Response:
        try:
            return await anyio.to_thread.run_sync(page_of, item_id)
        except InputError as error:
            return render("missing.html.jinja", 404, message=str(error))

    def page_of(item_id: str) -> Response:
        recommender = service.recommender
        catalogue = recommender.catalogue
        item = recommender.item(item_id)
        like = {
            by: [card(catalogue, one.item) for one in found]
            for by in (*(("both",) if recommender.modalities else ()), *recommender.modalities, "collaborative")
            if (found := _similar(recommender, item_id, by))
        }
        return render(
            "item.html.jinja",
            item=item,
            added=catalogue.is_added(catalogue.known_row(item_id)),
            card=card(catalogue, catalogue.known_row(item_id)),
            pictures=[f"{picture_path(item_id)}?number={n}&side={SIDES[1]}" for n in range(len(item.images))],
            keywords=recommender.keywords(item_id, 12),
            like=like,
        )

    @app.post("/page/recommend", include_in_schema=False)
    async def recommend(body: RecommendRequest) -> Response:
        """As POST /recommend, with what the page shows of each item."""
        check_sizes(service.settings, body, [body.history])

        def work() -> bytes:
            recommender = service.recommender
            found = recommender.recommend(body.history, body.k, by=body.by, reasons=True)
            catalogue = recommender.catalogue
            rows = [(catalogue.row(one.item_id), one) for one in found.items]
            shown = [asdict(card(catalogue, row)) | {"reason": one.reason} for row, one in rows if row is not None]
            return orjson.dumps({"items": shown, "unknown": found.unknown})

        return Response(await anyio.to_thread.run_sync(work), media_type="application/json")

    @app.get("/items", response_model=CardsOut, tags=["items"])
    async def items(
        q: Annotated[str, Query(max_length=200, description="Words of the title, or the id.")] = "",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = ON_THE_WALL,
    ) -> Response:
        """Items by words of their titles: those added last first, then those with a picture."""

        def work() -> bytes:
            catalogue = service.recommender.catalogue
            found = find_rows(catalogue, q)
            shown = [asdict(card(catalogue, row)) for row in found[offset : offset + limit]]
            return orjson.dumps({"total": len(found), "items": shown})

        return Response(await anyio.to_thread.run_sync(work), media_type="application/json")

    @app.get(
        "/items/{item_id:path}/picture",
        response_class=PlainResponse,
        tags=["items"],
        responses={**described(404), 200: {"content": {"image/jpeg": {}}}, 304: {"description": "As before"}},
    )
    async def picture(
        item_id: str,
        request: Request,
        number: Annotated[int, Query(ge=0, le=1000)] = 0,
        side: Annotated[
            int, Query(ge=1, le=2000, description="Pixels of the longer side, rounded to 240 or 640.")
        ] = 240,
    ) -> Response:
        """A picture of an item, small."""
        near = min(SIDES, key=lambda one: abs(one - side))
        made = await anyio.to_thread.run_sync(thumbnails.get, item_id, number, near)
        if made is None:
            raise Refused(404, f"item {item_id[:200]!r} has no picture {number} that can be shown")
        headers = {"ETag": made.tag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == made.tag:
            return Response(status_code=304, headers=headers)
        return Response(made.data, media_type="image/jpeg", headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in STATIC:
            raise Refused(404, f"there is no file {name[:100]!r}")
        data, tag = _static(name)
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(data, media_type=STATIC[name], headers={"ETag": tag, "Cache-Control": "no-cache"})


def find_rows(catalogue: Catalogue, search: str) -> Sequence[int]:
    """Rows whose title has every word (or whose id it is): added ones, latest first, then pictured ones, the others."""
    n = len(catalogue.items)
    late = range(len(catalogue) - 1, n - 1, -1)
    pictured, plain = _order(catalogue.items.images)
    rows = [*late, *(row for row in (*pictured, *plain) if row not in catalogue.removed)]
    words = search.casefold().split()
    if not words:
        return rows
    folded = _folded(catalogue.items)
    wanted = search.strip()

    def fits(row: int) -> bool:
        title = folded[row] if row < n else catalogue.name(row).casefold()
        return all(word in title for word in words) or catalogue.item_id(row) == wanted

    return [row for row in rows if fits(row)]


class _ById:
    """A list as a key of a cache: by which list it is. The lists of a run never change."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.values is self.values

    def __hash__(self) -> int:
        return id(self.values)


def _order(images: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
    return _ordered(_ById(images))


@lru_cache(maxsize=2)
def _ordered(key: _ById) -> tuple[list[int], list[int]]:
    pictured: list[int] = []
    plain: list[int] = []
    for row, paths in enumerate(key.values):
        (pictured if _shown(paths) else plain).append(row)
    return pictured, plain


def _folded(items: Items) -> list[str]:
    return _casefolded(_ById(items))


@lru_cache(maxsize=2)
def _casefolded(key: _ById) -> list[str]:
    return [key.values.name(row).casefold() for row in range(len(key.values))]


def _shown(paths: Sequence[str]) -> bool:
    return any(not is_url(path) for path in paths)


def card(catalogue: Catalogue, row: int) -> Card:
    item = catalogue.item(row)
    n = len(catalogue.items)
    pictured = len(item.images) > 0 if row >= n else _shown(catalogue.items.images[row])
    return Card(
        item.item_id,
        item.name,
        picture_path(item.item_id) if pictured else None,
        "/item/" + quote(item.item_id, safe=""),
        initial_of(item.name),
        tint_of(item.item_id),
        catalogue.is_added(row),
    )


def picture_path(item_id: str) -> str:
    return f"/items/{quote(item_id, safe='')}/picture"


def _similar(recommender: Recommender, item_id: str, by: str) -> list[Any]:
    try:
        return recommender.similar_items(item_id, LIKE_IT, by)
    except InputError:  # an item without a text, or without a picture, cannot be compared by it
        return []


@dataclass(frozen=True)
class Thumbnail:
    data: bytes
    tag: str


class Thumbnails:
    """Small pictures, made when first asked for and kept in the state folder."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._folder = service.settings.state / "thumbnails"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._decoding = threading.BoundedSemaphore(DECODING)

    def get(self, item_id: str, number: int, side: int) -> Thumbnail | None:
        """None where there is no such picture, or one that cannot be read."""
        recommender = self._service.recommender
        catalogue = recommender.catalogue
        row = catalogue.row(item_id)
        if row is None or number >= len(catalogue.item(row).images):
            return None
        if row < len(catalogue.items):
            source = f"{recommender.folder}/{catalogue.items.images[row][number]}"
            stored = None
        else:
            stored = self._service.store.image(item_id, number)
            if stored is None:
                return None
            source = f"added {item_id} {number} {stored[1]}"
        name = hashlib.blake2b(f"{source} {side}".encode("utf-8", "replace"), digest_size=16).hexdigest()
        file = self._folder / f"{name}.jpg"
        try:
            return Thumbnail(file.read_bytes(), f'"{name}"')
        except FileNotFoundError:
            pass
        with self._decoding:
            try:
                data = recommender.read_image(item_id, number) if stored is None else stored[0]
                made = small_jpeg(decode_image(data, side), side)
            except BrokenImage:
                return None
        self._keep(file, made)
        return Thumbnail(made, f'"{name}"')

    def _keep(self, file: Path, data: bytes) -> None:
        with atomic_file(file) as path:
            path.write_bytes(data)


@cache
def _static(name: str) -> tuple[bytes, str]:
    data = files("msm4sr.reports.pages").joinpath("templates", name).read_bytes()
    return data, f'"{hashlib.blake2b(data, digest_size=16).hexdigest()}"'


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("msm4sr.reports.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    page = _environment().get_template(template).render(**values)
    return HTMLResponse(page, status, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})
