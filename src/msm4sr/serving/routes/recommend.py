"""Recommendations for histories, and explanations of scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from msm4sr.recommend.explanations import Explanation
from msm4sr.recommend.recommender import Recommendations, Recommender
from msm4sr.recommend.stages import stage
from msm4sr.serving.bodies import BoundedRoute
from msm4sr.serving.dependencies import CurrentService, as_json, check_sizes, histories_of, in_thread
from msm4sr.serving.problems import described
from msm4sr.serving.schemas import BatchRequest, BatchResults, ExplainRequest, RecommendOptions, RecommendRequest
from msm4sr.serving.service import PRODUCTS_INLINE

# The largest requests that are answered in the event loop: histories, and items that are read of one.
HISTORIES_INLINE, READ_INLINE = 8, 200

T = TypeVar("T")
router = APIRouter(tags=["recommend"], route_class=BoundedRoute)


@router.post("/recommend", response_model=Recommendations, responses=described(404))
async def recommend(body: RecommendRequest, request: Request) -> Response:
    """Recommend items for a history, or for a user of the run's data."""
    service = request.app.state.service
    recommender, history = service.recommender, body.history
    check_sizes(service.settings, [history or ()], body.k)
    if body.user_id is not None:
        [history] = await histories_of(request, recommender, [body.user_id])
    assert history is not None
    work = partial(recommender.recommend, history, **body.arguments())
    found = await _run(request, work, recommender, body, [history])
    service.metrics.unknown.inc(len(found.unknown))
    with stage("json"):
        return as_json(found)


@router.post("/recommend/batch", response_model=BatchResults, responses=described(404))
async def recommend_batch(body: BatchRequest, request: Request, service: CurrentService) -> Response:
    """Recommend items for each of several histories, or of several users of the run's data."""
    recommender, histories = service.recommender, body.histories
    check_sizes(service.settings, histories or [()] * len(body.user_ids or ()), body.k)
    if body.user_ids is not None:
        histories = await histories_of(request, recommender, body.user_ids)
    assert histories is not None
    work = partial(recommender.recommend_batch, histories, **body.arguments())
    found = await _run(request, work, recommender, body, histories)
    service.metrics.unknown.inc(sum(len(one.unknown) for one in found))
    with stage("json"):
        return as_json(BatchResults(found))


@router.post("/explain", response_model=Explanation, responses=described(404))
async def explain(body: ExplainRequest, request: Request, service: CurrentService) -> Response:
    """Explain the score of an item after a history."""
    check_sizes(service.settings, [body.history])
    work = partial(service.recommender.explain, body.history, body.item_id)
    return as_json(await in_thread(request, work))


async def _run(
    request: Request,
    work: Callable[[], T],
    recommender: Recommender,
    options: RecommendOptions,
    histories: Sequence[Sequence[str]],
) -> T:
    """Run short work at once, since a thread costs more, and long work in a thread."""
    read = min(max(map(len, histories)), recommender.model.max_history)
    slow = options.reasons or options.has_rules or read > READ_INLINE or len(histories) > HISTORIES_INLINE
    if not slow and not recommender.index.remote and len(histories) * recommender.index.products <= PRODUCTS_INLINE:
        return work()
    return await in_thread(request, work)
