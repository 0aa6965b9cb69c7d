"""A client that changes items through a proxy, repeats what is not acknowledged, and knows what must be served then."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import httpx2 as httpx
import numpy as np
from soak import make_image

KEPT = 100  # added items at a time
WITH_IMAGE = 10  # every tenth added item has an image
SAMPLED = 3  # the delay of every third change is measured
POLL = 0.003  # seconds between two questions to the other replica
LONGEST = 60.0  # seconds after which a change counts as not seen
CONNECTIONS = 16
ANSWER = "x-replica"  # the header with the addresses of the replicas that the proxy asked, the last one answered

Availability = bool | None
"""Whether an item is recommended; None: it was removed."""


@dataclass(frozen=True)
class Change:
    kind: Literal["add", "remove", "switch"]
    item_id: str
    afterwards: Availability


DONE = {"add": 201, "remove": 204, "switch": 200}
DONE_BEFORE = {"add": 409, "remove": 404, "switch": 200}  # the answer if an earlier attempt was stored


class ItemChanges:
    """Adds items, removes them and items of the run, and switches added items off and on.

    A change that is answered with 503 is repeated after the time of Retry-After; one without an answer (502, or the
    connection ended) after a second. No two changes of one item are in progress at a time.

    Args:
        url: of the proxy, which names in the header `ANSWER` the replicas that it asked.
        context: verifies the certificate of the proxy.
        replicas: their addresses.
        run_items: items of the run that are removed, one of a hundred changes.
    """

    def __init__(self, url: str, context: ssl.SSLContext, replicas: Sequence[str], run_items: Iterable[str]) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        self._client = httpx.AsyncClient(base_url=url, verify=context, timeout=None, limits=limits)
        self._direct = httpx.AsyncClient(timeout=None)
        self._replicas, self._run_items = replicas, deque(run_items)
        self._idle: list[str] = []  # added items that no change is in progress for, the oldest first
        self._rng = np.random.default_rng(0)
        self.expected: dict[str, Availability] = {}  # after the acknowledged changes
        self.sent = self.acknowledged = self.unavailable = self.unanswered = 0
        self.times: list[float] = []  # seconds from sending a change to its acknowledgement
        self.delays: list[float] = []  # seconds from there until the other replica shows it
        self.failed: list[str] = []

    async def __aenter__(self) -> ItemChanges:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await self._direct.aclose()

    async def run(self, seconds: float, rate: float) -> None:
        """Send changes at fixed times, and wait until each is acknowledged."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(round(seconds * rate)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                tasks.create_task(self._change(number))

    def _choose(self, number: int) -> Change:
        """Of five changes two add, two remove and one switches, once there are `KEPT` added items."""
        kind = number % 5
        if number % 100 == 3 and self._run_items:
            return Change("remove", self._run_items.popleft(), None)
        if kind in (2, 3) and len(self._idle) > KEPT:
            return Change("remove", self._idle.pop(0), None)
        if kind == 4 and self._idle:
            item_id = self._idle.pop(int(self._rng.integers(len(self._idle))))
            return Change("switch", item_id, not self.expected[item_id])
        return Change("add", f"new-{number}", True)

    async def _change(self, number: int) -> None:
        change, began = self._choose(number), time.perf_counter()
        self.sent += 1
        answer, repeated = await self._answer(change)
        if answer.status_code not in {DONE[change.kind], DONE_BEFORE[change.kind] if repeated else None}:
            self.failed.append(f"{change}: status {answer.status_code}: {answer.text[:200]}")
            return
        self.acknowledged += 1
        self.times.append(time.perf_counter() - began)
        self.expected[change.item_id] = change.afterwards
        if number % SAMPLED == 0:
            await self._measure_delay(change, answer.headers[ANSWER].split(", ")[-1])
        if change.kind != "remove":
            self._idle.append(change.item_id)

    async def _answer(self, change: Change) -> tuple[httpx.Response, bool]:
        """The final answer, and whether the client or the proxy had sent the change more than once."""
        repeated = False
        while True:
            pause = 1.0
            try:
                answer = await self._send(change)
            except httpx.TransportError:
                self.unanswered += 1
            else:
                if answer.status_code not in (502, 503, 504):
                    return answer, repeated or "," in answer.headers[ANSWER]
                self.unavailable += answer.status_code == 503
                self.unanswered += answer.status_code != 503
                pause = float(answer.headers.get("retry-after", pause))
            repeated = True
            await asyncio.sleep(pause)

    async def _send(self, change: Change) -> httpx.Response:
        path = f"/items/{quote(change.item_id, safe='')}"
        if change.kind == "remove":
            return await self._client.delete(path)
        if change.kind == "switch":
            return await self._client.patch(path, json={"available": change.afterwards})
        number = int(change.item_id.removeprefix("new-"))
        fields = {
            "item_id": change.item_id,
            "title": f"Thing number {number}",
            "text": "Added while two replicas answer requests.",
            "categories": ["new", f"new {number % 7}"],
        }
        files: dict[str, Any] | None = None
        if number % WITH_IMAGE == 0:
            files = {"images": ("image.jpg", make_image(number), "image/jpeg")}
        return await self._client.post("/items", data=fields, files=files)

    async def _measure_delay(self, change: Change, answered: str) -> None:
        """Ask the replica that did not answer until it shows a change, unless that replica has ended."""
        (other,) = set(self._replicas) - {answered}
        acknowledged = time.perf_counter()
        try:
            while await self.shown(other, change.item_id) != (change.afterwards,):
                if time.perf_counter() - acknowledged > LONGEST:
                    self.failed.append(f"{change}: not seen by {other} within {LONGEST:g} seconds")
                    return
                await asyncio.sleep(POLL)
        except httpx.TransportError:
            return
        self.delays.append(time.perf_counter() - acknowledged)

    async def shown(self, replica: str, item_id: str) -> tuple[Availability] | str:
        """What a replica says about an item: its availability, or an unexpected answer."""
        answer = await self._direct.get(f"http://{replica}/items/{quote(item_id, safe='')}")
        if answer.status_code == 404:
            return (None,)
        return (answer.json()["available"],) if answer.status_code == 200 else answer.text

    async def differences(self, replica: str) -> tuple[list[str], list[str]]:
        """Items whose acknowledged changes a replica lacks, and removed items that it shows."""
        missing, back = list[str](), list[str]()
        for item_id, expected in self.expected.items():
            if await self.shown(replica, item_id) != (expected,):
                (back if expected is None else missing).append(item_id)
        return missing, back
