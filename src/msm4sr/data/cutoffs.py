"""The times at which a temporal split begins validation and test."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

from msm4sr.data.schema import END_OF_TIME

ACCEPTED = "a date (2026-03-01, 2026-03-01T18:00+01:00), seconds since 1970, or a fraction between 0 and 1"


def _valid(cutoff: Any) -> Any:
    """The cut-off as it is. Raises ValueError for what is none."""
    if isinstance(cutoff, str):
        try:
            datetime.fromisoformat(cutoff)
            return cutoff
        except ValueError:
            raise ValueError(f"{cutoff!r} is not a date; write {ACCEPTED}") from None
    is_seconds = isinstance(cutoff, int) and not isinstance(cutoff, bool) and 1 < cutoff < END_OF_TIME
    if is_seconds or (isinstance(cutoff, float) and 0 < cutoff < 1):
        return cutoff
    raise ValueError(f"{cutoff!r} is not a cut-off; write {ACCEPTED}")


Cutoff = Annotated[int | float | str, BeforeValidator(_valid)]
"""When a part begins: an ISO date or time (UTC unless it says otherwise), seconds since 1970, or the fraction of the
interactions before it."""


def seconds_of(cutoff: int | str) -> float:
    """The seconds since 1970 of a time."""
    if isinstance(cutoff, int):
        return cutoff
    moment = datetime.fromisoformat(cutoff)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def time_text(seconds: float) -> str:
    """A time as text: the date, and the time of day if it is not midnight."""
    moment = datetime.fromtimestamp(seconds, UTC)
    midnight = not (moment.hour or moment.minute or moment.second)
    return f"{moment:%Y-%m-%d}" if midnight else f"{moment:%Y-%m-%d %H:%M:%S}"
