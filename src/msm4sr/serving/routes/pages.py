"""The web page: the catalogue with its search, the page of an item, and the recommendations for a history.

Pages are rendered here; a script keeps the history. Pages request nothing of another host, and the content
security policy allows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from msm4sr.digests import array_digest
from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import Catalogue
from msm4sr.recommend.recommender import Recommendation, Recommender
from msm4sr.recommend.scoring import BOTH, COLLABORATIVE
from msm4sr.serving.bodies import BoundedRoute
from msm4sr.serving.dependencies import BOUNDED, CurrentService, as_file, as_json, check_sizes
from msm4sr.serving.problems import Refused
from msm4sr.serving.routes.items import PAGE, find_rows, image_path, item_summary
from msm4sr.serving.schemas import ItemSummary, PageRecommendations, RecommendRequest
from msm4sr.serving.thumbnails import SIDES

SIMILAR = 12  # similar items on the page of an item
KEYWORDS = 12  # keywords on it
LATEST = 100  # items of a user's history that are shown
CATEGORIES = 200  # categories that can be chosen, those that most items have
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# File -> package and media type.
STATIC = {
    "style.css": ("msm4sr.reports.pages", "text/css"),
    "catalogue.css": ("msm4sr.serving", "text/css"),
    "catalogue.js": ("msm4sr.serving", "text/javascript"),
    "changes.js": ("msm4sr.serving", "text/javascript"),
}

router = APIRouter(include_in_schema=False, route_class=BoundedRoute, dependencies=BOUNDED)


@router.get("/", response_class=HTMLResponse)
def catalogue_page(service: CurrentService, q: str = "", page: int = 1) -> Response:
    recommender, search, root = service.recommender, q[:200], service.settings.root_path
    catalogue = recommender.catalogue
    found = find_rows(catalogue, search)
    pages = max(1, -(-len(found) // PAGE))
    page = min(max(1, page), pages)
    return render(
        "catalogue.html.jinja",
        root,
        cards=[item_summary(catalogue, row, root) for row in found[(page - 1) * PAGE : page * PAGE]],
        search=search,
        total=len(found),
        page=page,
        pages=pages,
        offset=(page - 1) * PAGE,
        previous=f"{root}/?" + urlencode({"q": search, "page": page - 1}),
        following=f"{root}/?" + urlencode({"q": search, "page": page + 1}),
        modalities=recommender.modalities,
        categories=sorted(catalogue.categories[:CATEGORIES], key=str.casefold),
        takes_new_items=recommender.encoder is not None,
        needs_key=service.settings.api_key is not None,
    )


@router.get("/item/{item_id:id}", response_class=HTMLResponse)
def item_page(item_id: str, service: CurrentService) -> Response:
    recommender, root = service.recommender, service.settings.root_path
    catalogue = recommender.catalogue
    try:
        row = catalogue.known_row(item_id)
    except InputError as error:
        return render("missing.html.jinja", root, 404, message=str(error))
    item = catalogue.item(row)
    kinds = [*([BOTH] if recommender.modalities else []), *recommender.modalities, COLLABORATIVE]
    return render(
        "item.html.jinja",
        root,
        item=item,
        card=item_summary(catalogue, row, root),
        images=[f"{image_path(item_id, root)}?number={n}&side={SIDES[1]}" for n in range(len(item.images))],
        keywords=recommender.keywords(item, KEYWORDS),
        similar={by: cards for by in kinds if (cards := _similar(recommender, item_id, by, root))},
        needs_key=service.settings.api_key is not None,
    )


def _similar(recommender: Recommender, item_id: str, by: str, root: str) -> list[ItemSummary]:
    try:
        return _summaries(recommender.catalogue, recommender.similar_items(item_id, SIMILAR, by), root)
    except InputError:  # an item without the modality cannot be compared by it
        return []


def _summaries(catalogue: Catalogue, found: Sequence[Recommendation], root: str) -> list[ItemSummary]:
    return [item_summary(catalogue, row, root) for one in found if (row := catalogue.row(one.item_id)) is not None]


@router.post("/page/recommend")
def recommend(body: RecommendRequest, service: CurrentService) -> Response:
    """As POST /recommend, with what the page shows of each item, and of a user's history."""
    recommender, root = service.recommender, service.settings.root_path
    check_sizes(service.settings, [body.history or ()], body.k)
    catalogue = recommender.catalogue
    history = body.history if body.user_id is None else recommender.user_history(body.user_id)
    assert history is not None
    found = recommender.recommend(history, **body.arguments() | {"reasons": True})
    reasons = {one.item_id: one.reason for one in found.items}
    latest = [] if body.user_id is None else catalogue.known_rows(history)[0][-LATEST:]
    past = [item_summary(catalogue, row, root) for row in latest]
    service.metrics.unknown.inc(len(found.unknown))
    cards = _summaries(catalogue, found.items, root)
    return as_json(PageRecommendations(cards, reasons, found.unknown, past, found.popular))


@router.get("/static/{name}")
async def static(name: str, request: Request) -> Response:
    if name not in STATIC:
        raise Refused(404, f"there is no file {name[:100]!r}")
    return as_file(request, *_static(name), STATIC[name][1], "no-cache")


@cache
def _static(name: str) -> tuple[bytes, str]:
    data = files(STATIC[name][0]).joinpath("templates", name).read_bytes()
    return data, f'"{array_digest(data)}"'


@cache
def _environment() -> Environment:
    loader = PackageLoader("msm4sr.serving")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, root: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template, with paths below `root`."""
    page = _environment().get_template(template).render(root=root, **values)
    return HTMLResponse(page, status, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})
