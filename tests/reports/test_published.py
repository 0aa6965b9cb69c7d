"""Published values keep their digits and are found for data sets of the same name alone."""

from __future__ import annotations

import pytest

from msm4sr.reports.comparison import ALL_METRICS
from msm4sr.reports.published import other_results, paper_results

SIZES = {"comparison": (10, 3, 6), "ablation": (7, 2, 6), "modality": (4, 3, 4)}  # systems, data sets, metrics


@pytest.mark.parametrize("table", SIZES)
def test_the_tables_of_the_paper_are_complete(table: str) -> None:
    systems, datasets, metrics = SIZES[table]
    found = [paper_results(table, name) for name in ("Pantry", "Arts", "Office")]
    assert [len(values) for values in found if values] == [systems * metrics] * datasets
    assert all(metric in ALL_METRICS and 0 < printed.value < 1 for v in found for (_, metric), printed in v.items())


def test_values_keep_their_published_digits() -> None:
    pantry = paper_results("comparison", "pantry")
    assert pantry["msm4sr", "recall@5"].text == "0.0405"
    assert pantry["lightgcn", "recall@5"].text == "0.0270"
    assert pantry["msm4sr", "recall@20"] == ("MSM4SR", "recall@20", "0.1040", "arXiv 2303.11879, comparison table", "")
    assert paper_results("ablation", "office")["end-to-end", "ndcg@10"].text == "0.0589"
    assert paper_results("modality", "ARTS")["s3rec", "ndcg@20"].text == "0.0619"


@pytest.mark.parametrize("name", ["pantry-ids", "office23", "small-pantry", "ml-1m", ""])
def test_another_name_is_another_data_set(name: str) -> None:
    assert paper_results("comparison", name) == {}


def test_other_kinds_of_tables_have_no_published_values() -> None:
    assert paper_results("cold_start", "pantry") == {}


def test_other_results_name_protocol_and_source() -> None:
    films = other_results("ml-1m")
    assert ("SASRec+ (cross-entropy)", "ndcg@10", "0.1821") in [printed[:3] for printed in films]
    for printed in [*films, *other_results("scientific")]:
        assert printed.protocol
        assert printed.source
        assert "not verified" not in printed.source
    assert other_results("pantry") == []
