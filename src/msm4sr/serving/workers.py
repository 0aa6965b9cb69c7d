"""The processes of a service, and how they end.

SIGTERM and SIGHUP end a service when the requests in progress are answered, after the seconds of `Drain`; so does
Ctrl-C, without these, and a second one ends it at once. Workers end with their supervisor, however it ends.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from msm4sr.errors import InputError
from msm4sr.serving.logs import log_to_stderr
from msm4sr.serving.metrics import forget_worker

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

ENVIRONMENT = "MSM4SR_SERVE"  # the variable that passes the settings to the workers, as JSON
GRACE = 10  # seconds for the requests in progress
INTERRUPTED = 130
LONGEST_PAUSE = 60.0  # seconds between two replacements of a worker
# A terminal sends these to all processes; workers leave them to the supervisor.
OF_THE_TERMINAL = {signal.SIGINT, signal.SIGHUP}


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            os._exit(INTERRUPTED)  # threads that still compute would be waited for
        super().handle_exit(sig, frame)


def serve_here(config: uvicorn.Config) -> None:
    """Serve in this process. Raises KeyboardInterrupt after a Ctrl-C, SystemExit if the port cannot be used."""
    signal.signal(signal.SIGINT, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    server = _Server(config)
    server.run()
    if not server.started:
        raise SystemExit(1)


def _interrupt(sig: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


class Supervisor(Multiprocess):
    """Starts `config.workers` processes and replaces those that end, if a first one has made `loaded`.

    Workers that end early are replaced after pauses, each twice as long as the one before.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket], loaded: Path) -> None:
        detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        super().__init__(config, sockets)
        self.interrupted, self.failed, self._loaded = False, False, loaded
        # For the place of a worker: the earliest time of its next replacement, and the pause before it.
        self._next: dict[int, tuple[float, float]] = {}
        signal.signal(signal.SIGINT, self._on_interrupt)
        if detached:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_interrupt(self, sig: int, frame: FrameType | None) -> None:
        if self.interrupted:
            for worker in self.processes:
                worker.process.kill()
        self.interrupted = True
        self.signal_queue.append(sig)

    def handle_hup(self) -> None:
        self.handle_term()

    def init_processes(self) -> None:
        with _terminal_blocked():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that have ended. If all have and none has loaded a run, the service ends."""
        now = time.monotonic()
        if not self._loaded.is_symlink() and not any(worker.process.is_alive() for worker in self.processes):
            self.failed = True
            self.should_exit.set()
        for place, worker in enumerate(self.processes):
            if self.should_exit.is_set() or worker.process.is_alive():
                continue
            due, pause = self._next.get(place, (0.0, 0.5))
            if now < due:
                continue
            pause = min(2 * pause, LONGEST_PAUSE) if now < due + LONGEST_PAUSE else 1.0
            self._next[place] = now + pause, pause
            new = Process(self.config, self.sockets)
            with _terminal_blocked():
                new.start()
            self.processes[place] = new
            forget_worker(worker.pid)
            logger.error("worker %s ended (exit code %s); %s replaces it", worker.pid, worker.exitcode, new.pid)


@contextmanager
def _terminal_blocked() -> Iterator[None]:
    """Processes that are started here do not receive the signals of the terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def app_from_environment() -> FastAPI:
    """The application of a worker, from the settings that `msm4sr serve` left in the environment.

    The worker ends with its supervisor, even if that has ended before.
    """
    at_end = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # loading is interrupted; nothing is in progress yet
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # here, since these imports take seconds
    from msm4sr.serving.app import create_app
    from msm4sr.serving.service import ServeSettings

    settings = ServeSettings.model_validate(json.loads(os.environ[ENVIRONMENT]))
    log_to_stderr(settings.log_format)
    try:
        app = create_app(settings)
    except InputError as error:
        logger.error("%s", error)
        raise SystemExit(1) from None
    signal.signal(signal.SIGTERM, at_end)
    return app


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a pipe that closes when the parent ends
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * GRACE)
        os._exit(1)  # threads that still compute are not waited for
