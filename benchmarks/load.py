"""Send requests at fixed times and measure their latency: a separate process with Locust's fast client.

    python benchmarks/load.py http://127.0.0.1:8000 REQUESTS.jsonl --rate 300 --seconds 20

A line of the file is a request, `["POST", "/recommend", {"history": ["1", "2"]}]` or `["GET", "/health"]`; the process
sends them in turn. `run_load` writes the file, starts the process and reads its output, one line of JSON: a `Load`.

With a rate, request n is due at n / rate seconds, independent of earlier requests, and its latency counts from then: a
server that falls behind does not receive fewer requests, and its delay is measured (no "coordinated omission"). Without
a rate, each connection sends its next request when the last is answered. The first seconds warm up and do not count.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import NamedTemporaryFile
from typing import Annotated, Any

import numpy as np
import orjson
import typer


@dataclass(frozen=True)
class Load:
    """Result of a load. Times are milliseconds from when a request was due until its answer arrived."""

    requests: int
    failed: int
    per_second: float
    p50: float
    p95: float
    p99: float
    longest: float
    generator_cpu: float
    """CPU milliseconds of the load generator per request."""


Request = tuple[str, str] | tuple[str, str, dict[str, Any]]
"""Method, path and an optional JSON body."""


def start_load(url: str, requests: Sequence[Request], rate: float, seconds: float, **options: float) -> Popen[str]:
    """Start the process; `options` are those of `main`."""
    with NamedTemporaryFile("wb", suffix=".jsonl", delete=False) as file:
        file.writelines(orjson.dumps(request) + b"\n" for request in requests)
    given = {"rate": rate, "seconds": seconds} | options
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", f"{value:g}")]
    return Popen([sys.executable, __file__, url, file.name, *flags], stdout=PIPE, text=True)


def read_load(process: Popen[str]) -> Load:
    """Wait for the process and return its result."""
    output, _ = process.communicate()
    Path(process.args[2]).unlink()  # type: ignore[index, arg-type]
    if process.returncode:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    return Load(**json.loads(output.splitlines()[-1]))


def run_load(url: str, requests: Sequence[Request], rate: float, seconds: float, **options: float) -> Load:
    return read_load(start_load(url, requests, rate, seconds, **options))


def main(
    url: str,
    file: Annotated[Path, typer.Argument(help="One request per line.")],
    rate: Annotated[float, typer.Option(min=0, help="Requests per second; 0: as fast as they are answered.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.1)] = 20,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds of the same load before the measurement.")] = 2,
    connections: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    from locust import FastHttpUser, constant, task
    from locust.env import Environment
    from locust.exception import StopUser

    requests = itertools.cycle([_prepared(line) for line in file.read_bytes().splitlines()])
    numbers = itertools.count()
    began = time.perf_counter() + 0.5  # when all connections are open
    counted_from, end = began + warm_up, began + warm_up + seconds
    latencies: list[float] = []
    failed = 0

    class Client(FastHttpUser):
        """One connection."""

        host = url
        wait_time = constant(0)

        @task
        def send(self) -> None:
            nonlocal failed
            number = next(numbers)
            due = began + number / rate if rate else max(began, time.perf_counter())
            if due >= end:
                raise StopUser
            _sleep_until(due)
            call = next(requests)
            answer = self.client.request(**call)
            if answer.status_code != 200:
                problem = f"{due - began:.1f} s: {call['method']} {call['url']}: status {answer.status_code}"
                print(f"{problem} {answer.text!r:.200}", file=sys.stderr, flush=True)
            if due >= counted_from:
                latencies.append(time.perf_counter() - due)
                failed += answer.status_code != 200

    runner = Environment(user_classes=[Client]).create_local_runner()
    cpu = time.process_time()
    runner.start(connections, spawn_rate=connections)
    _sleep_until(end)
    while runner.user_count:  # until the last answers arrive
        _sleep_until(time.perf_counter() + 0.05)
    cpu = (time.process_time() - cpu) / (next(numbers) - connections)
    print(json.dumps(asdict(summary(latencies, failed, seconds, cpu))))
    sys.stdout.flush()
    runner.quit()


def summary(latencies: Sequence[float], failed: int, seconds: float, cpu: float) -> Load:
    """Summarise latencies in seconds; `cpu` is the generator's CPU seconds per request."""
    p50, p95, p99, longest = 1000 * np.quantile(latencies, [0.5, 0.95, 0.99, 1])
    return Load(len(latencies), failed, len(latencies) / seconds, p50, p95, p99, longest, 1000 * cpu)


def _prepared(line: bytes) -> dict[str, Any]:
    """Arguments of the client for one request."""
    method, path, *body = orjson.loads(line)
    call = {"method": method, "url": path, "name": method}
    if body:
        call |= {"data": orjson.dumps(body[0]), "headers": {"Content-Type": "application/json"}}
    return call


def _sleep_until(moment: float) -> None:
    import gevent

    gevent.sleep(max(0.0, moment - time.perf_counter()))


if __name__ == "__main__":
    typer.run(main)
