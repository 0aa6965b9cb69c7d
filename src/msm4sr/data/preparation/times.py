"""Times of interactions: one unit that fits all rows, or an error that names rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from msm4sr.data.preparation.source import Place, PrepareReport
from msm4sr.data.remaining import Flags, Ints
from msm4sr.data.schema import END_OF_TIME
from msm4sr.errors import InputError

MICROSECONDS = 10**6
DAY = 86_400  # seconds
USUAL = 788_918_400  # seconds: 1995; earlier times suggest another unit, or another origin
FEW = 300  # rows
SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
BOUNDS = (1e11, 1e14, 1e17)  # where the next scale starts: as one scale the year 5138, as the next 1973
SPREADSHEET_1970 = 25_569  # the day number of 1970-01-01 in spreadsheets
SPREADSHEET_DAYS = (32_874, 55_153)  # 1990 to 2050
UNITS = {
    "auto": "seconds since 1970 (or ms, us, ns, all rows alike)",
    "s": "seconds since 1970",
    "ms": "milliseconds since 1970",
    "us": "microseconds since 1970",
    "ns": "nanoseconds since 1970",
    "days": "day numbers of a spreadsheet",
    "iso": "an ISO 8601 date or time",
}

NumberUnit = Literal["auto", "s", "ms", "us", "ns"]
TimeUnit = Literal["auto", "s", "ms", "us", "ns", "days", "iso"]
UNIT_HELP = (
    "Unit of the times: s, ms, us or ns since 1970; days (numbers of a spreadsheet); iso (ISO 8601, or 20230131 and "
    "20230131235959; UTC without an offset). auto: iso for dates and texts; for numbers the one of s, ms, us, ns that "
    "fits all rows."
)


IMPOSSIBLE = ("before 1970", "after the year 9999", "more than 64 bits can hold")
LARGEST = 2.0**63  # the first number that 64 bits with a sign cannot hold


class Case(NamedTuple):
    """How often something was found, and its first row and value."""

    rows: int
    row: int
    value: int | float


class Times:
    """Decides the unit of the times (`PrepareReport.time_unit`); `place` names the file and the line of a row."""

    def __init__(self, report: PrepareReport, place: Callable[[int], Place]) -> None:
        self._report, self._place = report, place
        self._cases: dict[str, Case] = {}
        self._count = 0

    def add(self, rows: Ints, values: Ints) -> None:
        """Record the times (int64 or float64) of these rows; rows can come in any order."""
        self._count += len(values)
        unit, numbers = self._report.time_unit, values.astype(np.float64)
        if unit == "auto":
            scale = np.searchsorted(BOUNDS, numbers, side="right")
            seconds = numbers / np.array(list(SCALES.values()))[scale]
        else:
            seconds = _seconds(numbers, unit)
        possible = (seconds < END_OF_TIME) & (numbers < LARGEST)
        cases = {
            "before 1970": ~(seconds >= 0),
            "after the year 9999": (seconds >= END_OF_TIME) & (numbers < LARGEST),
            "more than 64 bits can hold": numbers >= LARGEST,
            "early": (seconds >= 0) & (seconds < USUAL),
            "future": (seconds > time.time() + DAY) & possible,
        }
        if unit == "auto":
            fitting = (numbers > 0) & possible  # 0 is 1970 in each unit
            cases |= {name: fitting & (scale == number) for number, name in enumerate(SCALES)}
            cases |= {"digits": _digits_of_a_date(numbers)}
            cases |= {"days": (numbers >= SPREADSHEET_DAYS[0]) & (numbers <= SPREADSHEET_DAYS[1])}
        for name, found in cases.items():
            places = np.flatnonzero(found)
            if len(places):
                first = places[rows[places].argmin()]
                new = Case(0, int(rows[first]), values[first].item())
                known = self._cases.get(name, new)
                earlier = min(known, new, key=lambda case: case.row)
                self._cases[name] = earlier._replace(rows=known.rows + len(places))

    def decide(self) -> tuple[int, str, str]:
        """Decide the unit, after all times were added.

        Returns how many units of a moment (see below) make a second; and two expressions of SQL over the columns
        `time_int` and `time_float`, of which one is null: an integer that increases with time, the moment, and whether
        the time is possible. Raises InputError if more rows than `max_invalid_fraction` allows have no possible time.
        """
        report = self._report
        written = report.time_unit
        if written == "auto":
            report.time_unit = self._fitting_unit()
        self._check(written)
        unit = report.time_unit
        report.order += f" ({unit})" if unit else ""
        if early := self._cases.get("early"):
            label = f" as {UNITS[unit]}" if unit else ""
            report.notes.append(
                f"{early.rows:,} times are before 1995{label} (first: {self._example(early)}{self._date(early)}); if "
                "that is wrong, correct them or pass another --time-unit"
            )
        per_second = SCALES["ns"] if unit == "ns" else MICROSECONDS
        value = "coalesce(time_int::DOUBLE, time_float)"
        if unit == "days":
            seconds = f"(({value} - {SPREADSHEET_1970}) * {DAY})"
            moment = f"({seconds} * {per_second})::BIGINT"  # rounds halves to even
        else:
            scale = SCALES.get(unit, MICROSECONDS)
            seconds, factor = f"({value} / {scale})", per_second // scale
            moment = f"coalesce(time_int * {factor}, (time_float * {factor})::BIGINT)"
        possible = f"({seconds} >= 0 AND {seconds} < {END_OF_TIME} AND {value} < {LARGEST:.0f})"
        if written == "auto":
            place = list(SCALES).index(unit)
            low, high = ((0.0, *BOUNDS)[place], (*BOUNDS, float("inf"))[place])
            fits = f"{value} >= {low:.0f}" + (f" AND {value} < {high:.0f}" if place < len(BOUNDS) else "")
            possible += f" AND ({fits} OR {value} = 0)"
        return per_second, moment, possible

    def future(self) -> list[str]:
        """The note about times in the future. It depends on the clock, so it is not written to provenance.json."""
        case = self._cases.get("future")
        if case is None:
            return []
        unit = f" as {UNITS[self._report.time_unit]}" if self._report.time_unit else ""
        return [f"{case.rows:,} times are in the future{unit} (first: {self._example(case)})"]

    def _fitting_unit(self) -> str:
        """The unit of most values. Raises InputError if they are dates or days that are written as numbers.

        A few among later times are enough, if they are most of the early ones.
        """
        early = self._cases.get("early", Case(0, 0, 0)).rows
        for name, what, remedy in (
            ("digits", "seems to be the digits of a date", "--time-unit iso"),
            ("days", "seems to be the day number of a spreadsheet", "--time-unit days"),
        ):
            case = self._cases.get(name)
            if case is None:
                continue
            few = early < self._count and early / 2 <= case.rows <= 2 * early
            if 2 * case.rows > self._count or (few and case.rows >= min(FEW, self._count / 100)):
                raise self._error(case, f"{what}; pass {remedy}, or the unit that it is in")
        return max(SCALES, key=lambda name: self._cases[name].rows if name in self._cases else 0)

    def _check(self, written: str) -> None:
        """Count the rows without a possible time as dropped, or raise InputError."""
        report, unit = self._report, self._report.time_unit
        wrong = {name: self._cases[name] for name in IMPOSSIBLE if name in self._cases}
        others = {name: self._cases[name] for name in SCALES if name in self._cases and name != unit}
        for case in wrong.values():
            shown = self._example(case, value=False)
            report.drop_invalid("interactions", "interactions: impossible dates", case.rows, shown)
        for case in others.values():
            reason = "interactions whose time is in another unit"
            report.drop_invalid("interactions", reason, case.rows, self._example(case))
        if report.too_many_invalid("interactions"):
            for name, case in wrong.items():
                expected = f"; expected {UNITS[unit]} (time_unit {written})" if unit else ""
                raise self._error(case, f"is {name}{expected}")
            [(name, case), *_] = others.items()
            usual = self._cases[unit]
            raise self._error(
                case,
                f"seems to be in {UNITS[name]}, but '{self._shown(usual)}' in {self._beside(case, usual)} in "
                f"{UNITS[unit]} ({case.rows:,} and {usual.rows:,} rows); write all in one unit, or pass --time-unit",
            )

    def _beside(self, case: Case, other: Case) -> str:
        """Where the other case is, for a message that names the place of the first."""
        place, beside = self._place(case.row), self._place(other.row)
        return f"{beside.unit} {beside.number}" if place.file == beside.file else str(beside)

    def _example(self, case: Case, value: bool = True) -> str:
        return f"{self._place(case.row)}" + (f": {self._shown(case)}" if value else "")

    def _shown(self, case: Case) -> str:
        if self._report.time_unit in ("", "iso"):
            return str(np.datetime64(int(case.value) // MICROSECONDS, "s")).removesuffix("T00:00:00")
        return f"{case.value:.17g}" if isinstance(case.value, float) else str(case.value)

    def _date(self, case: Case) -> str:
        """The date of a number."""
        unit = self._report.time_unit
        if unit in ("", "iso"):
            return ""
        return (
            f", which is {np.datetime64(int(_seconds(np.array([case.value]), unit)[0]), 's').astype('datetime64[D]')}"
        )

    def _error(self, case: Case, problem: str) -> InputError:
        place = self._place(case.row)
        where = f"{self._report.order}, {place.unit} {place.number}"
        return InputError(f"{place.file}: {where}: '{self._shown(case)}' {problem}")


def as_numbers(times: pl.Series) -> tuple[pl.Series, int]:
    """The numbers and how many different texts became equal: int64 if all are integers, else float64; null for others.

    Each integer is exact, however it is written: 1600000000000000006, 1600000000000000006.0, 1.6e18.
    """
    integers = times.cast(pl.Int64, strict=False)
    numbers = times.cast(pl.Float64, strict=False)
    numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
    if times.dtype != pl.String:
        return (integers if times.dtype.is_integer() and integers.null_count() == numbers.null_count() else numbers), 0
    rest = numbers.is_not_null() & integers.is_null()
    others = numbers.filter(rest)
    if (numbers.abs() >= 1 << 53).any() and ((others % 1 == 0) & (others.abs() < 1 << 63)).all():
        integers = integers.scatter(rest.arg_true(), [int(Decimal(text)) for text in times.filter(rest)])
        rest = rest & False
    if not rest.any():
        return integers, 0
    long = (times.str.len_chars() > 16) & numbers.is_not_null()  # float64 keeps all shorter ones apart
    return numbers, times.filter(long).n_unique() - numbers.filter(long).n_unique()


def from_iso(text: str) -> int | None:
    """Nanoseconds since 1970 of an ISO 8601 date or time, or of its digits (`20230131235959`); None for any other."""
    if text.isdecimal() and len(text) > 8:
        text = f"{text[:8]}T{text[8:]}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    elapsed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    finer = re.search(r"[.,]\d{6}(\d{1,3})", text)  # datetime cuts them
    microseconds = (elapsed.days * DAY + elapsed.seconds) * MICROSECONDS + elapsed.microseconds
    return microseconds * 1000 + (int(finer[1].ljust(3, "0")) if finer else 0)


def _seconds(values: Ints, unit: str) -> Ints:
    """Seconds since 1970 (float64)."""
    if unit == "days":
        values = (values - SPREADSHEET_1970) * DAY
    seconds: Ints = values / (1 if unit == "days" else SCALES.get(unit, MICROSECONDS))
    return seconds


def _digits_of_a_date(values: Ints) -> Flags:
    """Whether the digits are those of a date since 1900 and of a time of day, or a part of it: 2023013123."""
    numbers = np.where((values > 0) & (values < 1e15), values, 0).astype(np.int64)
    found = np.zeros(len(values), dtype=bool)
    for digits, limits in ((8, ()), (10, (24,)), (12, (24, 60)), (14, (24, 60, 60))):
        date = numbers // 10 ** (digits - 8)
        possible = (date >= 1900_01_01) & (date <= 2100_12_31)
        if possible.any():
            month, day = date // 100 % 100, date % 100
            possible &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
            parts: Sequence[int] = limits
            for place, limit in enumerate(parts):
                possible &= numbers // 10 ** (digits - 10 - 2 * place) % 100 < limit
            found |= possible
    return found
