"""From Amazon's public review files to a prepared folder: the layouts of 2014, 2018 and 2023.

| | reviews | items |
|---|---|---|
| 2014 | `reviewerID`, `asin`, `overall`, `unixReviewTime` | rows in Python's notation (single quotes): `asin`, `title`, `description` (a text), `categories` (lists in a list), `imUrl` |
| 2018 | the same | `asin`, `title`, `description`, `feature`, `category` (lists), `imageURL` (a thumbnail), `imageURLHighRes` |
| 2023 | `user_id`, `parent_asin`, `rating`, `timestamp` (milliseconds) | `parent_asin`, `title`, `description`, `features`, `categories`, `images` (each with `thumb`, `large`, `hi_res`) |

Each row says by its names which layout it is of. An item's text is its description, then its features. Entities
are decoded and markup is removed from every text; a title that is a page's script is none. Addresses of
pictures stay addresses (https) until `msm4sr fetch-images` downloads them.

A row is bad, and counted by kind, where it is no JSON (or 2014's notation), has no ID, a value of a wrong type,
an impossible date, a negative rating, or half a surrogate pair in a text that is read.
"""  # noqa: E501 (a table)

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from msm4sr.data.sources.images import is_url
from msm4sr.data.sources.pipeline import LIKE_PAPER, PrepareReport, Rules, Source, prepare, read_interactions
from msm4sr.data.sources.rows import BadRow, BadRows, read_rows

EARLIEST, LATEST = 788_918_400, 4_102_444_800  # seconds: Amazon opened in 1995; the year 2100
MAX_LITERAL = 256 << 10  # bytes of a row in Python's notation: reading it takes some hundred times its size
MAX_TEXT = 50_000  # characters that are read of one text, markup included
MAX_NESTING = 8  # lists in lists

AMAZON_RULES = Rules(unseen_items="drop")
"""The item files list a whole department, most of which nobody in the reviews took."""
AMAZON_LIKE_PAPER = AMAZON_RULES.model_copy(update=dict(LIKE_PAPER))

# Each attempt ends where the next one would start, so that no text takes more than linear time.
INVISIBLE = re.compile(r"<(script|style)\b(?:(?!<\1\b).)*?</\1\s*>|<!--(?:(?!<!--).)*?-->", re.I | re.S)
INLINE = re.compile(r"</?(?:a|b|em|font|i|small|span|strong|sub|sup|u)\b[^<>]*>", re.I)  # within a word too
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
PAGE_SCRIPT = re.compile(r"\bgetTime\b|\bvar aPageStart\b")  # what a crawler kept in place of a title


def prepare_amazon(
    reviews: Path,
    items: Path,
    out: Path,
    images: Path | None = None,
    rules: Rules = AMAZON_RULES,
    max_images: int = 1,
) -> PrepareReport:
    """Write the prepared folder `out` from a file of reviews and one of items (JSON lines, gzipped or not).

    `images`: a folder that has (some of) the pictures already, named as in their addresses or `<asin>.jpg`.
    `max_images`: pictures of an item at most, the main one first.

    Raises InputError: see `pipeline.prepare`.
    """

    def read_items(report: PrepareReport) -> Iterator[pl.DataFrame]:
        bad = BadRows()
        names = ("item_id", "title", "text", "categories", "image")
        text, texts = pl.String(), pl.List(pl.String())
        schema = dict(zip(names, (text, text, text, texts, texts), strict=True))
        for numbers, rows in read_rows(
            items, lambda line: item(line, max_images), bad, report.rules.max_invalid_fraction
        ):
            columns = zip(names, zip(*rows, strict=True), strict=True)
            yield pl.DataFrame({"row": numbers, **dict(columns)}, {"row": pl.Int64(), **schema})
        report.items_read = bad.rows
        report.drop_bad(items, "items", bad)

    source = Source(
        format="amazon",
        files=[reviews, items],
        interactions=lambda report: read_interactions(reviews, review, report),
        items=read_items,
        settings={"max_images": max_images},
        order="the time of the review",
    )
    return prepare(source, out, rules, images)


# Rows


