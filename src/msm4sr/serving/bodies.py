"""Reading bodies, so that none keeps the event loop busy: bounded JSON, and forms parsed in a thread.

A thread does not help against JSON, since parsers in C keep the interpreter locked until they are done.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException

from msm4sr.serving.problems import Refused

FORM, MULTIPART = b"application/x-www-form-urlencoded", b"multipart/form-data"
MAX_BODY = 4 * 2**20  # bytes; multipart bodies have their own limit
# Of a JSON body. 256 histories of 2,000 items, the limits of a request, may have more: such a batch is sent in parts.
MAX_VALUES, MAX_LISTS, MAX_NAMES = 100_000, 10_000, 50
MAX_PARTS, MAX_FIELD = 200, 256 * 2**10  # of a form; bytes
MAX_CONTENT_TYPE = 200  # characters


class BoundedRoute(APIRoute):
    """A route whose requests are `BoundedRequest`s, in UTF-8."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            check_content_type(request.headers)
            return await handle(BoundedRequest(request.scope, request.receive))

        return bounded


class BoundedRequest(Request):
    """A request with bounded parsers. They raise HTTPException, which FastAPI leaves as it is."""

    async def body(self) -> bytes:
        kind, _ = parse_options_header(self.headers.get("content-type"))
        # A body of another type is refused before it is read; one without a type may be empty.
        if not kind.endswith((b"/json", b"+json")) and (kind or await super().body()):
            advice = "send JSON with the header Content-Type: application/json; only new items are sent as a form"
            raise HTTPException(415, advice)
        return await super().body()

    async def json(self) -> Any:
        body = await self.body()
        values, lists = body.count(b","), body.count(b"[") + body.count(b"{")
        if values > MAX_VALUES or lists > MAX_LISTS:
            detail = f"more than {MAX_VALUES:,} values or {MAX_LISTS:,} lists; send less at once"
            raise HTTPException(413, detail)
        value = orjson.loads(body)
        if isinstance(value, dict) and len(value) > MAX_NAMES:
            raise HTTPException(422, f"{len(value):,} names in an object; send at most {MAX_NAMES}")
        return value

    async def form(self, **limits: object) -> FormData:  # type: ignore[override]
        kind, _ = parse_options_header(self.headers.get("content-type"))
        if kind not in (b"", FORM, MULTIPART):
            raise HTTPException(415, "send a new item as multipart/form-data")
        chunks = [chunk async for chunk in self.stream()]
        try:
            return await anyio.to_thread.run_sync(parse_form, self.headers.get("content-type"), chunks)
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)[:200]
            raise HTTPException(400, f"the form cannot be read ({reason}); send multipart/form-data in UTF-8") from None


def check_content_type(headers: Headers) -> None:
    """Raises Refused for a body in another encoding than UTF-8."""
    value = headers.get("content-type", "")
    if len(value) > MAX_CONTENT_TYPE:
        raise Refused(415, f"a Content-Type of {len(value):,} characters; use at most {MAX_CONTENT_TYPE}")
    charset = parse_options_header(value)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        raise Refused(415, f"the charset {charset!r} is not supported; send UTF-8")


def parse_form(content_type: str | None, chunks: Sequence[bytes]) -> FormData:
    """The fields of a form, decoded as UTF-8, and its files. A body of another type has none.

    Raises:
        ValueError: The form is malformed, cut short, not UTF-8, or over the bounds of this module.
    """
    kind, options = parse_options_header(content_type)
    if kind == FORM:
        if sum(map(len, chunks)) > MAX_FIELD:
            raise ValueError(f"more than {MAX_FIELD:,} bytes")
        text = b"".join(chunks).decode()
        fields = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS)
        return FormData(fields)  # type: ignore[arg-type]  # a list is invariant
    if kind != MULTIPART:
        return FormData()
    form = _MultipartForm()
    callbacks: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    parser = MultipartParser(options.get(b"boundary", b""), callbacks)
    for chunk in chunks:
        parser.write(chunk)
    parser.finalize()
    if not form.ended:
        raise ValueError("the last boundary is missing")
    return FormData(form.parts)


class _MultipartForm:
    """The parts of a multipart body, collected by the callbacks of its parser."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str | UploadFile]] = []
        self.ended = False
        self._header, self._value = b"", b""

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} parts")
        self._data, self._size, self._disposition = BytesIO(), 0, b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise ValueError("a part has no name")
        self._name = options[b"name"].decode()
        self._file_name = options.get(b"filename")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += self._data.write(data[start:end])
        if self._file_name is None and self._size > MAX_FIELD:
            raise ValueError(f"the field {self._name[:50]!r} has more than {MAX_FIELD:,} bytes")

    def on_part_end(self) -> None:
        if self._file_name is None:
            self.parts.append((self._name, self._data.getvalue().decode()))
            return
        self._data.seek(0)
        name = self._file_name.decode("utf-8", "replace")
        self.parts.append((self._name, UploadFile(self._data, size=self._size, filename=name)))

    def on_end(self) -> None:
        self.ended = True
