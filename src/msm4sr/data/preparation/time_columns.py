"""A column of times in the files of a table: numbers in some unit, dates, or texts of either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from msm4sr.data.preparation.columns import plain_column, stripped
from msm4sr.data.preparation.source import PrepareReport
from msm4sr.data.preparation.table_files import Block, TableFiles
from msm4sr.data.preparation.times import TimeUnit, as_numbers, from_iso
from msm4sr.errors import InputError

OVERFLOW = 2262  # the year in which nanoseconds since 1970 exceed 64 bits
FINER = r"[.,]\d{6}\d{0,2}[1-9]"  # than a microsecond


class Found(NamedTuple):
    """How many times were found, and the first of them."""

    rows: int = 0
    example: str = ""

    def plus(self, found: pl.Series, times: pl.Series, block: Block) -> Found:
        if not found.any():
            return self
        first = int(found.arg_max() or 0)
        return Found(self.rows + int(found.sum()), self.example or f"{block.place(first)}: '{times[first]}'")


class TimeColumn:
    """One unit for all rows of a column (`decide`), then the values of each block as numbers (`numbers`).

    Attributes:
        unit: `auto` and others for numbers, as in `PrepareReport.time_unit`; `iso` for dates, or `ns` if any is finer
            than a microsecond.
    """

    def __init__(self, files: TableFiles, name: str, unit: TimeUnit) -> None:
        self._files, self.name, self.unit = files, name, unit
        self._written = unit
        self._dates = False

    def decide(self, report: PrepareReport) -> None:
        """Decide the unit. Only for texts, and dates in nanoseconds, the rows are read."""
        first, kinds = self._files.paths[0], list[str]()
        for path in self._files.paths:
            dtype = self._files.dtype(path, self.name)
            plain_column(pl.Series(self.name, [], dtype), path, "a number, a date or a text")
            kinds.append(_kind(dtype))
            if kinds[-1] != kinds[0]:
                here = f"{path}: column '{self.name}' holds {kinds[-1]}, but {kinds[0]} in {first.name}"
                raise InputError(f"{here}; write all files alike")
        if dtype.is_temporal():
            if self._written not in ("auto", "iso"):
                raise InputError(f"{self._where(first)} holds dates ({dtype}); set time_unit to iso")
            self._dates, self.unit = True, "ns" if self._dates_need_nanoseconds() else "iso"
        elif kinds[0] == "texts" and self._written in ("auto", "iso"):
            self._decide_by_texts(report)
        self._dates |= self._written == "iso"
        if self._dates and dtype.is_float():
            raise InputError(f"{self._where(first)} is {dtype}; time_unit iso needs dates or texts")

    def numbers(self, times: pl.Series) -> tuple[pl.Series, int]:
        """Times of the column as int64 or float64, null for what is none; and how many times became equal."""
        times = stripped(times.cast(pl.String) if times.dtype.is_decimal() else times)
        if not self._dates:
            return as_numbers(times)
        if times.dtype.is_temporal():
            elapsed = times.dt.epoch("ns" if self.unit == "ns" else "us")
            return elapsed, times.n_unique() - elapsed.n_unique()
        if times.dtype.is_integer():
            times = times.cast(pl.String)
        texts = times.drop_nulls().unique()
        exact = [from_iso(text) for text in texts]
        moments = [moment if moment is None or self.unit == "ns" else moment // 1000 for moment in exact]
        numbers = times.replace_strict(texts, moments, default=None, return_dtype=pl.Int64)
        return numbers, len({*exact} - {None}) - len({*moments} - {None})

    def _decide_by_texts(self, report: PrepareReport) -> None:
        """Most values decide, so that one invalid value does not."""
        given = numeric = 0
        naive, zoned, finer = Found(), Found(), False
        for block, times in self._blocks():
            finite = times.cast(pl.Float64, strict=False).is_finite().fill_null(False)
            given, numeric = given + times.count(), numeric + int(finite.sum())
            if self._written == "iso" or finite.sum() < times.count():
                timed = times.str.contains(r"^\d{4}-?\d\d-?\d\d").fill_null(False)
                offset = times.str.contains(r"\d[Tt ].*[+-]\d\d(:?\d\d)*$").fill_null(False) & timed
                # An offset of 0 is UTC, as none is.
                zoned = zoned.plus(offset & ~times.str.contains(r"[+-]00(:?00)*$"), times, block)
                naive = naive.plus(timed & ~offset & ~times.str.contains(r"[zZ]$"), times, block)
                finer = finer or bool(times.str.contains(FINER).any())
        if self._written == "auto" and 2 * numeric > given:
            return
        self._check_offsets(naive, zoned, report)
        self._dates, self.unit = True, "ns" if finer and self._texts_need_nanoseconds() else "iso"

    def _dates_need_nanoseconds(self) -> bool:
        """Whether nanoseconds are needed, and hold all dates."""
        dtypes = [self._files.dtype(path, self.name) for path in self._files.paths]
        if not any(isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns" for dtype in dtypes):
            return False
        finer = False
        for _, times in self._blocks():
            if (times.dt.year() >= OVERFLOW).any():
                return False
            finer = finer or bool((times.dt.epoch("ns") % 1000 != 0).any())
        return finer

    def _texts_need_nanoseconds(self) -> bool:
        """`_dates_need_nanoseconds` of texts."""
        finer = False
        for _, times in self._blocks():
            for moment in map(from_iso, times.drop_nulls().unique()):
                if moment is not None and abs(moment) >= 1 << 63:
                    return False
                finer = finer or (moment is not None and moment % 1000 != 0)
        return finer

    def _check_offsets(self, naive: Found, zoned: Found, report: PrepareReport) -> None:
        """Report times without an offset among times with one. Raises InputError unless `time_unit` is iso."""
        if not (zoned.rows and naive.rows):
            return
        problem = (
            f"column '{self.name}': {naive.rows:,} times have no offset from UTC (first: {naive.example}) and "
            f"{zoned.rows:,} have one ({zoned.example})"
        )
        if self._written != "iso":
            advice = "write all with their offset, or pass --time-unit iso to read the former as UTC"
            raise InputError(f"{self._files.paths[0]}: {problem}; {advice}")
        report.notes.append(f"{problem}; the former are read as UTC")

    def _blocks(self) -> Iterator[tuple[Block, pl.Series]]:
        for block in self._files.blocks([self.name]):
            yield block, stripped(block.table[self.name])

    def _where(self, path: object) -> str:
        return f"{path}: column '{self.name}'"


def _kind(dtype: pl.DataType) -> str:
    """What a column of a file holds; all files of a table hold the same."""
    if not dtype.is_temporal():
        return "texts" if dtype == pl.String else "numbers"
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    return "dates" if zone in (None, "UTC") else "dates with a time zone"
