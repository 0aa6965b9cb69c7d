"""Items that nobody was trained on, added through the API: do they reach those who later took them?

    python benchmarks/cold_items.py prepare DATA OUT             # OUT/data without 50 items, OUT/held-out.json
    msm4sr run OUT/data --out OUT/run
    python benchmarks/cold_items.py measure DATA OUT             # serves OUT/run, adds them, asks for every history

DATA is a prepared folder with texts and pictures. The 50 are drawn (by seed) among items with both and between 20 and
200 interactions; they leave the catalogue and the log altogether. Then they are added by POST /items with title, text
and picture. For every user who took one of them, 20 recommendations are asked for the history before that moment,
without held-out items, and we count how often the item is among them. Chance is 20 out of all items that were not in
the history; `others` is the share of the 49 other held-out items in the same lists.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from service import Server, serving

from msm4sr.cli.console import told
from msm4sr.data.files import new_folder
from msm4sr.data.schema import read_interactions, read_items
from msm4sr.errors import InputError

HELD_OUT, LEAST, MOST, K = 50, 20, 200, 20
BATCH = 64  # histories a request

app = typer.Typer(no_args_is_help=True, add_completion=False)
Data = Annotated[Path, typer.Argument(help="A prepared folder.")]
Out = Annotated[Path, typer.Argument(help="The folder of the experiment.")]


def choose(data: Path, count: int, seed: int) -> list[str]:
    """Ids of items with text and picture, taken neither rarely nor by everybody."""
    items = read_items(data)
    whole = items.filter(pl.col("text").is_not_null() & (pl.col("image").list.len() > 0))["item_id"]
    taken = read_interactions(data)["item_id"].value_counts()
    fit = taken.filter(pl.col("count").is_between(LEAST, MOST) & pl.col("item_id").is_in(whole.implode()))
    ids = sorted(fit["item_id"].to_list())
    if len(ids) < count:
        raise InputError(f"{data}: {len(ids)} items have text, picture and {LEAST} to {MOST} interactions, not {count}")
    return [ids[place] for place in np.random.default_rng(seed).choice(len(ids), count, replace=False)]


@app.command()
def prepare(data: Data, out: Out, items: int = HELD_OUT, seed: int = 0) -> None:
    """The data without the items that are held out."""
    with told():
        held_out = choose(data, items, seed)
        with new_folder(out / "data") as folder:
            for name in ("interactions.parquet", "items.parquet"):
                table = pl.read_parquet(data / name)
                table.filter(~pl.col("item_id").is_in(held_out)).write_parquet(folder / name)
            shutil.copytree(data / "images", folder / "images")
        (out / "held-out.json").write_text(json.dumps(held_out))
        print(f"{len(held_out)} items held out; next: msm4sr run {out / 'data'} --out {out / 'run'}")


@app.command()
def measure(data: Data, out: Out, k: int = K) -> None:
    """How often the held-out items reach those who took them."""
    with told(), tempfile.TemporaryDirectory() as scratch:
        held_out: list[str] = json.loads((out / "held-out.json").read_text())
        with serving(out / "run", Path(scratch) / "state") as server:
            add(server, data, held_out)
            n_items = server.client.get("/ready").json()["items"]
            pairs = pairs_of(data, held_out)
            lists = ask(server, [history for history, _ in pairs], k)
        hits = np.array([item in found for (_, item), found in zip(pairs, lists, strict=True)])
        cold, share = set(held_out), hits.mean()
        others = np.mean([len((cold & found) - {item}) for (_, item), found in zip(pairs, lists, strict=True)])
        chance = np.mean([k / (n_items - len(set(history))) for history, _ in pairs])
        reached = {item for (_, item), hit in zip(pairs, hits, strict=True) if hit}
        print(f"{len(held_out)} items added to {n_items - len(held_out):,}; {len(pairs):,} histories of who took one")
        print(f"among the first {k}: {share:.4f} of the histories; by chance {chance:.4f}, {share / chance:.1f} times")
        print(f"others of the {len(held_out)} in the same lists: {others / (len(held_out) - 1):.4f} each")
        print(f"{len(reached)} of {len(held_out)} items reached at least one")


def add(server: Server, data: Path, held_out: list[str]) -> None:
    items = read_items(data).filter(pl.col("item_id").is_in(held_out))
    for item_id, title, text, images in items.select("item_id", "title", "text", "image").iter_rows():
        files = {"pictures": (Path(images[0]).name, (data / images[0]).read_bytes(), "application/octet-stream")}
        fields = {"item_id": item_id, "title": title or "", "text": (text or "")[:20_000]}
        answer = server.client.post("/items", data=fields, files=files)
        if answer.status_code != 201:
            raise InputError(f"item {item_id!r} was not added: {answer.text}")


def pairs_of(data: Path, held_out: list[str]) -> list[tuple[list[str], str]]:
    """(history before, item) for every user and held-out item that was taken after some other item."""
    log = read_interactions(data).sort("order", maintain_order=True)
    cold = set(held_out)
    users = log.filter(pl.col("item_id").is_in(held_out))["user_id"].unique()
    taken = log.filter(pl.col("user_id").is_in(users.implode())).group_by("user_id", maintain_order=True).agg("item_id")
    pairs = []
    for items in taken["item_id"].to_list():
        seen: list[str] = []
        for item in items:
            if item not in cold:
                seen.append(item)
            elif seen:
                pairs.append((seen[-500:], item))
    return pairs


def ask(server: Server, histories: list[list[str]], k: int) -> list[set[str]]:
    found: list[set[str]] = []
    for start in range(0, len(histories), BATCH):
        body = {"histories": histories[start : start + BATCH], "k": k}
        results = server.client.post("/recommend/batch", json=body).json()["results"]
        found += [{one["item_id"] for one in result["items"]} for result in results]
    return found


if __name__ == "__main__":
    app()
