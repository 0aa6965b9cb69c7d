from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_images import tiny_image

from msm4sr.data.dataset import load_dataset
from msm4sr.data.preparation import catalogue as image_files
from msm4sr.data.preparation import pipeline
from msm4sr.data.preparation.source import PrepareReport, Rules
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

LOG = "user_id,item_id,timestamp\nu,a,30\nv,b,5\nu,b,10\nu,c,20\n"
ITEMS = "item_id,title,text,categories,image\na,A,About a.,x|y,a.jpg\nb,B,,,\nc, C ,About c.,x,sub/c.PNG\n"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """log.csv, items.csv and a folder of images, without OUT."""
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_bytes(tiny_image("red", "JPEG"))
    (tmp_path / "photos" / "sub" / "c.PNG").write_bytes(tiny_image("blue"))
    return tmp_path


def prepare(
    shop: Path,
    log: str | None = None,
    items: str | None = None,
    images: bool = True,
    min_rating: float | None = None,
    **settings: Any,
) -> PrepareReport:
    """Prepare the shop, with other contents of log.csv or items.csv where given."""
    if log is not None:
        (shop / "log.csv").write_text(log)
    if items is not None:
        (shop / "items.csv").write_text(items)
    return prepare_files(shop, images=shop / "photos" if images else None, min_rating=min_rating, **settings)


def prepare_files(
    shop: Path,
    log: str = "log.csv",
    items: str | None = "items.csv",
    images: Path | None = None,
    min_rating: float | None = None,
    max_invalid_fraction: float = 0,
    **settings: Any,
) -> PrepareReport:
    """Prepare files of the shop."""
    source = Tables(interactions=shop / log, items=None if items is None else shop / items, images=images, **settings)
    rules = {"min_rating": min_rating, "max_invalid_fraction": max_invalid_fraction}
    return pipeline.prepare(source, shop / "out", Tables.rules.model_copy(update=rules))


def rows(shop: Path, name: str = "interactions") -> list[tuple[Any, ...]]:
    return pl.read_parquet(shop / "out" / f"{name}.parquet").rows()


def dropped(report: PrepareReport) -> dict[str, int]:
    return {drop.reason: drop.count for drop in report.dropped}


def assert_nothing_written(shop: Path) -> None:
    assert sorted(path.name for path in shop.iterdir()) == ["items.csv", "log.csv", "photos"]


# The folder


