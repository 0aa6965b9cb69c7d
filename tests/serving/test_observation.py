"""Request ids, logs and metrics of the service."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from callers import wait_until
from fastapi.testclient import TestClient
from test_server import answers, start

from msm4sr.data.dataset import load_dataset
from msm4sr.serving.app import create_app
from msm4sr.serving.logs import REQUEST_ID, JsonFormatter, TextFormatter
from msm4sr.serving.service import ServeSettings


@pytest.fixture(scope="module")
def ids(toyshop: Path) -> list[str]:
    return load_dataset(toyshop).item_ids


def make_client(run: Path, state: Path, **settings: Any) -> TestClient:
    return TestClient(create_app(ServeSettings(run=run, state=state, **settings)), raise_server_exceptions=False)


@pytest.fixture
def client(run_folder: Path, tmp_path: Path) -> TestClient:
    return make_client(run_folder, tmp_path / "state", access_log=True)


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd", "Root=1-67891233/abc:1.2_3+4@x=", "x" * 128])
def test_a_well_formed_request_id_is_kept(client: TestClient, given: str) -> None:
    assert client.get("/health", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "a,b", 'a"b', "caf\u00e9", "a\tb"])
def test_any_other_request_gets_a_new_id(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1")}
    made = [client.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]  # type: ignore[arg-type]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]


def test_refusals_and_errors_have_the_id_too(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(run_folder, tmp_path / "state", hosts=("shop.example",))
    assert client.get("/health", headers={"X-Request-ID": "r1"}).status_code == 403
    assert client.get("/health", headers={"X-Request-ID": "r1"}).headers["x-request-id"] == "r1"
    client = make_client(run_folder, tmp_path / "state")
    monkeypatch.setattr(client.app.state.service, "settings", None)  # type: ignore[attr-defined]
    answer = client.get("/ready", headers={"X-Request-ID": "r2"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "r2")


def test_each_request_is_logged_with_its_route_status_and_seconds(
    client: TestClient, ids: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "msm4sr.access"):
        client.get(f"/items/{ids[0]}")
        client.head("/health")
        client.get("/no/such/path?key=secret")
        client.post("/recommend", json={"history": 5})
    found = [record.fields for record in caplog.records if record.name == "msm4sr.access"]  # type: ignore[attr-defined]
    assert [(one["method"], one["route"], one["status"]) for one in found] == [
        ("GET", "/items/{item_id:id}", 200),
        ("HEAD", "/health", 200),
        ("GET", "none", 404),
        ("POST", "/recommend", 422),
    ]
    assert all(0 < one["seconds"] < 60 for one in found)
    assert "secret" not in caplog.text


def test_without_access_log_no_request_is_logged(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make_client(run_folder, tmp_path / "state").get("/health")
    assert not [record for record in caplog.records if record.name == "msm4sr.access"]


def record_of(message: str, *values: object, error: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("wrong")
    except ValueError:
        about = sys.exc_info() if error else None
    return logging.LogRecord("msm4sr.x", logging.WARNING, "file", 1, message, values, about)


def test_a_line_of_json_has_every_field_whatever_it_is() -> None:
    token = REQUEST_ID.set("r1")
    line = JsonFormatter().format(record_of("%s %s", "a\nb", "\ud800", error=True))
    REQUEST_ID.reset(token)
    entry = json.loads(line)
    assert "\n" not in line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert "ValueError: wrong" in entry.pop("exception")
    assert entry == {"level": "warning", "logger": "msm4sr.x", "message": "a\nb \ud800", "request_id": "r1"}


def test_a_message_is_one_line_of_text() -> None:
    line = TextFormatter().format(record_of("%s", "/a\n2026-01-01 error: \x1b[31m\u2028\r"))
    assert line.endswith(" warning msm4sr.x: /a\\n2026-01-01 error: \\x1b[31m\\u2028\\r")


def samples(text: str) -> dict[str, float]:
    """The samples of /metrics."""
    return {name: float(value) for name, value in re.findall(r"^(msm4sr_\S+) (\S+)$", text, re.MULTILINE)}


def test_every_stage_of_a_recommendation_is_counted_once_per_request(client: TestClient, ids: list[str]) -> None:
    def counts() -> dict[str, float]:
        found = samples(client.get("/metrics").text)
        stages = ("encode", "search", "rules", "reasons", "json")
        return {name: found.get(f'msm4sr_stage_seconds_count{{stage="{name}"}}', 0.0) for name in stages}

    assert client.post("/recommend", json={"history": ids[:3]}).status_code == 200
    assert counts() == {"encode": 1, "search": 1, "rules": 1, "reasons": 0, "json": 1}
    assert client.post("/recommend/batch", json={"histories": [ids[:3]] * 20, "reasons": True}).status_code == 200
    assert counts() == {"encode": 2, "search": 2, "rules": 2, "reasons": 1, "json": 2}
    client.get("/health")
    assert counts()["encode"] == 2
    found = samples(client.get("/metrics").text)
    spent = sum(value for name, value in found.items() if name.startswith("msm4sr_stage_seconds_sum"))
    asked = [found[f'msm4sr_request_seconds_sum{{route="{one}"}}'] for one in ("/recommend", "/recommend/batch")]
    assert 0 < spent < sum(asked)


def test_unknown_items_of_every_history_are_counted(client: TestClient, ids: list[str]) -> None:
    def unknown() -> float:
        return samples(client.get("/metrics").text)["msm4sr_unknown_items_total"]

    before = unknown()
    assert client.post("/recommend", json={"history": [*ids[:2], "gone"]}).status_code == 200
    assert unknown() == before + 1
    histories = [[*ids[:2], "gone"], ids[:2], ["gone", "lost"]]
    assert client.post("/recommend/batch", json={"histories": histories}).status_code == 200
    assert unknown() == before + 4


def test_gauges_describe_the_index_and_the_state(run_folder: Path, tmp_path: Path, ids: list[str]) -> None:
    client = make_client(run_folder, tmp_path / "state")
    found = samples(client.get("/metrics").text)
    assert (found['msm4sr_index{kind="exact"}'], found["msm4sr_index_recall"]) == (1, 1)
    assert found["msm4sr_items"] == len(ids)
    assert found["msm4sr_state_lag_seconds"] < 60
    for name in ("cache_hits_total", "cache_misses_total", "reloads_total", "failed_reloads_total", "held_bytes"):
        assert found[f"msm4sr_{name}"] == 0


def test_a_run_that_cannot_be_loaded_is_counted(run_folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(run_folder)
    client = make_client(link, tmp_path / "state")
    link.unlink()
    link.symlink_to(tmp_path)  # no run
    assert not client.app.state.service.reload_if_changed()  # type: ignore[attr-defined]
    assert samples(client.get("/metrics").text)["msm4sr_failed_reloads_total"] == 1


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_line_of_a_service_is_json(run_folder: Path, tmp_path: Path, ids: list[str], workers: str) -> None:
    link = tmp_path / "current"
    link.symlink_to(run_folder)
    process, port = start(link, tmp_path, "--workers", workers, "--log-format", "json", "--access-log")
    wait_until(lambda: answers(port))
    headers = {"X-Request-ID": "r1"}
    body = {"history": ids[:2]}
    assert httpx.post(f"http://127.0.0.1:{port}/recommend", json=body, headers=headers).status_code == 200
    new = {"item_id": "n1", "title": "A new thing"}
    assert httpx.post(f"http://127.0.0.1:{port}/items", data=new, timeout=None).status_code == 201
    link.unlink()
    link.symlink_to(tmp_path)
    wait_until(lambda: "the run was not reloaded" in (tmp_path / "log").read_text())
    process.terminate()
    process.wait()
    found = entries(tmp_path)
    assert all({"time", "level", "logger", "message"} <= set(one) for one in found)
    assert found[0]["message"].startswith("serving ")
    (asked,) = [one for one in found if one.get("request_id") == "r1"]
    assert (asked["method"], asked["route"], asked["status"]) == ("POST", "/recommend", 200)


def test_an_error_at_the_start_is_json(tmp_path: Path) -> None:
    process, _ = start(tmp_path, tmp_path, "--log-format", "json")
    assert process.wait() == 2
    (entry,) = entries(tmp_path)
    assert entry["level"] == "error"
    assert str(tmp_path) in entry["message"]


@pytest.mark.slow
def test_gauges_of_workers_are_sums_and_forget_those_that_ended(run_folder: Path, tmp_path: Path) -> None:
    process, port = start(run_folder, tmp_path, "--workers", "2")
    wait_until(lambda: answers(port))

    def held() -> float:
        return samples(httpx.get(f"http://127.0.0.1:{port}/metrics").text)["msm4sr_held_bytes"]

    callers = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for caller in callers:  # 1,000 bytes of a body each, in either worker
        head = "POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2000"
        caller.sendall(f"{head}\r\n\r\n{' ' * 1000}".encode())
    wait_until(lambda: held() == 8000)
    workers = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    workers[0].kill()
    workers[1].kill()
    wait_until(lambda: (tmp_path / "log").read_text().count("replaces it") == 2 and answers(port))
    wait_until(lambda: held() == 0)
    for caller in callers:
        caller.close()
    process.terminate()
    process.wait()
