"""A diagnosis of the installation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer
from packaging.requirements import Requirement
from rich.table import Column, Table
from rich.text import Text

from msm4sr.cli.console import console, handle_errors
from msm4sr.threads import count_of, use_free_cores

EXTRAS = {  # to the command that needs it
    "serve": "msm4sr serve",
    "tune": "msm4sr tune",
    "fetch": "msm4sr fetch-images",
    "postgres": "serve --state postgresql://..., tune --storage postgresql://...",
    "qdrant": "serve --index qdrant=URL",
    "trace": "traces of a service",
    "ray": "--ray",
    "onnx": "msm4sr export onnx",
    "tensorboard": "--log tensorboard",
    "mlflow": "--log mlflow",
    "wandb": "--log wandb",
    "hub": "push_to_hub",
}
LOW_DISK = 5 * 2**30  # bytes; features and checkpoints of a mid-sized catalogue need less
STYLES = {"ok": "green", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` says what to do if the state (a key of `STYLES`) is not "ok"."""

    name: str
    state: str
    found: str
    remedy: str = ""


def doctor() -> None:
    """Check the installation: versions, devices, encoders, disk space, and which extras are missing."""
    with handle_errors():
        checks = [*check_packages(), *check_devices(), *check_encoders(), *check_disk(), *check_extras()]
        columns = Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold")
        table = Table(*columns, box=None, show_header=False, pad_edge=False)
        for check in checks:
            table.add_row(check.name, Text(check.state, STYLES[check.state]), Text(check.found))
            if check.remedy:
                table.add_row("", "", Text(f"-> {check.remedy}", "dim"))
        console.print(table)
        broken, missing = (sum(check.state == state for check in checks) for state in ("broken", "missing"))
        if broken:
            console.print(f"{broken} of {len(checks)} checks failed; see the lines with ->", markup=False)
            raise typer.Exit(1)
        console.print(f"ready; {missing} optional parts are not installed" if missing else "ready", markup=False)


def check_packages() -> Iterator[Check]:
    """Python, msm4sr and its core dependencies: one line if all versions fit, else one per package that does not."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok", python)
    yield Check("msm4sr", "ok", f"{version('msm4sr')} in {Path(__file__).parents[1]}")
    for problem in (wrong := problems("")):
        yield Check("core package", "broken", problem, "pip install msm4sr")
    if not wrong:
        shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "polars"))
        yield Check("core packages", "ok", f"all {len(requirements(''))} installed ({shown}, ...)")


def check_devices() -> Iterator[Check]:
    """The devices that training and encoders can use."""
    threads = use_free_cores()  # before torch is imported
    import torch

    from msm4sr.experiments.machine import processor
    from msm4sr.features.backends import native_bf16

    bf16 = ", computes in bf16" if native_bf16(torch.device("cpu")) else ""
    shown = threads or count_of(torch.get_num_threads(), "thread")
    yield Check("cpu", "ok", f"{processor()}, {shown}{bf16}")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if gpus or torch.backends.mps.is_available():
        yield Check("gpu", "ok", ", ".join(gpus) or "Apple MPS")
    else:
        remedy = "for an NVIDIA GPU install a CUDA build of torch"
        yield Check("gpu", "missing", "none; training runs on the CPU", remedy)


def check_encoders() -> Iterator[Check]:
    """The built-in encoders, loaded; and CLIP, looked up in the local cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    from msm4sr.features.efficientnet import EfficientNetLite0
    from msm4sr.features.text import MiniLM
    from msm4sr.features.visual import Clip

    for name, encoder_class in (("minilm", MiniLM), (EfficientNetLite0.name, EfficientNetLite0)):
        try:
            encoder = encoder_class(name)
            yield Check(f"encoder {name}", "ok", f"{encoder.dim}-d, {getattr(encoder, 'backend', '')}".rstrip(", "))
        except Exception as error:  # show the user whatever a damaged installation raises
            yield Check(f"encoder {name}", "broken", f"{type(error).__name__}: {error}", "pip install msm4sr")
    name = Clip.source("clip")
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        yield Check("encoder clip", "ok", f"{name} in the cache of the hub")
    else:
        remedy = "features.visual.tagger=clip downloads it on first use; without network access, set a model folder"
        yield Check("encoder clip", "missing", f"{name} is not in the cache of the hub", remedy)


def check_disk() -> Iterator[Check]:
    """Free space in the working folder, where runs are usually made."""
    free = shutil.disk_usage(Path.cwd()).free
    state, remedy = ("ok", "") if free >= LOW_DISK else ("broken", "free some space")
    yield Check("free disk", state, f"{free / 2**30:,.0f} GiB in {Path.cwd()}", remedy)


def check_extras() -> Iterator[Check]:
    """The optional parts, and the command that installs each."""
    from msm4sr.experiments.loggers import LOGGERS, missing_packages

    for extra, command in EXTRAS.items():
        works = extra in LOGGERS and not missing_packages(extra)  # tensorboardX is as good as tensorboard
        if not works and (wrong := problems(extra)):
            yield Check(f"extra {extra}", "missing", f"{command}: {', '.join(wrong)}", f"pip install 'msm4sr[{extra}]'")
        else:
            yield Check(f"extra {extra}", "ok", command)


def requirements(extra: str) -> list[Requirement]:
    """The requirements of the installed package: the core dependencies (""), or those that an extra adds."""
    found = [Requirement(line) for line in requires("msm4sr") or ()]
    core = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    added = [one for one in found if one not in core and one.marker and one.marker.evaluate({"extra": extra})]
    return added if extra else core


def problems(extra: str) -> list[str]:
    """Each requirement of `requirements(extra)` that is not met, and why."""
    found = []
    for requirement in requirements(extra):
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            found.append(f"{requirement.name} is not installed")
        else:
            if not requirement.specifier.contains(there, prereleases=True):
                found.append(f"{requirement.name} {there}, not {requirement.specifier}")
    return found
