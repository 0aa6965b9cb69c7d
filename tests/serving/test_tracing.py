"""Traces of the service, received by a server of OTLP over HTTP."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from service import serving

from msm4sr.data.dataset import load_dataset
from msm4sr.errors import InputError
from msm4sr.serving.tracing import Tracing, wants_traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Receiver(ThreadingHTTPServer):
    """Keeps what is sent to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Received)
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Received(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever).start()
        yield receiver
        receiver.shutdown()


def attributes(described: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in described.attributes}


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_request_has_a_span_and_each_of_its_stages_another(
    run_folder: Path, toyshop: Path, tmp_path: Path, receiver: Receiver, workers: str
) -> None:
    history = load_dataset(toyshop).item_ids[:2]
    with serving(run_folder, tmp_path / "state", "--trace", receiver.url, "--workers", workers) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "r1"}
        asked = server.client.post("/recommend", json={"history": history, "reasons": True}, headers=headers)
        assert asked.status_code == 200
        assert server.client.get("/items/none").status_code == 404
        not_sampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        assert server.client.get("/ready", headers=not_sampled).status_code == 200
        server.stop()  # sends the rest
    spans = {span.name: span for span in receiver.spans}
    assert receiver.services == {"msm4sr"}
    request = spans["POST /recommend"]
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (
        TRACE,
        PARENT,
        request.SPAN_KIND_SERVER,
    )
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/recommend",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "msm4sr.request_id": "r1",
    }
    stages = [span for span in receiver.spans if span.parent_span_id == request.span_id]
    assert {span.name for span in stages} == {"encode", "search", "rules", "reasons", "json"}
    for span in stages:
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    missing = spans["GET /items/{item_id:id}"]
    assert (attributes(missing)["http.response.status_code"], missing.parent_span_id) == (404, b"")
    assert missing.trace_id.hex() != TRACE
    assert "GET /ready" not in spans


def test_standard_variables_turn_traces_on(
    run_folder: Path, tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, receiver.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    with serving(run_folder, tmp_path / "state") as server:
        server.client.get("/ready")
        server.stop()
    assert receiver.services == {"shop"}
    assert "GET /ready" in {span.name for span in receiver.spans}


@pytest.mark.slow
def test_a_receiver_that_is_away_delays_no_answer_and_no_end(run_folder: Path, tmp_path: Path) -> None:
    with serving(run_folder, tmp_path / "state", "--trace", "http://127.0.0.1:9") as server:
        assert [server.client.get("/ready").status_code for _ in range(20)] == [200] * 20
        server.stop()
        assert server.process.returncode == -15


def test_traces_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert (wants_traces(None), wants_traces("http://localhost:4318")) == (False, True)
    monkeypatch.setenv(VARIABLE, "http://localhost:4318")
    assert wants_traces(None)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not wants_traces(None)
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wants_traces(None)


@pytest.mark.parametrize(
    "url", ["", "localhost:4318", "grpc://localhost:4317", "http://", "http://a:b", "http://a:99999"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="not a URL of an OTLP receiver; use one such as http://localhost:4318"):
        Tracing(url)


OFF = """
import sys
from pathlib import Path
from msm4sr.serving.app import create_app
from msm4sr.serving.service import ServeSettings
create_app(ServeSettings(run=Path(sys.argv[1]), state=Path(sys.argv[2])))
print([name for name in sys.modules if name.startswith(("opentelemetry.exporter", "opentelemetry.sdk.trace"))])
"""


def test_no_exporter_is_imported_when_off(run_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OFF, str(run_folder), str(tmp_path / "state")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"traces need the extra 'trace' .*: pip install 'msm4sr\[trace\]'"):
        Tracing(None)
