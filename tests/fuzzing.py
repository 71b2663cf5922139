"""How much the fuzzing tests try: the same few seconds in every run, and with FUZZ=60 (``make fuzz``) so many times as much, at random."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("FUZZ", "1"))
tried: Counter[str] = Counter()  # examples by test, for the summary of conftest.py


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Settings of a fuzzing test: so many examples, the same ones in every run unless FUZZ asks for more."""
    return settings(
        max_examples=examples * FACTOR,
        deadline=None,
        derandomize=FACTOR == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def counted(function: Callable[..., None]) -> Callable[..., None]:
    """Below ``given``: count the examples. Warnings are for people; here they would be thousands."""

    @functools.wraps(function)
    def count(*args: Any, **values: Any) -> None:
        tried[function.__name__] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*args, **values)

    return count


def one_sentence(error: BaseException, name: str = "") -> None:
    """What people are told: a line, not a page, and which file it is about."""
    words = str(error)
    assert name in words
    assert "\n" not in words, words
    assert 10 < len(words) < 2000, words


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes with some of them changed, taken out, put in or repeated, or cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        # Heads are short and decide everything: half of what happens, happens there.
        place = place % 64 if draw(st.booleans()) else place
        what = draw(st.sampled_from(("change", "change", "cut", "insert", "remove", "repeat")))
        if what == "change" and place < len(content):
            content[place] = draw(st.sampled_from((0, 1, 0x20, 0x7F, 0x80, 0xFF)) | st.integers(0, 255))
        elif what == "cut":
            del content[place:]
        elif what == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif what == "remove":
            del content[place : place + draw(st.integers(1, 16))]
        elif what == "repeat":
            content[place:place] = content[place : place + draw(st.integers(1, 64))]
    return bytes(content)
