"""The virtual environments of other libraries, created on first use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from msm4sr.errors import InputError

Environment = Annotated[Path, typer.Option("--environment", help="The virtual environment of RecBole.")]

RECBOLE = Path(__file__).with_name("requirements.txt")
RECTOOLS = Path(__file__).with_name("rectools.txt")


def ensure_environment(folder: Path, requirements: Path = RECBOLE) -> Path:
    """The Python of the environment in `folder`; creates and fills it (RecBole: minutes, 2 GB) unless it is complete.

    Raises:
        InputError: there is no Python 3.11, the latest version that all of its packages support.
    """
    python, mark = folder / "bin" / "python", folder / ".installed"
    if mark.exists() and mark.read_text() == requirements.read_text():
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        raise InputError("there is no python3.11 on PATH; these packages do not support a newer version")
    print(f"creating {folder}: some minutes", flush=True)
    subprocess.run([base, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "-r", requirements], check=True)
    mark.write_text(requirements.read_text())
    return python


def run_recbole(
    python: Path, job: dict[str, Any], folder: Path, threads: int, script: str = "run_recbole.py"
) -> dict[str, Any]:
    """Run a job of a script of this folder on the data exported into `folder`, and return the data.json that it writes.

    Other results are written into `folder`. This package is not on RecBole's path.
    """
    options = {"out": str(folder), "threads": threads, "config": job["config"] | {"data_path": str(folder)}}
    (folder / "job.json").write_text(json.dumps(job | options))
    keep = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": str(threads)}
    runner = Path(__file__).with_name(script)
    command = [str(python.absolute()), "-W", "ignore", str(runner), str(folder / "job.json")]
    done = subprocess.run(command, env=keep, cwd=folder, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{script} exited with code {done.returncode}")
    about: dict[str, Any] = json.loads((folder / "data.json").read_text())
    return about
