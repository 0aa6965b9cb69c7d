"""Amazon's public review files: the layouts of 2014, 2018 and 2023.

| | reviews | items |
|---|---|---|
| 2014 | `reviewerID`, `asin`, `overall`, `unixReviewTime` | rows in Python's notation (single quotes): `asin`, `title`, `description` (a text), `categories` (lists in a list), `imUrl` |
| 2018 | the same | `asin`, `title`, `description`, `feature`, `category` (lists), `imageURL` (a thumbnail), `imageURLHighRes` |
| 2023 | `user_id`, `parent_asin`, `rating`, `timestamp` (milliseconds) | `parent_asin`, `title`, `description`, `features`, `categories`, `images` (each with `thumb`, `large`, `hi_res`) |

The names in a row say which layout it has. An item's text is its description, then its features. Entities are decoded
and markup is removed from every text; a title that is the script of a page is dropped. URLs of images stay URLs (https)
until `msm4sr fetch-images` downloads them.

A row is invalid, and counted by kind, if it is not JSON (or 2014's notation), has no ID, a value of a wrong type,
an impossible date, a negative rating, or half a surrogate pair in a text that is read.
"""  # noqa: E501 (a table)

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any, ClassVar

import orjson
import polars as pl
from pydantic import Field

from msm4sr.data.items import is_url
from msm4sr.data.preparation.reading import INTERACTION_COLUMNS, InvalidRow, read_blocks
from msm4sr.data.preparation.source import SOURCES, PrepareReport, Rules, Source
from msm4sr.data.preparation.times import MICROSECONDS, SCALES, NumberUnit
from msm4sr.data.schema import ITEM_COLUMNS
from msm4sr.errors import excerpt

EARLIEST, LATEST = 788_918_400, 4_102_444_800  # seconds: Amazon opened in 1995; the year 2100
MAX_LITERAL = 256 << 10  # bytes of a row in Python's notation: reading it takes some hundred times its size
MAX_TEXT = 50_000  # characters that are read of one text, markup included
MAX_NESTING = 8  # lists in lists
OLD_NAMES = ("reviewerID", "asin", "unixReviewTime", "overall")  # until 2018
NEW_NAMES = ("user_id", "parent_asin", "timestamp", "rating")
PLAIN_ID = r"^[A-Za-z0-9][!-~]*$"
NO_NUMBER = r"^(?:[A-Z]|0[0-9])[!-~]*$"  # and plain; an ID as most are

# Each attempt ends where the next one would start, so that no text takes more than linear time (html.parser of Python
# 3.11 takes quadratic time on hostile markup).
INVISIBLE = re.compile(r"<(script|style)\b(?:(?!<\1\b).)*?</\1\s*>|<!--(?:(?!<!--).)*?-->", re.I | re.S)
INLINE = re.compile(r"</?(?:a|b|em|font|i|small|span|strong|sub|sup|u)\b[^<>]*>", re.I)  # within a word too
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
PAGE_SCRIPT = re.compile(r"\bgetTime\b|\bvar aPageStart\b")  # what a crawler kept in place of a title


