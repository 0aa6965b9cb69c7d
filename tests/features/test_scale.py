"""What a large catalogue costs; the figures themselves are those of benchmarks/extract_scale.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "extract_scale.py"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["first", "changed"])
def test_memory_follows_the_names_of_the_items_and_not_their_vectors(tmp_path: Path, step: str) -> None:
    peaks = {}
    for n in (20_000, 100_000):
        for each in dict.fromkeys(("first", step)):
            command = [sys.executable, BENCHMARK, str(n), "--no-pysbd", "--step", each, tmp_path / str(n)]
            shown = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout
            peaks[n] = json.loads(shown)["peak"]
    bytes_an_item = (peaks[100_000] - peaks[20_000]) * 2**20 / 80_000
    assert bytes_an_item < 1024  # a vector alone has 1,536
