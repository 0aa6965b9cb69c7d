"""The nodes of a Ray cluster: what a task occupies, and what each node must have."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError


@dataclass(frozen=True)
class Resources:
    """What each task, or each encoder, occupies on its node."""

    cpus: int = 1
    gpus: float = 0

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' if self.gpus > 1 else ''}" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}"

    def fit_in(self, node: dict[str, float]) -> int:
        """How often a node has them."""
        cpus, gpus = node.get("CPU", 0) // self.cpus, node.get("GPU", 0)
        return int(min(cpus, gpus // self.gpus) if self.gpus else cpus)


@dataclass(frozen=True)
class NodeRequirements:
    """What every node must have to work for this process."""

    code: str  # digest of the package
    files: tuple[tuple[str, int], ...]  # paths and their sizes, to be seen under the same paths

    @classmethod
    def of(cls, paths: Iterable[Path]) -> NodeRequirements:
        """This machine's: the package, and these files or the files in these folders."""
        given = [path.absolute() for path in paths]
        listed = [file for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return cls(package_digest(), tuple((str(file), file.stat().st_size) for file in listed if file.is_file()))

    def check(self) -> None:
        """Raise InputError if this node lacks something."""
        node = f"node {socket.gethostname()} (process {os.getpid()})"
        if package_digest() != self.code:
            raise InputError(
                f"--ray: {node} has another version of msm4sr, in {Path(__file__).parent}; install the same version on "
                "all nodes"
            )
        for file, size in self.files:
            if not Path(file).is_file():
                raise InputError(
                    f"--ray: {node} does not see {file}; put data and output on a file system that all nodes mount "
                    "under the same path"
                )
            if Path(file).stat().st_size != size:
                raise InputError(f"--ray: {node} has another file as {file}; all nodes must mount the same file system")


@cache
def package_digest() -> str:
    """A digest of the source files of this package."""
    made, root = hashlib.blake2b(digest_size=8), Path(__file__).parent
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        made.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return made.hexdigest()


def nodes_alive() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
