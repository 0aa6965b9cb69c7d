"""Amazon's three layouts, on files in the exact public form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from amazon_files import (
    IMAGES,
    asin,
    dumps,
    events,
    item_2014,
    item_2018,
    item_2023,
    review_2018,
    review_2023,
    write_lines,
)
from tiny_images import tiny_image

from msm4sr.data.dataset import load_dataset
from msm4sr.data.preparation import pipeline
from msm4sr.data.preparation.reading import MAX_LINE, InvalidRow
from msm4sr.data.preparation.source import LIKE_PAPER, PrepareReport
from msm4sr.data.sources.amazon import Amazon, item, plain, review
from msm4sr.errors import InputError

EVENTS = events(users=60, items=40, count=600)
REVIEWS = {"2014": review_2018, "2018": review_2018, "2023": review_2023}
ITEMS: dict[str, Any] = {
    "2014": item_2014,
    "2018": lambda i: dumps(item_2018(i)),
    "2023": lambda i: dumps(item_2023(i)),
}
CRUNCHY = {"2014": "Crunchy, isn't it?", "2018": "Crunchy.\nRoasted\nSalted", "2023": "Crunchy.\nRoasted\nSalted"}
ADDRESS = {"2014": "https://ecx.images-amazon.com/images/I", "2018": IMAGES, "2023": IMAGES}


def write(tmp_path: Path, reviews: list[Any], items: list[Any], **settings: Any) -> Amazon:
    return Amazon(
        reviews=write_lines(tmp_path / "Snacks_5.json.gz", reviews),
        meta=write_lines(tmp_path / "meta_Snacks.json.gz", items),
        **settings,
    )


def prepare_source(source: Amazon, out: Path, **rules: Any) -> PrepareReport:
    return pipeline.prepare(source, out, source.rules.model_copy(update=rules))


def prepare(tmp_path: Path, reviews: list[Any], items: list[Any], **rules: Any) -> PrepareReport:
    return prepare_source(write(tmp_path, reviews, items), tmp_path / "out", **rules)


def read(tmp_path: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(tmp_path / "out" / f"{name}.parquet")


def dropped(report: PrepareReport) -> dict[str, int]:
    return {drop.reason: drop.count for drop in report.dropped}


LINES_2018 = [dumps(review_2018(*event)) for event in EVENTS]
META_2018 = [dumps(item_2018(i)) for i in range(50)]


@pytest.mark.parametrize("layout", ["2014", "2018", "2023"])
def test_a_layout_is_read_as_published(tmp_path: Path, layout: str) -> None:
    reviews = [dumps(REVIEWS[layout](*event)) for event in EVENTS]
    report = prepare(tmp_path, reviews, [ITEMS[layout](i) for i in range(50)])
    items = read(tmp_path, "items")
    assert items["item_id"].to_list() == [asin(i) for i in range(40)], "the order of the file; only seen items"
    assert items.row(7, named=True) == {
        "item_id": asin(7),
        "title": 'Nuts "No. 7"',
        "text": f"Nuts no. 7 & more. {CRUNCHY[layout]}",
        "categories": ["Grocery & Gourmet Food", "Snacks"],
        "image": [f"{ADDRESS[layout]}/p7.jpg"],
    }
    width = 27 if layout == "2023" else 13
    users = list(dict.fromkeys(user for user, *_ in EVENTS))
    expected = sorted(dict.fromkeys(e[:3] for e in EVENTS), key=lambda event: (users.index(event[0]), event[2]))
    assert read(tmp_path, "interactions").drop("rating").rows() == [
        (f"A{user:0{width}d}", asin(item), time) for user, item, time in expected
    ]
    assert report.interactions_read == 600
    dataset = load_dataset(tmp_path / "out")
    assert dataset.n_items == 40
    assert dataset.n_interactions == report.interactions_kept


def test_as_in_the_paper(tmp_path: Path) -> None:
    """Users with at least 5 after repeats are collapsed to the last; a simple reference counts the same."""
    few = [(100, i, 1_300_000_000, 5.0) for i in range(4)] + [(101, 1, 1_300_000_000 + i, 5.0) for i in range(9)]
    history: dict[tuple[int, int], tuple[int, int]] = {}
    for row, (user, thing, time, _) in enumerate(EVENTS + few):
        if (user, thing) not in history or time >= history[user, thing][0]:
            history[user, thing] = (time, row)
    kept: dict[int, list[tuple[int, int, int]]] = {}
    for (user, thing), (time, row) in history.items():
        kept.setdefault(user, []).append((time, row, thing))
    expected = {f"A{user:013d}": [thing for *_, thing in sorted(rows)] for user, rows in kept.items() if len(rows) >= 5}

    source = write(tmp_path, [dumps(review_2018(*event)) for event in EVENTS + few], META_2018)
    prepare_source(source, tmp_path / "out", **LIKE_PAPER)
    log = read(tmp_path, "interactions")
    found = {
        user: [int(name[1:]) for name in rows["item_id"]]
        for (user,), rows in log.group_by("user_id", maintain_order=True)
    }
    assert found == expected
    assert not {"A0000000000100", "A0000000000101"} & set(found)


def test_irregular_rows_of_real_item_files(tmp_path: Path) -> None:
    mess: list[dict[str, Any]] = [item_2018(i) for i in range(40)]
    mess[0].pop("title")
    mess[1]["title"] = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    mess[2]["description"] = "['First.', 'Second &lt;i&gt;line&lt;/i&gt;.']"
    mess[3]["category"] = []
    mess[3]["imageURLHighRes"] = []
    mess[4] |= {
        "description": [],
        "feature": [],
        "title": "  ",
        "category": None,
        "imageURL": [],
        "imageURLHighRes": [],
    }
    mess[5]["title"] = ["In a", "list"]
    mess.append({**item_2018(6), "title": "Said again"})
    mess.append({"asin": asin(999), "title": "Never reviewed"})
    report = prepare(tmp_path, LINES_2018, [dumps(row) for row in mess])
    items = {row["item_id"]: row for row in read(tmp_path, "items").rows(named=True)}
    assert items[asin(0)]["title"] is None
    assert items[asin(1)]["title"] is None
    assert items[asin(2)]["text"] == "First.\nSecond line.\nRoasted\nSalted"
    assert items[asin(3)]["categories"] is None
    assert items[asin(3)]["image"] == [f"{IMAGES}/p3._SS40_.jpg"], "the thumbnail where there is nothing better"
    assert set(items[asin(4)].values()) == {asin(4), None}
    assert items[asin(5)]["title"] == "In a list"
    assert items[asin(6)]["title"] == 'Nuts "No. 6"', "the first of two"
    assert asin(999) not in items
    assert dropped(report)["items with an ID that an earlier row has"] == 1


def test_items_that_only_the_reviews_know_are_kept_or_dropped(tmp_path: Path) -> None:
    report = prepare(tmp_path, LINES_2018, META_2018[:30])
    items = read(tmp_path, "items")
    assert items["item_id"].to_list()[:30] == [asin(i) for i in range(30)]
    assert set(items["item_id"][30:]) == {asin(i) for i in range(30, 40)}
    assert items[30:].drop("item_id").null_count().row(0) == (10,) * 4
    assert report.with_title == 30
    (tmp_path / "out").rename(tmp_path / "kept")
    report = prepare(tmp_path, LINES_2018, META_2018[:30], unknown_items="drop")
    assert set(read(tmp_path, "interactions")["item_id"]) == {asin(i) for i in range(30)}
    assert dropped(report)["interactions with an item that the catalogue lacks"] > 0


def test_unseen_items_can_stay(tmp_path: Path) -> None:
    prepare(tmp_path, LINES_2018, META_2018, unseen_items="keep")
    assert read(tmp_path, "items")["item_id"].to_list() == [asin(i) for i in range(50)]


def test_images_of_a_folder_are_found_by_the_name_of_their_url_or_by_the_id(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("p3.JPG", f"{asin(4)}.png", "unrelated.jpg"):
        (tmp_path / "photos" / name).write_bytes(tiny_image(kind="PNG" if "png" in name else "JPEG"))
    source = write(tmp_path, LINES_2018, META_2018, images=tmp_path / "photos", max_images=2)
    report = prepare_source(source, tmp_path / "out")
    image = dict(read(tmp_path, "items").select("item_id", "image").rows())
    assert image[asin(3)] == [f"images/{asin(3)}.jpg", f"{IMAGES}/q3.jpg"]
    assert image[asin(4)] == [f"images/{asin(4)}.png"]
    assert image[asin(5)] == [f"{IMAGES}/p5.jpg", f"{IMAGES}/q5.jpg"], "still to be fetched"
    assert (report.with_image, report.with_urls) == (40, 39)


# Invalid rows

GOOD = review_2018(1, 2, 1_300_000_000, 5.0)
INVALID_REVIEWS: dict[str, list[str | bytes]] = {
    "broken JSON": [
        dumps(GOOD)[:-9], "nonsense", "{'reviewerID': open('x')}", "{'a': " * 1000, dumps(GOOD).replace("5.0", "NaN"),
    ],
    "rows that are no object": ["[1]", '"text"', "7", "null"],
    "rows that are not UTF-8": [dumps(GOOD).replace("Acme", "").encode() + b"\xff"],
    "missing user IDs": [dumps({**GOOD, "reviewerID": None}), dumps({**GOOD, "reviewerID": " "})],
    "missing item IDs": [dumps({key: value for key, value in GOOD.items() if key != "asin"})],
    "user IDs that are no text": [dumps({**GOOD, "reviewerID": 7})],
    "halves of surrogate pairs": [dumps({**GOOD, "reviewerID": "A\ud800"})],
    "times that are no integer": [
        dumps({**GOOD, "unixReviewTime": time}) for time in ("1300000000", 1.5, None, True, 10**30)
    ],
    "impossible dates": [dumps({**GOOD, "unixReviewTime": time}) for time in (-1, 0, 1_300_000_000_000, 10**18)],
    "ratings that are no number": [dumps({**GOOD, "overall": rating}) for rating in ("5.0", [], True)],
    "negative ratings": [dumps({**GOOD, "overall": -1.0})],
    "impossible ratings": [dumps({**GOOD, "overall": 1e300})],
    f"lines over {MAX_LINE >> 20} MiB": [dumps({**GOOD, "reviewText": "x" * 10_000_000})],
}  # fmt: skip


@pytest.mark.parametrize("kind", INVALID_REVIEWS)
def test_invalid_reviews_are_counted_by_kind_with_the_first(tmp_path: Path, kind: str) -> None:
    invalid = INVALID_REVIEWS[kind]
    report = prepare(tmp_path, [*LINES_2018, "", *invalid], META_2018)
    [drop] = [drop for drop in report.dropped if drop.reason.startswith("interactions: ")]
    assert drop.reason == f"interactions: {kind}"
    assert drop.count == len(invalid)
    assert drop.example.partition(":")[0] == f"Snacks_5.json.gz, line {len(LINES_2018) + 2}"
    assert report.interactions_read == len(LINES_2018) + len(invalid), "blank lines are no rows"
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert {"reason": drop.reason, "count": drop.count, "example": drop.example} in written["dropped"]


def test_a_review_of_which_unread_parts_are_odd_is_good() -> None:
    odd = {**GOOD, "reviewText": "\ud83d half a smile", "vote": {"a": [1e999]}}
    assert review(dumps(odd).replace("Infinity", "1e999").encode()) == review(dumps(GOOD).encode())
    assert review(dumps({**GOOD, "overall": None}).encode())[3] is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"title": 7}, "texts of a wrong type"),
        ({"description": [{"a": 1}]}, "texts of a wrong type"),
        ({"feature": ["half \udc00"]}, "halves of surrogate pairs"),
        ({"asin": None}, "missing item IDs"),
        ({"imageURLHighRes": [7]}, "texts of a wrong type"),
    ],
)
def test_invalid_items_are_counted_by_kind(change: dict[str, Any], kind: str) -> None:
    with pytest.raises(InvalidRow, match=kind):
        item(dumps({**item_2018(1), **change}).encode(), 1)


def test_too_many_invalid_rows_stop_it_and_nothing_is_written(tmp_path: Path) -> None:
    source = write(tmp_path, [*LINES_2018[:98], "broken", "[]"], META_2018)
    message = r"Snacks_5.json.gz: invalid rows: 2 of 100 \(2 %\), more than --max-invalid-fraction 0.01 allows: "
    with pytest.raises(InputError, match=message + r"1 broken JSON \(first: line 99\); 1 rows that are no object"):
        prepare_source(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Snacks_5.json.gz", "meta_Snacks.json.gz"]
    prepare_source(source, tmp_path / "out", max_invalid_fraction=0.02)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_stops_it_unless_everything_is_allowed(tmp_path: Path, damage: str) -> None:
    source = write(
        tmp_path, [dumps({**review_2018(*event), "reviewText": repr(event) * 9}) for event in EVENTS], META_2018
    )
    packed = bytearray(source.reviews.read_bytes())
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    else:
        packed[-6] ^= 255
    source.reviews.write_bytes(packed)
    with pytest.raises(InputError, match=r"Snacks_5.json.gz: cut short or damaged in line \d+"):
        prepare_source(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = prepare_source(source, tmp_path / "out", max_invalid_fraction=1)
    assert dropped(report)["interactions: end of a file that is cut short or damaged"] == 1
    assert report.interactions_kept > 0


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    """`cat a.gz b.gz` makes one; zeros may fill up the last block of a tape."""
    source = write(tmp_path, LINES_2018, META_2018)
    expected = prepare_source(source, tmp_path / "one").interactions_kept
    halves = ("".join(line + "\n" for line in lines).encode() for lines in (LINES_2018[:20], LINES_2018[20:]))
    source.reviews.write_bytes(b"".join(gzip.compress(half) for half in halves) + bytes(100_000))
    assert prepare_source(source, tmp_path / "out").interactions_kept == expected


def test_a_file_that_is_gzipped_by_name_only_is_read(tmp_path: Path) -> None:
    source = write(tmp_path, LINES_2018, META_2018)
    expected = prepare_source(source, tmp_path / "one").interactions_kept
    source.reviews.write_text("\r\n".join(LINES_2018))
    assert prepare_source(source, tmp_path / "out").interactions_kept == expected


# Texts


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("a &amp; b", "a & b"),
        ("<p>One</p><p>Two</p>", "One Two"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;amp; more", "bold & more"),
        ("x<script>if (a < b) alert('<b>')</script>y<style>p{}</style>z", "x y z"),
        ("a<!-- hidden <b> -->b", "a b"),
        ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
        ("\u00a0wide\t\n space ", "wide space"),
        ("<br", "<br"),
        ("", ""),
    ],
)
def test_markup_is_removed(written: str, text: str) -> None:
    assert plain(written) == text


@pytest.mark.parametrize(
    "part", ["<", "<a ", "<!--", "<script>", "<script>x</script", "&", "&lt;a ", "</", "<style><b>", "-->"]
)
def test_hostile_markup_takes_no_longer_than_other_text(part: str) -> None:
    """Some parsers need minutes for these texts."""
    assert isinstance(plain(part * (50_000 // len(part))), str)
