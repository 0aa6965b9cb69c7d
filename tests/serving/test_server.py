"""The service as a process: killed, with several workers, with a newer run, with slow callers."""

from __future__ import annotations

import shutil
import socket
import threading
from pathlib import Path

import httpx2 as httpx
import pytest
from service import Server, serving

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.loading import load_recommender


@pytest.fixture(scope="module")
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


def add(server: Server, item_id: str, image: bytes | None = None) -> int:
    files = {"images": ("a.jpg", image, "image/jpeg")} if image else None
    data = {"item_id": item_id, "title": f"Wooden thing {item_id}"}
    return server.client.post("/items", data=data, files=files).status_code


def known(server: Server, item_id: str) -> bool:
    return server.client.get(f"/items/{item_id}").status_code == 200


def test_answered_changes_survive_a_kill(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    image = load_recommender(run_folder).read_image(ids[0])
    with serving(run_folder, tmp_path / "state") as server:
        assert add(server, "n1", image) == 201
        assert server.client.delete(f"/items/{ids[3]}").status_code == 204
        assert add(server, "n2") == 201
        server.kill()
    with serving(run_folder, tmp_path / "state") as server:
        assert [known(server, name) for name in ("n1", "n2", ids[3], ids[4])] == [True, True, False, True]
        found = server.client.post("/recommend", json={"history": ids[:2], "candidates": ["n1", "n2"]}).json()
        assert {one["item_id"] for one in found["items"]} == {"n1", "n2"}
        shown = server.client.get("/items/n1/image")
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")


def test_slow_callers_do_not_delay_others(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state") as server:
        host, port = server.url.removeprefix("http://").split(":")
        callers = [socket.create_connection((host, int(port))) for _ in range(20)]
        for caller in callers:
            caller.sendall(b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n--x")
        garbage = socket.create_connection((host, int(port)))
        garbage.sendall(bytes(range(256)) * 100)
        assert server.client.post("/recommend", json={"history": ids[:2]}).status_code == 200
        for one in (*callers, garbage):
            one.close()
        assert server.client.post("/recommend", json={"history": ids[:2]}).status_code == 200


@pytest.mark.slow
def test_workers_share_items_and_counters(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state", "--workers", "2") as server:
        asked = 0
        for number in range(6):
            assert add(server, f"n{number}") == 201
            for _ in range(6):  # one connection each: the workers answer in turn
                with httpx.Client(base_url=server.url, timeout=None) as client:
                    assert client.get(f"/items/n{number}").status_code == 200
                    asked += 1
        text = server.client.get("/metrics").text
        line = 'msm4sr_requests_total{method="GET",route="/items/{item_id:id}",status="200"} '
        assert line + f"{asked}.0" in text
        server.kill()
    with serving(run_folder, tmp_path / "state", "--workers", "2") as server:
        assert all(known(server, f"n{number}") for number in range(6))
        server.stop()


@pytest.mark.slow
def test_a_newer_run_is_loaded_without_a_failed_request(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(run_folder)
    with serving(link, tmp_path / "state") as server:
        assert add(server, "n1") == 201
        stop, answers = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                answers.append(server.client.post("/recommend", json={"history": [*ids[:2], "n1"]}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()

        def reloads() -> float:
            lines: list[str] = server.client.get("/metrics").text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("msm4sr_reloads_total"))

        for count in (1, 2, 3):
            if count == 2:
                assert server.client.post("/reload").status_code == 202
            else:
                copy = tmp_path / f"copy-{count}"
                shutil.copytree(run_folder, copy)
                (tmp_path / "next").symlink_to(copy)
                (tmp_path / "next").replace(link)
            while reloads() < count:
                pass
        stop.set()
        for thread in threads:
            thread.join()
        assert set(answers) == {200}
        assert known(server, "n1")
