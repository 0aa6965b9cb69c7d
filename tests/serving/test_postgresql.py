"""The store in a PostgreSQL database: what is refused at the start, and faults."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from callers import wait_until
from fastapi.testclient import TestClient
from postgresql import BIN, PostgreSQL, postgresql
from typer.testing import CliRunner

from msm4sr.cli import app
from msm4sr.data.dataset import load_dataset
from msm4sr.data.items import Item
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings, Service
from msm4sr.serving.state import postgresql as module
from msm4sr.serving.state.postgresql import PostgreSQLStore
from msm4sr.serving.state.store import StoreUnavailable

pytestmark = pytest.mark.skipif(not BIN, reason="PostgreSQL is not installed")

SECRET = "S3cret"
CHECK = "check that the database runs, its address, user, password and rights, or choose another --state"
NOT_ONE = "--state: not the URL of a PostgreSQL database; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


@pytest.fixture
def url(database_server: PostgreSQL) -> str:
    return database_server.new_database()


@pytest.fixture
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A server that tests may stop; each starts it again."""
    with postgresql() as one:
        yield one


def refused(run: Path, state: str) -> str:
    """The line with which `msm4sr serve` refuses this --state."""
    result = CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(
        app, ["serve", str(run), "--port", "0", "--state", state], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert SECRET not in line
    assert line.startswith("error: --state")
    return line


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (f"postgresql://shop:{SECRET}@shop@127.0.0.1/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}/x@127.0.0.1/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}#x@127.0.0.1/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}?x@127.0.0.1/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}%zz@127.0.0.1/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}", NOT_ONE),
        (f"postgresql://shop:{SECRET}@127.0.0.1:port/shop", NOT_ONE),
        (f"postgresql://shop:{SECRET}@127.0.0.1/shop?none=1", NOT_ONE),
        (f"postgresql:/shop:{SECRET}@127.0.0.1/shop", "--state postgresql:...: give a folder, or postgresql://USER:"),
        (f"mysql://shop:{SECRET}@127.0.0.1/shop", "--state mysql:...: give a folder, or postgresql://USER:PASSWORD@"),
        (f"postgresql://shop:{SECRET}@127.0.0.1/shop?schema=public", "no schema can have this name"),
        (f"postgresql://shop:{SECRET}@127.0.0.1/shop?schema=a-b", "no schema can have this name; use letters"),
        (f"postgresql://shop:{SECRET}@127.0.0.1:1/shop", "Connection refused); check that the database"),
        (f"postgresql://shop:{SECRET}@no-such-host.invalid/shop", "no-such-host.invalid/shop: cannot be used ("),
    ],
)
def test_a_url_without_a_database_is_refused(run_folder: Path, state: str, says: str) -> None:
    assert says in refused(run_folder, state)


def test_a_server_that_refuses_the_user_or_lacks_the_database(run_folder: Path, server: PostgreSQL) -> None:
    server.execute(server.url, f"CREATE ROLE shop LOGIN PASSWORD '{SECRET}1'")
    access = server.folder / "data" / "pg_hba.conf"
    before = access.read_text()
    access.write_text(f"host all shop 127.0.0.1/32 scram-sha-256\n{before}")
    server.execute(server.url, "SELECT pg_reload_conf()")
    place = f"127.0.0.1:{server.port}"
    line = refused(run_folder, f"postgresql://shop:{SECRET}@{place}/postgres")
    assert f"--state postgresql://{place}/postgres: cannot be used (" in line
    assert 'password authentication failed for user "shop"' in line
    assert line.endswith(CHECK)
    assert 'database "none" does not exist' in refused(run_folder, f"postgresql://shop:{SECRET}1@{place}/none")
    right = f"postgresql://shop:{SECRET}1@{place}/postgres"
    assert "permission denied for database postgres" in refused(run_folder, right)
    PostgreSQLStore(server.url).close()
    assert "permission denied for schema msm4sr" in refused(run_folder, right)


def test_something_else_that_answers_is_refused(run_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as caller:
                caller.recv(100)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer).start()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        line = refused(run_folder, f"postgresql://shop:{SECRET}@{place}/shop")
    assert f"--state postgresql://{place}/shop: cannot be used (" in line


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("CREATE TABLE msm4sr.orders ()", 'the schema "msm4sr" is not one of msm4sr, or damaged (it has orders'),
        ("CREATE TABLE msm4sr.msm4sr_state (format text); INSERT INTO msm4sr.msm4sr_state VALUES ('x')", "or damaged"),
        ("CREATE TABLE msm4sr.msm4sr_state (format integer)", "is not one of msm4sr, or damaged (msm4sr_state: "),
        ("CREATE TABLE msm4sr.msm4sr_state (version integer)", 'column "format" does not exist'),
    ],
)
def test_a_schema_of_another_program_is_refused_and_stays(run_folder: Path, url: str, made: str, says: str) -> None:
    PostgreSQL.execute(url, f"CREATE SCHEMA msm4sr; {made}")
    line = refused(run_folder, url)
    assert says in line
    assert line.endswith("choose another with ?schema=NAME, or restore it from a copy")
    tables = "SELECT relname FROM pg_class JOIN pg_namespace n ON relnamespace = n.oid WHERE nspname = 'msm4sr'"
    assert len(PostgreSQL.execute(url, tables)) == 1
    PostgreSQLStore(f"{url}?schema=shop").close()  # another schema of the same database


