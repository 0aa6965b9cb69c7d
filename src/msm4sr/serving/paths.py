"""Item ids in paths: one segment each, in which a slash is written as %2F, so that an id never names another path."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

SLASH = "\x1f"  # in place of a %2F; no id has it


class _Segment(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return value.replace(SLASH, "/")

    def to_string(self, value: str) -> str:
        return value.replace("/", SLASH)


register_url_convertor("id", _Segment())  # for `{item_id:id}`


class EncodedSlashes:
    """Keeps the encoded slashes of a path apart from the others while a route is chosen."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if b"%" in raw:
            scope["path"] = unquote(re.sub("%2f", SLASH, raw.decode("latin-1"), flags=re.IGNORECASE))
        await self.app(scope, receive, send)
