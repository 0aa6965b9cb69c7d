"""Executors: where the tasks of a command run. `LocalExecutor` uses this machine; `cluster` has the one of Ray.

A task whose process dies is run again, at most `RETRIES` times; it must therefore be safe to repeat.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

from msm4sr.progress import Advance, NoProgress, Progress, Update
from msm4sr.threads import shared_cores

logger = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")
Items = TypeVar("Items", bound=Sized)
Message = tuple[str, tuple[Any, ...]]
"""What a worker reports: "begin", "update" or "end" of a progress bar, "log", "error" or "result", with arguments."""

RETRIES = 3  # of a task whose process, or machine, was lost
EVERY = 0.25  # seconds between two updates of one progress bar


@dataclass(frozen=True)
class Lost:
    """In place of a result: the processes that ran the task died, each time it was tried."""

    reason: str


class Executor(Protocol):
    """Runs tasks side by side."""

    def run(
        self, function: Callable[[Task, Progress], Result], tasks: Iterable[Task], progress: Progress
    ) -> Iterator[tuple[Task, Result | Lost]]:
        """Call `function` for each task, and yield the tasks with their results as they end.

        Args:
            function: can be pickled, and is safe to repeat for a task whose process died.
            tasks: read one by one as they can start, so a generator may decide each at that time.
            progress: shows the bars of all tasks.

        Raises:
            Exception: what a task raised; the others are interrupted, as by Ctrl-C.
        """

    def stream(
        self, function: Callable[[Items, Advance], Result], tasks: Sequence[Items], advance: Advance
    ) -> Iterator[tuple[Items, Result]]:
        """Call `function` for each task in long-lived workers, each with its own copy of it: it may load a model once.

        Args:
            function: can be pickled, and is safe to repeat for a task whose process died.
            tasks: collections; a process that dies leaves its tasks to the others.
            advance: called with the number of entries that are done.

        Raises:
            InputError: what a task raised.
        """


class Reporter(Progress):
    """The progress of a worker, sent as messages to the process that started it."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self._bars = 0

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Update]:
        """See `Progress.task`."""
        self._bars += 1
        bar, sent, more = self._bars, time.monotonic(), 0.0
        self._send(("begin", (bar, title, total, unit, done)))

        def update(done: float, status: str = "", title: str = "") -> None:
            nonlocal sent, more
            more += done
            if time.monotonic() - sent >= EVERY:
                self._send(("update", (bar, more, status, title)))
                sent, more = time.monotonic(), 0.0

        try:
            yield update
        finally:
            self._send(("end", (bar,)))


class MessageHandler(logging.Handler):
    """Sends log records as messages."""

    def __init__(self, send: Callable[[Message], None], level: int) -> None:
        super().__init__(level)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(("log", (record.levelno, record.getMessage())))


@contextmanager
def reported_log(send: Callable[[Message], None], level: int) -> Iterator[None]:
    """Send the log of this package in place of printing it."""
    package, handler = logging.getLogger(__package__), MessageHandler(send, level)
    handlers, before, propagate = package.handlers, package.level, package.propagate
    package.handlers, package.propagate = [handler], False
    package.setLevel(level)
    try:
        yield
    finally:
        package.handlers, package.propagate = handlers, propagate
        package.setLevel(before)


@dataclass
class Bars:
    """Shows the messages of workers: their progress bars, and each different log line once."""

    progress: Progress
    _open: dict[tuple[object, int], tuple[AbstractContextManager[Update], Update]] = field(default_factory=dict)
    _logged: set[str] = field(default_factory=set)
    errors: list[Exception] = field(default_factory=list)  # that workers have reported

    def show(self, worker: object, message: Message) -> None:
        """Show a message of `worker`, any key that identifies it."""
        kind, values = message
        if kind == "log":
            level, text = values
            if text not in self._logged:
                self._logged.add(text)
                logger.log(level, "%s", text)
        elif kind == "error":
            self.errors.append(values[0])
        elif kind == "begin":
            bar, *rest = values
            context = self.progress.task(*rest)
            self._open[worker, bar] = context, context.__enter__()
        elif (worker, values[0]) in self._open:
            context, update = self._open[worker, values[0]]
            if kind == "update":
                update(*values[1:])
            else:
                del self._open[worker, values[0]]
                context.__exit__(None, None, None)

    def close(self, worker: object) -> None:
        """Remove the bars of a worker that has ended."""
        for key in [key for key in self._open if key[0] == worker]:
            context, _ = self._open.pop(key)
            context.__exit__(None, None, None)

    def close_all(self) -> None:
        """Remove all bars."""
        for worker in {key[0] for key in self._open}:
            self.close(worker)


