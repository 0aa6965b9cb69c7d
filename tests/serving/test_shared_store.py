"""A store that other processes open meanwhile, and numbers of changes that were damaged."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from msm4sr.data.items import Item
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings
from msm4sr.serving.state import sqlite as module
from msm4sr.serving.state.sqlite import SQLiteStore
from msm4sr.serving.state.store import StoreUnavailable

FEATURES = {"text": np.zeros((1, 4), np.float32)}
READ = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM items').fetchall(); c.close()"
ADD = """
import pathlib, sys
from msm4sr.data.items import Item
from msm4sr.serving.state.sqlite import SQLiteStore
store = SQLiteStore(pathlib.Path(sys.argv[1]).parent)
store.add([Item("other")], "", [False])
store.close()
"""


def add(store: SQLiteStore, *item_ids: str) -> None:
    store.add([Item(item_id, features=FEATURES) for item_id in item_ids], "", [False] * len(item_ids))


def known(store: SQLiteStore) -> list[str]:
    return [change.item_id for change in store.changes()]


@pytest.mark.parametrize("program", [READ, ADD], ids=["reads", "adds"])
def test_another_process_that_closes_the_store_costs_no_change(tmp_path: Path, program: str) -> None:
    (tmp_path / "state").mkdir()
    store = SQLiteStore(tmp_path / "state")
    add(store, "n1")
    subprocess.run([sys.executable, "-c", program, store.file], check=True)
    assert {file.name for file in store.file.parent.iterdir()} == {store.file.name + s for s in ("", "-wal", "-shm")}
    add(store, "n2")
    subprocess.run([sys.executable, "-c", program.replace('"other"', '"third"'), store.file], check=True)
    add(store, "n3")
    shutil.copytree(store.file.parent, tmp_path / "killed")  # the files as a kill -9 leaves them
    wanted = ["n1", "n2", "n3"] if program is READ else ["n1", "other", "n2", "third", "n3"]
    assert known(store) == wanted
    assert known(SQLiteStore(tmp_path / "killed")) == wanted


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_removed_file_refuses_changes(tmp_path: Path, suffix: str) -> None:
    store = SQLiteStore(tmp_path)
    add(store, "n1")
    (tmp_path / f"items.sqlite{suffix}").unlink()
    with pytest.raises(StoreUnavailable, match="removed or overwritten; restart the service"):
        add(store, "n2")


@pytest.mark.parametrize(
    ("damage", "restarted"),
    [
        ("UPDATE items SET change = 9223372036854775807 WHERE item_id = 'n1'", False),
        ("UPDATE items SET change = 9223372036854775807 WHERE item_id = 'n1'", True),
        ("UPDATE items SET change = 3 WHERE item_id = 'n1'", False),
        ("UPDATE items SET change = 'x' WHERE item_id = 'n1'", True),
        ("DELETE FROM counters", False),
        ("UPDATE counters SET value = 9223372036854775807", False),
        ("UPDATE counters SET value = 0", False),
    ],
)
def test_a_damaged_number_of_a_change_stops_no_other(
    run_folder: Path, tmp_path: Path, damage: str, restarted: bool
) -> None:
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    for name in ("n1", "n2"):
        assert client.post("/items", data={"item_id": name, "title": "Red train"}).status_code == 201
    with sqlite3.connect(tmp_path / "items.sqlite") as connection:
        connection.execute(damage)
    connection.close()
    if restarted:
        client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    for name in ("n3", "n4", "n5"):
        assert client.post("/items", data={"item_id": name, "title": "Red train"}).status_code == 201
    assert client.post("/reload").status_code == 202
    assert client.delete("/items/n2").status_code == 204
    for one in (client, TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))):
        found = {name for name in ("n1", "n2", "n3", "n4", "n5") if one.get(f"/items/{name}").status_code == 200}
        assert found == {"n1", "n3", "n4", "n5"}
        assert one.get("/ready").json()["skipped"] == {}


def test_changes_that_wait_for_another_process_delay_no_other_request(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 20)
    changes: list[int] = []
    with TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path))) as client:

        def change(name: str) -> None:
            changes.append(client.post("/items", data={"item_id": name, "title": "Red train"}).status_code)

        other = sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        threads = [threading.Thread(target=change, args=(f"n{number}",)) for number in range(10)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert client.get("/items").status_code == 200
        assert changes == []
        other.execute("ROLLBACK")
        other.close()
        for thread in threads:
            thread.join()
        assert changes == [201] * 10


def test_a_store_that_stays_locked_is_not_available(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    client = TestClient(create_app(ServeSettings(run=run_folder, state=tmp_path)))
    other = sqlite3.connect(tmp_path / "items.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for answer in (client.post("/items", data={"item_id": "n1", "title": "Train"}), client.post("/reload")):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "locked" in caplog.text  # the answer does not name the file
        assert str(tmp_path) not in answer.text
    other.close()
