"""How fast a stage trains, what share of the machine that is, and where the time goes.

    python benchmarks/training.py --data DATA/ml-100k --stage pretrain
    python benchmarks/training.py --data DATA/ml-100k --stage finetune --preset best

The same batches run four times: for the clock, with PyTorch's operation counter, for the parts of
the method, and under PyTorch's profiler. `steps.py` defines a step, `flops.py` an operation, `common.py` the peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from common import (
    Changes,
    Data,
    Preset,
    Threads,
    describe,
    describe_preset,
    matrix_peak,
    memory_now,
    memory_peak,
    reset_memory_peak,
)
from flops import finetune_by_hand, flop_counter, pretrain_by_hand
from steps import Limit, Parts, Stage, Step, run_steps
from torch.profiler import ProfilerActivity, profile

from msm4sr.cli.console import handle_errors, progress_bar
from msm4sr.data.dataset import Dataset, load_dataset
from msm4sr.errors import InputError
from msm4sr.experiments.settings import RunSettings, resolve_settings
from msm4sr.experiments.stages import build_model
from msm4sr.features.extract import extract_features
from msm4sr.features.store import Features
from msm4sr.models.baselines.sasrec import SASRec
from msm4sr.models.msm4sr import MSM4SR, MSM4SRConfig

TOP = 10  # operations of the profile that are printed
PROFILED = 20  # steps of the profile and of the parts


def main(
    data: Data,
    stage: Annotated[Stage, typer.Option(help="The stage to measure.", show_default=False)],
    preset: Preset = "seed",
    model: Annotated[str, typer.Option(help="A model with that stage.")] = "msm4sr",
    changes: Changes = [],
    features: Annotated[Path | None, typer.Option(help="Extracted features; default: runs/features/NAME.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps.")] = 100,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before the timed ones.")] = 10,
    threads: Threads = 2,
) -> None:
    torch.set_num_threads(threads)
    with handle_errors():
        settings = resolve_settings(preset, model, ["device.accelerator=cpu", *changes])
        dataset = load_dataset(data, settings.dataset)
        rows = read_features(dataset, settings, features or Path("runs/features") / data.name)
        if stage == "pretrain" and not rows:
            raise InputError(f"--stage pretrain: {model} has no pre-training; use --stage finetune")
        print(f"# {stage} of {model} on {data.name}: {describe_preset(preset, changes)}\n")
        print(f"{describe()}; {steps} steps after {warmup} of warm-up\n")
        report(stage, dataset, settings, rows, steps, warmup)


def read_features(dataset: Dataset, settings: RunSettings, folder: Path) -> dict[str, Features]:
    """Stored or extracted features; empty for a model without features."""
    if not isinstance(settings.model, MSM4SRConfig):
        return {}
    with progress_bar() as progress:
        return extract_features(dataset, folder, settings.features, progress)


def report(
    stage: Stage, dataset: Dataset, settings: RunSettings, features: dict[str, Features], steps: int, warmup: int
) -> None:
    """Measure and print Markdown."""
    model = build_model(settings, dataset, features)
    model.train()
    loaded = memory_now()
    dtypes = {"float32": torch.float32}
    if "bf16" in settings.device.precision:
        dtypes["bfloat16"] = torch.bfloat16
    before = {name: matrix_peak(dtype) for name, dtype in dtypes.items()}
    so_far = memory_peak()
    reset_memory_peak()
    timed = run_steps(stage, model, dataset, settings, Limit(warmup + steps))[warmup:]
    peak_memory = memory_peak()
    after = {name: matrix_peak(dtype) for name, dtype in dtypes.items()}

    with flop_counter() as counter:
        clock = counter.get_total_flops
        counted = run_steps(stage, model, dataset, settings, Limit(warmup + steps), clock)[warmup:]
    parts = Parts()
    run_steps(stage, model, dataset, settings, Limit(PROFILED), listen=parts.listen)
    milliseconds = parts.close()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run_steps(stage, model, dataset, settings, Limit(PROFILED))

    by_hand = float(np.mean([count_by_hand(stage, model, step, settings) for step in timed]))
    print("| what | measured |\n|---|--:|")
    print_speed(timed)
    print_operations(timed, sum(step.cost for step in counted) / len(counted), by_hand, before, after)
    line("peak memory of the process while training", f"{peak_memory:.0f} MiB")
    line("of it above data, features and weights", f"{peak_memory - loaded:.0f} MiB")
    line("peak memory before training (loading, measuring the peak)", f"{so_far:.0f} MiB")
    print_parts(milliseconds)
    print_profile(profiler.key_averages(), PROFILED)


def print_speed(timed: list[Step]) -> None:
    seconds, pairs = sum(step.cost for step in timed), sum(step.pairs for step in timed)
    slots, tokens = sum(step.slots for step in timed), sum(step.tokens for step in timed)
    spread = np.percentile([step.pairs / step.cost for step in timed], [50, 10, 90])
    line("speed, all timed steps", f"{pairs / seconds:.0f} pairs/s")
    line("speed, median step (10th to 90th percentile)", "{:.0f} pairs/s ({:.0f} to {:.0f})".format(*spread))
    line("steps", f"{len(timed) / seconds:.2f} steps/s")
    line("pairs in a step, mean", f"{pairs / len(timed):.0f}")
    line("history positions", f"{tokens / seconds:.0f} tokens/s")
    line("share of padding among positions", f"{1 - tokens / slots:.3f}")


def print_operations(
    timed: list[Step], flops: float, by_hand: float, before: dict[str, float], after: dict[str, float]
) -> None:
    """Of a mean step; `before` and `after` are the peaks per data type, operations per second."""
    rate = flops * len(timed) / sum(step.cost for step in timed)
    line("operations of a step, counted (by hand from shapes)", f"{flops / 1e9:.3f} ({by_hand / 1e9:.3f}) GFLOP")
    line("operations", f"{rate / 1e9:.1f} GFLOP/s")
    for name, peak in before.items():
        shown = f"{peak / 1e9:.1f}, {after[name] / 1e9:.1f} GFLOP/s"
        line(f"matrix-product peak, {name}, before and after", shown)
        line(f"share of the {name} peak (mean of the two)", f"{2 * rate / (peak + after[name]):.3f}")


def print_parts(milliseconds: dict[str, float]) -> None:
    total = sum(milliseconds.values())
    print(f"\nParts of a step, {total:.1f} ms:\n\n| part | ms | share |\n|---|--:|--:|")
    for part, each in milliseconds.items():
        print(f"| {part} | {each:.1f} | {each / total:.3f} |")


def count_by_hand(stage: Stage, model: Any, step: Step, settings: RunSettings) -> float:
    """NaN for other models than these two and for a softmax over sampled items."""
    if stage == "pretrain" and isinstance(model, MSM4SR):
        return pretrain_by_hand(model, step.batch, settings.pretrain)
    if isinstance(model, MSM4SR | SASRec) and settings.finetune.samples_of(model.n_items) is None:
        return finetune_by_hand(model, step.batch)
    return float("nan")


def print_profile(events: Iterable[Any], steps: int) -> None:
    """The largest costs by the CPU time of an operation without those that it calls."""
    events = sorted(events, key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\nThe {TOP} largest costs (under the profiler, which slows small operations):\n")
    print("| operation | calls a step | ms a step | share |\n|---|--:|--:|--:|")
    for event in events[:TOP]:
        own = event.self_cpu_time_total
        print(f"| `{event.key}` | {event.count / steps:.0f} | {own / steps / 1000:.2f} | {own / total:.3f} |")


def line(what: str, value: str) -> None:
    print(f"| {what} | {value} |")


if __name__ == "__main__":
    typer.run(main)
