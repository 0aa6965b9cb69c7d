"""Remove the images of a random share of the items; the embeddings of the others become a file for --features.

    msm4sr extract DATA/ml-1m --features FEATURES --out EXTRACTED
    python benchmarks/remove_images.py FEATURES/visual-pooled-efficientnet-lite0 0.5 half.parquet
    msm4sr run DATA/ml-1m --features visual=half.parquet --out RUN

The items of a smaller share are among those of a larger one. Of an item with several images, the first is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

from msm4sr.cli.console import handle_errors
from msm4sr.features.store import load_features


def main(
    store: Annotated[Path, typer.Argument(help="A folder of extracted image embeddings.")],
    removed: Annotated[float, typer.Argument(min=0, max=1, help="The share of items whose images are removed.")],
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
) -> None:
    with handle_errors():
        images = load_features(store)
        with_image = np.flatnonzero(np.diff(images.offsets))
        shuffled = np.random.default_rng(1).permutation(with_image)
        kept = np.sort(shuffled[: round(len(shuffled) * (1 - removed))])
        vectors = images.values[images.offsets[kept]]  # the first image of an item
        pl.DataFrame({"item_id": [images.item_ids[item] for item in kept], "vector": vectors}).write_parquet(out)
        print(f"{out}: {len(kept):,} of {len(with_image):,} items")


if __name__ == "__main__":
    typer.run(main)
