"""A run over HTTP. `create_app(settings)` is an ASGI application; `msm4sr serve RUN` runs it."""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio.to_thread
import orjson
import torch
from fastapi import Depends, FastAPI, File, Form, Path, Query, Request, Response, UploadFile

from msm4sr.data.items import Item
from msm4sr.recommend.recommender import LONGEST_ID, Recommendations, Recommender
from msm4sr.serving.messages import (
    BatchOut,
    BatchRequest,
    ExplainRequest,
    ExplanationOut,
    Health,
    How,
    ItemOut,
    Ready,
    RecommendationsOut,
    RecommendRequest,
    SimilarOut,
    check_sizes,
)
from msm4sr.serving.metrics import Metrics
from msm4sr.serving.middleware import Bounds
from msm4sr.serving.problems import Problem, Refused, answer_problems, described
from msm4sr.serving.service import ServeSettings, Service
from msm4sr.serving.site import add_pages

ENVIRONMENT = "MSM4SR_SERVE"  # where the command leaves the settings for its workers, as JSON
LOOK_EVERY = 1.0  # seconds between two looks for a newer run
AT_ONCE = 1 << 22  # products that are computed between two requests; more go to a thread
THREADS = 8  # of long requests; more would wait for the cores as well, and each keeps memory of its own
MANY, LONG_HISTORY = 8, 200  # histories, and items of one that are read, likewise

T = TypeVar("T")
ItemPath = Annotated[str, Path(min_length=1, max_length=LONGEST_ID, description="The item's id.")]
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def app_from_environment() -> FastAPI:
    """For uvicorn's workers: the settings that `msm4sr serve` has left in the environment."""
    settings = ServeSettings.model_validate(json.loads(os.environ[ENVIRONMENT]))
    return create_app(settings, parent=os.getppid())


def create_app(settings: ServeSettings, parent: int | None = None) -> FastAPI:
    """The application over a run. Raises InputError where the run or its state cannot be used.

    parent: the process that watches over this one; where it is gone, this one ends as well.
    """
    service = Service(settings)
    torch.set_num_threads(_threads(service))
    metrics = Metrics()
    app = FastAPI(
        title="msm4sr",
        summary="Recommendations for any history and any item.",
        description="Every error is a problem document (RFC 9457) that says what to change.",
        version="1",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=partial(_lifespan, service, metrics, parent),
        responses=described(400, 408, 413, 422, 503),
    )
    app.state.service = service
    answer_problems(app)
    app.add_middleware(
        Bounds, max_body=settings.max_body, seconds=settings.seconds, headers=HEADERS, count=metrics.count_request
    )
    add_pages(app, service)
    _routes(app, service, metrics)
    _document_problems(app)
    return app


