"""The environment of the library that we compare with: its own, made on first use, never ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from msm4sr.errors import InputError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def ensure_environment(folder: Path) -> Path:
    """The Python of the environment in `folder`, which is made and filled (minutes, 2 GB) unless it is whole already.

    Raises InputError where there is no Python 3.11, the last that all of its packages install on.
    """
    python, mark = folder / "bin" / "python", folder / ".installed"
    if mark.exists() and mark.read_text() == REQUIREMENTS.read_text():
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        raise InputError("there is no python3.11 on PATH; RecBole and what it needs do not install on a newer one")
    print(f"making {folder} for RecBole: some minutes", flush=True)
    subprocess.run([base, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-qq", "-r", REQUIREMENTS], check=True)
    mark.write_text(REQUIREMENTS.read_text())
    return python
