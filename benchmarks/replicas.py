"""Two replicas that share a PostgreSQL database, behind nginx, under load, changes and faults.

    python benchmarks/replicas.py                               # 20 minutes over a small toy shop
    python benchmarks/replicas.py --run runs/ml-1m --out x.md   # a finished run with its data
    python benchmarks/replicas.py --minutes 2                   # a smoke test

Needs nginx and PostgreSQL. Requests of /recommend arrive at fixed times (`load.py`), and items are added, removed and
switched off and on (`item_changes.py`). After a third of the time the database ends as in a crash (SIGQUIT) and is
started `AWAY` seconds later; at half time one replica is killed (SIGKILL) and started `DEAD` seconds later.

A request has failed if the client does not receive its answer; nginx asks the other replica if one does not answer. A
change is acknowledged once it is answered; until then the client repeats it. At the end each replica, and a third one
that starts then, must show all acknowledged changes. The exit code is 1 if a request failed or a change was lost.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from common import describe
from item_changes import ItemChanges
from load import Load, Request, read_load, start_load
from postgresql import PostgreSQL, postgresql
from proxy import Proxy
from service import Server, serving
from soak import Sample, growth, recommended

from msm4sr.cli.console import handle_errors
from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.experiments.run import open_run

WARM_UP = 10.0  # seconds of load that do not count
AWAY, DEAD = 5.0, 10.0  # seconds without the database, and without a replica
REQUESTS = 6000  # that are sent in turn
MAX_HISTORY = 200  # items of a request
RUN_ITEMS = 100  # items of the run that may be removed
CONNECTIONS = 32  # of the load; deploy/nginx.conf allows 50 for an address
AT_ONCE = 200  # candidates of a request that checks what is recommended


@dataclass
class Replicas:
    """The processes."""

    database: PostgreSQL
    servers: list[Server]
    proxy: Proxy
    asked_again: Path
    """A line for each request that the proxy sent to both replicas."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.proxy.port}"

    def repeated(self) -> int:
        """Requests of /recommend that the proxy sent to both replicas."""
        return self.asked_again.read_text().count("/recommend")

    def memory(self) -> list[tuple[float, float] | None]:
        """Of each replica that runs, as `Server.memory`."""
        return [_memory(server) for server in self.servers]


def _memory(server: Server) -> tuple[float, float] | None:
    try:
        found = server.memory()
    except psutil.Error:
        return None
    return found if any(found) else None  # a process that has just been killed has none


@contextmanager
def two_replicas(run: Path, folder: Path) -> Iterator[Replicas]:
    """One worker each, with a link to the run each, so that they share nothing but the database."""
    asked_again = folder / "asked-again"
    changes = [
        ("shop.example", "127.0.0.1"),
        ("proxy_http_version 1.1;", "proxy_http_version 1.1; add_header X-Replica $upstream_addr always;"),
        (
            "access_log off;",
            "map $upstream_addr $again { default 0; ~, 1; } "
            "log_format again '$time_iso8601 $request_method $uri $status $upstream_addr $upstream_status'; "
            f"access_log {asked_again} again if=$again;",
        ),
    ]
    with ExitStack() as stack:
        database = stack.enter_context(postgresql("fsync=on"))
        servers = [stack.enter_context(a_replica(run, folder / f"replica-{n}", database)) for n in (1, 2)]
        proxy = Proxy(folder / "nginx", servers, *changes)
        stack.callback(proxy.stop)
        yield Replicas(database, servers, proxy, asked_again)


@contextmanager
def a_replica(run: Path, folder: Path, database: PostgreSQL) -> Iterator[Server]:
    folder.mkdir()
    (folder / "run").symlink_to(run.resolve())
    with serving(folder / "run", database.url) as server:
        yield server


