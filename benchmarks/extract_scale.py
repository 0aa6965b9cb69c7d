"""Time per item and memory of extraction by catalogue size: two sentences per item, an encoder that costs nothing.

    python benchmarks/extract_scale.py                  # 10,000, 100,000 and 1,000,000 items
    python benchmarks/extract_scale.py 10000 100000     # these sizes
    python benchmarks/extract_scale.py --no-pysbd       # titles only: bookkeeping without the splitter

Prints, for each size and in separate processes: items per CPU second of a first extraction, of a second without
changes, and of a third with one changed item in a hundred; the share of that time in splitting; and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from msm4sr.data.dataset import Dataset
from msm4sr.features.extract import Encoders, extract_features
from msm4sr.features.extractors import sentences
from msm4sr.features.settings import FeatureSettings
from msm4sr.ragged import Ragged

DIM = 384
SIZES = (10_000, 100_000, 1_000_000)


class Stub:
    """Vectors of MiniLM's dimension at no cost."""

    name, fingerprint, dim, backend = "stub", "stub", DIM, "stub"

    def encode(self, texts: Sequence[str], advance: Callable[[int], None] | None = None) -> np.ndarray:
        if advance is not None:
            advance(len(texts))
        return np.full((len(texts), DIM), len(texts), np.float32)


def catalogue(n: int, split: bool, changed: int = 0) -> Dataset:
    """Items with a title and, with `split`, one more sentence; every `changed`-th item differs."""
    number = pl.int_range(n, eager=True)
    other = pl.lit(" again") if changed else pl.lit("")
    items = pl.DataFrame({"number": number}).select(
        item_id=pl.format("item-{}", "number"),
        title=pl.format("The {}th thing of a large shop", "number")
        + pl.when(pl.col("number") % max(changed, 1) == 0).then(other).otherwise(pl.lit("")),
        text=pl.format("It is made of wood and was painted by hand in the year {}.", "number")
        if split
        else pl.lit(None),
        image=pl.lit(None, pl.List(pl.String)),
    )
    ids = items["item_id"].to_list()
    return Dataset(Path("nowhere"), ["u"], ids, Ragged(np.arange(3, dtype=np.int32), np.array([0, 3])), items, {})


def measure(n: int, split: bool, folder: Path, step: str) -> dict[str, float]:
    """CPU seconds, those in the splitter and peak MiB of one extraction into `folder`."""
    in_splitter = 0.0
    split_sentences = sentences.item_sentences

    def timed(*arguments: object) -> list[str]:
        nonlocal in_splitter
        start = time.process_time()
        found = split_sentences(*arguments)  # type: ignore[arg-type]
        in_splitter += time.process_time() - start
        return found

    sentences.item_sentences = timed  # type: ignore[assignment]
    Encoders.sentences = Stub()  # type: ignore[assignment]
    dataset = catalogue(n, split, changed=100 if step == "changed" else 0)
    start = time.process_time()
    features = extract_features(dataset, folder, FeatureSettings.model_validate({"visual": {"kind": "pooled"}}))
    seconds = time.process_time() - start
    assert features["text"].n_rows == n * (2 if split else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "splitter": in_splitter, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--no-pysbd", action="store_true", help="titles only: nothing to split")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (2 x 1.5 kB per item); default: /tmp")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step, folder = options.step
        print(json.dumps(measure(options.sizes[0], not options.no_pysbd, Path(folder), step)))
        return
    for n in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for step in ("first", "unchanged", "changed"):
                command = [sys.executable, __file__, str(n), "--step", step, folder]
                command += ["--no-pysbd"] * options.no_pysbd
                found = json.loads(
                    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
                )
                share = found["splitter"] / found["seconds"]
                print(
                    f"{n:>9,} items, {step:<9}  {n / found['seconds']:.0f} items/s  "
                    f"splitting {share:.0%}  peak {found['peak']:.0f} MiB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
