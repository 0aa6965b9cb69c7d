"""Connect to a Ray cluster, and check that its nodes can do the work.

Every node needs this version of msm4sr, and sees the data and the output under the same paths as this machine: on a
file system that they share. Ray is imported when it is first needed.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msm4sr.errors import InputError, first_line
from msm4sr.nodes import NodeRequirements, Resources, nodes_alive
from msm4sr.ray_executor import RayExecutor
from msm4sr.threads import usable_cores

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0  # in which a cluster must accept a connection
CHECK_SECONDS = 60.0  # in which each node must answer, the start of its first process included


def check_local_path(option: str, path: Path | str) -> None:
    """Raise InputError for the URL of an object store: files are read and written through the file system only."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise InputError(
            f"{option} {path}: object stores are not supported; give a folder (on a file system that all nodes mount "
            "under the same path, if there are several machines)"
        )


@contextmanager
def connected(address: str, resources: Resources, data: Sequence[Path], out: Path) -> Iterator[RayExecutor]:
    """Connect to a Ray cluster for the time of a block.

    Args:
        address: HOST:PORT of the cluster's head, "auto" for the cluster that this machine is part of, or "local" for a
            new one on this machine.
        resources: of each task.
        data: files and folders that the tasks read.
        out: the folder that they write to; it must exist.

    Raises:
        InputError: no Ray, no cluster, too few resources, another version of the package on a node, or a path that a
            node does not see.
    """
    if find_spec("ray") is None:
        raise InputError("--ray needs Ray: pip install 'msm4sr[ray]'")
    import ray

    mark = out.absolute() / f".ray-{secrets.token_hex(4)}"
    _connect(address)
    try:
        _check_resources(resources)
        mark.write_text("seen by all nodes of a Ray cluster\n")
        requirements = NodeRequirements.of([*data, mark])
        _check_nodes(requirements)
        yield RayExecutor(resources, requirements)
    finally:
        ray.shutdown()
        mark.unlink(missing_ok=True)


def _connect(address: str) -> None:
    import ray

    if "://" in address:
        raise InputError(
            f"--ray {address}: give HOST:PORT of the head of a cluster that this machine is a node of, auto, or local"
        )
    if re.fullmatch(r".+:\d+", address):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(
                f"--ray {address}: no cluster answers ({first_line(error)}); start one with `ray start --head`, or "
                "correct the address"
            ) from None
    elif address not in (LOCAL, AUTO):
        raise InputError(f"--ray {address}: give HOST:PORT, auto, or local")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES as it is
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # our own errors say what is wrong
    logging.getLogger("ray").setLevel(logging.ERROR)
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"num_cpus": len(usable_cores()), "include_dashboard": False}
        os.environ.setdefault("RAY_worker_niceness", "0")  # as our own processes; Ray's 15 starves on a shared machine
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--ray {address}: cannot connect ({first_line(error)})") from None


def _check_resources(wanted: Resources) -> None:
    """Raise InputError if no node can run a single task."""
    nodes = nodes_alive()
    if not any(wanted.fit_in(node["Resources"]) for node in nodes):
        largest = max(
            (node["Resources"] for node in nodes), key=lambda there: (there.get("GPU", 0), there.get("CPU", 0))
        )
        has = Resources(int(largest.get("CPU", 0)), largest.get("GPU", 0))
        raise InputError(
            f"--ray: a task needs {wanted}, but no node has so many: of {len(nodes)} nodes the largest has {has}; "
            "change --cpus and --gpus, or add a node"
        )


def check_one_machine(option: str, otherwise: str) -> None:
    """Raise InputError if the connected cluster has several machines: `option` works on one only."""
    machines = {node["NodeManagerAddress"] for node in nodes_alive()}
    if len(machines) > 1:
        raise InputError(f"{option}: safe on one machine only, but the cluster has {len(machines)}; {otherwise}")


def _check_nodes(requirements: NodeRequirements) -> None:
    """Raise InputError for the first node that lacks something."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(_problem)
    refs = {}
    for node in nodes_alive():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs[node["NodeManagerAddress"]] = check.options(scheduling_strategy=there).remote(requirements)
    for address, ref in refs.items():
        try:
            problem = ray.get(ref, timeout=CHECK_SECONDS)
        except RayError as error:
            raise InputError(
                f"--ray: node {address} cannot start msm4sr ({first_line(error)}); install the same version on all "
                "nodes"
            ) from None
        if problem is not None:
            raise InputError(problem)


def _problem(requirements: NodeRequirements) -> str | None:
    """What this node lacks; None if nothing."""
    try:
        requirements.check()
    except InputError as error:
        return str(error)
    return None