def toyshop_run(folder: Path) -> Path:
    """A run over a small toy shop, trained for a few steps."""
    generate_toyshop(folder / "data", users=1000, items=400)
    command = [sys.executable, "-m", "msm4sr", "run", str(folder / "data"), "--out", str(folder / "run")]
    quick = ["--set", "pretrain.max_steps=20", "--set", "finetune.max_steps=20"]
    subprocess.run([*command, *quick], check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def mixed_requests(data: Dataset, count: int = REQUESTS) -> list[Request]:
    """Requests of /recommend: two thirds plain histories of any length, the others of a kind each.

    They are popular items, those for a user of the run's data, filters, boosts, diversity, and reasons.
    """
    rng = np.random.default_rng(0)
    categories = data.items["categories"].head(100).explode().drop_nulls().to_list() or ["new"]
    requests: list[Request] = []
    for user in rng.integers(0, data.n_users, count):
        items = data.histories[user]
        history = [data.item_ids[item] for item in items[: rng.integers(1, len(items) + 1)][-MAX_HISTORY:]]
        category = str(rng.choice(categories))
        others: list[dict[str, Any]] = [
            {"history": []},
            {"user_id": data.user_ids[user]},
            {"history": history, "include_categories": [category, "new"]},
            {"history": history, "exclude_items": history[:5], "boost_categories": {category: 0.5}},
            {"history": history, "diversity": 0.3},
            {"history": history[-10:], "reasons": True},
        ]
        drawn = int(rng.integers(0, 3 * len(others)))
        requests.append(("POST", "/recommend", others[drawn] if drawn < len(others) else {"history": history}))
    return requests


class Measurement:
    """Load, changes and faults at the same time."""

    def __init__(self, replicas: Replicas, requests: Sequence[Request], changes: ItemChanges) -> None:
        self.replicas, self.requests, self.changes = replicas, requests, changes
        self.memory: list[tuple[float, list[tuple[float, float] | None]]] = []  # and the seconds since the start
        self.restarted = 0.0  # when the second replica answered again, in seconds since the start

    async def run(self, seconds: float, rate: float, per_second: float) -> Load:
        """`rate` requests and `per_second` changes a second."""
        options = {"warm_up": WARM_UP, "connections": CONNECTIONS}
        load = start_load(self.replicas.url, self.requests, rate, seconds, **options)
        self._began = time.monotonic() + WARM_UP
        await self._until(0)
        sampling = asyncio.create_task(self._sample(min(60.0, seconds / 12)))
        try:
            await asyncio.gather(self.changes.run(seconds, per_second), self._faults(seconds))
            return await asyncio.to_thread(read_load, load)
        finally:
            sampling.cancel()
            load.kill()
            self._add_sample()

    async def _until(self, seconds: float) -> None:
        await asyncio.sleep(self._began + seconds - time.monotonic())

    async def _faults(self, seconds: float) -> None:
        database, (_, second) = self.replicas.database, self.replicas.servers
        await self._until(seconds / 3)
        self._log("the database ends")
        await asyncio.to_thread(database.stop, signal.SIGQUIT)
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(database.start)
        self._log("the database answers")
        await self._until(seconds / 2)
        self._log("a replica is killed")
        await asyncio.to_thread(second.kill)
        await asyncio.sleep(DEAD)
        await asyncio.to_thread(second.start)
        self._log("it answers")
        self.restarted = time.monotonic() - self._began

    def _log(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:.1f} s: {line}", file=sys.stderr, flush=True)

    async def _sample(self, every: float) -> None:
        while True:
            self._add_sample()
            self._log(f"{self.changes.acknowledged} changes acknowledged, {len(self.changes.failed)} failed")
            await self._until(every * len(self.memory))

    def _add_sample(self) -> None:
        self.memory.append((time.monotonic() - self._began, self.replicas.memory()))

    def growth(self, number: int) -> str:
        """Of a replica since it was started last."""
        since = self.restarted if number else 0.0
        samples = [(at, found[number]) for at, found in self.memory if at >= since]
        return growth([Sample(at, *memory, 0, 0) for at, memory in samples if memory is not None])


async def lost_changes(changes: ItemChanges, servers: Sequence[Server], history: Sequence[str]) -> tuple[int, int]:
    """How many items are not as acknowledged changes left them, and removed ones that are there: of all replicas."""
    all_missing, all_back = set[tuple[str, str]](), set[tuple[str, str]]()
    for server in servers:
        missing, back = await changes.differences(server.address)
        ids = list(changes.expected)
        found: set[str] = set()
        for start in range(0, len(ids), AT_ONCE):
            found |= recommended(server, history, ids[start : start + AT_ONCE])
        missing += [one for one in ids if changes.expected[one] and one not in found]
        back += [one for one in found if not changes.expected[one]]
        all_missing |= {(server.address, one) for one in missing}
        all_back |= {(server.address, one) for one in back}
    return len(all_missing), len(all_back)


def quantiles(seconds: Sequence[float]) -> str:
    p50, p99, longest = 1000 * np.quantile(seconds, [0.5, 0.99, 1])
    return f"{p50:.0f} / {p99:.0f} / {longest:.0f} ms"


def table(measured: Measurement, load: Load, missing: int, back: int) -> str:
    changes, replicas = measured.changes, measured.replicas
    rows: dict[str, object] = {
        "requests sent": f"{load.requests:,}",
        "failed": load.failed,
        "sent by the proxy to both replicas": replicas.repeated(),
        "latency p50 / p95 / p99 / longest": " / ".join(
            f"{value:.1f}" for value in (load.p50, load.p95, load.p99, load.longest)
        )
        + " ms",
        "changes sent": f"{changes.sent:,}",
        "acknowledged": f"{changes.acknowledged:,}",
        "answers 503 to a change, which the client repeated": changes.unavailable,
        "changes without an answer, which the client repeated": changes.unanswered,
        "acknowledgement p50 / p99 / longest": quantiles(changes.times),
        "acknowledged changes that a replica lacks at the end": missing,
        "removed or unavailable items that a replica has at the end": back,
        f"until the other replica shows a change ({len(changes.delays):,} measured), p50 / p99 / longest": quantiles(
            changes.delays
        ),
    } | {f"replica {n + 1}, {text}": value for n in (0, 1) for text, value in [measured.growth(n).split(": ", 1)]}
    lines = ["| | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    lines += ["| minute | replica 1, MiB | its mapped files | replica 2, MiB | its mapped files |", "|--:" * 5 + "|"]
    for seconds, found in measured.memory:
        cells = [text for memory in found for text in ([f"{value:.0f}" for value in memory] if memory else ["", ""])]
        lines.append(f"| {seconds / 60:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def measure(
    replicas: Replicas, run: Path, scratch: Path, seconds: float, rates: tuple[float, float]
) -> tuple[str, list[str]]:
    """The tables, and what failed."""
    opened = open_run(run)
    data = load_dataset(opened.data, opened.settings.dataset)
    run_items, kept = data.item_ids[:RUN_ITEMS], data.item_ids[RUN_ITEMS : RUN_ITEMS + 20]
    addresses = [server.address for server in replicas.servers]
    async with ItemChanges(replicas.url, replicas.proxy.context, addresses, run_items) as changes:
        measured = Measurement(replicas, mixed_requests(data), changes)
        load = await measured.run(seconds, *rates)
        await asyncio.sleep(2)  # more than the stated bound
        with a_replica(run, scratch / "replica-3", replicas.database) as third:
            missing, back = await lost_changes(changes, [*replicas.servers, third], kept)
    failures = [f"{load.failed} requests failed"] if load.failed else []
    failures += [f"{missing} acknowledged changes are missing, {back} items are back"] if missing or back else []
    return table(measured, load, missing, back), failures + changes.failed[:5]


def main(
    run: Annotated[
        Path | None, typer.Option(help="A finished run of a model that accepts new items; default: a toy shop.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.5)] = 20,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second.")] = 100,
    changes: Annotated[float, typer.Option(min=0.1, help="Changes per second.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A file for the tables.")] = None,
) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o711)  # nginx has another user
        folder = run or toyshop_run(scratch)
        head = f"{describe()}; {minutes:g} minutes, {rate:g} requests/s, {changes:g} changes/s"
        with two_replicas(folder, scratch) as replicas:
            text, failures = asyncio.run(measure(replicas, folder, scratch, 60 * minutes, (rate, changes)))
        print(f"{head}\n\n{text}")
        if out is not None:
            out.write_text(f"{head}\n\n{text}\n")
        if failures:
            raise InputError("; ".join(failures))


if __name__ == "__main__":
    typer.run(main)