@dataclass(frozen=True)
class LocalExecutor:
    """Runs the tasks in this process (`jobs` 1), or in so many others, which share the free cores.

    The number of threads of each is the user's choice where OMP_NUM_THREADS is set.
    """

    jobs: int = 1

    def run(
        self, function: Callable[[Task, Progress], Result], tasks: Iterable[Task], progress: Progress = NoProgress()
    ) -> Iterator[tuple[Task, Result | Lost]]:
        """See `Executor.run`."""
        if self.jobs == 1:
            for task in tasks:
                yield task, function(task, progress)
            return
        with _Pool(self.jobs, function, Bars(progress)) as pool:
            yield from pool.run(iter(tasks))

    def stream(
        self, function: Callable[[Items, Advance], Result], tasks: Sequence[Items], advance: Advance
    ) -> Iterator[tuple[Items, Result]]:
        """See `Executor.stream`; in this process."""
        for task in tasks:
            yield task, function(task, advance)


@dataclass(eq=False)
class _Process:
    """A process and the task that it runs."""

    process: BaseProcess
    connection: Connection
    task: Any = None
    tries: int = 0


class _Pool(ExitStack):
    """The processes of a `LocalExecutor`, one for each job, started when they are first needed."""

    def __init__(self, jobs: int, function: Callable[[Any, Progress], Any], bars: Bars) -> None:
        super().__init__()
        self._jobs, self._function, self._bars = jobs, function, bars
        self._idle: list[_Process] = []
        self._busy: dict[Connection, _Process] = {}
        self.enter_context(shared_cores(jobs))
        self.callback(self._stop)

    def run(self, tasks: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """See `Executor.run`."""
        while True:
            for task in islice(tasks, self._jobs - len(self._busy)):
                self._begin(task, 1)
            if not self._busy:
                return
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)
                yield from self._receive(self._busy[connection])

    def _begin(self, task: Any, tries: int) -> None:
        worker = self._idle.pop() if self._idle else self._start()
        worker.task, worker.tries = task, tries
        self._busy[worker.connection] = worker
        with suppress(BrokenPipeError):  # it died while it was idle: `_receive` finds out
            worker.connection.send(task)

    def _start(self) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self._function, theirs))
        # The worker inherits that Ctrl-C is ignored: this process interrupts it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        return _Process(process, ours)

    def _receive(self, worker: _Process) -> Iterator[tuple[Any, Any]]:
        """Handle one message of a worker, or its death."""
        try:
            kind, values = worker.connection.recv()
        except (EOFError, OSError):  # it died, perhaps in the middle of a message
            yield from self._lost(worker)
            return
        if kind not in ("result", "error"):
            self._bars.show(worker, (kind, values))
            return
        del self._busy[worker.connection]
        self._idle.append(worker)
        if kind == "error":
            raise values[0]
        yield worker.task, values[0]

    def _lost(self, worker: _Process) -> Iterator[tuple[Any, Any]]:
        worker.process.join()
        del self._busy[worker.connection]
        self._bars.close(worker)
        reason = f"its process died (exit code {worker.process.exitcode})"
        if worker.tries > RETRIES:
            yield worker.task, Lost(f"{reason}, {worker.tries} times; is memory short?")
        else:
            logger.warning("%s: %s; trying again", worker.task, reason)
            self._begin(worker.task, worker.tries + 1)

    def _stop(self) -> None:
        """Interrupt the workers that are busy, and wait until all have ended."""
        workers = [*self._idle, *self._busy.values()]
        for worker in self._busy.values():
            worker.process.terminate()
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.process.join()
            self._bars.close(worker)


def _work(function: Callable[[Any, Progress], Any], connection: Connection) -> None:
    """The main function of a worker: run tasks until the first process closes the connection, or ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_follow, daemon=True).start()
    sending = threading.Lock()  # a task may have threads

    def send(message: Message) -> None:
        with sending:
            connection.send(message)

    try:
        with reported_log(send, logging.WARNING):
            while True:
                task = connection.recv()
                try:
                    result = function(task, Reporter(send))
                except Exception as error:
                    send(("error", (_sendable(error),)))
                else:
                    send(("result", (result,)))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        raise SystemExit(0) from None


def _sendable(error: Exception) -> Exception:
    """The error, or its text as a RuntimeError if the first process could not read it."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _follow() -> None:
    """Interrupt this process when the first one has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
