"""New items: how often the service recommends held-out items to the users who interacted with them later.

    python benchmarks/cold_items.py --data DATA/ml-1m --out runs/cold-items
    python benchmarks/cold_items.py --data DATA/ml-100k --out OUT --set finetune.max_steps=50   # a smoke test

1. 50 random items with text, image and at least 50 interactions are removed from catalogue and interactions: OUT/data.
2. `msm4sr run OUT/data --out OUT/run` with --preset, --seed and --set; a finished run is reused. OUT/untrained is the
   same model with its initial weights.
3. Both are served, and the 50 items are added by POST /items with title, text and image.
4. For every interaction with one of them after at least 5 other items, the history before it (without held-out items)
   is sent to POST /recommend/batch, and we count how often the item is among the 20 recommendations.

Chance is 20 out of all items that are not in the history. Histories of one item are not independent, so the 95 %
interval resamples items, 2,000 times. As in leave-one-out, training data is not limited in time: the item is cold, not
the user.
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
from common import Changes, Data, Preset, describe_preset
from service import Server, serving

from msm4sr.cli.console import handle_errors
from msm4sr.data.schema import read_interactions, read_items
from msm4sr.errors import InputError
from msm4sr.experiments.model_folder import read_stored_items, write_items
from msm4sr.experiments.run import open_run
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data
from msm4sr.files import atomic_folder

MIN_HISTORY = 5  # items
MAX_SENT = 1000  # items of a history that are sent, the latest
BATCH = 64  # histories per request
RESAMPLES = 2000

Pair = tuple[list[str], str]
"""A history, oldest first, and the held-out item that came next."""


def choose(data: Path, count: int, least: int, seed: int) -> list[str]:
    """Ids of random items with text, image and at least `least` interactions."""
    items = read_items(data)
    complete = items.filter(pl.col("text").is_not_null() & (pl.col("image").list.len() > 0))["item_id"]
    counts = read_interactions(data)["item_id"].value_counts()
    fit = counts.filter((pl.col("count") >= least) & pl.col("item_id").is_in(complete.implode()))
    ids = sorted(fit["item_id"].to_list())
    if len(ids) < count:
        raise InputError(f"{data}: {len(ids)} items have text, image and {least} interactions, not {count}")
    return [ids[place] for place in np.random.default_rng(seed).choice(len(ids), count, replace=False)]


def remove_items(data: Path, out: Path, held_out: Sequence[str]) -> None:
    """Copy a prepared folder without these items."""
    with atomic_folder(out) as folder:
        for name in ("interactions.parquet", "items.parquet"):
            table = pl.read_parquet(data / name)
            table.filter(~pl.col("item_id").is_in(held_out)).write_parquet(folder / name)
        shutil.copytree(data / "images", folder / "images")


def untrained(run: Path, out: Path) -> None:
    """Copy a run with the initial weights of its model."""
    opened = open_run(run)
    dataset = load_run_data(opened)
    with atomic_folder(out) as folder:
        shutil.copy(run / "config.yaml", folder)
        build_model(opened.settings, dataset, extract_stage(opened, dataset)).save_pretrained(folder / "model")
        write_items(folder / "model", read_stored_items(opened))


def pairs_of(data: Path, held_out: Sequence[str], before: int = MIN_HISTORY) -> list[Pair]:
    """The user's history before each interaction with a held-out item, if it has at least `before` other items."""
    cold = set(held_out)
    log = read_interactions(data).sort("order", maintain_order=True)
    pairs = []
    for items in log.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list():
        warm: list[str] = []
        for item in items:
            if item not in cold:
                warm.append(item)
            elif len(warm) >= before:
                pairs.append((warm[-MAX_SENT:], item))
    return pairs


def add(server: Server, data: Path, held_out: Sequence[str]) -> None:
    items = read_items(data).filter(pl.col("item_id").is_in(held_out))
    for item_id, title, text, images in items.select("item_id", "title", "text", "image").iter_rows():
        files = {"images": (Path(images[0]).name, (data / images[0]).read_bytes(), "application/octet-stream")}
        fields = {"item_id": item_id, "title": title or "", "text": (text or "")[:20_000]}
        answer = server.client.post("/items", data=fields, files=files)
        if answer.status_code != 201:
            raise InputError(f"item {item_id!r} was not added: {answer.text}")


def recommend(server: Server, histories: Sequence[list[str]], k: int) -> list[set[str]]:
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
    """95 % interval of the share of hits [P]; items [P] are resampled with all their pairs."""
    _, place = np.unique(items, return_inverse=True)
    hit, count = np.bincount(place, hits), np.bincount(place)
    drawn = np.random.default_rng(0).integers(0, len(count), (RESAMPLES, len(count)))
    low, high = np.quantile(hit[drawn].sum(axis=1) / count[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def measure(name: str, run: Path, data: Path, pairs: Sequence[Pair], held_out: Sequence[str], k: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as scratch, serving(run, Path(scratch) / "state") as server:
        add(server, data, held_out)
        n_items = server.client.get("/ready").json()["items"]
        lists = recommend(server, [history for history, _ in pairs], k)
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
    changes: Changes = [],
    items: Annotated[int, typer.Option(min=1, help="Number of held-out items.")] = 50,
    least: Annotated[int, typer.Option(min=1, help="Minimum interactions of a held-out item.")] = 50,
    k: Annotated[int, typer.Option(min=1, help="Recommendations per history.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the held-out items and of the training.")] = 0,
) -> None:
    with handle_errors(f"interrupted; finished steps are kept in {out}"):
        held_out = choose(data, items, least, seed)
        chosen = out / "held-out.json"
        if chosen.exists() and json.loads(chosen.read_text()) != held_out:
            raise InputError(f"{out}: other items are held out there; choose another --out")
        if not chosen.exists():
            remove_items(data, out / "data", held_out)
            chosen.write_text(json.dumps(held_out))
        run = out / "run"
        if not (run / "metrics.json").exists():
            command = [sys.executable, "-m", "msm4sr", "run", str(out / "data"), "--out", str(run), "--resume"]
            settings = [part for change in changes for part in ("--set", change)]
            subprocess.run([*command, "--preset", preset, "--seed", str(seed), *settings], check=True)
        if not (out / "untrained").exists():
            untrained(run, out / "untrained")
        pairs = pairs_of(data, held_out)
        print(
            f"\n{len(held_out)} items of {data.name} held out; {describe_preset(preset, changes)}\n\n"
            f"| model | among the first {k} | share | 95 % | chance | ratio to chance "
            "| items recommended at least once |\n"
            "|---|--:|--:|--:|--:|--:|--:|"
        )
        for name in ("run", "untrained"):
            print(measure("trained" if name == "run" else name, out / name, data, pairs, held_out, k), flush=True)


if __name__ == "__main__":
    typer.run(main)
