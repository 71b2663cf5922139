"""Layouts with whatever options: a file that gdstk reads back with as many cells, or one sentence and no file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.errors import DataError, MetascatterError
from runtime.geometry import Geometry
from runtime.physics.gds import repeat_within, write_gds
from tests.fuzzing import counted, fuzz, one_sentence

gdstk = pytest.importorskip("gdstk")
NUMBERS = st.sampled_from([0.0, 1.0, 0.5, 0.25, 0.001, -1.0, 3.7, 1e9, 1e-12, math.nan, math.inf]) | st.floats(0.001, 1e4)
COUNTS = st.integers(-1, 4) | st.sampled_from([32767, 32768, 2**31, 25])
LAYERS = st.integers(-2, 300) | st.sampled_from([65535, 65536, 2**31, 2**63])
PATTERNS = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).integers(0, 2, (1 + seed % 3, 4, 4)))
PERIODS = st.sampled_from([(4000.0, 4000.0), (1000.5, 2000.0), (333.3, 777.7), (4000.123, 4000.0), (0.004, 0.004), (4e6, 4e6)])


@fuzz(120)
@given(
    patterns=PATTERNS,
    period=PERIODS,
    repeat=st.none() | st.tuples(COUNTS, COUNTS),
    options=st.fixed_dictionaries(
        {},
        optional={
            "labels": st.lists(st.text(max_size=6), max_size=4),
            "layer": LAYERS,
            "datatype": LAYERS,
            "unit_nm": st.none() | NUMBERS,
        },
    ),
    ending=st.sampled_from([".gds", ".oas", ".GDS"]),
)
@example(np.ones((1, 4, 4), int), (4000.0, 4000.0), None, {"labels": ["\0"]}, ".gds")
@counted
def test_a_layout_or_a_sentence(tmp_path: Path, patterns: Any, period: Any, repeat: Any, options: dict[str, Any], ending: str) -> None:
    path = tmp_path / f"a{ending}"
    for old in tmp_path.iterdir():
        old.unlink()
    try:
        write_gds(patterns, Geometry(period_nm=period), path, repeat, **options)
    except MetascatterError as refused:
        one_sentence(refused)
        assert list(tmp_path.iterdir()) == [], "nothing half-written"
        return
    read = gdstk.read_oas if ending == ".oas" else gdstk.read_gds
    assert len(read(path).cells) == 2 * len(patterns)


@fuzz(60)
@given(period=PERIODS, area=st.tuples(NUMBERS, NUMBERS))
@counted
def test_whole_cells_within_an_area_or_a_sentence(period: Any, area: Any) -> None:
    try:
        columns, rows = repeat_within(Geometry(period_nm=period), area)
    except DataError as refused:
        one_sentence(refused)
    else:
        assert columns * period[0] <= area[0] * 1000 * (1 + 1e-9)
        assert rows * period[1] <= area[1] * 1000 * (1 + 1e-9)
        assert min(columns, rows) >= 1
