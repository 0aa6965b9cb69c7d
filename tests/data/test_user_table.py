"""users.parquet: prepared from a table of users, checked, and read with the data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from msm4sr.data.dataset import DataSettings, load_dataset
from msm4sr.data.preparation.pipeline import prepare
from msm4sr.data.sources.tables import Tables
from msm4sr.data.user_table import read_users
from msm4sr.errors import InputError


def shop(folder: Path) -> Path:
    """Five users with four interactions each."""
    folder.mkdir(exist_ok=True)
    rows = [(f"{u:03}", f"i{(u + n) % 5}", n) for u in range(5) for n in range(4)]
    log = pl.DataFrame(rows, schema=["customer", "item_id", "timestamp"], orient="row")
    log.write_csv(folder / "log.csv")
    return folder


def prepared(folder: Path, users: str) -> tuple[Path, list[str]]:
    (shop(folder) / "users.csv").write_text(users)
    source = Tables(interactions=folder / "log.csv", items=None, user="customer", users=folder / "users.csv")
    return folder / "out", prepare(source, folder / "out").lines()


def test_a_table_of_users_is_prepared_with_types_and_without_strangers(tmp_path: Path) -> None:
    text = (
        "age,customer,plan,since,zip\n34,003, pro ,2020,01234\n,000,,2021.5,\n99,stranger,free,1,1\n51,001,free,nan,9\n"
    )
    out, lines = prepared(tmp_path, text)
    users = read_users(out)
    assert users is not None
    assert users.to_dicts() == [
        {"user_id": "003", "age": 34, "plan": "pro", "since": 2020.0, "zip": "01234"},
        {"user_id": "000", "age": None, "plan": None, "since": 2021.5, "zip": None},
        {"user_id": "001", "age": 51, "plan": "free", "since": None, "zip": "9"},
    ]
    assert "user column   plan, 3 users" in lines
    assert any("2 of 5 users have no row in the table of users" in line for line in lines)
    provenance = json.loads((out / "provenance.json").read_text())
    assert [record["file"] for record in provenance["sources"]] == ["log.csv", "users.csv"]
    assert "users.parquet" in [table["file"] for table in provenance["result"]["tables"]]


def test_the_data_set_has_the_table_and_keeps_it_without_held_out_items(tmp_path: Path) -> None:
    out, _ = prepared(tmp_path, "customer,plan\n000,a\n001,b\n")
    for settings in (DataSettings(), DataSettings(hold_out_items=0.2), DataSettings(hold_out_users=0.4)):
        users = load_dataset(out, settings).users
        assert users is not None
        assert users["plan"].to_list() == ["a", "b"]


def test_without_a_table_there_is_none(tmp_path: Path) -> None:
    prepare(Tables(interactions=shop(tmp_path) / "log.csv", items=None, user="customer"), tmp_path / "out")
    assert load_dataset(tmp_path / "out").users is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,plan\n000,a\n", "users.csv: no column 'customer'; the file has: id, plan"),
        ("customer,plan\n000,a\n,b\n", "users.csv: column 'customer', row 2: no ID; every user needs one"),
        ("customer,plan\n000,a\n001,b\n000,c\n", "users.csv: column 'customer', rows 1 and 3: both are '000'"),
        ("customer,plan\n", "users.csv: no rows; add the users, or omit the table"),
        ("customer\n000\n", "users.csv: only the column 'customer'; add columns to compare users by"),
        (
            "customer,plan\n0,a\n1,b\n",
            "users.csv: none of its users is in the interactions: it has '0', they have '000'",
        ),
    ],
)
def test_a_wrong_table_is_refused_and_nothing_is_written(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        prepared(tmp_path, text)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda users: users.rename({"user_id": "id"}), "no column 'user_id'"),
        (lambda users: pl.concat([users, users]), "rows 1 and 3: both are '000'"),
        (
            lambda users: users.with_columns(plan=pl.concat_list("plan")),
            r"column 'plan' is List\(String\); it should hold",
        ),
    ],
)
def test_an_edited_table_is_checked_when_the_data_set_is_read(
    tmp_path: Path, change: Callable[[pl.DataFrame], pl.DataFrame], said: str
) -> None:
    out, _ = prepared(tmp_path, "customer,plan\n000,a\n001,b\n")
    change(pl.read_parquet(out / "users.parquet")).write_parquet(out / "users.parquet")
    with pytest.raises(InputError, match=said) as error:
        load_dataset(out)
    assert str(out / "users.parquet") in str(error.value)


def test_a_damaged_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    out, _ = prepared(tmp_path, "customer,plan\n000,a\n001,b\n")
    (out / "users.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match=r"users\.parquet: cannot be read as a parquet file"):
        load_dataset(out)
