"""Whether a run can be served: its files, a trial run, and whether it differs from the served one."""

from __future__ import annotations

import math
import os
from pathlib import Path

from msm4sr.digests import json_digest
from msm4sr.errors import InputError, command
from msm4sr.recommend.recommender import Recommender
from msm4sr.recommend.scoring import COLLABORATIVE

# The files that are loaded, and their largest size in bytes: half of the memory, if that is less.
LARGEST = {
    "config.yaml": 2**20,
    "metrics.json": 2**26,
    "model/config.json": 2**20,
    "model/items.json": 4 * 2**30,
    "model/model.safetensors": 2**50,
}


def run_signature(run: Path) -> list[object]:
    """The path of a run and the times of the files that are loaded; empty if there is none."""
    try:
        folder = run.resolve()
        stats = [(folder / name).stat() for name in LARGEST]
    except (OSError, RuntimeError):  # a loop of links
        return []
    return [folder, *((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)]


def check_files(run: Path) -> None:
    """Raise InputError if a file of the run is no ordinary file, or too large to be loaded into memory.

    Or if the run is being evaluated: its model is then another than the one before, and the last file is missing.
    """
    for file in [run / "config.yaml", *(run / "model").glob("*")]:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise InputError(f"{file}: not an ordinary file")
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, largest in LARGEST.items():
        file = run / name
        if file.exists() and (size := file.stat().st_size) > min(largest, available // 2):
            raise InputError(f"{file}: too large to be loaded ({size:,} bytes)")
    if (run / "config.yaml").exists() and not (run / "metrics.json").exists():
        raise InputError(f"{run}: not evaluated to the end (no metrics.json); {command('evaluate', run)} ends it")


def try_out(recommender: Recommender) -> None:
    """Recommend, compare and explain once. Raises InputError for scores that are not finite, or any other exception."""
    item_id = recommender.catalogue.item_id(0)
    found = recommender.recommend([item_id], exclude_seen=False, reasons=True).items
    scores = [one.score for one in (*found, *recommender.similar_items(item_id, by=COLLABORATIVE))]
    scores.append(recommender.explain([item_id], item_id).score)
    if not all(map(math.isfinite, scores)):
        raise InputError("the run recommends with scores that are not finite; its weights are damaged")


def encoder_name(recommender: Recommender) -> str:
    """A name for what encodes new items: equal names make equal features."""
    encoder = recommender.encoder
    if encoder is None:
        return ""
    keywords_of = encoder.keywords_of if encoder.settings.visual.kind == "keywords" else None
    return json_digest(encoder.settings.model_dump(mode="json"), encoder.dims, sorted(encoder.precomputed), keywords_of)
