"""What every store of items does: in an SQLite file and in PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from fastapi.testclient import TestClient

from msm4sr.data.dataset import load_dataset
from msm4sr.data.items import Item
from msm4sr.errors import InputError
from msm4sr.recommend.catalogue import ItemExists, UnknownItem
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings, Service
from msm4sr.serving.state import open_store
from msm4sr.serving.state.store import Change, StateStore

FEATURES = {"text": np.arange(8, dtype=np.float32).reshape(2, 4), "visual": np.zeros((0, 3), np.float32)}
FULL = Item(
    "ä/1 'x'",
    "Ein Zug",
    "Rot.\nAus Holz.",
    ("toys", "trains"),
    [b"\x00\xff", b"second"],
    FEATURES,
    ["Ein Zug"],
    [["a"]],
)


class State:
    """A state that several stores and services may open, each closed at the end of the test."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self.folder, self.database = folder, database
        self._opened: list[StateStore | Service] = []

    def store(self) -> StateStore:
        self._opened.append(store := open_store(self.folder, self.database))
        return store

    def service(self, run: Path) -> Service:
        self._opened.append(service := Service(self.settings(run)))
        return service

    def settings(self, run: Path) -> ServeSettings:
        return ServeSettings.model_validate({"run": run, "state": self.folder, "database": self.database})

    def execute(self, statement: str) -> None:
        if self.database is not None:
            from postgresql import PostgreSQL

            PostgreSQL.execute(self.database, statement)
            return
        with sqlite3.connect(self.folder / "items.sqlite") as connection:
            connection.executescript(statement)
        connection.close()

    def close(self) -> None:
        for one in self._opened:
            one.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("database_server").new_database()
    one = State(tmp_path / "state", url)
    yield one
    one.close()


@pytest.fixture
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


def add(store: StateStore, *item_ids: str) -> None:
    store.add([Item(item_id, features=FEATURES) for item_id in item_ids], "e1", [False] * len(item_ids))


def numbers(store: StateStore, since: int = 0) -> list[tuple[int, str]]:
    return [(change.number, change.item_id) for change in store.changes(since)]


def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_an_item_is_read_as_it_was_added(state: State) -> None:
    state.store().add([FULL], "encoders", [True])
    (change,) = state.store().changes()
    assert replace(change, item=None) == Change(1, FULL.item_id, replaces=True, encoded_by="encoders")
    assert change.item is not None
    assert vars(replace(change.item, features={})) == vars(replace(FULL, features={}, images=("0", "1")))
    assert all(np.array_equal(change.item.features[name], rows) for name, rows in FEATURES.items())
    assert state.store().images(FULL.item_id) == FULL.images
    assert state.store().image(FULL.item_id, 1) == b"second"
    assert state.store().image(FULL.item_id, 2) is None


def test_of_each_item_the_latest_change_is_read_in_order(state: State) -> None:
    store, other = state.store(), state.store()
    before = other.version()
    add(store, "n1", "n2", "n3")
    store.remove("n1", False)
    store.remove("old", True)
    assert numbers(other) == [(2, "n2"), (3, "n3"), (4, "n1"), (5, "old")]
    assert numbers(other, 3) == [(4, "n1"), (5, "old")]
    assert [change.removed for change in other.changes()] == [False, False, True, True]
    assert (other.counter("change"), other.counter("reload")) == (5, 0)
    assert other.version() != before
    other.request_reload()
    assert (store.counter("change"), store.counter("reload")) == (5, 1)


def test_what_another_process_has_done_meanwhile_is_refused(state: State) -> None:
    store, other = state.store(), state.store()
    add(store, "n1")
    with pytest.raises(ItemExists, match="'n1' is in the catalogue already"):
        add(other, "n0", "n1")
    store.remove("n1", False)
    for item_id, of_the_run in (("n1", False), ("n0", False)):
        with pytest.raises(UnknownItem, match=f"no item '{item_id}'"):
            other.remove(item_id, of_the_run)
    add(other, "n1")
    assert numbers(store) == [(3, "n1")]


