"""A prepared folder with a random share of the users of another one, and the items that they interacted with.

python benchmarks/subset.py DATA/scientific 0.1 runs/scientific-0.1
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import typer


def main(data: Path, share: float, out: Path) -> None:
    interactions, items = (pl.read_parquet(data / name) for name in ("interactions.parquet", "items.parquet"))
    users = interactions["user_id"].unique(maintain_order=True)
    kept = np.random.default_rng(1).choice(len(users), int(len(users) * share), replace=False)
    interactions = interactions.filter(pl.col("user_id").is_in(users.gather(kept).to_list()))
    items = items.join(interactions.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")
    out.mkdir(parents=True)
    interactions.write_parquet(out / "interactions.parquet")
    items.write_parquet(out / "items.parquet")
    print(f"{out}: {len(kept):,} users, {len(items):,} items, {len(interactions):,} interactions")


if __name__ == "__main__":
    typer.run(main)
