"""Executors, here and on a Ray cluster: each task has its result, whatever happens to the process that runs it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from msm4sr import ray_executor
from msm4sr.cluster import connected
from msm4sr.errors import InputError
from msm4sr.executors import RETRIES, Executor, LocalExecutor, Lost
from msm4sr.nodes import Resources, nodes_alive
from msm4sr.progress import Advance, NoProgress, Progress, Update
from msm4sr.ray_executor import RayExecutor

logger = logging.getLogger("msm4sr.tests")


@pytest.fixture(scope="module")
def connection(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    with connected(cluster.address, Resources(1), [], tmp_path_factory.mktemp("shared")) as executor:
        yield executor


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "local":
        return LocalExecutor(2)
    ray: RayExecutor = request.getfixturevalue("connection")
    return ray


@dataclass
class Shown:
    """A progress that records what is shown."""

    bars: list[str] = field(default_factory=list)
    done: float = 0
    open: int = 0

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "", done: float = 0) -> Iterator[Update]:
        self.bars.append(title)
        self.open += 1

        def update(done: float, status: str = "", title: str = "") -> None:
            self.done += done

        yield update
        self.open -= 1


def square(number: int, progress: Progress) -> int:
    logger.warning("squares may be large")
    with progress.task(f"squaring {number}", 1) as update:
        time.sleep(0.3)  # longer than the time between two updates
        update(1)
    return number**2


def test_every_task_has_its_result_its_bar_and_its_warnings(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Shown()
    assert sorted(executor.run(square, range(5), shown)) == [(n, n**2) for n in range(5)]
    assert sorted(shown.bars) == [f"squaring {n}" for n in range(5)]
    assert (shown.done, shown.open) == (5, 0)
    assert caplog.messages == ["squares may be large"]


def test_tasks_are_read_as_they_can_start(executor: Executor) -> None:
    results: list[int] = []

    def tasks() -> Iterator[int]:
        while len(results) < 4:
            yield len(results)

    for _, result in executor.run(square, tasks(), NoProgress()):
        assert isinstance(result, int)
        results.append(result)
    assert 4 <= len(results) <= 5, "at most one more had started"


def test_tasks_wait_while_no_node_is_alive(connection: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()
    monkeypatch.setattr(ray_executor, "nodes_alive", lambda: nodes_alive() if next(calls) % 4 == 0 else [])
    assert sorted(connection.run(square, range(3), NoProgress())) == [(0, 0), (1, 1), (2, 4)]
    monkeypatch.setattr(ray_executor, "nodes_alive", list)
    monkeypatch.setattr(ray_executor, "NODE_SECONDS", 0.5)
    with pytest.raises(ChildProcessError, match="no node of the cluster can run"):
        list(connection.run(square, range(3), NoProgress()))


def half_sent(number: int, progress: Progress) -> bytes:
    """A large result; at the first try of task 1 the process ends while it is sent."""
    if number == 1 and not (file := Path(os.environ["HALF_SENT"])).exists():
        time.sleep(0.3)
        file.touch()
        threading.Timer(0.5, os._exit, [1]).start()
    return bytes(2**24)


def test_a_process_that_dies_while_it_sends_its_result_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALF_SENT", str(tmp_path / "tried"))
    results = LocalExecutor(2).run(half_sent, range(2), NoProgress())
    assert next(results) == (0, bytes(2**24))
    while not (tmp_path / "tried").exists():
        time.sleep(0.01)
    time.sleep(1)  # the other one waits until its message is read
    assert list(results) == [(1, bytes(2**24))]


@dataclass(frozen=True)
class Dying:
    """Kills its own process at the first `times` tries of task 1."""

    folder: Path
    times: int

    def __call__(self, number: int, progress: Progress) -> int:
        tries = self.folder / f"try-{number}-{os.getpid()}-{time.monotonic_ns()}"
        tries.touch()
        if number == 1 and len(list(self.folder.glob("try-1-*"))) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_task_whose_process_is_killed_is_run_again(executor: Executor, tmp_path: Path) -> None:
    assert sorted(executor.run(Dying(tmp_path, 2), range(3), NoProgress())) == [(0, 0), (1, 1), (2, 2)]
    assert [len(list(tmp_path.glob(f"try-{n}-*"))) for n in range(3)] == [1, 3, 1]


def test_a_task_whose_processes_always_die_is_lost_and_the_others_are_not(executor: Executor, tmp_path: Path) -> None:
    results = dict(executor.run(Dying(tmp_path, 99), range(3), NoProgress()))
    lost = results.pop(1)
    assert isinstance(lost, Lost)
    assert "4 times" in lost.reason
    assert results == {0: 0, 2: 2}
    assert len(list(tmp_path.glob("try-1-*"))) == RETRIES + 1


def leave(number: int, progress: Progress) -> int:
    """Task 0 ends its process a moment after its result."""
    if number == 0:
        threading.Timer(0.1, os._exit, [1]).start()
    return number


def test_a_process_that_dies_while_it_is_idle_is_replaced() -> None:
    results = []
    for _, result in LocalExecutor(2).run(leave, range(5), NoProgress()):
        results.append(result)
        time.sleep(0.3)
    assert sorted(results) == [0, 1, 2, 3, 4]


class TwoReasons(Exception):
    """Cannot be unpickled: its arguments are not those of Exception."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def fail_oddly(number: int, progress: Progress) -> None:
    raise TwoReasons("this", "that")


