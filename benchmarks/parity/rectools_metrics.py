"""Metrics beyond accuracy by RecTools, and the Gini index by PySAL. Runs in its own environment, without this package.

    .venv-rectools/bin/python benchmarks/parity/rectools_metrics.py FOLDER

Reads from FOLDER lists.json: {"k": [cut-offs], "lists": [the items of each user, best first], "interactions": [[user,
item], ...]}, and for each way to compare items, content.npy and categories.npy: a vector of each item [items, D], 0
for items without one. Writes metrics.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from inequality.gini import Gini
from rectools import Columns
from rectools.metrics import AvgRecPopularity, CatalogCoverage, IntraListDiversity, MeanInvUserFreq
from rectools.metrics.distances import PairwiseDistanceCalculator


class CosineDistance(PairwiseDistanceCalculator):
    """1 - cosine; not a number, which RecTools ignores in its means, for an item without a vector."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors.astype(np.float64)

    def _get_distances_for_item_pairs(self, items_0: np.ndarray, items_1: np.ndarray) -> np.ndarray:
        first, second = (self.vectors[np.asarray(items, dtype=np.int64)] for items in (items_0, items_1))
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        with np.errstate(invalid="ignore"):
            return 1 - (first * second).sum(axis=1) / lengths


def main(folder: Path) -> None:
    job = json.loads((folder / "lists.json").read_text())
    rows = [(u, item, rank) for u, items in enumerate(job["lists"]) for rank, item in enumerate(items, start=1)]
    reco = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Rank])
    interactions = pd.DataFrame(job["interactions"], columns=[Columns.User, Columns.Item])
    vectors = {name: np.load(folder / f"{name}.npy") for name in ("content", "categories")}
    catalogue = np.arange(len(vectors["content"]))
    seen = set(interactions[Columns.Item])
    cold = pd.DataFrame({Columns.Item: [item for item in catalogue if item not in seen]})
    found = {}
    for k in job["k"]:
        listed = reco.loc[reco[Columns.Rank] <= k, Columns.Item].value_counts().reindex(catalogue, fill_value=0)
        found[f"coverage@{k}"] = CatalogCoverage(k, normalize=True).calc(reco, catalogue)
        found[f"gini@{k}"] = Gini(listed.to_numpy().astype(np.float64)).g
        found[f"novelty@{k}"] = MeanInvUserFreq(k).calc(reco, interactions)
        found[f"popularity@{k}"] = AvgRecPopularity(k).calc(reco, interactions)
        found[f"cold@{k}"] = AvgRecPopularity(k).calc(reco, cold)  # each cold item counts 1, all others 0
        for name, of_items in vectors.items():
            found[f"diversity_{name}@{k}"] = IntraListDiversity(k, CosineDistance(of_items)).calc(reco)
    (folder / "metrics.json").write_text(json.dumps({name: float(value) for name, value in found.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
