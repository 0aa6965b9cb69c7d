"""The store when it is damaged: a damaged row costs its item only, a damaged file the changes only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from safetensors.numpy import save

from msm4sr.data.dataset import load_dataset
from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.features.images import decode_image
from msm4sr.files import atomic_file
from msm4sr.recommend.rules import Rules
from msm4sr.serving import thumbnails
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings, Service
from msm4sr.serving.state.sqlite import SQLiteStore

ZEROS = {"text": np.zeros((1, 384), np.float32), "visual": np.zeros((0, 1280), np.float32)}
# Item id -> column, its value as SQL, what is said about it.
DAMAGE: dict[str, tuple[str, object, str]] = {
    "cut": ("features", b"\0", "header"),
    "empty": ("features", None, "content is missing"),
    "wide": ("features", save(ZEROS | {"text": np.zeros((1, 7), np.float32)}), ""),
    "lacking": ("features", save({"text": ZEROS["text"]}), "visual"),
    "flat": ("features", save(ZEROS | {"text": np.zeros(384, np.float32)}), ""),
    "nan": ("features", save(ZEROS | {"text": np.full((1, 384), np.nan, np.float32)}), "not finite"),
    "huge": ("features", save(ZEROS | {"text": np.full((1, 384), 1e38, np.float32)}), "not finite"),
    "words": ("words", "{", "words"),
    "number": ("words", json.dumps({"sentences": 3, "keywords": []}), "sentences"),
    "category": ("categories", "[1]", "categories"),
    "nested": ("categories", "[" * 100_000, "categories"),
    "bytes": ("title", b"\xff", "title"),
    "utf-8": ("title", "CAST(x'ff' AS TEXT)", "title: character 1 (U+DCFF)"),
    "control": ("text", "a\x07", "text: character 2 (U+0007)"),
    "images": ("images", -1, "images"),
    "many": ("images", "many", "images"),
    "missing": ("images", 3, "3 of its 3 images are missing"),
    "long title": ("title", "x" * 1001, "title: 1,001 characters; give at most 1,000"),
    "sentence": ("words", json.dumps({"sentences": ["x" * 1_000_001], "keywords": []}), "sentences"),
    "removed": ("removed", "x", "removed"),
}


@pytest.fixture
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


def edit(state: Path, *statements: tuple[str, tuple[object, ...]]) -> None:
    with sqlite3.connect(state / "items.sqlite") as connection:
        for statement, values in statements:
            connection.execute(statement, values)
    connection.close()


def recommended(service: Service, history: list[str], candidates: list[str]) -> set[str]:
    return {one.item_id for one in service.recommender.recommend(history, 50, rules=Rules(candidates=candidates)).items}


def test_a_damaged_row_costs_its_item_only_and_can_be_removed(
    run_folder: Path, ids: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServeSettings(run=run_folder, state=tmp_path)
    client = TestClient(create_app(settings))
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    names = [*DAMAGE, "good"]
    service.add([Item(name, f"Red train {name}") for name in names])
    assert recommended(service, ids[:2], names) == set(names)
    for name, (column, value, _) in DAMAGE.items():
        as_sql = isinstance(value, str) and value.startswith("CAST")
        edit(
            tmp_path,
            ("UPDATE counters SET value = value + 1 WHERE name = 'change'", ()),
            (
                f"UPDATE items SET {column} = {value if as_sql else '?'}, change = (SELECT value FROM counters "
                "WHERE name = 'change') WHERE item_id = ?",
                (name,) if as_sql else (value, name),
            ),
        )
    for one in (service, Service(settings)):
        assert recommended(one, ids[:2], names) == {"good"}
        assert one.skipped.keys() == DAMAGE.keys()
        for name, (_, _, words) in DAMAGE.items():
            assert words in one.skipped[name], name
    assert set(client.get("/ready").json()["skipped"]) == set(DAMAGE)
    assert sum("'nan' is skipped" in message for message in caplog.messages) == 2  # once for each service
    for name in DAMAGE:
        assert client.delete(f"/items/{name}").status_code == 204
        assert client.delete(f"/items/{name}").status_code == 404
    assert client.get("/ready").json()["skipped"] == {}
    assert client.post("/items", data={"item_id": "nan", "title": "Blue train"}).status_code == 201


def test_rows_whose_id_no_request_can_name_are_dropped_at_the_start(tmp_path: Path) -> None:
    ids = {"null": "NULL", "empty": "''", "control": "'a' || char(10)", "utf-8": "CAST(x'ff' AS TEXT)", "blob": "x'61'"}
    ids |= {"dots": "'..'", "long": f"'{'x' * 201}'"}
    store = SQLiteStore(tmp_path)
    store.add([Item(name, images=[b"x"], features=ZEROS) for name in (*ids, "good")], "", [False] * (len(ids) + 1))
    store.close()
    edit(tmp_path, *((f"UPDATE items SET item_id = {damaged} WHERE item_id = ?", (i,)) for i, damaged in ids.items()))
    store = SQLiteStore(tmp_path)
    assert [change.item_id for change in store.changes()] == ["good"]
    with sqlite3.connect(store.file) as connection:
        assert connection.execute("SELECT item_id FROM images").fetchall() == [("good",)]
    connection.close()


@pytest.mark.parametrize("data", [7, "abc", b"abc", None])
def test_a_damaged_image_is_not_shown(run_folder: Path, toyshop: Path, tmp_path: Path, data: object) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    image = next(toyshop.glob("images/*")).read_bytes()
    assert client.post("/items", data={"item_id": "n1"}, files={"images": image}).status_code == 201
    change = ("UPDATE images SET data = ?", (data,)) if data else ("DELETE FROM images", ())
    edit(tmp_path, change)
    assert client.get("/items/n1/image").status_code == 404
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    assert client.get("/items/n1/image").status_code == 404
    assert ("n1" in client.get("/ready").json()["skipped"]) == (data != b"abc")


def test_the_thumbnails_of_an_item_are_removed_with_it(run_folder: Path, toyshop: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    images = [("images", file.read_bytes()) for file in sorted(toyshop.glob("images/*"))[:2]]
    for name in ("n1", "n2"):
        assert client.post("/items", data={"item_id": name}, files=images).status_code == 201
        for number, side in ((0, 240), (1, 640)):
            assert client.get(f"/items/{name}/image?number={number}&side={side}").status_code == 200
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    items = service.recommender.catalogue.items
    shown = next(i for i in items.item_ids if client.get(f"/items/{i}/image").status_code == 200)
    assert len(list(tmp_path.glob("thumbnails/*"))) == 5
    for name, left in (("n1", 3), (shown, 2), ("n2", 0)):
        assert client.delete(f"/items/{name}").status_code == 204
        assert len(list(tmp_path.glob("thumbnails/*"))) == left


def test_a_changed_photo_has_a_new_thumbnail_also_after_a_restart(
    run_folder: Path, toyshop: Path, tmp_path: Path
) -> None:
    """As after a night: the folder is prepared again, and its photos have the same names."""
    data = shutil.copytree(toyshop, tmp_path / "data")

    def start() -> TestClient:
        client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path / "state")))
        client.app.state.service.recommender.folder = data  # type: ignore[attr-defined]
        return client

    items = start().app.state.service.recommender.catalogue.items  # type: ignore[attr-defined]
    one, other = [row for row in range(20) if items.images[row]][:2]
    paths = [f"/items/{items.item_ids[row]}/image" for row in (one, other)]
    running = start()
    first = running.get(paths[0])
    shutil.copyfile(data / items.images[other][0], data / items.images[one][0])
    os.utime(data / items.images[one][0], (0, 0))
    for client in (running, start()):
        second = client.get(paths[0], headers={"If-None-Match": first.headers["etag"]})
        assert second.status_code == 200
        assert second.content == client.get(paths[1]).content != first.content
    assert len(list(tmp_path.glob("state/thumbnails/*"))) == 2


def test_thumbnails_are_in_a_temporary_folder_if_the_state_folder_is_read_only(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root may write everywhere but into a read-only file system, which a test cannot mount."""
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    items = client.app.state.service.recommender.catalogue.items  # type: ignore[attr-defined]
    paths = [f"/items/{items.item_ids[row]}/image" for row in range(20) if items.images[row]][:2]
    decoded = []

    def counted(data: bytes, side: int) -> Any:
        decoded.append(side)
        return decode_image(data, side)

    def read_only(file: Path) -> AbstractContextManager[Path]:
        if file.is_relative_to(tmp_path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return atomic_file(file)

    monkeypatch.setattr(thumbnails, "decode_image", counted)
    monkeypatch.setattr(thumbnails, "atomic_file", read_only)
    for _ in range(4):
        assert [client.get(path).status_code for path in paths] == [200, 200]
    assert len(decoded) == 3, "one of the two was made before the folder was known to be read-only"
    assert sum("thumbnails are in" in message for message in caplog.messages) == 1


def damage_header(file: Path) -> None:
    file.write_bytes(b"garbage!" * 1000)


def damage_pages(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xaa" * (len(data) - 4096)
    file.write_bytes(data)


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [damage_header, damage_pages, put_folder])
def test_a_damaged_file_is_refused_at_the_start(run_folder: Path, tmp_path: Path, damage: object) -> None:
    store = SQLiteStore(tmp_path)
    store.add([Item("n1", "Train", features=ZEROS)], "", [False])
    store.close()
    damage(tmp_path / "items.sqlite")  # type: ignore[operator]
    with pytest.raises(InputError, match=r"items\.sqlite: cannot be used .*choose another --state"):
        Service(ServeSettings(run=run_folder, state=tmp_path))


def test_counters_that_were_lost_continue_after_the_latest_change(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path)
    store.add([Item(name, "Train", features=ZEROS) for name in ("n1", "n2")], "", [False, False])
    store.close()
    edit(tmp_path, ("DELETE FROM counters", ()))
    store = SQLiteStore(tmp_path)
    store.add([Item("n3", "Train", features=ZEROS)], "", [False])
    assert [change.number for change in store.changes(2)] == [3]


@pytest.mark.parametrize("damage", [damage_header, Path.unlink])
def test_a_file_that_is_damaged_later_stops_changes_only(
    run_folder: Path, ids: list[str], tmp_path: Path, damage: object
) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    assert client.post("/items", data={"item_id": "n1", "title": "Red train"}).status_code == 201
    for name in ("items.sqlite-wal", "items.sqlite"):
        damage(tmp_path / name)  # type: ignore[operator]
    for _ in range(2):
        found = client.post("/recommend", json={"history": [ids[0], "n1"], "candidates": ["n1"], "exclude_seen": False})
        assert (found.status_code, found.json()["unknown"]) == (200, [])
        assert client.get("/items/n1").status_code == 200
        for answer in (
            client.post("/items", data={"item_id": "n2", "title": "Red train"}),
            client.delete(f"/items/{ids[3]}"),
        ):
            assert answer.status_code == 503
            assert "the store of items is not available" in answer.json()["detail"]
            assert answer.headers["retry-after"]
    assert client.get("/items/n2").status_code == 404
    assert client.get(f"/items/{ids[3]}").status_code == 200


def test_of_the_last_two_items_one_stays(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    settings = ServeSettings(run=run_folder, state=tmp_path)
    services = [Service(settings), Service(settings)]
    for item_id in ids[2:]:
        services[0].store.remove(item_id, True)
    refused: list[InputError] = []

    def remove(service: Service, item_id: str) -> None:
        try:
            service.remove(item_id)
        except InputError as error:
            refused.append(error)

    other = sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # both wait for it
    threads = [threading.Thread(target=remove, args=pair) for pair in zip(services, ids, strict=False)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    other.execute("ROLLBACK")
    for thread in threads:
        thread.join()
    assert [str(error) for error in refused] == ["no item would be left to recommend; keep at least one"]
    assert [service.recommender.catalogue.n_items for service in services] == [1, 1]
