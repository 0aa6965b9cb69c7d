"""Soak test of the service: memory, failed requests, and persistence after a kill, while items are added and removed.

    python benchmarks/soak.py --run runs/ml-1m               # 10 minutes
    python benchmarks/soak.py --run runs/ml-1m --minutes 1   # a smoke test

Locust requests recommendations, reasons, explanations, similar items, batches and pages at a steady rate. An item with
an image is added every --every seconds and must be recommendable at once; from 100 on each addition removes the oldest,
and every tenth an item of the run. Memory is what all processes of the server have allocated, sampled every ten
seconds; mapped pages of files (the run's features) are separate. At the end the server is killed with SIGKILL and
started again on the same state: every added item must be present, no removed one. The exit code is 1 after a failure.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
import typer
from common import describe
from load import Request, read_load, start_load
from PIL import Image
from service import Server, serving
from serving import histories_of

from msm4sr.cli.console import handle_errors
from msm4sr.errors import InputError

SAMPLE = 10.0  # seconds between two samples of memory
MAX_ADDED = 100  # added items at a time
RUN_ITEMS = 20  # items of the run that are removed


@dataclass(frozen=True)
class Sample:
    """Memory and item counts at one time."""

    seconds: float
    memory: float
    mapped: float
    added: int
    removed: int


@dataclass
class CatalogueChanges:
    """Adds and removes items, and records failures."""

    server: Server
    history: Sequence[str]
    run_items: Sequence[str]
    present: deque[str] = field(default_factory=deque)
    removed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    number: int = 0

    def step(self) -> None:
        """Add an item; above `MAX_ADDED` remove the oldest; every tenth time remove an item of the run."""
        item_id, self.number = f"soak-{self.number}", self.number + 1
        fields = {
            "item_id": item_id,
            "title": f"Thing number {self.number}",
            "text": "Added while the service answers requests.",
        }
        files = {"images": ("image.jpg", make_image(self.number), "image/jpeg")}
        self._expect(201, self.server.client.post("/items", data=fields, files=files))
        self.present.append(item_id)
        if recommended(self.server, self.history, [item_id]) != {item_id}:
            self.failed.append(f"{item_id} was not recommended at once")
        if len(self.present) > MAX_ADDED:
            self._remove(self.present.popleft())
        if self.number % 10 == 0 and self.number // 10 <= len(self.run_items):
            self._remove(self.run_items[self.number // 10 - 1])

    def _remove(self, item_id: str) -> None:
        self._expect(204, self.server.client.delete(f"/items/{quote(item_id, safe='')}"))
        self.removed.append(item_id)

    def _expect(self, status: int, answer: Any) -> None:
        if answer.status_code != status:
            self.failed.append(f"status {answer.status_code}, expected {status}: {answer.text[:200]}")


def make_image(seed: int) -> bytes:
    """A JPEG of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(patches).resize((300, 450)).save(buffer, "JPEG")
    return buffer.getvalue()


def recommended(server: Server, history: Sequence[str], candidates: Sequence[str]) -> set[str]:
    """Which of the candidates can be recommended."""
    body = {"history": list(history), "candidates": list(candidates), "k": min(200, len(candidates))}
    answer = server.client.post("/recommend", json=body).json()
    return {item["item_id"] for item in answer["items"]}


def mixed_requests(histories: Sequence[Sequence[str]]) -> list[Request]:
    """Four fifths plain recommendations, one fifth other requests."""
    rng = np.random.default_rng(0)
    requests: list[Request] = []
    for history in map(list, histories):
        item = quote(history[-1], safe="")
        others: list[Request] = [
            ("POST", "/recommend", {"history": history[-10:], "k": 12, "reasons": True}),
            ("POST", "/recommend/batch", {"histories": [history[:-1] or history, history]}),
            ("POST", "/explain", {"history": history[-20:], "item_id": history[0]}),
            ("GET", f"/items/{item}/similar"),
            ("GET", f"/items/{item}"),
            ("GET", "/"),
        ]
        drawn = int(rng.integers(0, 5 * len(others)))
        requests.append(others[drawn] if drawn < len(others) else ("POST", "/recommend", {"history": history}))
    return requests


