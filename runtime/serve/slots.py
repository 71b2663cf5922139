"""How many jobs may keep a core busy at a time, apart from the thread that runs the denoiser."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from ..errors import Cancelled

_POLL_S = 0.1


class Slots:
    """A job holds a slot while it ranks, solves, refines and draws: first come, first served. While it waits for its samples it has none,
    and whenever it has found a better design it gives way, so who has just come is sampled and ranked while others are refined.

    So the solver's work goes on in ``count`` threads whatever the number of jobs, and none of it in the denoiser's.
    """

    def __init__(self, count: int) -> None:
        self.count = self.free = count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._mine = threading.local()  # of a thread: whether it is inside hold, has a slot, and what says that its job is cancelled

    @contextlib.contextmanager
    def hold(self, stop: Callable[[], bool] = lambda: False, at_once: bool = True) -> Iterator[None]:
        """A slot for the block, once one is free; with ``at_once`` False from the first :meth:`lend` on, for who begins by waiting.

        Raises:
            Cancelled: ``stop()`` became True before there was one.
        """
        self._mine.stop, self._mine.inside, self._mine.held = stop, True, False
        try:
            if at_once:
                self._take()
            yield
        finally:
            self._mine.inside = False
            self._give()

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """Inside :meth:`hold`: no slot for the block, and one again behind it. What the block raises is not kept waiting for one."""
        self._give()
        yield
        if getattr(self._mine, "inside", False):
            self._take()

    def turn(self) -> None:
        """Inside :meth:`hold`: let who waits go first. Raises Cancelled as :meth:`hold` does."""
        if self._waiting:
            with self.lend():
                pass

    def _take(self) -> None:
        me = object()
        with self._changed:
            self._waiting.append(me)
            try:
                while not (self.free and self._waiting[0] is me):
                    self._changed.wait(_POLL_S)
                    if self._mine.stop():
                        raise Cancelled("the job was cancelled")
                self.free -= 1
            finally:
                self._waiting.remove(me)
                self._changed.notify_all()
        self._mine.held = True

    def _give(self) -> None:
        if getattr(self._mine, "held", False):
            self._mine.held = False
            with self._changed:
                self.free += 1
                self._changed.notify_all()
