"""The main job on a generated toy shop: popularity, text alone, pictures alone, and both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from msm4sr.data.dataset import Dataset
from msm4sr.data.toyshop import generate_toyshop
from msm4sr.errors import InputError
from msm4sr.experiments.metrics import evaluate_stage
from msm4sr.experiments.run import Note, Run, begin_run, plan_run
from msm4sr.experiments.settings import resolve_settings
from msm4sr.experiments.stages import build_model, extract_stage, load_run_data, restore, train_stage
from msm4sr.models.base import Model
from msm4sr.training.trainer import Monitor, Silent

# The paper's settings, made short for a small shop. A toy's pattern is never named in a text, so that its picture is
# read through the pooled layer: keywords carry only what the catalogue has words for.
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
MARK = "made-by-demo.txt"  # what is in a folder without it is not ours to delete
COSINE = "model.similarity=cosine"  # as pre-training compares: fine-tuning then starts from what it has learnt
SYSTEMS = {  # name to model and what differs
    "popularity": ("popularity", ()),
    "MSM4SR-T": ("msm4sr", (COSINE, "model.score_with=[text]")),
    "MSM4SR-V": ("msm4sr", (COSINE, "model.score_with=[visual]")),
    "MSM4SR": ("msm4sr", (COSINE,)),
}


@dataclass(frozen=True)
class Demo:
    """What the demo leaves: each system's metrics, and the full model's run."""

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
    progress: Progress | None = None,
    monitor: Callable[[], Monitor] = Silent,
    note: Note = lambda line: None,
) -> Demo:
    """Generate `out/toyshop`, train the four systems into folders beside it, and measure them.

    -T and -V differ from the full model in what scores (equation 12) alone: the three start from one pre-training.
    """
    shop = out / "toyshop"
    if shop.exists():
        if not (out / MARK).exists():
            raise InputError(f"{shop}: the folder is there already and was not made by the demo; name another --out")
        shutil.rmtree(shop)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text("`msm4sr demo` made this folder and makes it anew.\n")
    note(f"drawing {items} toys, and what {users:,} users took of them, into {shop}")
    generate_toyshop(shop, users=users, items=items, seed=seed)
    metrics: dict[str, dict[str, Any]] = {}
    pretrained: Run | None = None
    for name, (model_name, differs) in SYSTEMS.items():
        note(f"[bold]{name}[/bold]")
        settings = resolve_settings("seed", model_name, [*changes, *differs], seed)
        run = plan_run(shop, out / name.lower(), settings, "seed", out / "features", overwrite=True)
        dataset = load_run_data(run)
        model = build_model(settings, dataset, extract_stage(run, dataset, progress))
        begin_run(run)
        if model_name == "msm4sr" and pretrained is None:
            train_stage(run, "pretrain", dataset, model, monitor())
            pretrained = run
        elif model_name == "msm4sr" and pretrained is not None:
            restore(pretrained, dataset, model, "pretrain")
        train_stage(run, "finetune", dataset, model, monitor())
        metrics[name] = evaluate_stage(run, dataset, model)
    return Demo(metrics, run, dataset, model)