def review(line: bytes) -> tuple[str, str, int, float | None]:
    """User, item, time in microseconds, rating (or None) of a review. Raises BadRow."""
    row = json_row(line)
    if "reviewerID" in row:
        user, item_id, time, scale = row["reviewerID"], row.get("asin"), row.get("unixReviewTime"), 1_000_000
        rating = row.get("overall")
    else:
        user, item_id = row.get("user_id"), row.get("parent_asin") or row.get("asin")
        time, scale, rating = row.get("timestamp"), 1_000, row.get("rating")
    if type(time) is not int:
        raise BadRow("times that are no whole number")
    time *= scale
    if not EARLIEST * 1_000_000 <= time < LATEST * 1_000_000:
        raise BadRow("impossible dates")
    if rating is not None:
        if type(rating) is not float and type(rating) is not int:
            raise BadRow("ratings that are no number")
        if rating < 0:
            raise BadRow("negative ratings")
        if not rating <= 1000:  # NaN too, and what float32 cannot hold
            raise BadRow("impossible ratings")
    return _id(user, "user"), _id(item_id, "item"), time, rating


def item(line: bytes, max_images: int) -> tuple[str, str | None, str | None, list[str] | None, list[str] | None]:
    """ID, title, text, categories and addresses of pictures of an item, None for what it lacks. Raises BadRow."""
    row = json_row(line)
    item_id = _id(row.get("parent_asin") or row.get("asin"), "item")
    title = " ".join(_plain_texts(row.get("title")))
    if PAGE_SCRIPT.search(title):
        title = ""
    parts = [*_plain_texts(row.get("description")), *_plain_texts(row.get("features") or row.get("feature"))]
    categories = _plain_texts(row.get("categories") or row.get("category"))
    text = "\n".join(dict.fromkeys(parts))[:MAX_TEXT]
    return (
        item_id,
        title or None,
        text or None,
        list(dict.fromkeys(categories)) or None,
        _images(row)[:max_images] or None,
    )


def json_row(line: bytes) -> dict[str, Any]:
    """The object of a line of JSON, or of 2014's Python notation. Raises BadRow."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        row = _slow_row(line)
    if type(row) is not dict:
        raise BadRow("rows that are no object")
    return row


def _slow_row(line: bytes) -> object:
    """What the fast reader refuses: halves of surrogate pairs (refused later, if they are in a text that is
    read), and Python's notation, as far as it is literals. Nothing is executed."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("rows that are not UTF-8") from error
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        pass
    if not text.lstrip().startswith(("{'", "{u'")) or len(line) > MAX_LITERAL:
        raise BadRow("broken JSON")
    return _literal(text)


def _literal(text: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes like "\d"
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise BadRow("broken JSON") from error


def _no_number(name: str) -> float:
    raise ValueError(name)  # NaN, Infinity


def _id(value: object, whose: str) -> str:
    if type(value) is not str and value is not None:
        raise BadRow(f"{whose} IDs that are no text")
    name = (value or "").strip()
    if not name:
        raise BadRow(f"missing {whose} IDs")
    _check_text(name)
    return name


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow("halves of surrogate pairs") from error


# Texts


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
    found = []
    for text in _texts(value, MAX_NESTING):
        _check_text(text)
        if text := plain(text):
            _check_text(text)  # an entity can name half a pair
            found.append(text)
    return found


def _texts(value: object, depth: int) -> Iterator[str]:
    if value is None:
        return
    if type(value) is str:
        written = value.strip()
        if written.startswith(("['", '["')) and written.endswith("]") and len(written) <= MAX_LITERAL and depth:
            try:
                listed = _literal(written)
            except BadRow:
                listed = None
            if type(listed) is list:
                yield from _texts(listed, 1)
                return
        yield value
    elif type(value) is list and depth:
        for part in value:
            yield from _texts(part, depth - 1)
    else:
        raise BadRow("texts of a wrong type")


def _images(row: dict[str, Any]) -> list[str]:
    """Addresses, the main picture first: large enough for an encoder, and no larger where there is a choice."""
    value = row.get("images")
    if type(value) is dict:  # a column a key, in place of a row a picture
        columns = [column for column in value.values() if type(column) is list]
        value = (
            [dict(zip(value, picture, strict=True)) for picture in zip(*columns, strict=False)]
            if len(columns) == len(value)
            else None
        )
    if type(value) is list and all(type(picture) is dict for picture in value):
        value = sorted(value, key=lambda picture: picture.get("variant") != "MAIN")
        value = [picture.get("large") or picture.get("hi_res") or picture.get("thumb") for picture in value]
    value = value or row.get("imageURLHighRes") or row.get("imageURL") or row.get("imUrl")
    addresses = []
    for address in _texts(value, MAX_NESTING):
        _check_text(address)
        if is_url(address := address.strip()) and len(address) <= 2000:
            addresses.append("https://" + address.partition("://")[2])
    return list(dict.fromkeys(addresses))
