"""Latency and throughput of `msm4sr serve`, under load from Locust (pip install 'msm4sr[bench]') on the same machine.

    python benchmarks/serving.py --run runs/ml-1m       # a finished run, the histories of its data
    python benchmarks/serving.py --items 1000000        # a generated catalogue: exact, then approximate with its recall
    python benchmarks/serving.py --run runs/ml-1m --continued # each request has one more item of a history
    python benchmarks/serving.py --items 10000 --page   # the requests of the web page, instead
    python benchmarks/serving.py --run runs/ml-1m --batch 100  # batches of 100 histories against single ones, instead

Prints a table (Markdown). Each index first receives requests from 8 connections as fast as it answers, then at fixed
rates, except those above its throughput. The latency of a request counts from the time at which it was due (see
`load.py`). Server and load generator share the machine; the last columns give the CPU time of each.

A generated catalogue has one 32-d row per item and modality around 1,000 centres, an untrained model of the preset's
sizes, and random histories: its latencies are real, its recommendations are not. Building the approximate index of a
million items takes some minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from common import describe
from load import Request, run_load
from service import Server, serving

from msm4sr.cli.console import handle_errors
from msm4sr.data.schema import read_interactions
from msm4sr.errors import InputError
from msm4sr.experiments.model_folder import StoredItems, read_stored_items, write_items
from msm4sr.experiments.run import begin_run, open_run, plan_run, write_metrics
from msm4sr.experiments.settings import resolve_settings
from msm4sr.models.base import Inputs, as_tensors
from msm4sr.models.msm4sr import MSM4SRConfig
from msm4sr.models.registry import build
from msm4sr.ragged import Ragged

WIDTH, CENTRES = 32, 1000
MAX_HISTORIES = 20_000  # sent, in turn: more than there are requests, so that none is sent twice
LONGEST = 2000  # of a history, as a service takes by default
TOGETHER, STEPS = 64, 8  # users whose histories become longer at the same time, and by how many items
RATES = (50.0, 100.0, 300.0)  # requests per second
LENGTHS = (5, 20, 50)  # of the histories of batches


def generate_run(folder: Path, items: int, seed: int = 0) -> Path:
    """An untrained run over items "0", "1", ... without a data set."""
    rng = np.random.default_rng(seed)
    features = {}
    for name in ("text", "visual"):
        centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)
        noise = rng.standard_normal((items, WIDTH), dtype=np.float32)
        features[name] = as_tensors(
            Ragged(centres[rng.integers(0, CENTRES, items)] + 0.5 * noise, np.arange(items + 1))
        )
    settings = resolve_settings("best", changes=["device.accelerator=cpu"])
    assert isinstance(settings.model, MSM4SRConfig)
    run = plan_run(folder / "data", folder / "run", settings, "best")
    begin_run(run)
    inputs = Inputs(items, features=features)
    build(settings.model, inputs, seed).eval().save_pretrained(run.folder / "model")
    ids = [str(item) for item in range(items)]
    write_items(run.folder / "model", StoredItems(ids, [f"Item {item}" for item in ids], [[]] * items, [0] * items))
    write_metrics(run.folder, {})  # only a run that is evaluated to the end is served
    return run.folder


def histories_of(folder: Path) -> list[list[str]]:
    """Histories of the users of a run's data set; random ones if there is no data set."""
    run = open_run(folder)
    ids = read_stored_items(run).item_ids
    try:
        log = read_interactions(run.data).filter(pl.col("item_id").is_in(ids)).sort("order", maintain_order=True)
    except InputError:
        rng = np.random.default_rng(0)
        return [[ids[item] for item in rng.integers(0, len(ids), rng.integers(1, 100))] for _ in range(MAX_HISTORIES)]
    log = log.group_by("user_id", maintain_order=True).tail(LONGEST)
    users = log["user_id"].unique(maintain_order=True)
    chosen = users.sample(min(MAX_HISTORIES, len(users)), shuffle=True, seed=0)
    selected = log.filter(pl.col("user_id").is_in(chosen.implode()))
    histories: list[list[str]] = selected.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    histories = [histories[place] for place in np.random.default_rng(0).permutation(len(histories))]
    n = len(histories)
    for place in range(MAX_HISTORIES - n):  # without their latest items
        histories.append(histories[place % n][: -1 - place // n] or histories[place % n])
    return histories


def continued_histories(histories: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The histories as they were before each of their latest items, of several users in turn."""
    return [
        history[: max(1, len(history) - back)]
        for first in range(0, len(histories) // STEPS, TOGETHER)
        for back in reversed(range(STEPS))
        for history in histories[first : first + TOGETHER]
    ]


def measure(server: Server, histories: Sequence[Sequence[str]], rates: Sequence[float], seconds: float) -> None:
    """Print the rows of the table for one server."""
    requests: list[Request] = [("POST", "/recommend", {"history": history, "k": 10}) for history in histories]
    ready = server.client.get("/ready").json()
    recall = "" if ready["recall"] is None else f"{ready['recall']:.3f}"
    most = 0.0
    for rate in (0.0, *sorted(rates)):
        what = f"| {ready['items']:,} | {ready['index']} | {recall} | {f'{rate:g}' if rate else 'as fast as answered'}"
        if rate and rate > most:
            print(f"{what} | above its throughput | | | | | | | |", flush=True)
            continue
        before = server.cpu()
        warm_up = 2.0
        load = run_load(server.url, requests, rate, seconds, warm_up=warm_up, connections=64 if rate else 8)
        most = most or load.per_second
        cpu = 1000 * (server.cpu() - before) / (load.requests * (1 + warm_up / seconds))
        print(
            f"{what} | {load.per_second:.0f} requests/s | {load.p50:.1f} | {load.p95:.1f} | {load.p99:.1f} "
            f"| {load.longest:.1f} | {load.failed} | {cpu:.2f} | {load.generator_cpu:.2f} |",
            flush=True,
        )


def measure_page(server: Server, histories: Sequence[Sequence[str]], seconds: float) -> None:
    """Print the rows of the table for the requests of the page, from 8 connections as fast as they are answered."""
    n_items = server.client.get("/ready").json()["items"]
    kinds: dict[str, list[Request]] = {
        "the page itself": [("GET", "/")],
        "the last items of the catalogue": [("GET", f"/items?offset={n_items - 60}")],
        "a search by a word of all titles": [("GET", "/items?q=item")],
        "a search that finds nothing": [("GET", "/items?q=nothing")],
        "recommendations with reasons": [
            ("POST", "/page/recommend", {"history": history[-5:], "k": 12}) for history in histories
        ],
    }
    for what, requests in kinds.items():
        load = run_load(server.url, requests, 0, seconds, connections=8)
        print(
            f"| {n_items:,} | {what} | {load.per_second:.0f} requests/s | {load.p50:.1f} | {load.p95:.1f} "
            f"| {load.p99:.1f} | {load.failed} |",
            flush=True,
        )


def measure_batches(server: Server, histories: Sequence[Sequence[str]], size: int, seconds: float) -> None:
    """Print a row for each length: histories per second, each in a request of its own, and `size` in one."""
    for length in LENGTHS:
        latest = [history[-length:] for history in histories if len(history) >= length]
        single: list[Request] = [("POST", "/recommend", {"history": history, "k": 10}) for history in latest]
        batches: list[Request] = [
            ("POST", "/recommend/batch", {"histories": latest[first : first + size], "k": 10})
            for first in range(0, len(latest) - size, size)
        ]
        one = run_load(server.url, single, 0, seconds, connections=8)
        many = run_load(server.url, batches, 0, seconds, connections=2)
        together = many.per_second * size
        print(
            f"| {length} | {one.per_second:.0f} | {together:.0f} | {together / one.per_second:.1f} "
            f"| {one.failed + many.failed} |",
            flush=True,
        )


def main(
    run: Annotated[Path | None, typer.Option(help="A finished run.")] = None,
    items: Annotated[int | None, typer.Option(min=100, help="Size of a generated catalogue.")] = None,
    index: Annotated[
        list[str] | None, typer.Option(help="exact or approximate, repeatable; both for a generated catalogue.")
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(help="Requests per second, repeatable; default: 50, 100 and 300.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Duration of each measurement.")] = 30,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    continued: Annotated[
        bool, typer.Option("--continued", help="Each request has one more item of a history.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="Measure the requests of the web page.")] = False,
    batch: Annotated[
        int | None, typer.Option(min=2, max=256, help="Measure batches of so many histories against single ones.")
    ] = None,
) -> None:
    with handle_errors(), tempfile.TemporaryDirectory() as scratch:
        if (run is None) == (items is None):
            raise InputError("name either a run (--run) or the size of a generated catalogue (--items)")
        folder = run if run is not None else generate_run(Path(scratch), items or 0)
        histories = continued_histories(histories_of(folder)) if continued else histories_of(folder)
        lengths = np.mean([len(history) for history in histories])
        print(f"{describe()}; workers {workers}; {len(histories):,} histories of {lengths:.0f} items on average\n")
        if page:
            print(
                "| items | what | answered | p50, ms | p95, ms | p99, ms | failed |\n" + "|---" * 2 + "|--:" * 5 + "|"
            )
            with serving(folder, Path(scratch) / "state", "--workers", str(workers)) as server:
                return measure_page(server, histories, seconds)
        if batch is not None:
            print(
                f"| items per history | histories/s, single | in batches of {batch} | ratio | failed |\n"
                + "|--:" * 5
                + "|"
            )
            with serving(folder, Path(scratch) / "state", "--workers", str(workers)) as server:
                return measure_batches(server, histories, batch, seconds)
        print(
            "| items | index | recall@20 | asked, requests/s | answered | p50, ms | p95, ms | p99, ms | longest, ms "
            "| failed | server's CPU, ms a request | load's CPU, ms a request |\n" + "|---" * 3 + "|--:" * 9 + "|"
        )
        for kind in index or (["auto"] if run is not None else ["exact", "approximate"]):
            options = ("--index", kind, "--workers", str(workers))
            with serving(folder, Path(scratch) / f"state-{kind}", *options) as server:
                measure(server, histories, rate or RATES, seconds)


if __name__ == "__main__":
    typer.run(main)
