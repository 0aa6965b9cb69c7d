"""Replicas that share a PostgreSQL database, under load: the database restarts, a replica is killed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from random import Random

import httpx2 as httpx
import pytest
from callers import wait_until
from fastapi.testclient import TestClient
from postgresql import BIN, PostgreSQL, postgresql
from service import Server

from msm4sr.data.dataset import load_dataset
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings

pytestmark = pytest.mark.skipif(not BIN, reason="PostgreSQL is not installed")


@pytest.fixture
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


@contextmanager
def replicas(run: Path, url: str) -> Iterator[list[Server]]:
    """Two processes of `msm4sr serve` with one database."""
    with ThreadPoolExecutor() as pool:
        services = list(pool.map(lambda _: Server(run, url), range(2)))
    with ExitStack() as stack:
        for one in services:
            stack.callback(lambda one=one: one.process.poll() is None and one.kill())
            stack.callback(one.client.close)
        yield services


class Load:
    """Threads that change items of their own through a service, or read, and what they know of the stored items.

    A change that is answered with 503 is repeated until it is answered otherwise.
    """

    def __init__(self, service: Server, names: Sequence[str], history: Sequence[str]) -> None:
        self.service, self.history = service, list(history)
        self.stored: dict[str, bool] = {}  # id of an item: whether it is available
        self.removed: set[str] = set()
        self.unknown: set[str] = set()  # their change was not answered
        self.changes = self.refused = self.reads = 0
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._change, args=(name,)) for name in names]
        self._threads += [threading.Thread(target=self._read) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert self.failed == []

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.service.url, timeout=None)

    def _change(self, name: str) -> None:
        random = Random(name)
        with self._client() as client:
            for number in count():
                item_id = f"{name}-{number}"
                try:
                    self._repeat(client, "POST", "/items", (201, 409), data={"item_id": item_id, "title": "Train"})
                    self.stored[item_id] = True
                    other = random.choice([one for one in list(self.stored) if one.startswith(f"{name}-")])
                    item_id = other
                    if number % 3 == 0:
                        del self.stored[other]
                        self._repeat(client, "DELETE", f"/items/{other}", (204, 404))
                        self.removed.add(other)
                    elif number % 3 == 1:
                        available = not self.stored[other]
                        self._repeat(client, "PATCH", f"/items/{other}", (200,), json={"available": available})
                        self.stored[other] = available
                except (httpx.TransportError, InterruptedError):  # the service was killed, or this has ended
                    self.unknown.add(item_id)
                    return

    def _repeat(self, client: httpx.Client, method: str, path: str, wanted: Sequence[int], **content: object) -> None:
        while True:
            answer = client.request(method, path, **content)
            if answer.status_code in wanted:
                self.changes += 1
                if self._ended.is_set():
                    raise InterruptedError
                return
            if answer.status_code != 503 or "retry-after" not in answer.headers:
                self.failed.append(f"{method} {path}: {answer.status_code} {answer.text}")
            self.refused += 1
            if self._ended.wait(0.05):
                raise InterruptedError

    def _read(self) -> None:
        with self._client() as client:
            while not self._ended.is_set():
                known = list(self.stored)[-1:]
                try:
                    answer = client.post("/recommend", json={"history": [*self.history, *known]})
                    if answer.status_code != 200 or (answer.json()["unknown"] and set(known) <= self.stored.keys()):
                        self.failed.append(f"{answer.status_code} {answer.text}")
                    self.reads += 1
                except httpx.TransportError:
                    return


def shown(service: Server | TestClient) -> dict[str, bool]:
    """The added items of a service, and whether they are available."""
    client = service.client if isinstance(service, Server) else service
    found: dict[str, bool] = {}
    while True:
        part = client.get(f"/items?limit=200&offset={len(found)}").json()["items"]
        added = {one["item_id"]: one["available"] for one in part if one["added"]}
        found |= added
        if len(added) < 200:
            return found


def assert_nothing_is_lost(run: Path, url: str, loads: Sequence[Load], services: Sequence[Server], state: Path) -> None:
    """In the store, in a new service, and in those that have survived."""
    settings = ServeSettings.model_validate({"run": run, "state": state, "database": url})
    with TestClient(create_app(settings)) as client:
        found = shown(client)
        assert client.get("/ready").json()["skipped"] == {}
    unknown = set().union(*(load.unknown for load in loads))
    stored = {item_id: available for load in loads for item_id, available in load.stored.items()}
    assert {i: found.get(i) for i in stored if i not in unknown} == {i: stored[i] for i in stored if i not in unknown}
    assert not (set().union(*(load.removed for load in loads)) - unknown) & found.keys()
    assert found.keys() - unknown <= stored.keys(), "nothing that no service has acknowledged"
    for one in services:
        wait_until(lambda one=one: shown(one) == found)


def wait_for_more(loads: Sequence[Load], changes: int) -> None:
    for load in loads:
        wanted = load.changes + changes
        wait_until(lambda load=load, wanted=wanted: load.changes >= wanted or bool(load.failed))


@pytest.mark.slow
def test_a_database_that_restarts_under_load_costs_no_change_and_no_read(
    run_folder: Path, ids: list[str], tmp_path: Path
) -> None:
    with postgresql() as server, replicas(run_folder, url := server.new_database()) as services:
        loads = [Load(one, [f"{place}a", f"{place}b"], ids[:2]) for place, one in enumerate(services)]
        for how in (signal.SIGINT, signal.SIGQUIT):
            wait_for_more(loads, 10)
            server.stop(how)
            refused = [load.refused + 5 for load in loads]
            reads = [load.reads + 20 for load in loads]
            for load, least, read in zip(loads, refused, reads, strict=True):
                wait_until(lambda load=load, least=least: load.refused >= least)
                wait_until(lambda load=load, read=read: load.reads >= read)
                wait_until(lambda load=load: load.service.client.get("/ready").json()["failed_store"] != "")
            server.start()
        wait_for_more(loads, 10)
        for load in loads:
            load.end()
        assert_nothing_is_lost(run_folder, url, loads, services, tmp_path)
        assert [one.client.get("/ready").json()["failed_store"] for one in services] == ["", ""]


@pytest.mark.slow
def test_a_replica_that_is_killed_in_a_change_leaves_nothing_half_written(
    run_folder: Path, ids: list[str], database_server: PostgreSQL, tmp_path: Path
) -> None:
    url = database_server.new_database()
    with replicas(run_folder, url) as services:
        loads = [Load(one, [f"{place}{name}" for name in "abc"], ids[:2]) for place, one in enumerate(services)]
        wait_for_more(loads, 20)
        services[0].kill()
        wait_for_more(loads[1:], 20)
        for load in loads:
            load.end()
        assert loads[1].refused == 0
        assert_nothing_is_lost(run_folder, url, loads, services[1:], tmp_path)
    lacking = "SELECT item_id FROM msm4sr.images EXCEPT SELECT item_id FROM msm4sr.items WHERE NOT removed"
    assert PostgreSQL.execute(url, lacking) == []
