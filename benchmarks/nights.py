"""A week of nights: training from scratch against a warm start, each judged by the interactions of the next day.

    python benchmarks/nights.py --data DATA/ml-100k --out runs/nights-ml-100k
    python benchmarks/nights.py --out runs/nights-shop                           # a generated shop
    python benchmarks/nights.py --out OUT --nights 1 --set finetune.max_steps=50 # a smoke test

Night n of the week has the interactions up to its midnight (UTC), and the items that someone has interacted with by
then. The last night is followed by the last day of the data. Before the week, one model is trained from scratch. Then
every night trains

- from scratch: `msm4sr run`, with --preset, --model and --set;
- by warm start: `msm4sr run --warm-start` from the warm start of the night before, with --warm-set,

and `unchanged` is the model from before the week. NDCG@10 is the mean over the interactions of the next day, in any
number per user: the item is ranked among all unseen items, given all interactions of the user before it, those of the
same day included, as a service is asked. Not counted are a user's first interaction, and one with an item
that is not yet in the catalogue.

Seconds are CPU seconds of the complete command, evaluation and report included, which other programs on the machine
change little; all runs share extracted features, which are extracted before. Finished runs are kept in --out and not
repeated; `--name` keeps the warm starts of several settings.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
import typer
from common import Changes, Preset, describe, describe_preset

from msm4sr.cli.console import handle_errors
from msm4sr.data.schema import read_interactions, read_items
from msm4sr.data.toyshop import FIRST_DAY, generate_toyshop
from msm4sr.evaluation.metrics import mean_metrics, metrics_per_user
from msm4sr.evaluation.ranking import ranks_of
from msm4sr.experiments.model_folder import read_stored_items
from msm4sr.experiments.run import open_run
from msm4sr.files import atomic_folder, write_json
from msm4sr.models.registry import from_pretrained

DAY = 86_400
SHOP_USERS, SHOP_DAYS = 20_000, 120  # the shop begins on its first day without any user; about 270 interactions a day


@dataclass(frozen=True)
class Outcome:
    """What a model was worth on the next day, and what it cost."""

    ranks: np.ndarray
    """Of each target of the day."""
    seconds: float = 0.0

    @property
    def ndcg(self) -> float:
        return mean_metrics(self.ranks)["ndcg@10"]


def generate_shop(out: Path) -> Path:
    """The first days of a generated shop, once."""
    if not out.exists():
        with atomic_folder(out) as folder:
            generate_toyshop(folder, users=SHOP_USERS)
            table = pl.read_parquet(folder / "interactions.parquet")
            until = FIRST_DAY + SHOP_DAYS * DAY
            table.filter(pl.col("timestamp") < until).write_parquet(folder / "interactions.parquet")
    return out


def cut(data: Path, out: Path, until: int) -> Path:
    """A prepared folder with the interactions before a time and their items, once."""
    if not out.exists():
        with atomic_folder(out) as folder:
            table = pl.read_parquet(data / "interactions.parquet").filter(pl.col("timestamp") < until)
            table.write_parquet(folder / "interactions.parquet")
            items = pl.read_parquet(data / "items.parquet").with_columns(pl.col("item_id").cast(pl.String))
            known = table["item_id"].cast(pl.String).unique().to_list()
            items.filter(pl.col("item_id").is_in(known)).write_parquet(folder / "items.parquet")
            shutil.copytree(data / "images", folder / "images", copy_function=link_or_copy)
    return out


def link_or_copy(source: str, target: str) -> None:
    """A second name for a file or, on another disk, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def next_day(data: Path, begin: int) -> tuple[list[list[str]], list[str]]:
    """The histories and next items of all interactions within a day from `begin`, if they have a history."""
    table = read_interactions(data).sort("order", maintain_order=True).filter(pl.col("order") < begin + DAY)
    histories, targets = [], []
    for items, times in table.group_by("user_id", maintain_order=True).agg("item_id", "order")[:, 1:].iter_rows():
        for place in range(1, len(items)):
            if times[place] >= begin:
                histories.append(items[:place])
                targets.append(items[place])
    return histories, targets


@torch.inference_mode()
def rank(run: Path, histories: list[list[str]], targets: list[str], known: set[str]) -> np.ndarray:
    """The rank of each target that is in `known`, among the unseen items of the run."""
    model = from_pretrained(run / "model")
    rows = {item_id: row for row, item_id in enumerate(read_stored_items(open_run(run)).item_ids)}
    embeddings = model.encode_items()
    vectors, ranks = model.scoring_vectors(embeddings), []
    for history, target in zip(histories, targets, strict=True):
        if target not in known:
            continue
        seen = torch.tensor([[rows[item] for item in history if item in rows]])
        if target not in rows or not seen.numel():  # a model from before the item or the user
            ranks.append(float(len(known)))
            continue
        latest = seen[:, -model.max_history :]
        scores = model.score(latest, torch.tensor([latest.shape[1]]), embeddings, vectors).float()
        goal = torch.tensor([rows[target]])
        scores[0, seen[0][seen[0] != goal]] = -torch.inf
        ranks.append(float(ranks_of(scores, goal)[0]))
    return np.array(ranks)