def test_a_transaction_that_fails_changes_nothing(state: State) -> None:
    store = state.store()
    add(store, "n1")

    def change_and_fail() -> None:
        with store.transaction():
            add(store, "n2")
            store.remove("n1", False)
            store.set_available(["n1"], False)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_and_fail()
    assert numbers(store) == [(1, "n1")]
    add(store, "n3")
    assert numbers(state.store()) == [(1, "n1"), (2, "n3")]


def test_availability_ends_with_the_item(state: State) -> None:
    store = state.store()
    add(store, "n1")
    store.set_available(["n1", "old"], False)
    store.set_available(["old"], True)
    wanted = [(1, "n1", None), (2, "n1", False), (4, "old", True)]
    assert [(one.number, one.item_id, one.available) for one in state.store().changes()] == wanted
    store.remove("n1", False)
    add(store, "n1")
    assert [(one.number, one.item_id, one.available) for one in store.changes()] == [(4, "old", True), (6, "n1", None)]


def test_features_of_an_item_that_has_changed_since_are_not_replaced(state: State) -> None:
    store = state.store()
    add(store, "n1", "n2")
    new = {"text": np.ones((1, 4), np.float32)}
    encoded = [replace(one, item=replace(one.item, features=new)) for one in store.changes() if one.item is not None]
    store.remove("n1", False)
    add(store, "n1")
    store.replace_features(encoded, "e2")
    found = {change.item_id: change for change in state.store().changes()}
    assert {item_id: change.encoded_by for item_id, change in found.items()} == {"n1": "e1", "n2": "e2"}
    assert found["n2"].item is not None
    assert np.array_equal(found["n2"].item.features["text"], new["text"])
    assert found["n2"].number == 2


