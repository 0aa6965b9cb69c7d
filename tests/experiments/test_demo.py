"""The patterns of the toy shop are found by the method, through the real encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msm4sr.experiments.demo import CHANGES, Demo, run_demo

pytestmark = pytest.mark.slow

# Two patterns, one that only images show and one that only texts name; a small shop shows both.
USERS, ITEMS = 1000, 200


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo"), USERS, ITEMS, seed=1, changes=CHANGES)


def recall(demo: Demo, system: str) -> float:
    value: float = demo.metrics[system]["test"]["recall@10"]
    return value


@pytest.mark.parametrize("alone", ["MSM4SR-T", "MSM4SR-V"])
def test_each_modality_alone_beats_popularity(demo: Demo, alone: str) -> None:
    assert recall(demo, alone) > 1.5 * recall(demo, "popularity")


def test_both_modalities_together_beat_popularity_by_far_and_lose_nothing_against_either_alone(demo: Demo) -> None:
    """A shop of this size and ten epochs leave some 5 % of chance (by the seed); the demo's own size shows a gain."""
    both, alone = recall(demo, "MSM4SR"), [recall(demo, name) for name in ("MSM4SR-T", "MSM4SR-V")]
    assert both > 3 * recall(demo, "popularity")
    assert both > 0.9 * max(alone)
    assert both > 1.1 * min(alone)


def test_the_variants_start_from_one_pre_training(demo: Demo) -> None:
    stages = {
        name: {json.loads(line)["stage"] for line in (demo.run.folder.parent / name / "metrics.jsonl").open()}
        for name in ("msm4sr-t", "msm4sr-v", "msm4sr")
    }
    assert stages == {"msm4sr-t": {"pretrain", "finetune"}, "msm4sr-v": {"finetune"}, "msm4sr": {"finetune"}}


def test_every_system_leaves_a_run_folder(demo: Demo) -> None:
    folders: list[Path] = [demo.run.folder.parent / name.lower() for name in demo.metrics]
    assert all((folder / "metrics.json").exists() and (folder / "model").is_dir() for folder in folders)
