"""The end of a service behind a load balancer: after SIGTERM it is not ready, but answers for some more seconds."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)


class Drain:
    """The seconds between SIGTERM and the end, in which a load balancer finds out that this service is not ready.

    Answers close their connections meanwhile, so that no proxy sends a request on one that is about to be closed.
    Ctrl-C ends a service without them, and a worker whose supervisor has ended has none.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, False

    def begin_at_sigterm(self) -> None:
        """Begin at SIGTERM, and call the present handler of the signal at the end. For the thread of the event loop."""
        end = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(end):
            return  # another program decides when this ends
        loop = asyncio.get_running_loop()

        def begin(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, loop, lambda: end(number, None))

        signal.signal(signal.SIGTERM, begin)

    def _begin(self, loop: asyncio.AbstractEventLoop, end: Callable[[], object]) -> None:
        if self.began:
            return
        self.began = True
        supervisor = multiprocessing.parent_process()
        seconds = self.seconds if supervisor is None or supervisor.is_alive() else 0.0
        if seconds:
            logger.info("not ready any more; requests are answered for another %g seconds", seconds)
        loop.call_later(seconds, end)
