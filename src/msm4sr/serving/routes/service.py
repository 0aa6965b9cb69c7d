"""The state of the service: health, readiness, metrics, reload."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from msm4sr.recommend.index import IndexUnavailable, VectorIndex
from msm4sr.serving.dependencies import CurrentService, as_json, change_in_thread, in_thread
from msm4sr.serving.problems import Refused, described
from msm4sr.serving.schemas import Readiness, Status

SKIPPED = 20  # items that are named

router = APIRouter(tags=["service"])


@router.post("/reload", status_code=202, response_model=Status, responses=described(401))
async def reload(service: CurrentService, request: Request) -> Response:
    """Reload the run in every worker while requests are answered. A changed run is also reloaded without this."""
    await change_in_thread(request, service.store.request_reload)
    return as_json(Status("the run will be reloaded"), 202)


@router.get("/health", response_model=Status)
async def health() -> Response:
    """Whether the process responds."""
    return as_json(Status("ok"))


@router.get("/ready", response_model=Readiness)
async def ready(service: CurrentService, request: Request) -> Response:
    """Whether the service is ready, and which run it serves; 503 while it ends (`--drain`)."""
    if request.app.state.drain.began:
        raise Refused(503, "the service is ending; send requests to another replica", {"Retry-After": "5"})
    recommender = service.recommender
    catalogue, index = recommender.catalogue, recommender.index
    failed_index = await in_thread(request, lambda: _failure(index)) if index.remote else ""
    return as_json(
        Readiness(
            status="ready",
            run=str(service.settings.run),
            model=recommender.model.config.model_dump()["name"],
            items=catalogue.n_items,
            added=len(catalogue.added),
            unavailable=len(catalogue.unavailable),
            modalities=recommender.modalities,
            index=index.kind,
            recall=index.recall,
            failed_index=failed_index,
            failed_reload=service.failed_reload,
            failed_store=service.failed_store,
            state_lag=round(service.state_lag, 3),
            skipped=dict(list(service.skipped.items())[:SKIPPED]),
        )
    )


def _failure(index: VectorIndex) -> str:
    try:
        index.check()
    except IndexUnavailable as error:
        return str(error)
    return ""


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def prometheus(service: CurrentService) -> Response:
    """Metrics for Prometheus."""
    service.sample()
    return Response(service.metrics.text(), media_type=service.metrics.media_type)
