"""Tasks on a Ray cluster: the executor, and how its workers report to the first process."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from msm4sr.errors import InputError, first_line
from msm4sr.executors import RETRIES, Bars, Items, Lost, Message, Reporter, Result, Task, reported_log
from msm4sr.nodes import NodeRequirements, Resources, nodes_alive
from msm4sr.progress import Advance, NoProgress, Progress

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

    Actor = ActorHandle[Any]

POLL = 0.25  # seconds between two checks of the tasks and their progress
NODE_SECONDS = 300.0  # to wait for a node when none is alive, such as while it is replaced
CANCEL_SECONDS = 30.0  # in which an interrupted task writes its checkpoint; then its process is killed


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
    requirements: NodeRequirements

    def capacity(self) -> int:
        """How many tasks fit on the nodes that are alive."""
        return sum(self.resources.fit_in(node["Resources"]) for node in nodes_alive())

    def _free(self, running: int) -> int:
        """How many more tasks fit. If nothing runs, wait until one does; nodes may be replaced at the moment."""
        waited = 0.0
        while (free := self.capacity() - running) <= 0 and not running:
            if waited >= NODE_SECONDS:
                raise ChildProcessError("no node of the cluster can run a task; start nodes, and rerun the command")
            time.sleep(POLL)
            waited += POLL
        return max(0, free)

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
                    free = self._free(len(running))
                    for task in islice(supply, free):
                        count += 1
                        post = Post(actor, f"worker {count}")
                        running[remote.remote(shared, task, post, self.requirements)] = task, post.worker
                    if not running:
                        return  # there was a place, and no task for it
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
            fn_constructor_args=(ray.put((function, tasks)), self.requirements),
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

    def __init__(self, given: ObjectRef[Any], requirements: NodeRequirements) -> None:
        import ray

        requirements.check()
        self._function, self._tasks = ray.get(given)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (place,) = batch["place"].tolist()
        try:
            with disk_errors_with_node():
                result: Any = self._function(self._tasks[place], lambda done: None)
        except (InputError, OSError) as error:
            result = error  # to be raised by the first process, without Ray's traceback
        return {"place": batch["place"], "result": np.array([_Held(result)], object)}


@dataclass(frozen=True)
class _Held:
    """A result that Ray Data passes on as it is; it would convert a list or an array."""

    value: Any


@contextmanager
def disk_errors_with_node() -> Iterator[None]:
    """Raise errors of files, such as a full disk, with the name of this node."""
    try:
        yield
    except OSError as error:
        where = f"{error.strerror or error} (on node {socket.gethostname()})"
        raise OSError(error.errno, where, error.filename) from error


def _work(function: Callable[[Any, Progress], Any], task: Any, post: Post, requirements: NodeRequirements) -> Any:
    """What a worker does: check its node, which may be new, and run the task."""
    requirements.check()
    with reported_log(post, logging.WARNING), disk_errors_with_node():
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
