"""Latency and throughput of `msm4sr serve`, by locust (pip install 'msm4sr[bench]').

    python benchmarks/serving.py --run runs/ml-1m                      # a finished run, histories of its log
    python benchmarks/serving.py --items 1000000 --index exact         # a generated catalogue
    python benchmarks/serving.py --items 1000000 --index approximate   # with the recall

Server and load share the machine. First the asked rate, then as much as comes through with --users at once. A generated
catalogue has one row of 32 numbers an item and modality, around 1,000 centres, an untrained model, and histories that
are drawn: its times are real, its recommendations are not.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import psutil
import typer
from machine import describe
from service import Server, print_load, read_load, serving, start_load

from msm4sr.cli.console import told
from msm4sr.data.schema import read_interactions
from msm4sr.errors import InputError
from msm4sr.experiments.run import begin_run, open_run, plan_run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig

WIDTH, CENTRES = 32, 1000
ASKED = 2000  # histories


@dataclass(frozen=True)
class Rows:
    vectors: np.ndarray
    offsets: np.ndarray


def generate_run(folder: Path, items: int, seed: int = 0) -> Path:
    """A run over items "0", "1", ... that nobody trained, with an empty data set."""
    rng = np.random.default_rng(seed)
    features = {}
    for name in ("text", "visual"):
        centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)
        noise = rng.standard_normal((items, WIDTH), dtype=np.float32)
        features[name] = Rows(centres[rng.integers(0, CENTRES, items)] + 0.5 * noise, np.arange(items + 1))
    settings = resolve_settings("best")
    assert isinstance(settings.model, MSM4SRConfig)
    run = plan_run(folder / "data", folder / "run", settings, "best")
    begin_run(run)
    MSM4SR.from_features(settings.model, features).eval().save_pretrained(run.folder / "model")
    ids = [str(item) for item in range(items)]
    names = {"item_ids": ids, "titles": [f"Item {item}" for item in ids]}
    (run.folder / "model" / "items.json").write_text(json.dumps(names))
    return run.folder


def histories_of(run: Path) -> list[list[str]]:
    """The histories of some users of the log; drawn ones where there is no log."""
    rng = np.random.default_rng(0)
    try:
        log = read_interactions(open_run(run).data).sort("order", maintain_order=True)
    except InputError:
        ids = json.loads((run / "model" / "items.json").read_text())["item_ids"]
        return [[ids[item] for item in rng.integers(0, len(ids), rng.integers(1, 100))] for _ in range(ASKED)]
    users = log["user_id"].unique(maintain_order=True).sample(fraction=1, shuffle=True, seed=0).head(ASKED)
    taken = log.filter(pl.col("user_id").is_in(users.implode())).group_by("user_id").agg("item_id")
    return [history[-200:] for history in taken["item_id"].to_list()]


def measure(server: Server, histories: list[list[str]], rate: float, seconds: float, users: int) -> None:
    ready = server.client.get("/ready").json()
    recall = "" if ready["recall"] is None else f", recall@20 {ready['recall']:.3f}"
    print(f"{ready['items']:,} items, {ready['index']}{recall}")
    read_load(start_load(server.url, histories, rate, min(5.0, seconds), users))  # warms up
    for words, asked, at_once in (
        (f"{rate:g} requests/s asked for:", rate, users),
        ("as many as come through:", 1e6, 8),
    ):
        before = cpu_seconds(server)
        found = read_load(start_load(server.url, histories, asked, seconds, at_once))
        each = (cpu_seconds(server) - before) / sum(one.requests for one in found)
        print(words)
        print_load(found)
        print(f"{each * 1e3:.2f} ms of CPU time a request")


def cpu_seconds(server: Server) -> float:
    """What the server and its workers have used so far."""
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    return sum(one.cpu_times().user + one.cpu_times().system for one in family)


def main(
    run: Annotated[Path | None, typer.Option(help="A finished run.")] = None,
    items: Annotated[int | None, typer.Option(min=100, help="Of a generated catalogue.")] = None,
    index: Annotated[Literal["auto", "exact", "approximate"], typer.Option()] = "auto",
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 300,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 30,
    workers: Annotated[int, typer.Option(min=1)] = 1,
    users: Annotated[int, typer.Option(min=1, help="Connections.")] = 50,
) -> None:
    with told(), tempfile.TemporaryDirectory() as scratch:
        if (run is None) == (items is None):
            raise InputError("name either a run (--run) or the size of a generated catalogue (--items)")
        folder = run if run is not None else generate_run(Path(scratch), items or 0)
        print(f"{describe()}; {workers} worker{'s' if workers > 1 else ''}")
        options = ("--index", index, "--workers", str(workers))
        with serving(folder, Path(scratch) / "state", *options) as server:
            measure(server, histories_of(folder), rate, seconds, users)


if __name__ == "__main__":
    typer.run(main)
