"""Errors as problem documents (RFC 9457): what is wrong, and what to change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from msm4sr.errors import InputError, excerpt
from msm4sr.recommend.catalogue import ItemExists, UnknownItem
from msm4sr.recommend.index import IndexUnavailable
from msm4sr.recommend.users import UnknownUser, UsersUnavailable
from msm4sr.serving.paths import SLASH
from msm4sr.serving.state.store import StoreUnavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # that are described


class Problem(BaseModel):
    """Why a request was refused."""

    type: str = Field("about:blank", description="Always about:blank; see the status.")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(
        examples=["k is 500; ask for at most 200 items"], description="What is wrong, and what to change."
    )


class Refused(Exception):
    """A request is refused; status and detail are those of the problem document."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    detail = detail.encode("utf-8", "replace").decode()  # a message may quote half of a surrogate pair
    body = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, headers, MEDIA_TYPE)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that a route may answer with, for OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def add_problem_handlers(app: FastAPI) -> None:
    """Turn every exception of a route into a problem document."""
    for kind in (Refused, InputError, RequestValidationError, HTTPException, StoreUnavailable):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    match error:
        case Refused():
            return problem(error.status, error.detail, error.headers)
        case IndexUnavailable():
            return problem(503, str(error), {"Retry-After": "5"})
        case UsersUnavailable():
            logger.warning("%s", error)  # the answer does not name folders of the server
            detail = "the histories of users cannot be read now; send a history, or try again later"
            return problem(503, detail, {"Retry-After": "10"})
        case InputError():
            status = (
                404 if isinstance(error, UnknownItem | UnknownUser) else 409 if isinstance(error, ItemExists) else 422
            )
            return problem(status, str(error))
        case RequestValidationError():
            return problem(422, describe_errors(error.errors()))
        case HTTPException(status_code=405):
            methods = _methods(request)
            detail = f"{_path(request)} does not accept {request.method}; use {methods}"
            return problem(405, detail, {"Allow": methods})
        case HTTPException():
            return problem(error.status_code, _advice(request, error), dict(error.headers or {}))
    logger.warning("%s", error)  # it may name files and hosts of the server
    detail = "the store of items is not available; recommendations continue, changes can be tried again later"
    return problem(503, detail, {"Retry-After": "5"})


def describe_errors(errors: Sequence[Any]) -> str:
    """The errors that pydantic found, field by field."""
    return "; ".join(
        f"the body is not JSON (character {error['loc'][-1]})"
        if error["type"] == "json_invalid"
        else f"{_place(error['loc'][1:]) or 'the body'}: {error['msg'].removeprefix('Value error, ')}"
        for error in errors[:MAX_ERRORS]
    )


def _place(location: Sequence[int | str]) -> str:
    return ".".join(str(part) if len(str(part)) <= 60 else excerpt(part) for part in location)


def _path(request: Request) -> str:
    return request.url.path.replace(SLASH, "%2F")


def _methods(request: Request) -> str:
    """The methods that the path of a request accepts."""
    scopes = [{**request.scope, "method": method} for method in ("DELETE", "GET", "PATCH", "POST")]
    accepted = (one for one in scopes if any(route.matches(one)[0] is Match.FULL for route in request.app.routes))
    return ", ".join(one["method"] for one in accepted)


def _advice(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"no such path: {_path(request)}; /openapi.json lists all paths"
    if error.status_code == 400 and "parsing" in str(error.detail):
        return "the body cannot be read; send JSON in UTF-8, and new items as multipart/form-data"
    return str(error.detail)
