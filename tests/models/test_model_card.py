"""The model card that every stored model has, in the format of the Hugging Face hub."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from msm4sr.models.base import Inputs
from msm4sr.models.baselines.sasrec import SASRec, SASRecConfig
from msm4sr.models.model_card import TrainingSummary, model_card

METRICS = {
    "validation, seen items excluded": {"recall@10": 0.51, "ndcg@10": 0.25},
    "test, seen items excluded": {"recall@10": 0.5, "ndcg@10": 0.2},
}
TRAINING = TrainingSummary("toys: small", "best", 3, 1000, 5, 20000, "leave-one-out", METRICS)


def make_model() -> SASRec:
    return SASRec(SASRecConfig(dim=8), Inputs(5))


def test_the_hub_reads_the_metadata_and_the_metrics() -> None:
    data = ModelCard(model_card(make_model(), TRAINING, "mit")).data
    assert (data.library_name, data.license) == ("msm4sr", "mit")
    assert data.tags == ["recommender-systems", "sequential-recommendation", "sasrec"]
    assert data.model_name == "SASRec on toys: small"
    assert data.eval_results is not None
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    assert found == {
        (f"toys: small ({what})", name): value for what, row in METRICS.items() for name, value in row.items()
    }


def test_the_text_says_what_the_model_is_its_data_and_its_metrics() -> None:
    text = ModelCard(model_card(make_model(), TRAINING)).text
    assert "# SASRec on toys: small" in text
    assert "ranks 5 items" in text
    assert "1,000 users, 5 items and 20,000 interactions. Preset `best`, seed 3." in text
    assert "| recall@10 | 0.5100 | 0.5000 |" in text
    assert "Protocol: leave-one-out." in text


def test_what_is_unknown_is_not_in_the_card() -> None:
    card = ModelCard(model_card(make_model()))
    assert set(card.data.to_dict()) == {"library_name", "tags"}
    assert "## Data" not in card.text
    assert "## Metrics" not in card.text


def test_the_code_of_a_stored_card_loads_the_model(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, TRAINING)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    words = [sys.executable, "-c", code + "print(type(model).__name__)"]
    assert subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "SASRec\n"