def test_three_inputs_make_a_prepared_folder(shop: Path) -> None:
    report = prepare(shop)
    log = pl.read_parquet(shop / "out" / "interactions.parquet")
    assert log.schema == {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    assert log.rows() == [("u", "b", 10), ("u", "c", 20), ("u", "a", 30), ("v", "b", 5)]
    assert rows(shop, "items") == [
        ("a", "A", "About a.", ["x", "y"], ["images/a.jpg"]),
        ("b", "B", None, None, None),
        ("c", "C", "About c.", ["x"], ["images/c.png"]),
    ]
    assert (shop / "out" / "images" / "c.png").read_bytes() == tiny_image("blue")
    assert (report.interactions_read, report.interactions_kept, report.users) == (4, 4, 2)
    assert (report.items_read, report.items_kept, report.with_image, report.with_text) == (3, 3, 2, 2)
    assert report.dropped == []


def test_the_folder_loads_as_a_dataset(shop: Path) -> None:
    prepare(shop)
    dataset = load_dataset(shop / "out")
    assert dataset.user_ids == ["u"]
    assert [dataset.item_ids[item] for item in dataset.histories[0]] == ["b", "c", "a"]


def test_the_report_is_printed_and_written(shop: Path) -> None:
    report = prepare(shop, LOG + "u,ghost,1\n,a,1\n", max_invalid_fraction=0.2)
    text = "\n".join(report.lines())
    assert "4 kept of 6, 2 users" in text
    assert "column 'timestamp' (s), from 1970-01-01 to 1970-01-01" in text
    assert "1 interactions with an item that the catalogue lacks (first: log.csv, data row 5: 'ghost')" in text
    written = json.loads((shop / "out" / "provenance.json").read_text())
    assert written["interactions_kept"] == 4
    assert written["dropped"][0] == {
        "reason": "interactions without a user ID",
        "count": 1,
        "example": "log.csv, data row 6",
    }
    assert written["settings"]["time"] == "timestamp"


def test_without_items_the_catalogue_is_that_of_the_interactions(shop: Path) -> None:
    report = prepare_files(shop, items=None)
    assert not (shop / "out" / "items.parquet").exists()
    assert (report.items_read, report.items_kept) == (None, 3)
    assert load_dataset(shop / "out").n_items == 3


def test_without_items_images_are_still_found_by_id(shop: Path) -> None:
    prepare_files(shop, items=None, images=shop / "photos")
    assert rows(shop, "items") == [("b", None), ("c", None), ("a", ["images/a.jpg"])]


def test_unseen_items_are_kept(shop: Path) -> None:
    prepare(shop, items=ITEMS + "new,N,,,\n")
    assert [row[0] for row in rows(shop, "items")] == ["a", "b", "c", "new"]


def test_an_existing_empty_folder_is_used_and_a_full_one_refused(shop: Path) -> None:
    (shop / "out").mkdir()
    prepare(shop)
    before = sorted(path.name for path in (shop / "out").iterdir())
    assert before == ["images", "interactions.parquet", "items.parquet", "provenance.json"]
    with pytest.raises(InputError, match="out: exists already"):
        prepare(shop)
    assert sorted(path.name for path in (shop / "out").iterdir()) == before


def test_a_file_in_the_place_of_the_folder_is_refused(shop: Path) -> None:
    (shop / "out").write_text("precious")
    with pytest.raises(InputError, match="out: exists already"):
        prepare(shop)
    assert (shop / "out").read_text() == "precious"


def test_a_failure_while_copying_leaves_nothing_behind(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        assert list(shop.glob(".out.*.unfinished")), "the copy goes into a temporary folder"
        raise OSError("no space left on device")

    monkeypatch.setattr(image_files.shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        prepare(shop)
    assert_nothing_written(shop)


@pytest.mark.parametrize("what", ["interactions", "items", "images"])
def test_a_missing_input_is_named(shop: Path, what: str) -> None:
    paths = {"interactions": shop / "log.csv", "items": shop / "items.csv", "images": shop / "photos"}
    paths[what] = shop / "nowhere.csv"
    with pytest.raises(InputError, match=r"nowhere\.csv: no such"):
        pipeline.prepare(Tables(**paths), shop / "out")
    assert_nothing_written(shop)


# Kinds of files


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("log.tsv", lambda path: path.write_text(LOG.replace(",", "\t"))),
        ("log.txt", lambda path: path.write_text(LOG.replace(",", "\t"))),
        ("log.csv.gz", lambda path: path.write_bytes(gzip.compress(LOG.encode()))),
        ("log.TSV.gz", lambda path: path.write_bytes(gzip.compress(LOG.replace(",", "\t").encode()))),
        ("log.csv", lambda path: path.write_bytes(b"\xef\xbb\xbf" + LOG.replace("\n", "\r\n").encode())),
        ("log.parquet", lambda path: pl.read_csv(LOG.encode()).write_parquet(path)),
    ],
)
def test_the_suffix_says_how_a_table_is_read(shop: Path, name: str, write: Any) -> None:
    write(shop / name)
    prepare_files(shop, name)
    assert rows(shop) == [("u", "b", 10), ("u", "c", 20), ("u", "a", 30), ("v", "b", 5)]


def test_a_delimiter_can_be_named(shop: Path) -> None:
    (shop / "items.csv").unlink()
    (shop / "log.csv").write_text(LOG.replace(",", ";"))
    prepare_files(shop, items=None, delimiter=";")
    assert len(rows(shop)) == 4


def test_lists_of_a_parquet_file_are_kept_as_they_are(shop: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": [1, 2],
            "title": ["One", "Two"],
            "categories": [["x|y", " z "], []],
            "image": [["a.jpg", "sub/c.PNG"], None],
        }
    )
    items.write_parquet(shop / "items.parquet")
    (shop / "log.csv").write_text("user_id,item_id,timestamp\nu,1,1\n")
    prepare_files(shop, items="items.parquet", images=shop / "photos")
    assert rows(shop, "items") == [
        ("1", "One", ["x|y", "z"], ["images/1.jpg", "images/1-1.png"]),
        ("2", "Two", None, None),
    ]


