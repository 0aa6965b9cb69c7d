"""A diagnosis of the installation."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement
from rich.table import Table
from rich.text import Text

from msm4sr.cli.console import console, handle_errors

EXTRAS = {
    "serve": "msm4sr serve",
    "tune": "msm4sr tune",
    "fetch": "msm4sr fetch-images",
    "onnx": "msm4sr export onnx",
    "tensorboard": "--log tensorboard",
}
"""Extra to the command that needs it."""
LOW_DISK = 5 * 2**30  # bytes; features and checkpoints of a mid-sized catalogue need less
STYLES = {"ok": "green", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` says what to do where the state is not "ok"."""

    name: str
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str = ""


def doctor() -> None:
    """Check the installation: versions, devices, encoders, disk space, and which extras are missing."""
    with handle_errors():
        checks = [*check_packages(), *check_devices(), *check_encoders(), *check_disk(), *check_extras()]
        console.print(as_table(checks))
        broken = [check for check in checks if check.state == "broken"]
        missing = sum(check.state == "missing" for check in checks)
        if broken:
            console.print(f"{len(broken)} of {len(checks)} checks failed; see the lines with ->", markup=False)
            raise typer.Exit(1)
        console.print(f"ready; {missing} optional parts are not installed" if missing else "ready", markup=False)


def as_table(checks: list[Check]) -> Table:
    """The checks, one line each, with the remedy below what was found."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(check.name, Text(check.state, STYLES[check.state]), Text(check.found))
        if check.remedy:
            table.add_row("", "", Text(f"-> {check.remedy}", "dim"))
    return table


def check_packages() -> Iterator[Check]:
    """Python, msm4sr and its core dependencies: one line if all fit, one a package that does not."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "broken", python, "")
    yield Check("msm4sr", "ok", f"{version('msm4sr')} in {Path(__file__).parents[1]}")
    core = requirements("")
    wrong = [problem for requirement in core if (problem := problem_of(requirement))]
    for problem in wrong:
        yield Check("core package", "broken", problem, "pip install msm4sr")
    if not wrong:
        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "polars"))
        yield Check("core packages", "ok", f"all {len(core)} installed ({shown}, ...)")


def check_devices() -> Iterator[Check]:
    """What training and encoders can run on."""
    import torch

    from msm4sr.experiments.machine import processor
    from msm4sr.features.backends import native_bf16

    bf16 = ", computes in bf16" if native_bf16(torch.device("cpu")) else ""
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    limited = os.environ.get("OMP_NUM_THREADS")
    yield Check("cpu", "ok", f"{processor()}, {threads}{f' (OMP_NUM_THREADS={limited})' if limited else ''}{bf16}")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if gpus:
        yield Check("gpu", "ok", ", ".join(gpus))
    elif torch.backends.mps.is_available():
        yield Check("gpu", "ok", "Apple MPS")
    else:
        yield Check(
            "gpu", "missing", "none; training runs on the CPU", "for an NVIDIA GPU install a CUDA build of torch"
        )


def check_encoders() -> Iterator[Check]:
    """The built-in encoders, loaded; and CLIP, looked up in the local cache of the hub."""
    from msm4sr.features.efficientnet import EfficientNetLite0
    from msm4sr.features.text import MiniLM

    for name, encoder_class in (("minilm", MiniLM), (EfficientNetLite0.name, EfficientNetLite0)):
        try:
            encoder = encoder_class(name)
            yield Check(f"encoder {name}", "ok", f"{encoder.dim}-d, {getattr(encoder, 'backend', '')}".rstrip(", "))
        except Exception as error:  # whatever a damaged installation raises is what the user must see
            yield Check(f"encoder {name}", "broken", f"{type(error).__name__}: {error}", "pip install msm4sr")
    yield _check_clip()


def _check_clip() -> Check:
    from huggingface_hub import try_to_load_from_cache

    from msm4sr.features.visual import Clip

    name = Clip.source("clip")
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return Check("encoder clip", "ok", f"{name} in the cache of the hub")
    remedy = "features.visual.tagger=clip downloads it on first use; without a network give a model folder"
    return Check("encoder clip", "missing", f"{name} is not in the cache of the hub", remedy)


def check_disk() -> Iterator[Check]:
    """Free space in the working folder, where runs are usually made."""
    free = shutil.disk_usage(Path.cwd()).free
    state: Literal["ok", "broken"] = "ok" if free >= LOW_DISK else "broken"
    yield Check(
        "free disk", state, f"{free / 2**30:,.0f} GiB in {Path.cwd()}", "" if state == "ok" else "free some space"
    )


def check_extras() -> Iterator[Check]:
    """The optional parts, and the command that installs each."""
    for extra, command in EXTRAS.items():
        wrong = [problem for requirement in requirements(extra) if (problem := problem_of(requirement))]
        if wrong:
            yield Check(f"extra {extra}", "missing", f"{command}: {', '.join(wrong)}", f"pip install 'msm4sr[{extra}]'")
        else:
            yield Check(f"extra {extra}", "ok", command)


def requirements(extra: str) -> list[Requirement]:
    """What the installed package asks for: the core dependencies (""), or those that an extra adds."""
    found = [Requirement(line) for line in requires("msm4sr") or ()]
    core = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    if not extra:
        return core
    return [one for one in found if one not in core and one.marker and one.marker.evaluate({"extra": extra})]


def problem_of(requirement: Requirement) -> str:
    """Why a requirement is not met; empty if it is."""
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    return (
        ""
        if requirement.specifier.contains(there, prereleases=True)
        else f"{requirement.name} {there}, not {requirement.specifier}"
    )