def test_an_error_that_cannot_be_sent_is_raised_as_its_text() -> None:
    with pytest.raises(RuntimeError, match="TwoReasons: this and that"):
        list(LocalExecutor(2).run(fail_oddly, range(1), NoProgress()))


@dataclass(frozen=True)
class Failing:
    folder: Path

    def __call__(self, number: int, progress: Progress) -> None:
        if number == 1:
            while not (self.folder / "working").exists():
                time.sleep(0.01)
            raise InputError("task 1: no")
        try:
            (self.folder / "working").touch()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            (self.folder / "interrupted").touch()
            raise


def test_an_error_is_raised_and_interrupts_the_other_tasks(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="task 1: no"):
        list(executor.run(Failing(tmp_path), range(2), NoProgress()))
    assert (tmp_path / "interrupted").exists()


@dataclass(frozen=True)
class Counting:
    """Counts the letters of words; dies at the first try of `deadly`."""

    folder: Path
    deadly: str = ""

    def __call__(self, word: str, advance: Advance) -> int:
        if word == self.deadly:
            try:
                (self.folder / word).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        if word == "wrong":
            raise InputError("wrong: not a word")
        advance(len(word))
        return len(word)


WORDS = ["a", "few", "words", "here"]


def test_a_stream_has_the_result_of_every_task(executor: Executor, tmp_path: Path) -> None:
    done: list[float] = []
    assert sorted(executor.stream(Counting(tmp_path), WORDS, done.append)) == sorted((w, len(w)) for w in WORDS)
    assert sum(done) == len("".join(WORDS))


def test_an_error_in_a_stream_is_raised(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wrong: not a word"):
        list(executor.stream(Counting(tmp_path), ["a", "wrong"], lambda done: None))


def test_a_stream_survives_a_killed_actor(connection: RayExecutor, tmp_path: Path) -> None:
    results = sorted(connection.stream(Counting(tmp_path, "words"), WORDS, lambda done: None))
    assert results == sorted((word, len(word)) for word in WORDS)
    assert (tmp_path / "words").exists()


@dataclass(frozen=True)
class Waiting:
    """Task 0 waits on the node that first ran it; on another it ends."""

    folder: Path

    def __call__(self, number: int, progress: Progress) -> str:
        import ray

        here = ray.get_runtime_context().get_node_id()
        first = self.folder / "first"
        if not first.exists():
            first.write_text(here)
        while first.read_text() == here:
            time.sleep(0.05)
        return here


def test_the_task_of_a_removed_node_is_run_on_another(
    cluster: Cluster, connection: RayExecutor, tmp_path: Path
) -> None:
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    cluster.wait_for_nodes()

    def remove() -> None:
        while not (tmp_path / "first").exists():
            time.sleep(0.05)
        (first,) = [node for node in nodes if node.node_id == (tmp_path / "first").read_text()]
        cluster.remove_node(first)

    thread = threading.Thread(target=remove)
    thread.start()
    ((_, where),) = replace(connection, resources=Resources(2)).run(Waiting(tmp_path), [0], NoProgress())
    thread.join()
    cluster.remove_node(next(node for node in nodes if node.node_id == where))
    assert isinstance(where, str)
    assert where != (tmp_path / "first").read_text()
