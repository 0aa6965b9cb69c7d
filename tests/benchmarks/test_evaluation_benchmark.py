"""The comparison of evaluations measures what it claims; RecBole's part needs RecBole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from evaluation import CUTOFFS, GivenScores, Measured, generate, measure, random_vectors, report

from msm4sr.data.dataset import Dataset, test_targets
from msm4sr.evaluation.ranking import Protocol

DATASET = generate(users=40, items=300, length=7)


def metrics_slowly(dataset: Dataset, scores: np.ndarray, exclude_seen: bool) -> dict[str, float]:
    """From the sorted items of each user."""
    found: dict[str, list[float]] = {}
    for row, (*seen, target) in zip(scores, dataset.histories, strict=True):
        candidates = [item for item in range(dataset.n_items) if not (exclude_seen and item in seen)]
        place = 1 + sorted(candidates, key=lambda item: -row[item]).index(target)
        for k in CUTOFFS:
            hit = place <= k
            values = {"recall": float(hit), "ndcg": hit / np.log2(place + 1), "mrr": hit / place}
            values |= {"map": hit / place, "precision": hit / k}
            for name, value in values.items():
                found.setdefault(f"{name}@{k}", []).append(value)
        found.setdefault("mrr", []).append(1 / place)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_generated_histories_have_distinct_items() -> None:
    assert [len(set(history.tolist())) for history in DATASET.histories] == [7] * 40
    assert any(a.tolist() != b.tolist() for a, b in pairwise(DATASET.histories))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("protocol", ["seen_included", "seen_excluded"])
def test_metrics_are_those_of_sorted_items(protocol: Protocol, stored: bool) -> None:
    users, items = random_vectors(DATASET, 16)
    table = users @ items.T
    expected = metrics_slowly(DATASET, table.numpy(), protocol == "seen_excluded")
    before = table.clone()
    found = measure(GivenScores(users, items, table if stored else None), DATASET, protocol, repeats=2)
    assert found.metrics == pytest.approx(expected)
    assert 0.2 < found.metrics["recall@10"] < 1, "the metrics must not be those of chance"
    assert found.seconds > 0
    assert table.equal(before), "a second evaluation must see the same scores"


def test_a_row_has_both_times_their_ratio_and_the_fastest_batch(capsys: pytest.CaptureFixture[str]) -> None:
    ours = Measured(0.5, 10.0, {"recall@10": 0.25})
    theirs = {4096: Measured(5.0, 900.0, {"hit@10": 0.25}), 64: Measured(2.0, 20.0, {"hit@10": 0.25})}
    report("vectors", "seen_included", ours, theirs)
    cells = [cell.strip() for cell in capsys.readouterr().out.strip().strip("|").split("|")]
    assert cells == ["vectors", "included", "0.500", "10", "5.000", "900", "10.0", "2.000 (64 users)", "4.0", "0e+00"]


def test_different_metrics_are_an_error() -> None:
    ours = Measured(0.5, 10.0, {"recall@10": 0.25})
    with pytest.raises(RuntimeError, match="differ"):
        report("vectors", "seen_included", ours, {64: replace(ours, metrics={"hit@10": 0.26})})


def test_the_target_of_a_generated_user_is_the_last_item() -> None:
    assert test_targets(DATASET).targets.tolist() == [history[-1] for history in DATASET.histories]
