"""The example package, as after `pip install tests/example_plugin`, for the processes of a test."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

PLUGIN = Path(__file__).parent / "example_plugin"


def plugin_environment(folder: Path) -> dict[str, str]:
    """The variables of a process in which the example package is installed; its metadata is put into `folder`/site."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    metadata = folder / "site" / f"msm4sr_examples-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(folder / "site"), str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "300", "TERM": "dumb"}
