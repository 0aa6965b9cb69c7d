"""Paired comparison of rows of a grid: each row with the one that it extends.

    python benchmarks/paired.py GRID --pair sasrecm:sasrec --pair grcn:lightgcn

Prints the difference of NDCG@10 on test between the two rows, each user's mean over the seeds of a row, with the
interval of a paired bootstrap over users and p after Holm's correction over the pairs of a data set and protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from msm4sr.cli.console import handle_errors
from msm4sr.errors import InputError
from msm4sr.evaluation.metrics import metrics_per_user
from msm4sr.evaluation.significance import holm, mean_over_seeds, paired_bootstrap
from msm4sr.evaluation.users import users_of
from msm4sr.reports.results import GridResults, read_grid

PROTOCOLS = {"included": "rank", "excluded": "rank_seen_excluded"}
"""Whether seen items are ranked, and the column of `users.parquet`."""


def ndcg_of(results: GridResults, data: str, row: str, ranks: str) -> np.ndarray:
    """NDCG@10 of each user: [users]."""
    tables = [cell.test_users for cell in results.finished(data, row)] if (data, row) in results.outcomes else []
    found = [table for table in tables if table is not None]
    if not found:
        raise InputError(f"{results.folder}: no finished cell of {row} on {data}")
    return mean_over_seeds([metrics_per_user(table[ranks].to_numpy(), users_of(table))["ndcg@10"] for table in found])


def main(grid: Path, pair: Annotated[list[str], typer.Option(help="ROW:OTHER, repeatable.")]) -> None:
    with handle_errors():
        results, pairs = read_grid(grid), [one.split(":") for one in pair]
        print("| data | seen items | row | against | difference | 95 % | p, Holm |\n|---|---|---|---|--:|--:|--:|")
        for data in results.data:
            for protocol, ranks in PROTOCOLS.items():
                first, second = (
                    np.stack([ndcg_of(results, data, one[side], ranks) for one in pairs], axis=1) for side in (0, 1)
                )
                found = paired_bootstrap(first, second)
                for (row, other), it, p in zip(pairs, found, holm([it.p for it in found]), strict=True):
                    interval = f"{it.low:+.4f} to {it.high:+.4f}"
                    print(f"| {data} | {protocol} | {row} | {other} | {it.mean:+.4f} | {interval} | {p:.3f} |")


if __name__ == "__main__":
    typer.run(main)
