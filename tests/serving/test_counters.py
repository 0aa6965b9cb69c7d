"""The counters of a worker whose folder has no space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from msm4sr.serving.metrics import KINDS, RESERVED

COUNT = """
from msm4sr.serving.metrics import Metrics
metrics = Metrics()
metrics.count_request("/items", "GET", 200, 0.1)
print(metrics.text().decode())
"""


@pytest.mark.parametrize("exists", [True, False])
def test_counting_goes_on_without_space_for_files(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "none"  # writing there fails, as on a full disk
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    assert 'msm4sr_requests_total{method="GET",route="/items",status="200"} 1.0' in done.stdout
    assert done.stderr.count("/metrics has only the worker that answers") == (not exists)
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [RESERVED] * len(KINDS) * exists
    assert all(file.stat().st_blocks * 512 >= RESERVED for file in tmp_path.iterdir())  # none is sparse
