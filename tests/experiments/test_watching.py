"""Warnings of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import make_dataset

from msm4sr.experiments.run import Run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import extract_stage, falls_from_the_start, train_stage
from msm4sr.features.extract import Extraction
from msm4sr.features.store import Features
from msm4sr.models.base import Inputs
from msm4sr.models.baselines.sasrec import SASRec


@pytest.mark.parametrize(
    ("values", "falls"),
    [
        ([0.3, 0.2, 0.1], True),
        ([0.3, 0.2, 0.1, 0.05], False),  # warned before
        ([0.3, 0.2], False),
        ([0.2, 0.3, 0.1], False),
        ([0.3, 0.2, 0.2], False),
    ],
)
def test_a_validation_that_falls_from_the_first_epoch_on_is_noticed_at_the_third(
    values: list[float], falls: bool
) -> None:
    rows = [{"stage": "pretrain", "mrr": 1.0 - e} for e in range(3)]
    rows += [{"stage": "finetune", "mrr": value} for value in values] + [{"stage": "finetune", "loss": 1.0}]
    assert falls_from_the_start(rows[:-1], "finetune", "mrr") == falls


def test_the_warning_of_a_falling_validation_says_what_to_do_and_appears_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(
        "msm4sr.training.trainer.evaluate",
        lambda *_: dict.fromkeys(("recall@20", "recall@10", "ndcg@10"), next(values)),
    )
    dataset = make_dataset([[0, 1, 2, 3, 4]] * 4, 5)
    settings = resolve_settings("seed", "sasrec", ["finetune.epochs=5", "model.dim=8", "device.accelerator=cpu"])
    run = Run(tmp_path, tmp_path, tmp_path, "seed", settings)
    train_stage(run, "finetune", dataset, SASRec(settings.model, Inputs(5)))
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "recall@20 on validation has fallen since the first epoch" in warning
    assert "lower finetune.learning_rate" in warning


@pytest.mark.parametrize(
    ("there", "said"), [(0, "visual: missing for every item"), (4, "visual: 6 of 10 items lack it; they are "), (5, "")]
)
def test_a_modality_that_most_items_lack_is_warned_of_once_with_what_to_do(
    there: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"i{i}" for i in range(10)]
    offsets = np.minimum(np.arange(11), there)
    found = Features(np.ones((there, 3), dtype=np.float32), offsets, names)
    texts = Features(np.ones((10, 3), dtype=np.float32), np.arange(11), names)
    monkeypatch.setattr(Extraction, "extract", lambda *_, **options: {"text": texts, "visual": found})
    run = Run(tmp_path, tmp_path, tmp_path, "seed", resolve_settings("seed"))
    extract_stage(run, make_dataset([[0, 1, 2]], 10))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(said)
    assert all(said in warning for warning in warnings)
    assert all("items.parquet" not in warning for warning in warnings)  # few can complete thousands of items
    if there == 4:
        assert "trained and ranked with the missing-modality embedding" in warnings[0]
        assert "--set model.score_with=[text]" in warnings[0]
        assert resolve_settings("seed", changes=["model.score_with=[text]"]).model.score_with == ("text",)  # type: ignore
