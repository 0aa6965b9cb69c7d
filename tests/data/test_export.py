"""What is exported and prepared again is the same; RecBole's own files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import temporal
import yaml
from temporal import CUTS, load
from tiny_images import tiny_image

from msm4sr.data.dataset import DataSettings, test_targets, training_histories, validation_targets
from msm4sr.data.export import export_csv, export_recbole
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.preparation.source import Rules
from msm4sr.data.sources.recbole import RecBole
from msm4sr.data.sources.tables import Tables
from msm4sr.errors import InputError

LOG: dict[str, list[Any]] = {
    "user_id": ["b", "b", "a", "a", "a"],
    "item_id": ["x", "z", "x", "y y", "x"],
    "timestamp": [5, 9, 2, 2, 7],
}
ITEMS: dict[str, list[Any]] = {
    "item_id": ["z", "y y", "x"],
    "title": ['The "Z"', None, "Ü, x"],
    "text": ["It's a z. ", "a|b", None],
    "categories": [["sharp", "last"], None, ["plain"]],
    "image": [["images/z.jpg"], None, ["images/x.jpg", "https://example.com/x.jpg"]],
}


def write(folder: Path, log: dict[str, list[Any]] = LOG, items: dict[str, list[Any]] | None = ITEMS) -> Path:
    (folder / "images").mkdir(parents=True)
    for name in "zx":
        (folder / "images" / f"{name}.jpg").write_bytes(tiny_image("red" if name == "z" else "blue", "JPEG"))
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    if items is not None:
        pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


def tables(folder: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(folder / f"{name}.parquet") for name in ("interactions", "items")]


def test_a_round_trip_through_recbole_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {**LOG, "rating": [1.0, 2.5, None, 4.0, 5.0]})
    exported = export_recbole(folder, tmp_path / "shop")
    assert [path.name for path in exported.files] == ["shop.inter", "shop.item", "shop.yaml"]
    prepare(RecBole(inter=tmp_path / "shop", images=folder), tmp_path / "once")
    log, items = tables(tmp_path / "once")
    before = tables(folder)
    assert log.rows() == before[0].rows()
    assert items.drop("image", "text").rows() == before[1].drop("image", "text").rows()
    assert items["text"].to_list() == ["It's a z.", "a|b", None]
    assert items["image"].to_list() == [["images/z.jpg"], None, ["images/x.jpg", "https://example.com/x.jpg"]]
    export_recbole(tmp_path / "once", tmp_path / "again" / "shop")
    prepare(RecBole(inter=tmp_path / "again" / "shop", images=tmp_path / "once"), tmp_path / "twice")
    for name in ("interactions.parquet", "items.parquet", "images/x.jpg"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes(), name


def test_a_round_trip_through_csv_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    export_csv(folder, tmp_path / "csv")
    csv = tmp_path / "csv"
    source = Tables(interactions=csv / "interactions.csv", items=csv / "items.csv", images=folder, time_unit="s")
    prepare(source, tmp_path / "out")
    log, items = tables(tmp_path / "out")
    assert log.rows() == tables(folder)[0].rows()
    assert items.drop("text").rows() == tables(folder)[1].drop("text").rows()


def test_positions_stay_positions(tmp_path: Path) -> None:
    log = {"user_id": ["a", "a", "b"], "item_id": ["x", "x", "z"], "position": [0, 1, 0]}
    folder = write(tmp_path / "data", log)
    pl.read_parquet(folder / "interactions.parquet").cast({"position": pl.Int32}).write_parquet(
        folder / "interactions.parquet"
    )
    export_recbole(folder, tmp_path / "shop")
    prepare(RecBole(inter=tmp_path / "shop" / "shop.inter", images=folder), tmp_path / "out")
    assert tables(tmp_path / "out")[0].equals(tables(folder)[0])


def test_a_list_whose_values_have_spaces_gets_another_separator(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", items={**ITEMS, "categories": [["for the sea", "a|b"], None, ["plain"]]})
    exported = export_recbole(folder, tmp_path / "shop")
    assert exported.separator == ";"
    assert yaml.safe_load((tmp_path / "shop" / "shop.yaml").read_text())["seq_separator"] == ";"
    prepare(RecBole(inter=tmp_path / "shop", images=folder, separator=";"), tmp_path / "out")
    assert tables(tmp_path / "out")[1]["categories"].to_list() == [["for the sea", "a|b"], None, ["plain"]]


def test_what_recbole_cannot_represent_is_refused_or_replaced(tmp_path: Path) -> None:
    broken = write(tmp_path / "broken", {**LOG, "user_id": ["b\t", "b\t", "a", "a", "a"]})
    with pytest.raises(InputError, match="an ID contains a tab"):
        export_recbole(broken, tmp_path / "shop")
    assert not (tmp_path / "shop").exists()
    texts = write(tmp_path / "texts", items={**ITEMS, "text": ["One.\nTwo.", "a\tb", None]})
    assert export_recbole(texts, tmp_path / "shop").notes == [
        "2 items have a line break or a tab in their texts; replaced by a space"
    ]
    prepare(RecBole(inter=tmp_path / "shop", images=texts), tmp_path / "out")
    assert tables(tmp_path / "out")[1]["text"].to_list() == ["One. Two.", "a b", None]


def test_ids_alone_are_exported_without_items(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", items=None)
    assert len(export_csv(folder, tmp_path / "csv").files) == 1
    assert len(export_recbole(folder, tmp_path / "shop").files) == 2
    prepare(RecBole(inter=tmp_path / "shop"), tmp_path / "out")
    before, after = (pl.read_parquet(path / "interactions.parquet") for path in (folder, tmp_path / "out"))
    assert after.rows() == before.rows()
    assert not (tmp_path / "out" / "items.parquet").exists()


def recbole(tmp_path: Path, inter: str, item: str | None = None) -> Path:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ml.inter").write_text(inter)
    if item is not None:
        (folder / "ml.item").write_text(item)
    return folder


def test_recboles_own_files_are_read(tmp_path: Path) -> None:
    folder = recbole(
        tmp_path,
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n186\t302\t3.0\t891717742.0\n",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "242\tKolya\t1996\tComedy\n302\tL.A. Confidential\t1997\tCrime Film-Noir\n1\t\t\t\n",
    )
    prepare(RecBole(inter=folder), tmp_path / "out")
    log, items = tables(tmp_path / "out")
    assert log.rows() == [("196", "242", 881_250_949, 3.0), ("186", "302", 891_717_742, 3.0)]
    assert items.drop("image").rows() == [
        ("242", "Kolya", ["Comedy"]),
        ("302", "L.A. Confidential", ["Crime", "Film-Noir"]),
        ("1", None, None),
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem:token", r"ml.inter: no column 'item_id'; the file has: user_id, item"),
        ("user_id\titem_id", r"ml.inter: line 1: 'user_id' is no column of an atomic file"),
        ("", "line 1: '' is no column"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, message: str) -> None:
    folder = recbole(tmp_path, header + "\n1\t2\n")
    with pytest.raises(InputError, match=message):
        prepare(RecBole(inter=folder), tmp_path / "out")


def test_invalid_rows_of_atomic_files_are_counted(tmp_path: Path) -> None:
    good = "".join(f"{n % 7}\t{n % 5}\t{n}\n" for n in range(400))
    folder = recbole(
        tmp_path, f"user_id:token\titem_id:token\ttimestamp:float\n{good}1\t2\n\t2\t3\n1\t2\tnan\n1\t2\t-3\n"
    )
    report = prepare(RecBole(inter=folder), tmp_path / "out")
    assert {drop.reason: drop.example for drop in report.dropped} == {
        "interactions: rows with more or fewer fields than the header": "ml.inter, line 402",
        "interactions: missing user or item IDs": "ml.inter, line 403",
        "interactions: times that are no number": "ml.inter, line 404: 'nan'",
        "interactions: impossible dates": "ml.inter, line 405",
    }


def test_ratings_cannot_be_filtered_where_there_are_none(tmp_path: Path) -> None:
    folder = recbole(tmp_path, "user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(InputError, match=r"ml\.inter: has no ratings; omit min_rating"):
        prepare(RecBole(inter=folder), tmp_path / "out", Rules(min_rating=3))
    prepare(RecBole(inter=folder), tmp_path / "out")
    assert pl.read_parquet(tmp_path / "out" / "interactions.parquet").rows() == [("1", "2", 0)]


def test_the_parts_of_a_temporal_split_are_exported_for_both_kinds_of_recommender(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    split = DataSettings(split="temporal", targets="all", **CUTS)
    dataset = load(temporal.LOG, folder, targets="all")
    export_recbole(folder, tmp_path / "shop", split)
    parts = {
        path.name.split(".")[1]: pl.read_csv(path, separator="\t", infer_schema=False).rows()
        for path in sorted((tmp_path / "shop").glob("shop.*.inter"))
    }
    users, items = dataset.user_ids, dataset.item_ids
    histories = [[items[item] for item in history] for history in training_histories(dataset)]
    assert parts["train"] == [(user, item) for user, own in zip(users, histories, strict=True) for item in own]
    assert parts["train-sequential"] == [
        (user, own[n], " ".join(own[:n]))
        for user, own in zip(users, histories, strict=True)
        for n in range(1, len(own))
    ]
    for name, targets in (("valid", validation_targets(dataset)), ("test", test_targets(dataset))):
        assert targets.users is not None
        assert targets.rows is not None
        expected = [
            (users[user], items[item], " ".join(items[one] for one in targets.histories[row]))
            for user, item, row in zip(targets.target_users, targets.targets, targets.rows, strict=True)
            if histories[user]
        ]
        assert parts[f"{name}-sequential"] == expected
        assert parts[name] == [row[:2] for row in expected]
        assert expected
    general, sequential = (
        yaml.safe_load((tmp_path / "shop" / f"shop{kind}.yaml").read_text()) for kind in ("", "-sequential")
    )
    assert general["benchmark_filename"] == ["train", "valid", "test"]
    assert sequential["load_col"]["inter"] == ["user_id", "item_id_list", "item_id"]
    prepare(RecBole(inter=tmp_path / "shop" / "shop.inter"), tmp_path / "again")
    assert tables(tmp_path / "again")[0].height == len(set(temporal.LOG))


def test_settings_that_an_export_cannot_have_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    with pytest.raises(InputError, match="leave-one-out exports all interactions"):
        export_recbole(folder, tmp_path / "shop", DataSettings(user_core=3))
    spaces = [(user, f"item {item}", time) for user, item, time in temporal.LOG]
    load(spaces, tmp_path / "spaces", sorted({item for _, item, _ in spaces}))
    with pytest.raises(InputError, match="an item ID contains ' '"):
        export_recbole(tmp_path / "spaces", tmp_path / "shop", DataSettings(split="temporal", **CUTS))
    assert not (tmp_path / "shop").exists()
