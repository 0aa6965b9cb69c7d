"""The log of a service, on standard error: lines of text, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from msm4sr.errors import InputError

LogFormat = Literal["text", "json"]

# Of the request that is being answered; empty outside of requests.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("msm4sr.access")


def request_id_of(given: bytes | None) -> str:
    """The id that the caller has given, if it is well-formed, else a new one."""
    if given is not None and _WELL_FORMED.fullmatch(given):
        return given.decode()
    return secrets.token_hex(16)


def log_to_stderr(format: LogFormat) -> logging.Handler:
    """Send the log of this process, libraries included, to standard error in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.getLogger().addHandler(handler)
    ours = logging.getLogger("msm4sr")
    ours.handlers.clear()  # that of the command line
    ours.setLevel(logging.INFO)
    logging.captureWarnings(format == "json")
    return handler


@contextmanager
def logging_to_stderr(format: LogFormat) -> Iterator[None]:
    """As `log_to_stderr`, until the end of the block."""
    ours = logging.getLogger("msm4sr")
    before = ours.handlers[:]
    handler = log_to_stderr(format)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)
        ours.handlers[:] = before


@contextmanager
def log_errors() -> Iterator[None]:
    """Log wrong input, and end with 2, in place of an error that the command line would print."""
    try:
        yield
    except InputError as error:
        logger.error("%s", error)
        raise SystemExit(2) from None


def log_access(method: str, route: str, status: int, seconds: float) -> None:
    """Log an answered request."""
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
    access_logger.info("%s %s %d in %.1f ms", method, route, status, 1000 * seconds, extra={"fields": fields})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message; the id and the fields of a request, and an exception, if there are any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """The same as one line of text, with the traceback of an exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        # what a caller has sent must not begin another line
        message = record.getMessage().translate(_CONTROLS)
        line = f"{_time(record)} {record.levelname.lower()} {record.name}: {message}"
        if request_id := REQUEST_ID.get():
            line += f" [{request_id}]"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
