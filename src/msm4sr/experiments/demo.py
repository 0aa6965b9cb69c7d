"""The demo: four systems on a generated toy shop: popularity, texts only, images only, and both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msm4sr.data.dataset import Dataset
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import Run, begin_run, plan_run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, restore, train_stage
from msm4sr.files import remove
from msm4sr.models.base import Model
from msm4sr.progress import NoProgress, Progress
from msm4sr.training.callbacks import Callback

logger = logging.getLogger(__name__)

# The paper's settings, shortened for a small shop. No text names a toy's pattern, so the pooled image features are
# used: keywords can only express what the texts of the catalogue name.
CHANGES = (
    "features.visual.kind=pooled",
    "pretrain.epochs=10",
    "pretrain.schedule=cosine",
    "pretrain.batch_pairs=512",
    "finetune.epochs=10",
    "finetune.schedule=cosine",
    "finetune.batch_pairs=512",
    "finetune.select=ndcg@10",
)
MARK = "made-by-demo.txt"  # a folder without it was not made by the demo and is never deleted
COSINE = "model.similarity=cosine"  # as in pre-training, so that fine-tuning starts from what it has learned
SYSTEMS = {  # from name to model and changes
    "popularity": ("popularity", ()),
    "MSM4SR-T": ("msm4sr", (COSINE, "model.score_with=[text]")),
    "MSM4SR-V": ("msm4sr", (COSINE, "model.score_with=[visual]")),
    "MSM4SR": ("msm4sr", (COSINE,)),
}


@dataclass(frozen=True)
class Demo:
    """The results of the demo: the metrics of each system, and the run of the full model."""

    metrics: dict[str, dict[str, Any]]
    run: Run
    dataset: Dataset
    model: Model


def run_demo(
    out: Path,
    users: int = 3000,
    items: int = 600,
    seed: int = 0,
    changes: tuple[str, ...] = CHANGES,
    progress: Progress = NoProgress(),
    callbacks: Sequence[Callback] = (),
) -> Demo:
    """Generate `out/toyshop`, train the four systems into folders next to it, and evaluate them.

    MSM4SR, -T and -V start from the same pre-training; they differ only in the modalities that score (equation 12).
    """
    shop = out / "toyshop"
    if out.exists() and not (out / MARK).exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty and was not made by the demo; choose another --out")
    remove(shop)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("`msm4sr demo` made this folder and replaces it.\n")
    logger.info("generating %d toys and the interactions of %s users into %s", items, f"{users:,}", shop)
    generate_toyshop(shop, users=users, items=items, seed=seed)
    metrics: dict[str, dict[str, Any]] = {}
    pretrained: Run | None = None
    for name, (model_name, changed) in SYSTEMS.items():
        logger.info("%s", name)
        settings = resolve_settings("seed", model_name, [*changes, *changed], seed)
        run = plan_run(shop, out / name.lower(), settings, "seed", out / "features", overwrite=True)
        dataset = load_run_data(run)
        model = build_model(settings, dataset, extract_stage(run, dataset, progress))
        begin_run(run, dataset.identity)
        if model_name == "msm4sr" and pretrained is None:
            train_stage(run, "pretrain", dataset, model, callbacks)
            pretrained = run
        elif model_name == "msm4sr" and pretrained is not None:
            restore(pretrained, dataset, model, "pretrain")
        train_stage(run, "finetune", dataset, model, callbacks)
        metrics[name] = evaluate_stage(run, dataset, model)
    return Demo(metrics, run, dataset, model)