@asynccontextmanager
async def _lifespan(service: Service, metrics: Metrics, parent: int | None, app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    warming = asyncio.create_task(asyncio.to_thread(_warm, service))
    watching = asyncio.create_task(_watch(service, metrics, parent))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([warming])


def _threads(service: Service) -> int:
    """Threads of a product: more than one only wait for each other, unless the catalogue is large and all compared."""
    if _compared(service.recommender) <= AT_ONCE:
        return 1
    return max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // service.settings.workers))


def _compared(recommender: Recommender) -> int:
    """Numbers that each history is multiplied with."""
    return 0 if recommender.index is not None else recommender.catalogue.tensors.item_vectors.numel()


def _warm(service: Service) -> None:
    encoder = service.recommender.encoder
    if encoder is not None:
        encoder.warm()
    # What has been loaded stays. Were it not set apart, Python would go through all of it now and then while requests
    # wait, 0.1 s for 3,000 items. What an older run has left goes.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _watch(service: Service, metrics: Metrics, parent: int | None) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        if await asyncio.to_thread(service.reload_if_changed):
            metrics.reloads.inc()
            await asyncio.to_thread(_warm, service)


def _document_problems(app: FastAPI) -> None:
    """FastAPI describes 422 by a schema of its own; here it is a problem as well."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schemas = schema["components"]["schemas"]
            schemas["Problem"] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    settings = service.settings

    def allowed(request: Request) -> None:
        """Who changes something has the key, where one is set, and comes from no other site's page."""
        origin = request.headers.get("origin")
        if origin is not None and origin.split("://")[-1] != request.headers.get("host"):
            raise Refused(403, f"a page of {origin} may not change anything here")
        if settings.api_key is None:
            return
        bearer = request.headers.get("authorization", "")
        given = request.headers.get("x-api-key") or (bearer[7:] if bearer[:7].lower() == "bearer " else "")
        if not hmac.compare_digest(given.encode(), settings.api_key.get_secret_value().encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "this needs the API key, as the header X-API-Key or Authorization: Bearer", headers)

    def options(how: How) -> dict[str, Any]:
        wanted = None if how.categories is None else frozenset(how.categories)
        keep = None if wanted is None else lambda item: not wanted.isdisjoint(item.categories)
        return how.model_dump(include={"k", "exclude_seen", "candidates", "by", "reasons"}) | {"filter": keep}

    async def answer(work: Callable[[], T], recommender: Recommender, products: int) -> T:
        """At once where it is quick; a thread costs more than a small product."""
        if products <= MANY and products * _compared(recommender) <= AT_ONCE:
            return work()
        return await anyio.to_thread.run_sync(work)

    def products(how: How, recommender: Recommender, histories: list[list[str]]) -> int:
        """How often as much is to be done as for a history of usual length."""
        read = min(max(map(len, histories)), recommender.model.max_history)
        slow = how.reasons or how.categories or read > LONG_HISTORY
        return 1 << 30 if slow else len(histories)

    def shown(found: Recommendations) -> dict[str, Any]:
        return {
            "items": [
                {
                    "item_id": one.item_id,
                    "title": one.title,
                    "score": one.score,
                    "rank": one.rank,
                    "reason": one.reason,
                }
                for one in found.items
            ],
            "unknown": found.unknown,
        }

    @app.post("/recommend", response_model=RecommendationsOut, tags=["recommend"])
    async def recommend(body: RecommendRequest) -> Response:
        """The next items for a history."""
        check_sizes(settings, body, [body.history])
        recommender = service.recommender
        work = partial(recommender.recommend, body.history, **options(body))
        found = await answer(work, recommender, products(body, recommender, [body.history]))
        metrics.unknown.inc(len(found.unknown))
        return _json(shown(found))

    @app.post("/recommend/batch", response_model=BatchOut, tags=["recommend"])
    async def recommend_batch(body: BatchRequest) -> Response:
        """The next items for each of several histories."""
        check_sizes(settings, body, body.histories)
        recommender = service.recommender
        work = partial(recommender.recommend_batch, body.histories, **options(body))
        found = await answer(work, recommender, products(body, recommender, body.histories))
        return _json({"results": [shown(one) for one in found]})

    @app.post("/explain", response_model=ExplanationOut, tags=["recommend"], responses=described(404))
    async def explain(body: ExplainRequest) -> Response:
        """What the score of an item after a history is made of."""
        check_sizes(settings, None, [body.history])
        recommender = service.recommender
        return _json(await anyio.to_thread.run_sync(recommender.explain, body.history, body.item_id))

    @app.get("/items/{item_id:path}/similar", response_model=SimilarOut, tags=["items"], responses=described(404))
    async def similar(
        item_id: ItemPath,
        k: Annotated[int, Query(ge=1, description="How many items.")] = 10,
        by: Annotated[str, Query(max_length=50, description="text, visual, both or collaborative.")] = "both",
    ) -> Response:
        """The items most like an item."""
        if k > settings.max_k:
            raise Refused(422, f"k is {k}; ask for {settings.max_k} items at most")
        recommender = service.recommender
        found = await anyio.to_thread.run_sync(recommender.similar_items, item_id, k, by)
        return _json({"items": shown(Recommendations(found, []))["items"]})

    @app.get("/items/{item_id:path}", response_model=ItemOut, tags=["items"], responses=described(404))
    async def item(item_id: ItemPath) -> Response:
        """What is known of an item."""
        return _json(await anyio.to_thread.run_sync(describe, item_id))

    def describe(item_id: str) -> dict[str, Any]:
        recommender = service.recommender
        item = recommender.item(item_id)
        return {
            "item_id": item_id,
            "title": item.name,
            "text": item.text,
            "categories": item.categories,
            "images": len(item.images),
            "added": recommender.catalogue.row(item_id) in recommender.catalogue.added_rows.values(),
            "keywords": recommender.keywords(item_id),
        }

    @app.post(
        "/items",
        response_model=ItemOut,
        status_code=201,
        tags=["items"],
        dependencies=[Depends(allowed)],
        responses=described(401, 403, 409),
    )
    async def add_item(
        item_id: Annotated[str, Form(min_length=1, max_length=LONGEST_ID, examples=["N-1"])],
        title: Annotated[str, Form(max_length=1000, examples=["Red wooden train"])] = "",
        text: Annotated[str, Form(examples=["Four carriages, for children from three years."])] = "",
        categories: Annotated[list[str], Form(max_length=50)] = [],
        images: Annotated[list[UploadFile], File(description="JPEG, PNG, WEBP, GIF, BMP or TIFF")] = [],
    ) -> Response:
        """Add an item by what it is: from the next request on it is recommended, without training."""
        if len(text) > settings.max_text:
            raise Refused(422, f"text has {len(text):,} characters; {settings.max_text:,} are read at most")
        files = [image for image in images if image.filename or image.size]
        if len(files) > settings.max_images:
            raise Refused(422, f"{len(files)} images; send {settings.max_images} at most")
        if any(len(name) > 200 for name in categories):
            raise Refused(422, "categories: a name has 200 characters at most")
        new = Item(
            item_id,
            _text(title),
            _text(text),
            [name for name in categories if name],
            [await file.read() for file in files],
        )
        await anyio.to_thread.run_sync(service.add, [new])
        return _json(await anyio.to_thread.run_sync(describe, item_id), 201)

    @app.delete(
        "/items/{item_id:path}",
        status_code=204,
        tags=["items"],
        dependencies=[Depends(allowed)],
        responses=described(401, 403, 404),
    )
    async def remove_item(item_id: ItemPath) -> Response:
        """Recommend an item no longer."""
        await anyio.to_thread.run_sync(service.remove, item_id)
        return Response(status_code=204)

    @app.post(
        "/reload",
        status_code=202,
        response_model=Health,
        tags=["service"],
        dependencies=[Depends(allowed)],
        responses=described(401, 403),
    )
    async def reload() -> Response:
        """Read the run again, in every worker; requests are answered meanwhile. A run that changed is read anyway."""
        await anyio.to_thread.run_sync(service.store.request_reload)
        return _json({"status": "the run will be read again"}, 202)

    @app.get("/health", response_model=Health, tags=["service"])
    async def health() -> Response:
        """Whether the process answers."""
        return _json({"status": "ok"})

    @app.get("/ready", response_model=Ready, tags=["service"])
    async def ready() -> Response:
        """Whether requests can be answered, and by what."""
        recommender = service.recommender
        catalogue, index = recommender.catalogue, recommender.index
        return _json(
            {
                "status": "ready",
                "run": str(settings.run),
                "model": recommender.model.config.model_dump()["name"],
                "items": catalogue.n_items,
                "added": len(catalogue.added),
                "modalities": recommender.modalities,
                "index": "exact" if index is None else "approximate",
                "recall": None if index is None else index.recall,
                "failed_reload": service.failed_reload,
            }
        )

    @app.get("/metrics", response_class=Response, tags=["service"], responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Counts and times, for Prometheus."""
        catalogue = service.recommender.catalogue
        metrics.items.set(catalogue.n_items)
        metrics.added.set(len(catalogue.added))
        return Response(metrics.text(), media_type=metrics.media_type)


def _text(value: str) -> str | None:
    """None for no words; what no file can hold (half of a surrogate pair, a NUL) is taken out."""
    clean = value.encode("utf-8", "ignore").decode().replace("\x00", "")
    return clean if clean.strip() else None
