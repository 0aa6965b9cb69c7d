"""Errors as problem documents (RFC 9457): what is wrong, and what to change."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import ItemExists, UnknownItem

MEDIA_TYPE = "application/problem+json"
FIELDS = 20  # wrong fields that are named at most


class Problem(BaseModel):
    """What is wrong with a request."""

    type: str = Field("about:blank", description="Always about:blank: the status says which kind it is.")
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["k: Input should be less than or equal to 200"], description="And what to change.")


class Refused(Exception):
    """A request that is not answered, with the status and the detail of its problem document."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, headers, MEDIA_TYPE)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that an endpoint answers with, for OpenAPI."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def answer_problems(app: FastAPI) -> None:
    """Make a problem document of whatever an endpoint raises."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.detail, error.headers)

    @app.exception_handler(InputError)
    async def wrong_input(request: Request, error: InputError) -> JSONResponse:
        status = 404 if isinstance(error, UnknownItem) else 409 if isinstance(error, ItemExists) else 422
        return problem(status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, in_words(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, _advice(request, error), dict(error.headers or {}))

    @app.exception_handler(sqlite3.Error)
    async def store(request: Request, error: sqlite3.Error) -> JSONResponse:
        return problem(503, f"the store of items did not answer ({error}); try again later", {"Retry-After": "5"})


def in_words(errors: Sequence[Any]) -> str:
    """What pydantic found, field by field."""
    found = []
    for error in errors[:FIELDS]:
        where = ".".join(str(part) for part in error["loc"][1:]) or "the body"
        found.append(f"{where}: {error['msg'].removeprefix('Value error, ')}")
    return "; ".join(found)


def _advice(request: Request, error: HTTPException) -> str:
    path = request.url.path
    if error.status_code == 404:
        return f"there is nothing at {path}; /openapi.json lists what there is"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow")
        return f"{request.method} is not answered at {path}" + (f"; use {allowed}" if allowed else "")
    if error.status_code == 400 and "parsing" in str(error.detail):
        return "the body cannot be read; send JSON in UTF-8, and new items as multipart/form-data"
    return str(error.detail)