def test_an_unknown_kind_of_file_is_an_error(shop: Path) -> None:
    (shop / "log.xlsx").touch()
    with pytest.raises(InputError, match=r"log\.xlsx: unknown kind of file; expected \.csv"):
        prepare_files(shop, "log.xlsx", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LOG + "u,a\n", "line 6: 2 fields where the header has 3"),
        (LOG + "\nu,a,1,2\n", "line 7: 4 fields where the header has 3"),
        (LOG + 'u,"a\nb",5\nu,a\n', "line 8: 2 fields"),
        (LOG + 'u,"a,5\nu,a,6\n', "line 6: a quotation mark opens and none closes"),
        (LOG + 'u,"19"" and 20"" x",5\nu,12" a,"6"\nv,c",1\n', "line 7: a quotation mark inside a value"),
        ("", "cannot be read as a text table"),
    ],
)
def test_a_broken_row_is_an_error_with_its_line(shop: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"log\.csv: {message}"):
        prepare(shop, content)
    assert_nothing_written(shop)


def test_text_that_is_not_utf8_is_an_error(shop: Path) -> None:
    (shop / "items.csv").write_bytes(ITEMS.encode() + "d,Café,,,\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"items\.csv: is not UTF-8"):
        prepare(shop)


def test_quoted_line_breaks_and_blank_lines_are_no_broken_rows(shop: Path) -> None:
    items = 'item_id,title,text\na,"A ""big""\none",\n\nb,B,\n'
    report = prepare(shop, "user_id,item_id,timestamp\nu,a,1\n\n\nu,b,2\n", items)
    assert [row[:3] for row in rows(shop, "items")] == [("a", 'A "big"\none', None), ("b", "B", None)]
    assert (report.interactions_read, report.interactions_kept, report.items_read) == (2, 2, 2)


# Columns


def test_columns_can_have_other_names(shop: Path) -> None:
    log = "who,what,when\nu,1,3\n"
    items = "asin,name,brand,body,kinds,photo\n1,Name,Acme,Body.,x; y,a.jpg; sub/c.PNG\n2,Two,,,,\n"
    prepare(
        shop, log, items, user="who", item="what", time="when", item_id="asin", title="name",
        text=("body", "brand"), categories="kinds", image="photo", separator=";",
    )  # fmt: skip
    assert rows(shop) == [("u", "1", 3)]
    assert rows(shop, "items") == [
        ("1", "Name", "Body.\nAcme", ["x", "y"], ["images/1.jpg", "images/1-1.png"]),
        ("2", "Two", None, None, None),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": "users_id"}, r"log\.csv: no column 'users_id'; the file has: user_id, .*mean 'user_id'"),
        ({"item": "sku"}, r"log\.csv: no column 'sku'; the file has: user_id, item_id, timestamp$"),
        ({"time": "time_stamp"}, r"log\.csv: no column 'time_stamp'.*'timestamp'\?; if there is no time"),
        ({"min_rating": 4}, r"log\.csv: no column 'rating'"),
        ({"item_id": "ID"}, r"items\.csv: no column 'ID'"),
        ({"title": "name"}, r"items\.csv: no column 'name'; the file has: item_id, title, text"),
        ({"text": ("text", "brand")}, r"items\.csv: no column 'brand'"),
        ({"categories": "category"}, r"items\.csv: no column 'category'.*mean 'categories'"),
        ({"image": "photo"}, r"items\.csv: no column 'photo'"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(
    shop: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(shop, **columns)
    assert_nothing_written(shop)


def test_a_default_content_column_that_is_not_there_is_reported(shop: Path) -> None:
    report = prepare(shop, items="item_id,title\na,A\nb,B\nc,C\n")
    assert [note.split(":")[0] for note in report.notes if "no column" in note] == [
        "items.csv has no column 'text'",
        "items.csv has no column 'categories'",
    ]  # and none on images: without a column they are found by the item ID


def test_white_space_is_removed_and_empty_is_null(shop: Path) -> None:
    prepare(shop, "user_id,item_id,timestamp\n u , a ,\t7 \n", 'item_id,title,text\n a,  ," x "\nb,,\n')
    assert rows(shop) == [("u", "a", 7)]
    assert [row[:3] for row in rows(shop, "items")] == [("a", None, "x"), ("b", None, None)]


def test_ids_keep_their_zeros(shop: Path) -> None:
    prepare(shop, "user_id,item_id,timestamp\n01,007,1\n1,7,1\n", "item_id\n007\n7\n")
    assert rows(shop) == [("01", "007", 1), ("1", "7", 1)]


def test_float_ids_are_refused(shop: Path) -> None:
    pl.DataFrame({"user_id": [1.0], "item_id": ["a"], "timestamp": [1]}).write_parquet(shop / "log.parquet")
    with pytest.raises(InputError, match="column 'user_id' is Float64; an ID is a string or an integer"):
        prepare_files(shop, "log.parquet", None)


@pytest.mark.parametrize("wrong", [{"usr": "x"}, {"time_unit": "hours"}, {"delimiter": "::"}])
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Tables(interactions="log.csv", items=None, **wrong)


def test_a_rating_column_without_a_lowest_rating_is_refused(shop: Path) -> None:
    with pytest.raises(InputError, match="rating is used only with min_rating"):
        prepare(shop, rating="stars")


# Drops


def test_a_long_value_before_an_empty_one_is_read(shop: Path) -> None:
    prepare(shop, items=ITEMS + f'd,"{"long, " * 50_000}",,,\n')
    assert rows(shop, "items")[-1][1] == ("long, " * 50_000).strip()


def test_rows_without_ids_are_dropped_and_counted(shop: Path) -> None:
    log, items = LOG + ",a,1\nu, ,1\n,,\n", ITEMS + ",nameless,,,\n"
    with pytest.raises(InputError, match=r"log\.csv: column 'user_id', data row 5: no ID; correct it, or drop .*\(1\)"):
        prepare(shop, log, ITEMS)
    with pytest.raises(InputError, match=r"items\.csv: column 'item_id', data row 4: no ID"):
        prepare(shop, LOG, items)
    with pytest.raises(InputError, match=r"'user_id', data row 5: no ID; correct it, or drop invalid rows \(2\) with"):
        prepare(shop, log, items, max_invalid_fraction=0.3)  # a sixth for each reason, a third together
    report = prepare(shop, log, items, max_invalid_fraction=0.34)
    assert dropped(report) == {
        "items without an ID": 1,
        "interactions without a user ID": 1,
        "interactions without an item ID": 1,
    }
    assert len(rows(shop)) == 4


def test_invalid_rows_are_counted_for_all_reasons_together(shop: Path) -> None:
    log = LOG + "u,a,soon\nu,a,-5\n"
    with pytest.raises(InputError, match=r"column 'timestamp', data row 6: '-5' is before 1970"):
        prepare(shop, log, max_invalid_fraction=0.3)
    assert sum(dropped(prepare(shop, log, max_invalid_fraction=0.34)).values()) == 2


def test_unknown_items_are_dropped_and_counted_with_an_example(shop: Path) -> None:
    report = prepare(shop, LOG + "u,ghost,1\nu,ghoul,2\n")
    [drop] = report.dropped
    assert (drop.count, drop.example) == (2, "log.csv, data row 5: 'ghost'")
    assert len(rows(shop)) == 4


def test_of_items_with_one_id_the_first_is_kept(shop: Path) -> None:
    report = prepare(shop, items=ITEMS + "a,Other,,,\n")
    [drop] = report.dropped
    assert (drop.count, drop.example) == (1, "items.csv, data row 4: 'a'")
    assert [row[1] for row in rows(shop, "items")] == ["A", "B", "C"]


def test_low_and_missing_ratings_are_dropped_and_counted(shop: Path) -> None:
    log = "user_id,item_id,timestamp,stars\nu,a,1,4\nu,b,2,3.5\nu,c,3,\nu,b,4,5\n"
    report = prepare(shop, log, rating="stars", min_rating=4)
    assert rows(shop) == [("u", "a", 1, 4.0), ("u", "b", 4, 5.0)]
    assert dropped(report) == {"interactions without a rating": 1, "interactions rated under 4": 1}


def test_a_rating_that_is_no_number_is_an_error(shop: Path) -> None:
    with pytest.raises(InputError, match=r"log\.csv: column 'rating', data row 2: 'good' is no number"):
        prepare(shop, "user_id,item_id,timestamp,rating\nu,a,1,4\nu,b,2,good\n", min_rating=4)


def test_nothing_left_says_why(shop: Path) -> None:
    with pytest.raises(InputError, match=r"log\.csv: no interaction is left of 1 \(1 interactions with an item"):
        prepare(shop, "user_id,item_id,timestamp\nu,ghost,1\n")
    with pytest.raises(InputError, match=r"log\.csv: no rows, only a header"):
        prepare(shop, "user_id,item_id,timestamp\n")
    assert_nothing_written(shop)


# Time

NOON = int(datetime(2020, 2, 29, 12, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("written", "unit", "read_as"),
    [
        (f"{NOON}", "auto", "s"),
        (f"{NOON}.75", "auto", "s"),
        (f"{NOON}", "s", "s"),
        (f"{NOON}999", "auto", "ms"),
        (f"{NOON}000", "ms", "ms"),
        ("2020-02-29T12:00:00", "auto", "iso"),
        ("2020-02-29 12:00:00.25", "iso", "iso"),
        ("2020-02-29T13:00:00+01:00", "auto", "iso"),
        ("2020-02-29T12:00:00Z", "auto", "iso"),
    ],
)
def test_times_become_seconds(shop: Path, written: str, unit: str, read_as: str) -> None:
    report = prepare(shop, f"user_id,item_id,timestamp\nu,a,{written}\n", time_unit=unit)
    assert rows(shop) == [("u", "a", NOON)]
    assert f"({read_as}), from 2020-02-29 to 2020-02-29" in report.order


@pytest.mark.parametrize("moment", [date(2020, 2, 29), datetime(2020, 2, 29), datetime(2020, 2, 29, tzinfo=UTC)])
def test_dates_of_a_parquet_file_become_seconds(shop: Path, moment: date) -> None:
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [moment]})
    log.write_parquet(shop / "log.parquet")
    prepare_files(shop, "log.parquet", None)
    assert rows(shop) == [("u", "a", NOON - 12 * 3600)]


@pytest.mark.parametrize(
    ("times", "unit", "message"),
    [
        (["5", "soon", "7"], "auto", r"data row 2: 'soon' is no time; expected seconds since 1970"),
        (["5", "6", ""], "auto", r"data row 3: no time"),
        (["5", "6", "-7"], "auto", r"data row 3: '-7' is before 1970"),
        (["5", "6", "nan"], "auto", r"data row 3: 'nan' is no time"),
        (["5", f"{NOON}000", "7"], "s", r"data row 2: '\d+' is after the year 9999"),
        ([str(2**63), str(2**63 + 1), "7"], "ns", r"data row 1: '9.*e\+18' is more than 64 bits can hold"),
        (["2020-01-01", "2020-13-01", "2020-01-02"], "auto", r"data row 2: '2020-13-01'.*ISO 8601"),
        (["2020-01-01", "1969-01-01", "2020-01-02"], "auto", r"data row 2: '1969-01-01' is before 1970"),
        (["2020-01-01"] * 3, "ms", r"data row 1: '2020-01-01' is no time; expected milliseconds"),
    ],
)
def test_an_invalid_time_is_an_error_with_its_row(shop: Path, times: list[str], unit: str, message: str) -> None:
    log = "user_id,item_id,timestamp\n" + "".join(f"u,a,{time}\n" for time in times)
    with pytest.raises(InputError, match=rf"log\.csv: column 'timestamp', {message}"):
        prepare(shop, log, time_unit=unit)
    assert_nothing_written(shop)


def test_an_invalid_time_after_dropped_rows_has_its_own_row(shop: Path) -> None:
    with pytest.raises(InputError, match="data row 6: 'soon'"):
        prepare(shop, LOG + "\nu,a,soon\n")


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_time_the_order_of_the_file_becomes_position(shop: Path, nothing: str | None) -> None:
    report = prepare(shop, "user_id,item_id\nv,a\nu,c\nv,b\nu,a\nv,a\n", time=nothing)
    log = pl.read_parquet(shop / "out" / "interactions.parquet")
    assert log.schema == {"user_id": pl.String, "item_id": pl.String, "position": pl.Int32}
    assert log.rows() == [("v", "a", 0), ("v", "b", 1), ("v", "a", 2), ("u", "c", 0), ("u", "a", 1)]
    assert "order of the rows" in report.order


def test_parts_of_a_second_still_order_a_history(shop: Path) -> None:
    prepare(shop, f"user_id,item_id,timestamp\nu,a,{NOON}900\nu,b,{NOON}100\nu,c,{NOON}500\n")
    assert [item for _, item, _ in rows(shop)] == ["b", "c", "a"]


@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 4)), min_size=1))
def test_rows_are_sorted_by_first_appearance_time_and_order_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, log: list[tuple[str, str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    lines = [f"{user},{item},{time}" for user, item, time in log]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    prepare_files(folder, items=None)
    users = list(dict.fromkeys(user for user, _, _ in log))
    # Rows that repeat another exactly are one event.
    assert rows(folder) == sorted(dict.fromkeys(log), key=lambda row: (users.index(row[0]), row[2]))


# Images


def test_without_an_image_column_the_file_with_the_items_id_is_used(shop: Path) -> None:
    for name, content in (("b.webp", tiny_image(kind="WEBP")), ("b.txt", b"about b"), ("c.JPEG", tiny_image())):
        (shop / "photos" / name).write_bytes(content)
    report = prepare(shop, items="item_id\na\nb\nc\nd\n")
    assert rows(shop, "items") == [
        ("a", ["images/a.jpg"]),
        ("b", ["images/b.webp"]),
        ("c", ["images/c.png"]),
        ("d", None),
    ]
    [drop] = report.dropped
    assert (drop.count, drop.example) == (1, "item 'd'")


def test_missing_images_are_counted_and_their_items_kept(shop: Path) -> None:
    items = "item_id,image\na,a.jpg|gone.jpg\nb,sub\nc,notes.txt\nd,bad\0name.jpg\n"
    (shop / "photos" / "notes.txt").touch()
    report = prepare(shop, items=items)
    assert rows(shop, "items") == [("a", ["images/a.jpg"]), ("b", None), ("c", None), ("d", None)]
    missing, broken = report.dropped
    assert (missing.count, missing.example) == (3, "item 'a': 'gone.jpg'")
    assert (broken.count, broken.example) == (1, "item 'c': 'notes.txt'")
    assert "not an image of a format that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF)" in broken.reason


def test_the_content_of_a_file_says_whether_it_is_an_image(shop: Path) -> None:
    kinds = {"a.bmp": "BMP", "b.tiff": "TIFF", "c.jfif": "JPEG", "d": "PNG", "e.png": "GIF", "f.jpg": "WEBP"}
    for name, kind in kinds.items():
        (shop / "photos" / name).write_bytes(tiny_image(kind=kind))
    (shop / "photos" / "g.jpg").write_text("<svg/>")
    log = "user_id,item_id,timestamp\nu,a,1\n"
    report = prepare(shop, log, "item_id,image\n" + "".join(f"{name[0]},{name}\n" for name in [*kinds, "g.jpg"]))
    expected = {"a": "a.bmp", "b": "b.tif", "c": "c.jpg", "d": "d.png", "e": "e.gif", "f": "f.webp"}
    assert rows(shop, "items") == [*((item, [f"images/{name}"]) for item, name in expected.items()), ("g", None)]
    assert [(drop.count, drop.example) for drop in report.dropped] == [(1, "item 'g': 'g.jpg'")]


@pytest.mark.parametrize("path", ["../secret.jpg", "sub/../../secret.jpg", "{shop}/secret.jpg", "link.jpg"])
def test_an_image_outside_the_folder_is_refused(shop: Path, path: str) -> None:
    (shop / "photos" / "link.jpg").symlink_to(shop / "secret.jpg")
    (shop / "secret.jpg").write_text("secret")
    with pytest.raises(InputError, match=r"items\.csv: item 'a': image '.*' lies outside"):
        prepare(shop, items=f"item_id,image\na,{path.format(shop=shop)}\n")
    assert not (shop / "out").exists()


def test_a_link_to_the_outside_with_the_items_id_is_refused(shop: Path) -> None:
    (shop / "secret.jpg").write_text("secret")
    (shop / "photos" / "b.jpg").symlink_to(shop / "secret.jpg")
    with pytest.raises(InputError, match=r"image 'b\.jpg' lies outside"):
        prepare(shop, items="item_id\na\nb\nc\n")


def test_links_and_absolute_paths_inside_the_folder_are_followed(shop: Path) -> None:
    (shop / "photos" / "link.jpg").symlink_to(shop / "photos" / "a.jpg")
    prepare(shop, items=f"item_id,image\na,link.jpg\nb,{shop}/photos/a.jpg\n")
    assert rows(shop, "items") == [("a", ["images/a.jpg"]), ("b", ["images/b.jpg"])]
    assert not (shop / "out" / "images" / "a.jpg").is_symlink()


def test_an_id_never_becomes_a_path(shop: Path) -> None:
    ids = ["../../evil", "a/b", "..", ".hidden", "A", "a", "x" * 200, "ü", "c:d", "con.", "a-2"]
    log = "user_id,item_id,timestamp\nu,a,1\n"
    prepare(shop, log, "item_id,image\n" + "".join(f"{item},a.jpg\n" for item in ids))
    images = {row[0]: row[1] for row in rows(shop, "items")}
    assert list(images) == ids
    files = sorted(path.name for path in (shop / "out" / "images").iterdir())
    assert sorted(Path(paths[0]).name for paths in images.values()) == files
    assert len({name.lower() for name in files}) == len(ids), "no two names differ in case only"
    for [path] in images.values():
        assert (shop / "out" / path).resolve().parent == shop / "out" / "images"
        assert (shop / "out" / path).read_bytes() == tiny_image("red", "JPEG")
        assert Path(path).name.isascii()
        assert len(Path(path).name) < 100


def test_an_image_column_without_a_folder_is_an_error_if_asked_for_and_reported_if_not(shop: Path) -> None:
    with pytest.raises(InputError, match=r"column 'image' holds images: name their folder"):
        prepare(shop, images=False, image="image")
    report = prepare(shop, images=False)
    assert report.notes[0] == "column 'image' is not used: no folder of images was named (--images)"
    assert [row[-1] for row in rows(shop, "items")] == [None, None, None]


def test_urls_in_the_image_column_stay_urls_until_they_are_fetched(shop: Path) -> None:
    items = "item_id,image\na,https://example.com/1.jpg|https://example.com/c.PNG\nb,\nc,https://example.com/a.jpg\n"
    report = prepare(shop, items=items, images=False)
    assert rows(shop, "items") == [
        ("a", ["https://example.com/1.jpg", "https://example.com/c.PNG"]),
        ("b", None),
        ("c", ["https://example.com/a.jpg"]),
    ]
    assert (report.with_image, report.with_urls) == (2, 2)


def test_invalid_times_can_be_allowed_for(shop: Path) -> None:
    log = "user_id,item_id,timestamp\n" + "u,a,5\nu,b,6\n" * 10 + "u,c,soon\nu,c,-4\n"
    (shop / "log.csv").write_text(log)
    with pytest.raises(InputError, match="data row 21: 'soon' is no time"):
        prepare_files(shop, items=None)
    source = Tables(interactions=shop / "log.csv", items=None)
    report = pipeline.prepare(source, shop / "out", Rules(max_invalid_fraction=0.1))
    assert dropped(report)["interactions whose time cannot be read"] == 1
    assert dropped(report)["interactions: impossible dates"] == 1
    assert rows(shop) == [("u", "a", 5), ("u", "b", 6)]
