"""What routes depend on: the service, and limits on sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import orjson
from anyio.lowlevel import RunVar
from fastapi import Depends, Path, Request, Response

from msm4sr.recommend.recommender import Recommender
from msm4sr.serving.problems import Refused
from msm4sr.serving.schemas import ItemId
from msm4sr.serving.service import ServeSettings, Service

WAITING = 128  # requests that may wait for a thread
CHANGES_WAITING = 16  # changes that may wait for the one before
_one_change: RunVar[anyio.CapacityLimiter] = RunVar("one_change")
T = TypeVar("T")


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


CurrentService = Annotated[Service, Depends(get_service)]
ItemPath = Annotated[ItemId, Path(description="The id of the item.")]


def _refuse_when_busy(limiter: anyio.CapacityLimiter, waiting: int) -> None:
    if limiter.statistics().tasks_waiting >= waiting:
        raise Refused(503, "too many requests are waiting; try again later", {"Retry-After": "2"})


async def refuse_when_busy() -> None:
    """Raises Refused if too many requests wait for a thread."""
    _refuse_when_busy(anyio.to_thread.current_default_thread_limiter(), WAITING)


BOUNDED = [Depends(refuse_when_busy)]


async def in_thread(
    request: Request, work: Callable[[], T], limiter: anyio.CapacityLimiter | None = None, waiting: int | None = None
) -> T:
    """Run long work in a thread, unless the caller has disconnected meanwhile. Raises as `refuse_when_busy`."""

    def work_if_wanted() -> T:
        if anyio.from_thread.run(request.is_disconnected):
            raise Refused(503, "the caller has disconnected")
        return work()

    limiter = limiter or anyio.to_thread.current_default_thread_limiter()
    _refuse_when_busy(limiter, WAITING if waiting is None else waiting)
    return await anyio.to_thread.run_sync(work_if_wanted, limiter=limiter)


async def change_in_thread(request: Request, work: Callable[[], T]) -> T:
    """As `in_thread`, one change at a time: while another process has locked the store, other requests have threads."""
    try:
        limiter = _one_change.get()
    except LookupError:  # the first change
        limiter = anyio.CapacityLimiter(1)
        _one_change.set(limiter)
    return await in_thread(request, work, limiter, CHANGES_WAITING)


def check_sizes(settings: ServeSettings, histories: Sequence[Sequence[str]], k: int = 1) -> None:
    """Raises Refused for a request over the limits of this service."""
    if k > settings.max_k:
        raise Refused(422, f"k is {k}; ask for at most {settings.max_k} items")
    if len(histories) > settings.max_batch:
        raise Refused(422, f"{len(histories):,} histories; send at most {settings.max_batch} per request")
    for history in histories:
        if len(history) > settings.max_history:
            raise Refused(422, f"a history of {len(history):,} items; send at most the latest {settings.max_history:,}")


async def histories_of(request: Request, recommender: Recommender, user_ids: Sequence[str]) -> list[list[str]]:
    """The histories of users of the run's data, which is read in a thread at the first use."""

    def find() -> list[list[str]]:
        return [recommender.user_history(user_id) for user_id in user_ids]

    are_read = recommender.users is not None and recommender.users.are_read
    return find() if are_read else await in_thread(request, find)


def as_file(request: Request, data: bytes, tag: str, media_type: str, cache: str) -> Response:
    """A file with its ETag and Cache-Control; 304 for a caller that has it, whose proxy may have weakened the tag."""
    headers = {"ETag": tag, "Cache-Control": cache}
    held = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if held & {tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def as_json(value: Any, status: int = 200) -> Response:
    """An answer from dataclasses, without another validation."""
    return Response(orjson.dumps(value), status, media_type="application/json")