def train(data: Path, out: Path, features: Path, options: list[str]) -> None:
    """`msm4sr run`, unless it is finished; its CPU seconds are kept in the run."""
    if (out / "metrics.json").exists():
        return
    command = [sys.executable, "-m", "msm4sr", "run", str(data), "--out", str(out), "--overwrite"]
    began = cpu_of_children()
    subprocess.run([*command, "--features", str(features), *options], check=True, stdout=sys.stderr)
    write_json(out / "seconds.json", cpu_of_children() - began)


def cpu_of_children() -> float:
    """CPU seconds of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def outcome(run: Path, histories: list[list[str]], targets: list[str], known: set[str]) -> Outcome:
    seconds = float(json.loads((run / "seconds.json").read_text()))
    return Outcome(rank(run, histories, targets, known), seconds)


def table(rows: dict[str, dict[str, Outcome]]) -> str:
    """Markdown: a line per night, and the complete week."""
    lines = [
        "| night | next day | from scratch: NDCG@10 | CPU s | warm start: NDCG@10 | CPU s | unchanged: NDCG@10 |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    week = {
        kind: Outcome(
            np.concatenate([night[kind].ranks for night in rows.values()]),
            sum(night[kind].seconds for night in rows.values()),
        )
        for kind in ("scratch", "warm", "unchanged")
    }
    for name, night in {**rows, "week": week}.items():
        scratch, warm, unchanged = night["scratch"], night["warm"], night["unchanged"]
        lines.append(
            f"| {name} | {len(scratch.ranks):,} | {scratch.ndcg:.4f} | {scratch.seconds:.0f} | {warm.ndcg:.4f} "
            f"| {warm.seconds:.0f} | {unchanged.ndcg:.4f} |"
        )
    scratch, warm = week["scratch"], week["warm"]
    of_warm, of_scratch = (metrics_per_user(one.ranks)["ndcg@10"] for one in (warm, scratch))
    gains = of_warm - of_scratch
    error = float(gains.std(ddof=1) / len(gains) ** 0.5)
    lines.append(
        f"\nWarm start / from scratch: NDCG@10 {warm.ndcg / scratch.ndcg:.3f} (difference {gains.mean():+.4f}, "
        f"standard error {error:.4f} over interactions), CPU seconds {warm.seconds / scratch.seconds:.3f}"
    )
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option("--out", help="The folder of the experiment.")],
    data: Annotated[Path | None, typer.Option("--data", help="A prepared folder with timestamps.")] = None,
    nights: Annotated[int, typer.Option(min=1, help="Number of nights.")] = 7,
    preset: Preset = "best",
    model: Annotated[str, typer.Option("--model", help="Name of the model.")] = "msm4sr",
    changes: Changes = [],
    warm: Annotated[list[str], typer.Option("--warm-set", metavar="KEY=VALUE", help="--set of the warm starts.")] = [],
    name: Annotated[str, typer.Option("--name", help="Name of the warm starts in --out.")] = "warm",
    seed: Annotated[int, typer.Option(min=0, help="Seed of all trainings.")] = 0,
) -> None:
    with handle_errors(f"interrupted; finished runs are kept in {out}"):
        data = generate_shop(out / "shop") if data is None else data
        last = int(read_interactions(data)["order"].max()) // DAY * DAY  # type: ignore[arg-type]
        begins = [last - (nights - night) * DAY for night in range(nights + 1)]
        options = ["--preset", preset, "--model", model, "--seed", str(seed)]
        options += [part for change in changes for part in ("--set", change)]
        before = out / "scratch-0"
        first = cut(data, out / "data" / "night-0", begins[0])
        warmup = ["--set", "pretrain.epochs=0", "--set", "finetune.epochs=1", "--set", "finetune.max_steps=1"]
        train(first, out / "extraction", out / "features", [*options, *warmup])
        train(first, before, out / "features", options)
        rows: dict[str, dict[str, Outcome]] = {}
        previous = before
        for night, begin in enumerate(begins[1:], start=1):
            folder = cut(data, out / "data" / f"night-{night}", begin)
            known = set(read_items(folder)["item_id"])
            runs = {"scratch": out / f"scratch-{night}", "warm": out / f"{name}-{night}"}
            train(folder, runs["scratch"], out / "features", options)
            start = ["--warm-start", str(previous), *(part for change in warm for part in ("--set", change))]
            train(folder, runs["warm"], out / "features", start)
            previous = runs["warm"]
            day = next_day(data, begin)
            found = {kind: outcome(run, *day, known) for kind, run in runs.items()}
            found["unchanged"] = Outcome(rank(before, *day, known))
            rows[time.strftime("%Y-%m-%d", time.gmtime(begin - 1))] = found
        settings = describe_preset(preset, changes)
        print(f"\n{data.name}, {model}, {settings}; warm start: {', '.join(warm) or 'default budget'}; {describe()}\n")
        print(table(rows))


if __name__ == "__main__":
    typer.run(main)