@SOURCES.register("amazon")
class Amazon(Source):
    """From Amazon's public files (of 2014, 2018 or 2023) to a prepared folder."""

    format: ClassVar[str] = "amazon"
    rules: ClassVar[Rules] = Rules(unseen_items="drop")  # item files list a department, most of it without reviews

    reviews: Path = Field(description="*.json.gz or *.jsonl.gz, the reviews.")
    meta: Path = Field(description="meta_*.json(l).gz, the items.")
    images: Path | None = Field(None, description="A folder of images, named as in their URLs or <asin>.jpg.")
    max_images: int = Field(1, ge=0, description="Images of an item at most, the main one first.")
    time_unit: NumberUnit = Field(
        "auto", description="Unit of the times since 1970. auto: that of the layout, ms in 2023, s before."
    )

    @property
    def files(self) -> list[Path]:
        return [self.reviews, self.meta]

    def read_interactions(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        report.order, parse = "the time of the review", partial(review, unit=self.time_unit)
        native = partial(native_reviews, unit=self.time_unit)
        return read_blocks(self.reviews, parse, INTERACTION_COLUMNS, report, "interactions", native=native)

    def read_items(self, report: PrepareReport) -> Iterator[pl.DataFrame]:
        return read_blocks(self.meta, partial(item, max_images=self.max_images), ITEM_COLUMNS, report, "items")


def review(line: bytes, unit: NumberUnit = "auto") -> tuple[str, str, int, float | None]:
    """User, item, time in microseconds, rating (or None) of a review. Raises InvalidRow."""
    row = json_row(line)
    names, usual = (OLD_NAMES, "s") if "reviewerID" in row else (NEW_NAMES, "ms")
    user, item_id, time, rating = map(row.get, names)
    if usual == "ms" and not item_id:
        item_id = row.get("asin")
    if type(time) is not int:
        raise InvalidRow("times that are no integer", excerpt(time))
    per_second = SCALES[usual if unit == "auto" else unit]
    if not EARLIEST * per_second <= time < LATEST * per_second:
        fitting = (name for name, scale in SCALES.items() if EARLIEST * scale <= time < LATEST * scale)
        raise InvalidRow(
            "impossible dates", ", ".join([str(time), *(f"which fits --time-unit {name}" for name in fitting)])
        )
    time = time * MICROSECONDS // per_second
    if rating is not None:
        if type(rating) is not float and type(rating) is not int:
            raise InvalidRow("ratings that are no number")
        if rating < 0:
            raise InvalidRow("negative ratings")
        if not rating <= 1000:  # NaN too, and what float32 cannot hold
            raise InvalidRow("impossible ratings")
    return _id(user, "user"), _id(item_id, "item"), time, rating


def native_reviews(lines: bytes, count: int, unit: NumberUnit = "auto") -> pl.DataFrame | None:
    """The reviews of many lines as `review` parses each; None unless all are surely valid, with plain IDs."""
    old = b'"reviewerID"' in lines
    user, item_id, time, rating = OLD_NAMES if old else NEW_NAMES
    names = {user: pl.String(), item_id: pl.String(), time: pl.Int64(), rating: pl.Float64()}
    try:
        table = pl.read_ndjson(io.BytesIO(lines), schema=names)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    per_second = SCALES["s" if old else "ms"] if unit == "auto" else SCALES[unit]
    times, ratings, ids = pl.col(time), pl.col(rating), pl.col(user, item_id)
    [valid] = table.select(
        pl.all_horizontal(
            pl.col(user, item_id, time).is_not_null().all(),
            (ids.str.len_bytes() < 64).all(),
            (times.is_between(EARLIEST * per_second, LATEST * per_second, closed="left")).all(),
            (ratings.is_null() | ratings.is_between(0, 1000)).all(),
        )
    ).to_series()
    if len(table) != count or not valid or not _are_texts(table, lines, (user, item_id)):
        return None
    return table.select(
        user_id=user, item_id=item_id, time=times * MICROSECONDS // per_second, rating=ratings.cast(pl.Float32)
    )


def _are_texts(table: pl.DataFrame, lines: bytes, names: Sequence[str]) -> bool:
    """Whether all IDs are plain, and were written as texts: polars reads the number 12 as "12"."""
    suspects = [name for name in names if not table[name].str.contains(NO_NUMBER).all()]
    if not suspects:
        return True
    if not all(table[name].str.contains(PLAIN_ID).all() for name in suspects):
        return False
    numbers = pl.read_ndjson(io.BytesIO(lines), schema=dict.fromkeys(suspects, pl.Float64()), ignore_errors=True)
    truths = pl.read_ndjson(io.BytesIO(lines), schema=dict.fromkeys(suspects, pl.Boolean()), ignore_errors=True)
    return all(part.null_count().row(0) == (len(table),) * len(suspects) for part in (numbers, truths))


def item(line: bytes, max_images: int) -> tuple[str, str | None, str | None, list[str] | None, list[str] | None]:
    """ID, title, text, categories and image URLs of an item, None for what it lacks. Raises InvalidRow."""
    row = json_row(line)
    item_id = _id(row.get("parent_asin") or row.get("asin"), "item")
    title = " ".join(_plain_texts(row.get("title")))
    title = "" if PAGE_SCRIPT.search(title) else title
    parts = [*_plain_texts(row.get("description")), *_plain_texts(row.get("features") or row.get("feature"))]
    text = "\n".join(dict.fromkeys(parts))[:MAX_TEXT]
    categories = list(dict.fromkeys(_plain_texts(row.get("categories") or row.get("category"))))
    return item_id, title or None, text or None, categories or None, _images(row)[:max_images] or None


def json_row(line: bytes) -> dict[str, Any]:
    """The object of a line of JSON, or of 2014's Python notation. Raises InvalidRow."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _slow_row(line)
    if type(row) is not dict:
        raise InvalidRow("rows that are no object")
    return row


def _slow_row(line: bytes) -> object:
    """A row that the fast parser refuses: it has halves of surrogate pairs, or is a literal of Python."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRow("rows that are not UTF-8") from error
    with suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=int)  # an error for NaN and Infinity
    if not text.lstrip().startswith(("{'", "{u'")) or len(line) > MAX_LITERAL:
        raise InvalidRow("broken JSON")
    return _literal(text)


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes like "\d"
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InvalidRow("broken JSON") from error