def test_a_state_without_availability_is_migrated(state: State) -> None:
    store = state.store()
    add(store, "n1")
    store.close()
    version = "UPDATE msm4sr.msm4sr_state SET format = 1" if state.database else "PRAGMA user_version = 1"
    state.execute(f"DROP TABLE {'msm4sr.' if state.database else ''}availability; {version}")
    stores: list[StateStore] = []
    threads = [threading.Thread(target=lambda: stores.append(state.store())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    stores[0].set_available(["n1"], False)
    assert [change.available for change in stores[3].changes()] == [None, False]


def test_a_state_of_a_later_version_is_refused(state: State) -> None:
    state.store().close()
    state.execute("UPDATE msm4sr.msm4sr_state SET format = 9" if state.database else "PRAGMA user_version = 9")
    with pytest.raises(InputError, match=r"made by a later version of msm4sr \(format 9, not 2\)"):
        state.store()


def test_services_show_each_others_changes(run_folder: Path, ids: list[str], state: State) -> None:
    one, other = state.service(run_folder), state.service(run_folder)
    one.add([Item("n1", "Red train")])
    one.set_available([ids[4]], False)
    one.remove(ids[3])
    assert one.recommender.catalogue.row("n1") is not None, "the service that made a change has it at once"
    assert one.recommender.catalogue.row(ids[3]) is None
    eventually(lambda: other.recommender.catalogue.row(ids[3]) is None)
    assert other.recommender.catalogue.row("n1") is not None
    assert other.recommender.catalogue.unavailable == {ids[4]}
    other.remove("n1")
    eventually(lambda: one.recommender.catalogue.row("n1") is None)
    new = state.service(run_folder)
    assert new.recommender.catalogue.row("n1") is None
    assert new.recommender.catalogue.unavailable == {ids[4]}


def test_an_item_is_switched_off_over_http(run_folder: Path, ids: list[str], state: State) -> None:
    with TestClient(create_app(state.settings(run_folder))) as client:
        assert client.post("/items", data={"item_id": "n1", "title": "Red train"}).status_code == 201
        for item_id in ("n1", ids[5]):
            answer = client.patch(f"/items/{item_id}", json={"available": False})
            assert (answer.status_code, answer.json()["available"]) == (200, False)
            assert answer.json() == client.get(f"/items/{item_id}").json()
            history = {"history": [ids[0]], "candidates": [item_id, ids[6]]}
            assert [one["item_id"] for one in client.post("/recommend", json=history).json()["items"]] == [ids[6]]
            assert client.post("/recommend", json={"history": [item_id]}).json()["unknown"] == []
        assert client.get("/ready").json()["unavailable"] == 2
    with TestClient(create_app(state.settings(run_folder))) as client:
        off = {one["item_id"] for one in client.get("/items?limit=200").json()["items"] if not one["available"]}
        assert off == {"n1", ids[5]}
        assert client.patch("/items/n1", json={"available": True}).json()["available"] is True
        assert client.get("/ready").json()["unavailable"] == 1
        assert client.patch("/items/none", json={"available": True}).status_code == 404
        for wrong in (
            {},
            {"available": "no"},
            {"available": None},
            {"available": 0},
            {"available": True, "title": "x"},
        ):
            assert client.patch("/items/n1", json=wrong).status_code == 422


def test_of_the_available_items_one_is_left(run_folder: Path, ids: list[str], state: State) -> None:
    service = state.service(run_folder)
    service.set_available(ids[1:], False)
    for change in (lambda: service.remove(ids[0]), lambda: service.set_available([ids[0]], False)):
        with pytest.raises(InputError, match="no item would be left"):
            change()
    service.remove(ids[1])
    assert service.recommender.catalogue.n_items == 1


def test_a_reload_is_requested_of_every_service(run_folder: Path, state: State) -> None:
    services = [state.service(run_folder), state.service(run_folder)]
    assert [one.reload_if_changed() for one in services] == [False, False]
    services[0].store.request_reload()
    assert [one.reload_if_changed() for one in services] == [True, True]
    assert [one.reload_if_changed() for one in services] == [False, False]


def test_changes_of_the_same_items_at_once_have_one_order(run_folder: Path, ids: list[str], state: State) -> None:
    services = [state.service(run_folder), state.service(run_folder)]
    names = ["n1", "n2", "n3", *ids[:2]]
    done: dict[str, list[str]] = {name: [] for name in names}

    def change(service: Service, seed: int) -> None:
        random = Random(seed)
        for _ in range(30):
            name, what = random.choice(names), random.choice(["add", "add", "remove", "off", "on"])
            try:
                if what == "add":
                    service.add([Item(name, f"Train {seed}")])
                elif what == "remove":
                    service.remove(name)
                else:
                    service.set_available([name], what == "on")
                done[name].append(what)
            except (ItemExists, UnknownItem):
                pass

    threads = [threading.Thread(target=change, args=(service, n)) for n, service in enumerate([*services, *services])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = state.store().counter("change")
    assert last == sum(map(len, done.values())), "each acknowledged change has a number"
    eventually(lambda: all(service._served.change == last for service in services if service.recommender))
    catalogues = [service.recommender.catalogue for service in (*services, state.service(run_folder))]
    for name in names:
        added, removed = done[name].count("add"), done[name].count("remove")
        present = added - removed + (name in ids)
        assert present in (0, 1), "between two additions is a removal"
        assert [catalogue.row(name) is not None for catalogue in catalogues] == [present == 1] * 3
        assert len({name in catalogue.unavailable for catalogue in catalogues}) == 1
        assert len({catalogue.item(row).title for catalogue in catalogues if (row := catalogue.row(name))}) <= 1


def test_threads_that_ask_while_changes_are_stored_find_no_older_copy(state: State) -> None:
    store, ended = state.store(), threading.Event()

    def ask() -> None:
        while not ended.is_set():
            store.version()

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        for number in range(200):
            add(store, f"n{number}")
        ended.set()
    for one in asking:
        one.result()
    assert len(store.changes()) == 200