@pytest.mark.parametrize("damage", ["DROP TABLE msm4sr.images", "ALTER TABLE msm4sr.items DROP COLUMN words"])
def test_a_damaged_schema_is_refused(run_folder: Path, url: str, damage: str) -> None:
    PostgreSQLStore(url).close()
    PostgreSQL.execute(url, damage)
    assert "damaged (" in refused(run_folder, url)


def test_a_database_in_another_encoding_is_refused(run_folder: Path, database_server: PostgreSQL) -> None:
    url = database_server.new_database("ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    assert "the database stores LATIN1; create it with ENCODING 'UTF8'" in refused(run_folder, url)


def test_a_later_format_is_refused_and_an_earlier_one_migrated(run_folder: Path, url: str) -> None:
    store = PostgreSQLStore(url)
    store.add([Item("n1", "Train")], "e1", [False])
    store.close()
    PostgreSQL.execute(url, "UPDATE msm4sr.msm4sr_state SET format = 9")
    assert "made by a later version of msm4sr (format 9, not 2)" in refused(run_folder, url)
    PostgreSQL.execute(url, "UPDATE msm4sr.msm4sr_state SET format = 1; DROP TABLE msm4sr.availability")
    store = PostgreSQLStore(url)
    store.set_available(["n1"], False)
    assert [(one.item_id, one.available) for one in store.changes()] == [("n1", None), ("n1", False)]
    store.close()
    assert PostgreSQL.execute(url, "SELECT format FROM msm4sr.msm4sr_state") == [(2,)]


def settings(run: Path, url: str, state: Path) -> ServeSettings:
    return ServeSettings.model_validate({"run": run, "state": state, "database": url})


def test_a_server_that_hangs_delays_no_read(
    run_folder: Path, ids: list[str], server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.5)
    with TestClient(create_app(settings(run_folder, server.new_database(), tmp_path))) as client:
        assert client.post("/items", data={"item_id": "n1", "title": "Train"}).status_code == 201
        server.signal_all(signal.SIGSTOP)
        try:
            answer = client.post("/items", data={"item_id": "n2", "title": "Train"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            wait_until(lambda: client.get("/ready").json()["failed_store"] != "")
            assert client.post("/recommend", json={"history": [ids[0], "n1"]}).json()["unknown"] == []
        finally:
            server.signal_all(signal.SIGCONT)
        wait_until(lambda: client.post("/items", data={"item_id": "n2", "title": "Train"}).status_code in (201, 409))
        wait_until(lambda: client.get("/ready").json()["failed_store"] == "")
        assert client.get("/items/n2").status_code == 200


def test_a_process_that_keeps_the_lock_stops_changes_only(
    run_folder: Path, ids: list[str], url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(create_app(settings(run_folder, url, tmp_path))) as client:
        store = PostgreSQLStore(url)
        with store.transaction():
            answer = client.delete(f"/items/{ids[0]}")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "lock timeout" in caplog.text
            assert client.get(f"/items/{ids[0]}").status_code == 200
        assert client.delete(f"/items/{ids[0]}").status_code == 204
        store.close()


def test_changes_are_found_without_notifications(run_folder: Path, ids: list[str], url: str, tmp_path: Path) -> None:
    service = Service(settings(run_folder, url, tmp_path))
    PostgreSQL.execute(
        url,
        "BEGIN; UPDATE msm4sr.counters SET value = value + 1 WHERE name = 'change';"
        f"INSERT INTO msm4sr.items (item_id, change, removed, replaces) VALUES ('{ids[0]}', 1, true, true); COMMIT",
    )
    wait_until(lambda: service.recommender.catalogue.row(ids[0]) is None)
    service.close()


def test_an_older_copy_of_the_database_is_noticed(run_folder: Path, url: str, tmp_path: Path) -> None:
    service = Service(settings(run_folder, url, tmp_path))
    service.add([Item("n1", "Train"), Item("n2", "Train")])
    PostgreSQL.execute(url, "DELETE FROM msm4sr.items; UPDATE msm4sr.counters SET value = 1 WHERE name = 'change'")
    with pytest.raises(StoreUnavailable, match=r"replaced by an older copy .* restart the service"):
        service.remove("n1")
    assert service.recommender.catalogue.row("n1") is not None
    service.close()
    service = Service(settings(run_folder, url, tmp_path))
    service.add([Item("n1", "Train")])
    service.close()


def test_many_threads_change_and_read_one_store(url: str) -> None:
    store = PostgreSQLStore(url)
    failed: list[Exception] = []

    def change(name: str) -> None:
        try:
            for number in range(10):
                with store.transaction():
                    store.version()
                    store.add([Item(f"{name}-{number}")], "e1", [False])
                store.version()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=change, args=(str(name),)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [change.number for change in store.changes()] == list(range(1, 81))
    store.close()
