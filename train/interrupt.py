"""Ctrl-C in the middle of training: asked for at any moment, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

_AGAIN_S = 1.0  # launchers pass the terminal's Ctrl-C on to their processes, which have had it already


class Interrupts:
    """Inside the block Ctrl-C sets ``asked`` and nothing else; once more, a second later, ends the process as usual.

    Outside the main thread, or where interrupts are ignored (a job in a shell's background), they are left as they are.
    """

    def __init__(self) -> None:
        self.asked = False
        self.when = 0.0
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self.before = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self.when > _AGAIN_S:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.when = True, time.monotonic()
