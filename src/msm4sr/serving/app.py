"""The application: `create_app(settings)` is an ASGI application over a run; `msm4sr serve RUN` runs it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio.to_thread
import torch
from fastapi import FastAPI

from msm4sr.errors import first_line
from msm4sr.serving.drain import Drain
from msm4sr.serving.middleware import Bodies, RequestLimits
from msm4sr.serving.observation import Observation
from msm4sr.serving.paths import EncodedSlashes
from msm4sr.serving.problems import Problem, add_problem_handlers, described
from msm4sr.serving.routes import items, pages, recommend, service
from msm4sr.serving.service import PRODUCTS_INLINE, ServeSettings, Service
from msm4sr.serving.thumbnails import ThumbnailCache
from msm4sr.serving.tracing import Tracing, wants_traces

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0  # between two checks for a newer run
SAMPLE_SECONDS = 1.0  # between two samples of what the metrics have of this moment
SWITCH_SECONDS = 0.001  # after which a thread that runs Python code lets the event loop continue
THREADS = 8  # for long requests; more would only wait for the cores, and each keeps memory


API_KEY = {
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}  # security schemes of OpenAPI, either of which is enough


class Api(FastAPI):
    """FastAPI, but OpenAPI has the API key, the sizes of requests, and a 422 as the problem document that it is."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document, settings = super().openapi(), self.state.service.settings
            schemas = document["components"]["schemas"]
            schemas["Problem"] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            single, several = (schemas[name]["properties"] for name in ("RecommendRequest", "BatchRequest"))
            single["k"]["maximum"] = several["k"]["maximum"] = settings.max_k
            single["history"]["anyOf"][0]["maxItems"] = settings.max_history
            several["histories"]["anyOf"][0]["maxItems"] = settings.max_batch
            if settings.api_key is not None:
                document["components"]["securitySchemes"] = API_KEY
                for operation in (one for path in document["paths"].values() for one in path.values()):
                    if "401" in operation["responses"]:
                        operation["security"] = [{name: []} for name in API_KEY]
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(settings: ServeSettings) -> FastAPI:
    """The application over a run. Raises as `Service` and `Tracing`."""
    tracing = Tracing(settings.trace) if wants_traces(settings.trace) else None
    served, drain, bodies = Service(settings), Drain(settings.drain), Bodies()
    # One thread is fastest unless a history is multiplied with a large catalogue.
    large = served.recommender.index.products > PRODUCTS_INLINE
    cores = (os.cpu_count() or 1) // settings.workers
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores)) if large else 1)
    sys.setswitchinterval(SWITCH_SECONDS)
    app = Api(
        title="msm4sr",
        summary="Recommendations for any history and any item.",
        description="Every error is a problem document (RFC 9457) that says what to change.",
        version="1",
        docs_url=None,  # these pages load scripts of other hosts
        redoc_url=None,
        redirect_slashes=False,  # an id may end in a slash
        lifespan=partial(_lifespan, served, bodies, tracing),
        responses=described(400, 403, 408, 413, 415, 422, 431, 503),
    )
    app.state.service, app.state.thumbnails, app.state.drain = served, ThumbnailCache(served), drain
    add_problem_handlers(app)
    app.add_middleware(EncodedSlashes)
    app.add_middleware(RequestLimits, settings=settings, bodies=bodies)
    app.add_middleware(Observation, metrics=served.metrics, drain=drain, tracing=tracing, log=settings.access_log)
    for resource in (recommend, items, pages, service):  # the busiest first: routes are tried in order
        app.include_router(resource.router)
    return app


@asynccontextmanager
async def _lifespan(served: Service, bodies: Bodies, tracing: Tracing | None, app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    if tracing is not None:
        tracing.start()
    app.state.drain.begin_at_sigterm()
    warming, ended = asyncio.create_task(asyncio.to_thread(_warm, served)), threading.Event()
    sampling = asyncio.create_task(_sample(served, bodies))
    # a daemon, so that a run that is being loaded does not delay the end
    threading.Thread(target=_watch, args=(served, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        sampling.cancel()
        await asyncio.wait([warming])
        await asyncio.to_thread(served.close)
        if tracing is not None:
            await asyncio.to_thread(tracing.stop)


async def _sample(served: Service, bodies: Bodies) -> None:
    """Set what changes between two requests, in every worker: the one that answers /metrics shows all."""
    limiter, metrics = anyio.to_thread.current_default_thread_limiter(), served.metrics
    while True:
        metrics.waiting.set(limiter.statistics().tasks_waiting)
        metrics.held.set(bodies.held)
        served.sample()
        await asyncio.sleep(SAMPLE_SECONDS)


def _warm(served: Service) -> None:
    """Load the encoders, index the categories, and exclude what is loaded from garbage collection.

    Python would otherwise traverse it while requests wait, 0.1 s for 3,000 items.
    """
    encoder = served.recommender.encoder
    try:
        if encoder is not None:
            encoder.warm()
    except Exception as error:
        logger.error("the encoders of new items cannot be loaded: %s", first_line(error))
    _ = served.recommender.catalogue.categories
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _watch(served: Service, ended: threading.Event) -> None:
    while not ended.wait(CHECK_SECONDS):
        if served.reload_if_changed():
            _warm(served)
