"""The data source and the encoder of the example package, used by the commands (its model: models/test_registry.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from plugins import plugin_environment


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return plugin_environment(tmp_path)


def command(environment: dict[str, str], *arguments: str | Path) -> str:
    words = [sys.executable, "-m", "msm4sr", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_source_of_another_package_prepares_data(tmp_path: Path, environment: dict[str, str]) -> None:
    rows = [{"user": f"u{n % 2}", "item": f"i{n % 3}", "event": "buy", "at": 100 - n} for n in range(6)]
    lines = [json.dumps(row) for row in rows] + [json.dumps(rows[0] | {"event": "view"}), "no JSON"]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    options = ("--event", "buy", "--max-invalid-fraction", "0.5")
    printed = command(environment, "prepare", "events", tmp_path / "events.jsonl", tmp_path / "shop", *options)
    assert "6 kept of 8, 2 users" in printed
    assert "1 interactions: other events" in printed
    assert "1 interactions: lines that are no event" in printed
    found = pl.read_parquet(tmp_path / "shop" / "interactions.parquet")
    for user, items in (("u0", ["i1", "i2", "i0"]), ("u1", ["i2", "i0", "i1"])):  # the latest line is the oldest event
        assert found.filter(pl.col("user_id") == user).sort("timestamp")["item_id"].to_list() == items


def test_an_encoder_of_another_package_encodes_the_texts(tmp_path: Path, environment: dict[str, str]) -> None:
    from msm4sr.features.store import load_features

    data = tmp_path / "shop"
    data.mkdir()
    events = [(f"u{u}", f"i{(u + step) % 6}", step) for u in range(6) for step in range(4)]
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_parquet(data / "interactions.parquet")
    titles = [f"toy {n}" for n in range(6)]
    pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": titles}).write_parquet(data / "items.parquet")
    encoder = ("--set", "features.text.encoder=hashing")
    command(environment, "extract", data, "--out", tmp_path / "run", "--set", "model.score_with=[text]", *encoder)
    features = load_features(tmp_path / "run" / "features" / "text-hashing")
    assert features.values.shape == (6, 256)
    same = features.values @ features.values.T  # "toy 0" and "toy 1" share one of two words, since "0" is no word
    assert (same > 0.99).all()
