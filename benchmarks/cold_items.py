"""Films that nobody was trained on, added through the API: do they reach the people who watched them later?

    python benchmarks/cold_items.py --data DATA/ml-1m --out runs/cold-items
    python benchmarks/cold_items.py --data DATA/ml-100k --out OUT --set finetune.max_steps=50   # to see that it works

1. 50 items, drawn by seed among those with text, picture and 50 interactions at least, leave the catalogue and the
   log: OUT/data.
2. `msm4sr run OUT/data --out OUT/run`, with --preset, --seed and --set handed on; once it is finished it is not
   repeated. OUT/untrained is the same model with the weights that it began with.
3. Each of the two is served, and the 50 are added by POST /items with title, text and picture.
4. For everyone who took one of them, after at least 5 other items, 20 recommendations are asked for the history before
   that moment (held-out items left out of it), and we count the histories where the item is among them.

By chance that would be 20 out of all items that were not in the history. Ragged of one film are no independent
draws, so the interval (95 %) draws whole films anew, 2,000 times. Other parts of the log were trained on whatever their
time, as in leave-one-out: what is cold is the film, not the person.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from options import Changes, Data, Preset
from service import Server, serving

from msm4sr.cli.console import told
from msm4sr.data.schema import read_interactions, read_items
from msm4sr.errors import InputError
from msm4sr.experiments.run import open_run
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data
from msm4sr.files import atomic_folder

BEFORE = 5  # items of a history at least
LATEST = 1000  # of a history that are sent
BATCH = 64  # histories a request
DRAWS = 2000

Pair = tuple[list[str], str]
"""A history, oldest first, and the held-out item that came then."""


def choose(data: Path, count: int, least: int, seed: int) -> list[str]:
    """Ids of items with text and picture that were taken `least` times."""
    items = read_items(data)
    whole = items.filter(pl.col("text").is_not_null() & (pl.col("image").list.len() > 0))["item_id"]
    taken = read_interactions(data)["item_id"].value_counts()
    fit = taken.filter((pl.col("count") >= least) & pl.col("item_id").is_in(whole.implode()))
    ids = sorted(fit["item_id"].to_list())
    if len(ids) < count:
        raise InputError(f"{data}: {len(ids)} items have text, picture and {least} interactions, not {count}")
    return [ids[place] for place in np.random.default_rng(seed).choice(len(ids), count, replace=False)]


def leave_out(data: Path, out: Path, held_out: Sequence[str]) -> None:
    """A prepared folder without these items."""
    with atomic_folder(out) as folder:
        for name in ("interactions.parquet", "items.parquet"):
            table = pl.read_parquet(data / name)
            table.filter(~pl.col("item_id").is_in(held_out)).write_parquet(folder / name)
        shutil.copytree(data / "images", folder / "images")


def untrained(run: Path, out: Path) -> None:
    """The run with the weights that its model began with."""
    opened = open_run(run)
    dataset = load_run_data(opened)
    with atomic_folder(out) as folder:
        shutil.copy(run / "config.yaml", folder)
        build_model(opened.settings, dataset, extract_stage(opened, dataset)).save_pretrained(folder / "model")
        shutil.copy(run / "model" / "items.json", folder / "model")


def pairs_of(data: Path, held_out: Sequence[str], before: int = BEFORE) -> list[Pair]:
    """What each person had taken before each of these items (the others of them left out), `before` items at least."""
    cold = set(held_out)
    log = read_interactions(data).sort("order", maintain_order=True)
    pairs = []
    for items in log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list():
        warm: list[str] = []
        for item in items:
            if item not in cold:
                warm.append(item)
            elif len(warm) >= before:
                pairs.append((warm[-LATEST:], item))
    return pairs


def add(server: Server, data: Path, held_out: Sequence[str]) -> None:
    items = read_items(data).filter(pl.col("item_id").is_in(held_out))
    for item_id, title, text, images in items.select("item_id", "title", "text", "image").iter_rows():
        files = {"images": (Path(images[0]).name, (data / images[0]).read_bytes(), "application/octet-stream")}
        fields = {"item_id": item_id, "title": title or "", "text": (text or "")[:20_000]}
        answer = server.client.post("/items", data=fields, files=files)
        if answer.status_code != 201:
            raise InputError(f"item {item_id!r} was not added: {answer.text}")


def ask(server: Server, histories: Sequence[list[str]], k: int) -> list[set[str]]:
    """The items that are recommended after each history."""
    found: list[set[str]] = []
    for start in range(0, len(histories), BATCH):
        body = {"histories": histories[start : start + BATCH], "k": k}
        answer = server.client.post("/recommend/batch", json=body)
        if answer.status_code != 200:
            raise InputError(f"no recommendations: {answer.text}")
        found += [{one["item_id"] for one in result["items"]} for result in answer.json()["results"]]
    return found


def interval(hits: np.ndarray, items: np.ndarray) -> tuple[float, float]:
    """Of the share of hits [P], where items [P] are drawn anew with all their pairs."""
    _, place = np.unique(items, return_inverse=True)
    hit, count = np.bincount(place, hits), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(count), (DRAWS, len(count)))
    low, high = np.quantile(hit[drawn].sum(axis=1) / count[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def measure(name: str, run: Path, data: Path, pairs: Sequence[Pair], held_out: Sequence[str], k: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as scratch, serving(run, Path(scratch) / "state") as server:
        add(server, data, held_out)
        n_items = server.client.get("/ready").json()["items"]
        lists = ask(server, [history for history, _ in pairs], k)
    items = np.array([item for _, item in pairs])
    hits = np.array([item in found for (_, item), found in zip(pairs, lists, strict=True)])
    chance = float(np.mean([k / (n_items - len(set(history))) for history, _ in pairs]))
    low, high = interval(hits, items)
    reached = len(np.unique(items[hits]))
    return (
        f"| {name} | {hits.sum():,} of {len(pairs):,} | {hits.mean():.4f} | {low:.4f} to {high:.4f} | {chance:.4f} "
        f"| {hits.mean() / chance:.1f} | {reached} of {len(np.unique(items))} |"
    )


def main(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder of the experiment.")],
    preset: Preset = "best",
    changes: Changes = [],  # never changed
    items: Annotated[int, typer.Option(min=1, help="How many are held out.")] = 50,
    least: Annotated[int, typer.Option(min=1, help="Interactions that each of them has.")] = 50,
    k: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw, and of the training.")] = 0,
) -> None:
    with told(f"interrupted; what was done is kept in {out}"):
        held_out = choose(data, items, least, seed)
        chosen = out / "held-out.json"
        if chosen.exists() and json.loads(chosen.read_text()) != held_out:
            raise InputError(f"{out}: other items are held out there; name another --out")
        if not chosen.exists():
            leave_out(data, out / "data", held_out)
            chosen.write_text(json.dumps(held_out))
        run = out / "run"
        if not (run / "metrics.json").exists():
            command = [sys.executable, "-m", "msm4sr.cli", "run", str(out / "data"), "--out", str(run), "--resume"]
            settings = [part for change in changes for part in ("--set", change)]
            subprocess.run([*command, "--preset", preset, "--seed", str(seed), *settings], check=True)
        if not (out / "untrained").exists():
            untrained(run, out / "untrained")
        pairs = pairs_of(data, held_out)
        print(
            f"\n{len(held_out)} items of {data.name} held out; preset {preset}{''.join(f', {c}' for c in changes)}\n\n"
            f"| model | among the first {k} | share | 95 % | by chance | times chance | items that reached someone |\n"
            "|---|--:|--:|--:|--:|--:|--:|"
        )
        for name in ("run", "untrained"):
            print(measure("trained" if name == "run" else name, out / name, data, pairs, held_out, k), flush=True)


if __name__ == "__main__":
    typer.run(main)
