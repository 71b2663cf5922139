"""``bench/soak.py`` for half a minute, or for SOAK_SECONDS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="the extra 'ui' is not installed")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process uses is read from /proc")
def test_half_a_minute_of_good_and_bad_requests(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost or another's, nothing grows, and SIGTERM ends it; everything that was to happen did."""
    from bench.soak import soak

    assert soak(small_bundle, float(os.environ.get("SOAK_SECONDS", "30"))) == []
    text = capsys.readouterr().out
    for deed in ("wish", "wish and read slowly", "ask nonsense", "send too much", "leave half said", "hang up", "break the engine"):
        assert f"  {deed} " in text
    assert "SIGTERM: 8 accepted requests answered, exit status 0" in text


def test_a_leak_would_be_seen() -> None:
    from bench.soak import Use, _slope

    assert _slope([Use(k, 100 + 0.05 * k, 30, 16) for k in range(0, 2000, 100)]) == pytest.approx((50.0, 95.0))
    assert _slope([Use(k, 100.0, 30, 16) for k in range(0, 2000, 100)]) == pytest.approx((0.0, 0.0), abs=1e-6)