def _id(value: object, whose: str) -> str:
    if type(value) is not str and value is not None:
        raise InvalidRow(f"{whose} IDs that are no text")
    if not (name := (value or "").strip()):
        raise InvalidRow(f"missing {whose} IDs")
    return _encodable(name)


def _encodable(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRow("halves of surrogate pairs") from error
    return text


def plain(text: str) -> str:
    """The text without markup, entities decoded (twice: `&amp;lt;br&amp;gt;`), each white space one space."""
    text = text[:MAX_TEXT]
    for _ in range(2):
        if "<" in text:
            text = TAG.sub(" ", INLINE.sub("", INVISIBLE.sub(" ", text)))
        if "&" not in text:
            break
        text = unescape(text)
    return " ".join(text.split())


def _plain_texts(value: object) -> list[str]:
    """The texts in a value: a text, a list (in lists) of texts, or such a list written as a text; none is empty."""
    found = (plain(_encodable(text)) for text in _texts(value, MAX_NESTING))
    return [_encodable(text) for text in found if text]  # again: an entity can name half a pair


def _texts(value: object, depth: int) -> Iterator[str]:
    if value is None:
        return
    if type(value) is str:
        written = value.strip()
        if written.startswith(("['", '["')) and written.endswith("]") and len(written) <= MAX_LITERAL and depth:
            with suppress(InvalidRow):
                listed = _literal(written)
                if type(listed) is list:
                    value, depth = listed, 1
    if type(value) is str:
        yield value
    elif type(value) is list and depth:
        for part in value:
            yield from _texts(part, depth - 1)
    else:
        raise InvalidRow("texts of a wrong type")


def _images(row: dict[str, Any]) -> list[str]:
    """URLs, the main image first: large enough for an encoder, and no larger if there is a choice."""
    value = row.get("images")
    if type(value) is dict:  # a list for each key, in place of an object for each image
        lists = list(value.values()) if all(type(column) is list for column in value.values()) else []
        value = [dict(zip(value, image, strict=True)) for image in zip(*lists, strict=False)]
    if type(value) is list and all(type(image) is dict for image in value):
        value = sorted(value, key=lambda image: image.get("variant") != "MAIN")
        value = [image.get("large") or image.get("hi_res") or image.get("thumb") for image in value]
    value = value or row.get("imageURLHighRes") or row.get("imageURL") or row.get("imUrl")
    urls = (_encodable(url).strip() for url in _texts(value, MAX_NESTING))
    return list(dict.fromkeys("https://" + url.partition("://")[2] for url in urls if is_url(url) and len(url) <= 2000))
