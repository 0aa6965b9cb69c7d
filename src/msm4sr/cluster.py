"""A Ray cluster: connect to it, check that its nodes can do the work, and run tasks on it.

Every node needs this version of msm4sr, and sees the data and the output under the same paths as this machine: on a
file system that they share. Ray is imported when it is first needed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.errors import InputError, first_line
from msm4sr.executors import RETRIES, Bars, Items, Lost, Message, Reporter, Result, Task, reported_log
from msm4sr.progress import Advance, NoProgress, Progress
from msm4sr.threads import usable_cores

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    Actor = ActorHandle[Any]

logger = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0  # in which a cluster must accept a connection
CHECK_SECONDS = 60.0  # in which each node must answer, the start of its first process included
POLL = 0.25  # seconds between two checks of the tasks and their progress
CANCEL_SECONDS = 30.0  # in which an interrupted task writes its checkpoint; then its process is killed


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
class Worksite:
    """What every node must have to work for this process."""

    code: str  # digest of the package
    files: tuple[tuple[str, int], ...]  # paths and their sizes, to be seen under the same paths

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Worksite:
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
        site = Worksite.of([*data, mark])
        _check_nodes(site)
        yield RayExecutor(resources, site)
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
    nodes = _nodes()
    if not any(wanted.fit_in(node["Resources"]) for node in nodes):
        largest = max(
            (node["Resources"] for node in nodes), key=lambda there: (there.get("GPU", 0), there.get("CPU", 0))
        )
        has = Resources(int(largest.get("CPU", 0)), largest.get("GPU", 0))
        raise InputError(
            f"--ray: a task needs {wanted}, but no node has so many: of {len(nodes)} nodes the largest has {has}; "
            "change --cpus and --gpus, or add a node"
        )


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are alive."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _check_nodes(site: Worksite) -> None:
    """Raise InputError for the first node that lacks something."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(_problem)
    refs = {}
    for node in _nodes():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        refs[node["NodeManagerAddress"]] = check.options(scheduling_strategy=there).remote(site)
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


def _problem(site: Worksite) -> str | None:
    """What this node lacks; None if nothing."""
    try:
        site.check()
    except InputError as error:
        return str(error)
    return None


class Mailbox:
    """An actor that keeps the messages of the workers until the first process reads them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []

    def put(self, worker: str, message: Message) -> None:
        self._messages.append((worker, message))

    def read(self) -> list[tuple[str, Message]]:
        """The messages since the last call."""
        new, self._messages = self._messages, []
        return new


@dataclass(frozen=True)
class Post:
    """Where a worker sends its messages."""

    mailbox: Actor
    worker: str

    def __call__(self, message: Message) -> None:
        self.mailbox.put.remote(self.worker, message)


@contextmanager
def mailbox(progress: Progress) -> Iterator[tuple[Actor, Callable[[], Bars]]]:
    """A mailbox on this node, and a function that shows its new messages."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Mailbox).options(scheduling_strategy=here).remote()
    bars = Bars(progress)

    def show() -> Bars:
        for worker, message in ray.get(actor.read.remote()):
            bars.show(worker, message)
        return bars

    try:
        yield actor, show
    finally:
        show().close_all()
        ray.kill(actor)


@dataclass(frozen=True)
class RayExecutor:
    """Runs the tasks on the nodes of the cluster, as many at a time as fit."""

    resources: Resources
    site: Worksite

    def capacity(self) -> int:
        """How many tasks fit on the nodes that are alive."""
        return sum(self.resources.fit_in(node["Resources"]) for node in _nodes())

    def run(
        self, function: Callable[[Task, Progress], Result], tasks: Iterable[Task], progress: Progress = NoProgress()
    ) -> Iterator[tuple[Task, Result | Lost]]:
        """See `Executor.run`."""
        import ray

        remote = ray.remote(_work).options(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
        )
        shared = ray.put(function)  # once, with the data that it holds
        supply, count = iter(tasks), 0
        running: dict[ObjectRef[Any], tuple[Task, str]] = {}
        with mailbox(progress) as (actor, show):
            try:
                while True:
                    for task in islice(supply, max(0, self.capacity() - len(running))):
                        count += 1
                        post = Post(actor, f"worker {count}")
                        running[remote.remote(shared, task, post, self.site)] = task, post.worker
                    if not running:
                        return
                    ended, _ = ray.wait(list(running), timeout=POLL)
                    bars = show()
                    for ref in ended:
                        task, worker = running.pop(ref)
                        bars.close(worker)
                        yield task, _result(ref)
            finally:
                _cancel(list(running))

    def stream(
        self, function: Callable[[Items, Advance], Result], tasks: Sequence[Items], advance: Advance
    ) -> Iterator[tuple[Items, Result]]:
        """See `Executor.stream`: by Ray Data, with as many workers as fit."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.actor_init_retry_on_errors, context.actor_init_max_retries = True, RETRIES
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        places = [{"place": place} for place in range(len(tasks))]
        size = max(1, min(len(tasks), self.capacity()))
        results = ray.data.from_items(places, override_num_blocks=len(tasks)).map_batches(
            _Actor,
            batch_size=1,
            fn_constructor_args=(ray.put((function, tasks)), self.site),
            compute=ActorPoolStrategy(min_size=1, max_size=size),
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus or None,
        )
        for row in results.iter_rows():
            result = row["result"].value
            if isinstance(result, Exception):
                raise result
            task = tasks[row["place"]]
            advance(len(task))
            yield task, result


class _Actor:
    """A worker of `RayExecutor.stream`: an actor of Ray Data, which gives it the places of tasks."""

    def __init__(self, given: ObjectRef[Any], site: Worksite) -> None:
        import ray

        site.check()
        self._function, self._tasks = ray.get(given)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (place,) = batch["place"].tolist()
        try:
            result: Any = self._function(self._tasks[place], lambda done: None)
        except InputError as error:
            result = error  # to be raised by the first process, without Ray's traceback
        return {"place": batch["place"], "result": np.array([_Held(result)], object)}


@dataclass(frozen=True)
class _Held:
    """A result that Ray Data passes on as it is; it would convert a list or an array."""

    value: Any


def _work(function: Callable[[Any, Progress], Any], task: Any, post: Post, site: Worksite) -> Any:
    """What a worker does: check its node, which may be new, and run the task."""
    site.check()
    with reported_log(post, logging.WARNING):
        return function(task, Reporter(post))


def _result(ref: ObjectRef[Any]) -> Any:
    """The result of a task that has ended, or that it was lost. Raises what the task raised."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        return Lost(f"its process or node was lost, {RETRIES + 1} times ({first_line(error)})")


def _cancel(refs: list[ObjectRef[Any]]) -> None:
    """Interrupt tasks as Ctrl-C does, and kill those that do not end."""
    import ray

    for ref in refs:
        ray.cancel(ref)
    if refs:
        _, alive = ray.wait(refs, num_returns=len(refs), timeout=CANCEL_SECONDS)
        for ref in alive:
            ray.cancel(ref, force=True)
