"""Memory that is free goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def give_back() -> None:
    """Hand what this process has freed back to the system, where the C library is GNU's and keeps it; elsewhere nothing.

    A solve takes and frees matrices of many MB, and GNU's library keeps what a thread has freed for that thread: a server of many threads
    comes to hold several times what it uses. Takes some milliseconds.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library, such as musl, has no such function
            ctypes.CDLL(None).malloc_trim(0)
