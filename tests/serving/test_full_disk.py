"""A store on a full disk refuses changes, loses none, and continues when there is space again."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import psycopg
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from postgresql import BIN, USER, postgresql

from msm4sr.data.dataset import load_dataset
from msm4sr.errors import InputError
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings, Service

pytestmark = pytest.mark.skipif(not BIN, reason="PostgreSQL is not installed")


@contextmanager
def small_disk(folder: Path, mib: int, owner: str | None = None) -> Iterator[Path]:
    """A new folder that is a file system in memory of this size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "msm4sr", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("a file system cannot be mounted")
    try:
        if owner:
            shutil.chown(folder, owner)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # SQLiteStore never closes its file


class Disk:
    """A small disk, and the URL of a database whose items are on it; without a URL, SQLite's file is."""

    def __init__(self, folder: Path, database: str | None = None, start: Callable[[], None] = lambda: None) -> None:
        self.folder, self.database, self.start = folder, database, start

    def fill(self) -> None:
        with suppress(OSError), (self.folder / "other").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "other").unlink()
        self.start()


@contextmanager
def sqlite_disk(folder: Path) -> Iterator[Disk]:
    with small_disk(folder / "disk", 8) as disk:
        yield Disk(disk)


@contextmanager
def disk_of_the_tables(folder: Path) -> Iterator[Disk]:
    """Changes fail; the server continues."""
    with postgresql() as server, small_disk(server.folder / "small", 24, USER) as disk:
        server.execute(server.url, f"CREATE TABLESPACE small LOCATION '{disk}'")
        yield Disk(disk, server.new_database("TABLESPACE small"))


@contextmanager
def disk_of_the_server(folder: Path) -> Iterator[Disk]:
    """A server that cannot write its log ends."""
    options = ("min_wal_size=2MB", "max_wal_size=4MB", "wal_recycle=off")
    with postgresql(*options, disk=partial(small_disk, mib=64, owner=USER)) as server:

        def start() -> None:
            with suppress(psycopg.OperationalError):
                server.execute(server.url, "SELECT 1")
                return
            server.process.wait()
            server.start()

        yield Disk(server.folder / "data", server.new_database(), start)


def noise(seed: int) -> bytes:
    """An image that no compression makes smaller."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("small", [sqlite_disk, disk_of_the_tables, disk_of_the_server])
def test_a_full_disk_refuses_changes_and_loses_none(
    run_folder: Path, toyshop: Path, tmp_path: Path, small: Callable[[Path], contextmanager[Disk]]
) -> None:
    ids = load_dataset(toyshop).item_ids
    with small(tmp_path) as disk:
        state = tmp_path / "state" if disk.database else disk.folder
        settings = ServeSettings.model_validate({"run": run_folder, "state": state, "database": disk.database})
        with TestClient(create_app(settings)) as client:

            def add(number: int) -> int:
                files = {"images": noise(number)}
                answer = client.post("/items", data={"item_id": f"n{number}", "title": "Train"}, files=files)
                assert answer.status_code == 201 or answer.headers["retry-after"] == "5", answer.text
                return answer.status_code

            assert add(0) == 201
            disk.fill()
            full = next(number for number in range(1, 100) if add(number) != 201)
            assert add(full) == 503
            for path in ("/items/n0", f"/items/{ids[0]}/image", "/ready", "/"):
                assert client.get(path).status_code == 200
            assert client.post("/recommend", json={"history": [ids[0], "n0"]}).json()["unknown"] == []
            removed = client.delete(f"/items/{ids[1]}").status_code  # may need no space
            assert removed in (204, 503)
            disk.free()
            while add(full) == 503:
                time.sleep(0.1)
            assert client.get(f"/items/n{full}/image").status_code == 200
            assert client.get("/ready").json()["failed_store"] == ""
            known = [one["item_id"] for one in client.get("/items?limit=200").json()["items"]]
            assert known[: full + 1] == [f"n{number}" for number in range(full, -1, -1)]
            assert (ids[1] in known) == (removed == 503)
        with TestClient(create_app(settings)) as client:
            assert [one["item_id"] for one in client.get("/items?limit=200").json()["items"]] == known
            assert all(client.get(f"/items/n{number}/image").status_code == 200 for number in range(full + 1))


def test_a_service_does_not_start_on_a_full_disk(run_folder: Path, tmp_path: Path) -> None:
    with sqlite_disk(tmp_path) as disk:
        disk.fill()
        settings = ServeSettings(run=run_folder, state=disk.folder)
        with pytest.raises(InputError, match=r"items\.sqlite: cannot be used \(.*\); .*choose another --state"):
            Service(settings)
        disk.free()
        Service(settings).close()
