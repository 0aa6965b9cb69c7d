"""Killed at any moment by SIGKILL, the extraction resumes and leaves the bytes of an undisturbed one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from msm4sr.data.toyshop import generate_toyshop
from msm4sr.features.store import find_stores, load_features

HOOK = '''
import atexit, os, signal, sys
folder, moment, touched = os.environ["FOLDER"], int(os.environ["MOMENT"]), 0

def die(event, arguments):
    """Opening, renaming and removing inside the folder: all that a kill could cut in two. Dies at the MOMENT-th."""
    global touched
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and folder in str(arguments[0]):
        if touched == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        touched += 1

sys.addaudithook(die)
from msm4sr.features import store_builder
store_builder.MIN_ITEMS = 16  # many chunks of a small catalogue
atexit.register(lambda: print(touched))
'''
STUB = (
    HOOK
    + """
import numpy as np
from pathlib import Path
from msm4sr.data.dataset import load_dataset
from msm4sr.features import extract, settings
from msm4sr.features.extract import Encoders
from msm4sr.features.extractors import sentences

class Encoder:
    name, fingerprint, dim, backend = "stub", "stub", 4, "stub"
    def encode(self, sentences, advance=None):  # depends on the batch, as the rounding of real encoders does
        sums = np.array([sum(map(ord, sentence)) for sentence in sentences], np.float32)
        return np.stack([sums, sums ** 0.5, sums * 0 + len(sentences), sums * 0 + sums.sum()], axis=1)

Encoders.sentences = Encoder()
Encoders.sentence_record = lambda self: {"name": "minilm", "fingerprint": "stub"}
sentences.item_sentences = lambda title, text, n, m: [part for part in (title, text) if part]
pooled = settings.FeatureSettings.model_validate({"visual": {"kind": "pooled"}})
extract.extract_features(load_dataset(Path(sys.argv[1])), folder, pooled)
"""
)
REAL = (
    HOOK
    + """
from msm4sr.cli import main
sys.argv = ["msm4sr", "extract", sys.argv[1], "--out", folder, *sys.argv[2:]]
main()
"""
)


def catalogue(folder: Path, n: int, changed: int = 0) -> Path:
    """Items with a text each, that of the first `changed` of them modified, and one interaction each."""
    folder.mkdir(exist_ok=True)
    texts = [f"text {i} {'changed' if i < changed else ''}" for i in range(n)]
    ids = [f"i{i}" for i in range(n)]
    pl.DataFrame({"item_id": ids, "title": ids, "text": texts}).write_parquet(folder / "items.parquet")
    log = {"user_id": ["u"] * 3, "item_id": ids[:3], "position": pl.Series([0, 1, 2], dtype=pl.Int32)}
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    """Every file under the folder."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def start(script: str, data: Path, out: Path, moment: int = -1, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(data), *options]
    environment = os.environ | {"FOLDER": str(out), "MOMENT": str(moment), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def undisturbed(script: str, data: Path, out: Path, *options: str) -> int:
    """Extract; how often a file was touched."""
    process = start(script, data, out, -1, *options)
    said, why = process.communicate()
    assert process.returncode == 0, why
    return int(said.splitlines()[-1])


@pytest.mark.parametrize("moments", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_store_is_that_of_an_undisturbed_run(tmp_path: Path, moments: int) -> None:
    """From a store of an earlier catalogue, so that there is something to copy and something to lose."""
    base, complete, out = tmp_path / "base", tmp_path / "complete", tmp_path / "out"
    undisturbed(STUB, catalogue(tmp_path / "data", 90), base)
    data = catalogue(tmp_path / "data", 100, changed=40)
    shutil.copytree(base, complete)
    touches = undisturbed(STUB, data, complete)
    assert touches > 40
    assert load_features(complete / "text-minilm").n_rows == 200
    for moment in random.Random(moments).sample(range(touches), moments):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(base, out)
        assert start(STUB, data, out, moment).wait() == -signal.SIGKILL
        undisturbed(STUB, data, out)
        assert contents(out) == contents(complete), moment


def test_two_processes_at_once_leave_the_store_of_one(tmp_path: Path) -> None:
    data = catalogue(tmp_path / "data", 2000)
    undisturbed(STUB, data, tmp_path / "alone")
    both = [start(STUB, data, tmp_path / "both") for _ in range(2)]
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


@pytest.mark.slow
def test_the_command_killed_at_ten_random_moments_gives_the_store_of_an_undisturbed_one(tmp_path: Path) -> None:
    """The real command with the real encoders, images and keywords included; each attempt resumes the last."""
    data, out = tmp_path / "shop", tmp_path / "out"
    generate_toyshop(data, users=60, items=300)
    options = ("--preset", "seed", "--set", "features.visual.min_texts=100")
    touches = undisturbed(REAL, data, tmp_path / "complete", *options)
    draw, kills = random.Random(0), 0
    while kills < 10:
        ended = start(REAL, data, out, draw.randrange(touches), *options).wait()
        kills += ended == -signal.SIGKILL
        if ended == 0:  # done before ten kills: once more from the start
            shutil.rmtree(out)
        else:
            assert ended == -signal.SIGKILL
    undisturbed(REAL, data, out, *options)
    assert len(find_stores(out / "features")) == 4
    assert contents(out / "features") == contents(tmp_path / "complete" / "features")