def soak(
    server: Server, histories: Sequence[Sequence[str]], minutes: float, rate: float, every: float
) -> CatalogueChanges:
    """Run load and changes, print samples and a summary. Raises InputError if anything failed."""
    items = [item for history in histories for item in history]
    run_items = list(dict.fromkeys(items))[:RUN_ITEMS]
    sent = [kept for history in histories if (kept := [item for item in history if item not in run_items])]
    changes = CatalogueChanges(server, sent[0][:20], run_items)
    load = start_load(server.url, mixed_requests(sent), rate, 60 * minutes, warm_up=0, connections=32)
    samples: list[Sample] = []
    began = time.monotonic()
    print("| seconds | memory, MiB | mapped files, MiB | added items | removed |\n|--:|--:|--:|--:|--:|")
    while load.poll() is None:
        seconds = time.monotonic() - began
        if seconds >= SAMPLE * len(samples):
            samples.append(Sample(seconds, *server.memory(), len(changes.present), len(changes.removed)))
            row = "| {seconds:.0f} | {memory:.0f} | {mapped:.0f} | {added} | {removed} |"
            print(row.format(**vars(samples[-1])), flush=True)
        changes.step()
        time.sleep(max(0.0, every * changes.number - (time.monotonic() - began)))
    result = read_load(load)
    print(
        f"\n{result.requests:,} requests at {rate:g} requests/s, {result.failed} failed; p50 {result.p50:.0f} ms, "
        f"p99 {result.p99:.0f} ms, longest {result.longest:.0f} ms; {changes.number} items added, "
        f"{len(changes.removed)} removed, {len(changes.failed)} failed\n{growth(samples)}"
    )
    if result.failed or changes.failed:
        raise InputError("; ".join(["requests failed", *changes.failed[:3]]))
    return changes


def check_persistence(server: Server, changes: CatalogueChanges) -> None:
    """Raises InputError if an added item is lost or a removed one is back."""
    present, removed = list(changes.present), changes.removed
    lost = [item for item in present if status(server, item) != 200]
    back = [item for item in removed if status(server, item) != 404]
    found = recommended(server, changes.history, [*present, *removed])
    print(
        f"after the kill {len(present) - len(lost)} of {len(present)} added items are there, "
        f"{len(found & set(present))} are recommended; of {len(removed)} removed ones {len(back)} are back, "
        f"{len(found & set(removed))} are recommended"
    )
    if lost or back or found != set(present):
        raise InputError(f"lost: {lost[:5]}, back: {back[:5]}, recommended wrongly: {sorted(found ^ set(present))[:5]}")


def status(server: Server, item_id: str) -> int:
    return server.client.get(f"/items/{quote(item_id, safe='')}").status_code


def growth(samples: Sequence[Sample]) -> str:
    """The trend of memory over the second half, when caches are warm and the number of items is constant."""
    late = samples[len(samples) // 2 :]
    if len(late) < 3:
        return "memory: too few samples"
    slope = np.polyfit([s.seconds / 60 for s in late], [s.memory for s in late], 1)[0]
    return f"memory: {late[0].memory:.0f} MiB at half time, {late[-1].memory:.0f} at the end, {slope:+.1f} MiB a minute"


def main(
    run: Annotated[Path, typer.Option(help="A finished run of a model that accepts new items.")],
    minutes: Annotated[float, typer.Option(min=0.1)] = 10,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 50,
    every: Annotated[float, typer.Option(min=0, help="Seconds between two new items.")] = 1,
    workers: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as scratch:
        state, options = Path(scratch) / "state", ("--workers", str(workers))
        print(f"{describe()}; {workers} workers, {rate:g} requests/s, an item every {every:g} s\n")
        with serving(run, state, *options) as server:
            changes = soak(server, histories_of(run), minutes, rate, every)
            server.kill()
        with serving(run, state, *options) as server:
            check_persistence(server, changes)


if __name__ == "__main__":
    typer.run(main)
