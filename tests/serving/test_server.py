"""The service as a process: killed, with several workers, with a newer run, with slow callers."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx2 as httpx
import polars as pl
import psutil
import pytest
import uvicorn
from callers import asking, wait_until
from service import Server, free_port, serving
from uvicorn.supervisors.multiprocess import SIGNALS

from msm4sr.data.dataset import load_dataset
from msm4sr.experiments.loading import load_recommender
from msm4sr.serving import workers


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


def test_slow_callers_delay_no_others_and_head_is_get(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
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
        for path in ("/", "/items", f"/items/{ids[0]}", "/health", "/none"):
            full, head = server.client.get(path), server.client.head(path)
            assert (head.status_code, head.headers["content-length"]) == (full.status_code, str(len(full.content)))
            assert head.content == b""
        assert server.client.head("/recommend").status_code == 405


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


def switch(link: Path, run: Path) -> None:
    """Let the link point to another run, in one step."""
    following = link.with_name("next")
    following.symlink_to(run)
    following.replace(link)


@pytest.mark.slow
def test_a_newer_run_is_loaded_without_a_failed_request(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(run_folder)
    with serving(link, tmp_path / "state") as server:
        assert add(server, "n1") == 201

        def reloads() -> float:
            lines: list[str] = server.client.get("/metrics").text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith("msm4sr_reloads_total"))

        with asking(partial(httpx.Client, base_url=server.url, timeout=None), [*ids[:2], "n1"]) as answers:
            for count in (1, 2, 3):
                if count == 2:
                    assert server.client.post("/reload").status_code == 202
                else:
                    switch(link, Path(shutil.copytree(run_folder, tmp_path / f"copy-{count}")))
                wait_until(lambda count=count: reloads() >= count)  # type: ignore[misc]
        assert set(answers) == {200}
        assert known(server, "n1")


@pytest.mark.slow
def test_a_run_that_was_continued_at_night_is_loaded_without_a_failed_request(
    run_folder: Path, toyshop: Path, ids: list[str], tmp_path: Path
) -> None:
    """Its data has an item more, and one less, than that of the run that is served."""
    link, data = tmp_path / "current", Path(shutil.copytree(toyshop, tmp_path / "data"))
    link.symlink_to(run_folder)
    items, log = (pl.read_parquet(toyshop / f"{name}.parquet") for name in ("items", "interactions"))
    new = items[:1].with_columns(pl.lit("toy-new").alias("item_id"))
    pl.concat([items.filter(pl.col("item_id") != ids[5]), new]).write_parquet(data / "items.parquet")
    latest = log.group_by("user_id").last()[:20].with_columns(pl.lit("toy-new").alias("item_id"))
    log = pl.concat([log.filter(pl.col("item_id") != ids[5]), latest.select(log.columns)])
    log.write_parquet(data / "interactions.parquet")
    with serving(link, tmp_path / "state") as server:
        assert add(server, "n1") == 201
        with asking(partial(httpx.Client, base_url=server.url, timeout=None), [*ids[:8], "n1"]) as answers:
            tonight = tmp_path / "tonight"
            command = [sys.executable, "-m", "msm4sr", "run", str(data), "--out", str(tonight)]
            subprocess.run([*command, "--warm-start", str(run_folder)], check=True, stdout=subprocess.DEVNULL)
            switch(link, tonight)
            wait_until(lambda: known(server, "toy-new"))
        assert set(answers) == {200}
        assert [known(server, name) for name in ("n1", ids[4], ids[5])] == [True, True, False]


def test_a_full_disk_stops_changes_only(run_folder: Path, ids: list[str], tmp_path: Path) -> None:
    item_id = next(one for one in ids if load_recommender(run_folder).item(one).images)
    with serving(run_folder, tmp_path / "state") as server:
        assert add(server, "n1") == 201
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        assert add(server, "n2") == 503
        assert server.client.delete(f"/items/{ids[3]}").status_code == 503
        for _ in range(2):
            shown = server.client.get(f"/items/{item_id}/image")
            assert (shown.status_code, shown.headers["content-type"]) == (200, "image/jpeg")
        assert server.client.post("/recommend", json={"history": [ids[0], "n1"]}).json()["unknown"] == []
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert add(server, "n2") == 201
        assert [known(server, name) for name in ("n1", "n2", ids[3])] == [True, True, True]
        assert server.client.get(f"/items/{item_id}/image").status_code == 200
        assert len(list((tmp_path / "state" / "thumbnails").iterdir())) == 1


def start(run: Path, folder: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    """`msm4sr serve`, not yet ready; its temporary files and its output, `log`, are in a folder."""
    port = free_port()
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "msm4sr", "serve", str(run), "--port", str(port), "--state", str(folder / "state")]
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment, text=True), port


def wait_for_log(folder: Path, words: str) -> None:
    wait_until(lambda: words in (folder / "log").read_text())


def started_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Two workers and the resource tracker of Python."""
    supervisor = psutil.Process(process.pid)
    wait_until(lambda: len(supervisor.children()) == 3)
    return supervisor.children()


