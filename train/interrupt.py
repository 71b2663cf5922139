"""Ctrl-C or SIGTERM in the middle of training: asked for at any moment, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_AGAIN_S = 1.0  # launchers pass the terminal's Ctrl-C on to their processes, which have had it already


class Interrupts:
    """Inside the block Ctrl-C or SIGTERM sets ``asked`` and nothing else; once more, a second later, ends the process at once.

    SIGTERM is what ``kill``, batch systems and launchers send. Outside the main thread, or where a signal is ignored (Ctrl-C by a job in
    a shell's background), it is left as it is.
    """

    def __init__(self) -> None:
        self.asked = False
        self.when = 0.0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self.when > _AGAIN_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.when = True, time.monotonic()
