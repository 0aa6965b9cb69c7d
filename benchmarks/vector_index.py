"""Recall and latency of the vector indexes, in one process, over generated item vectors.

    python benchmarks/vector_index.py --items 100000
    python benchmarks/vector_index.py --items 100000 --index exact --index qdrant=http://localhost:6333

Prints a table (Markdown). Item vectors are drawn around 1,000 centres with lengths that differ; a query is near a
centre. Each query asks for 20 items, without 50 excluded ones, and then among the items of a category that one item in
ten has. `qdrant` without an address is a Qdrant in this process, which compares all points: only the address of a
server gives latencies that mean something.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import describe

from msm4sr.cli.console import handle_errors
from msm4sr.recommend.index import ExactIndex, IndexedItems, IndexSettings, VectorIndex, Within, open_index
from msm4sr.recommend.index.qdrant_index import QdrantIndex

CENTRES, K, EXCLUDED, CATEGORIES = 1000, 20, 50, 10


def generate_items(n: int, dim: int, queries: int, folder: Path, seed: int = 0) -> IndexedItems:
    """Items "0", "1", ...; item i has the category i mod 10."""
    generator = torch.Generator().manual_seed(seed)

    def near(count: int) -> torch.Tensor:
        chosen = centres[torch.randint(CENTRES, (count,), generator=generator)]
        return chosen + 0.5 * torch.randn(count, dim, generator=generator)

    centres = torch.randn(CENTRES, dim, generator=generator)
    vectors = near(n) * (0.5 + torch.rand(n, 1, generator=generator))
    asked = near(queries)
    categories = [(str(item % CATEGORIES),) for item in range(n)]
    return IndexedItems(vectors, [str(item) for item in range(n)], categories, lambda: asked, folder)


def open_by_name(name: str, items: IndexedItems) -> VectorIndex:
    settings = IndexSettings.parse(name)
    if name != "qdrant":
        return open_index(items, settings)
    from qdrant_client import QdrantClient

    client = QdrantClient(":memory:")
    return QdrantIndex.open(client, client, "this process", items, settings)


def measure(search: Callable[[torch.Tensor], torch.Tensor], queries: torch.Tensor, exact: list[set[int]]) -> str:
    """Cells of the table: recall, median and 99 % of the milliseconds of a search."""
    times, shares = [], []
    for query, best in zip(queries, exact, strict=True):
        began = time.perf_counter()
        found = search(query)
        times.append(1000 * (time.perf_counter() - began))
        shares.append(len(best & {*found.tolist()}) / len(best))
    median, high = np.percentile(times, [50, 99])
    return f"{np.mean(shares):.4f} | {median:.2f} | {high:.2f}"


def main(
    items: Annotated[int, typer.Option(min=1000, help="Number of items.")] = 100_000,
    dim: Annotated[int, typer.Option(min=1, help="Size of an item vector.")] = 128,
    queries: Annotated[int, typer.Option(min=1, help="Number of searches of each kind.")] = 500,
    index: Annotated[list[str], typer.Option(help="As --index of `msm4sr serve`, repeatable.")] = [
        "exact",
        "approximate",
        "qdrant",
    ],
) -> None:
    warnings.filterwarnings("ignore", module="msm4sr.*")  # of a Qdrant in this process
    with handle_errors(), tempfile.TemporaryDirectory() as scratch:
        torch.set_num_threads(1)
        made = generate_items(items, dim, queries, Path(scratch))
        rows = torch.arange(0, items, CATEGORIES)
        conditions = [Within(excluded=torch.arange(EXCLUDED)), Within(rows, ["0"])]
        asked, brute = made.queries(), ExactIndex(made.vectors)
        exact = [[{*brute.search(query, K, within).rows.tolist()} for query in asked] for within in conditions]
        print(f"{describe()}; {items:,} items of {dim}-d, {queries:,} searches\n")
        print("| index | build, s | recall@20 | p50, ms | p99, ms | recall@20 in a category | p50, ms | p99, ms |")
        print("|---" + "|--:" * 7 + "|")
        for name in index:
            began = time.perf_counter()
            opened = open_by_name(name, replace(made, queries=lambda: asked[:50]))
            seconds = time.perf_counter() - began
            cells = [
                measure(lambda query: opened.search(query, K, within).rows, asked, best)  # noqa: B023
                for within, best in zip(conditions, exact, strict=True)
            ]
            print(f"| {name} | {seconds:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