def metrics_folders(folder: Path) -> list[Path]:
    return list((folder / "tmp").glob("msm4sr-*"))


def test_workers_end_with_a_supervisor_that_is_killed_while_they_start(run_folder: Path, tmp_path: Path) -> None:
    process, port = start(run_folder, tmp_path, "--workers", "2")
    wait_for_log(tmp_path, "2 processes")
    children = started_processes(process)
    process.kill()
    process.wait()
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert not answers(port), "a worker serves without its supervisor"


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=0.2).status_code == 200
    except httpx.TransportError:
        time.sleep(0.1)
        return False


@pytest.mark.slow
def test_a_worker_that_ends_is_replaced_until_the_service_ends(run_folder: Path, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        folder = tmp_path / number.name
        folder.mkdir()
        process, _ = start(run_folder, folder, "--workers", "2")
        wait_for_log(folder, "2 processes")
        worker = next(one for one in started_processes(process) if "spawn_main" in " ".join(one.cmdline()))
        worker.kill()
        wait_for_log(folder, f"worker {worker.pid} ended (exit code -9); ")
        assert len(metrics_folders(folder)) == 1
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait() == 0
        psutil.wait_procs(children)
        assert metrics_folders(folder) == []
        assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.slow
def test_a_worker_is_replaced_with_the_last_run_while_a_newer_one_is_broken(run_folder: Path, tmp_path: Path) -> None:
    link, broken = tmp_path / "current", tmp_path / "broken"
    link.symlink_to(run_folder)
    process, port = start(link, tmp_path, "--workers", "2")
    wait_until(lambda: answers(port))
    worker = next(one for one in started_processes(process) if "spawn_main" in " ".join(one.cmdline()))
    shutil.copytree(run_folder, broken)
    (broken / "model" / "items.json").write_text("")
    (tmp_path / "next").symlink_to(broken)
    (tmp_path / "next").replace(link)
    wait_for_log(tmp_path, "the run was not reloaded")
    worker.kill()
    wait_for_log(tmp_path, "the last run that could be loaded is served")
    assert answers(port)
    assert (tmp_path / "log").read_text().count("replaces it") == 1
    process.terminate()
    assert process.wait() == 0


class Ended:
    """A worker that ends at once."""

    pid, exitcode = 1, 1

    def __init__(self, *arguments: object) -> None:
        self.process = self

    def start(self) -> None: ...

    def is_alive(self) -> bool:
        return False


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[workers.Supervisor]:
    monkeypatch.setattr(workers, "Process", Ended)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    supervisor = workers.Supervisor(uvicorn.Config("", workers=1), [], tmp_path / "loaded")
    supervisor.processes = [Ended()]
    yield supervisor
    for number, handler in before.items():
        signal.signal(number, handler)


def test_pauses_between_replacements_become_longer(
    supervisor: workers.Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor._loaded.symlink_to("run")
    started = []
    for second in range(1000, 1300):
        monkeypatch.setattr(workers.time, "monotonic", lambda now=second: float(now))
        before = supervisor.processes[0]
        supervisor.keep_subprocess_alive()
        if supervisor.processes[0] is not before:
            started.append(second)
    assert [late - early for early, late in pairwise(started)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not supervisor.failed


def test_a_service_whose_workers_never_load_a_run_ends(supervisor: workers.Supervisor) -> None:
    supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set()
    assert supervisor.failed


@pytest.mark.slow
@pytest.mark.parametrize("number", ["1", "2"])
def test_a_second_interrupt_ends_the_service_at_once(run_folder: Path, tmp_path: Path, number: str) -> None:
    process, port = start(run_folder, tmp_path, "--workers", number)
    wait_until(lambda: answers(port))
    caller = socket.create_connection(("127.0.0.1", port))
    # this request is in progress until its body has arrived
    caller.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "graceful" not in log  # it did not wait for the request
    caller.close()
    assert metrics_folders(tmp_path) == []
