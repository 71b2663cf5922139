"""The page without a browser: its wishes make the target that is sampled, its errors are the library's, and it shows what came of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.design import Design
from runtime.errors import TargetError
from runtime.geometry import Geometry
from runtime.presets import PRESETS
from runtime.serve import drawings
from runtime.serve.guard import Rate
from runtime.serve.jobs import Job, Jobs, Order
from runtime.serve.page import Page
from runtime.serve.page_result import progress
from runtime.serve.wishes import BETWEEN, EXACTLY, LEAST, MOST, TITLES, Wish, of_preset, target_fields
from runtime.target import Target


def test_rows_make_the_fields_of_a_target() -> None:
    rows = [
        Wish("T", 1, 0, LEAST, 20.0),
        Wish("T", -1, 0, MOST, 2.0),
        Wish("R", 0, 0, EXACTLY, 7.5),
        Wish("T", 0, -2, BETWEEN, 1.0, 3.0),
    ]
    assert target_fields(300, rows) == {
        "height_nm": 300.0,
        "orders": {"T(1,0)": {"min": 0.2}, "T(-1,0)": {"max": 0.02}, "R(0,0)": 0.075, "T(0,-2)": [0.01, 0.03]},
    }
    assert [row.words for row in rows] == ["≥20", "≤2", "7.5", "1–3"]


@pytest.mark.parametrize(
    ("height", "rows", "sentence"),
    [
        (None, [Wish("T", 0, 0)], "there is no height"),
        (300, [], "no order is asked for; click one in the map"),
        (300, [Wish("T", 0, 1, LEAST, None)], r"T\(0,1\) has no share"),
        (300, [Wish("T", 0, 1, BETWEEN, 1.0)], r"T\(0,1\) has no share"),
    ],
)
def test_what_is_missing_is_named(height: float | None, rows: list[Wish], sentence: str) -> None:
    with pytest.raises(TargetError, match=sentence):
        target_fields(height, rows)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_rows_is_the_preset(name: str) -> None:
    assert name in TITLES
    rows, preset = Target.from_dict(target_fields(300, of_preset(name))), Target.from_dict({"preset": name})
    for a, b in zip((rows.R, rows.T, *rows.limits), (preset.R, preset.T, *preset.limits), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_array_equal(rows.mask_T, preset.mask_T)


def test_the_mosaic_shows_x_to_the_right_and_y_up() -> None:
    """A single pillar at the largest x and the smallest y of the second of nine candidates: right and below in its tile."""
    import base64
    import io

    image = pytest.importorskip("PIL.Image")
    samples = np.full((9, 3, 3), -1.0)
    samples[1, 2, 0] = 1.0
    url = drawings.mosaic(samples)
    pixels = np.asarray(image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert pixels.shape == (2 * 4 - 1, 8 * 4 - 1, 3)
    dark = np.argwhere((pixels == (0x33, 0x47, 0x5B)).all(-1)).tolist()
    assert dark == [[2, 4 + 2]]


def test_the_map_to_click_on_draws_what_carries_light() -> None:
    light = np.ones((3, 3), bool)
    light[2, 2] = False  # order (1, 1)
    content = drawings.order_map(light, {(1, 0): "≥20"})
    assert content.count("<rect") == 8
    assert f'<rect x="{2 * drawings.CELL + 1}" y="{drawings.CELL + 1}"' in content
    assert ">≥20</text>" in content
    assert ">1,1</text>" not in content


@pytest.fixture
def visit(small_bundle: Path, jobs: Jobs) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
    """Run a visitor on the page as NiceGUI simulates one."""
    simulation = pytest.importorskip("nicegui.testing.user_simulation")

    def visit(visitor: Callable[[Any], Awaitable[None]], rate: str = "1000/second") -> None:
        pages: list[Page] = []

        async def main() -> None:
            limit = Rate(rate)
            async with simulation.user_simulation(root=lambda: pages.append(Page(jobs, limit, 2**20))) as user:
                await user.open("/")
                user.page = pages[-1]
                await visitor(user)

        asyncio.run(main())

    return visit


def press(user: Any) -> None:
    """The large button."""
    with user:
        user.page.press()


def test_from_a_preset_to_designs(visit: Callable[..., None], jobs: Jobs, held: threading.Event) -> None:
    async def visitor(user: Any) -> None:
        user.find("Mirror").click()
        user.page.n.set_value(3)
        user.page.steps.set_value(3)
        user.page.seed.set_value(4)
        user.page.refine.set_value(False)
        press(user)
        await user.should_see("Sampling 3 candidates: step 1 of 3", retries=300)
        assert user.page.result._mosaic.source.startswith("data:image/png")
        held.set()
        await user.should_see("misrouted power, 0 is exact", retries=300)
        await user.should_see("designs.gds")

    before = set(jobs._finished)
    visit(visitor)
    [name] = set(jobs._finished) - before
    order = jobs.find(name).order
    assert (order.n, order.seed, order.settings["steps"]) == (3, 4, 3)
    assert order.target.range_of("R", 0, 0) == (0.4, 1.0)
    assert order.target.mask_T.sum() == 0


def test_the_best_so_far_is_shown_while_it_is_refined(visit: Callable[..., None], jobs: Jobs, refining: threading.Event) -> None:
    async def visitor(user: Any) -> None:
        user.page.n.set_value(2)
        user.page.steps.set_value(2)
        user.page.budget.set_value(6)
        press(user)
        await user.should_see("Refining the best: 2 of 6 solves", retries=300)
        await user.should_see("misrouted power of the best so far")
        await user.should_see(f"{user.page.job.best.score:.3f}")
        refining.set()
        await user.should_see("misrouted power, 0 is exact", retries=300)
        await user.should_see("2 candidates, 6 solves in")

    visit(visitor)


def test_without_refining_none_is_done(visit: Callable[..., None], jobs: Jobs) -> None:
    async def visitor(user: Any) -> None:
        user.find("Refine").click()
        user.page.n.set_value(2)
        user.page.steps.set_value(2)
        press(user)
        await user.should_see("misrouted power, 0 is exact", retries=300)

    visit(visitor)
    job = list(jobs._finished.values())[-1]
    assert not job.order.refine
    assert not any(design.refined for design in job.result.result())


@pytest.mark.parametrize(
    ("sampled", "solved", "score", "verify", "words"),
    [
        ((0, 0), (0, 0), None, True, "Waiting beside 2 other requests"),
        ((3, 10), (0, 0), None, True, "Sampling 64 candidates: step 3 of 10"),
        ((10, 10), (0, 0), None, True, "Ranking"),
        ((10, 10), (2, 32), None, True, "Solving Maxwell's equations for the most promising"),
        ((10, 10), (9, 32), 0.2, True, "Refining the best: 9 of 32 solves"),
        ((10, 10), (9, 32), 0.0, True, "Solving the designs once more with more harmonics, for the solver's own error"),
        ((10, 10), (32, 32), 0.2, True, "Solving the designs once more with more harmonics, for the solver's own error"),
        ((10, 10), (0, 0), None, False, "Ranking"),
    ],
)
def test_progress_in_words(
    sampled: tuple[int, int], solved: tuple[int, int], score: float | None, verify: bool, words: str, target: Target
) -> None:
    job = Job(Order(target, verify=verify))
    job.sampled, job.solved = sampled, solved
    if score is not None:
        job.on_best(Design(np.zeros((5, 5), np.uint8), 250.0, None, None, score, True, 0, 0, Geometry()))
    said, share = progress(job, 3)
    assert said == words
    assert 0 <= share <= 1


def test_orders_are_clicked_and_errors_are_the_librarys(visit: Callable[..., None]) -> None:
    async def visitor(user: Any) -> None:
        wishes = user.page.wishes
        for row in list(wishes.rows):
            wishes.click(row.side, row.m, row.n)
        assert wishes.rows == []
        press(user)
        await user.should_see("no order is asked for; click one in the map")
        wishes.click("T", 0, 0)
        wishes.click("T", 5, 5)  # carries no light here
        assert [row.name for row in wishes.rows] == ["T(0,0)"]
        wishes.rows[0].share = 120.0
        press(user)
        await user.should_see("runs from 1.2 to 1")
        wishes.rows[0].share = 30.0
        wishes.height.set_value(5000)
        press(user)
        await user.should_see("the height is")

    visit(visitor)


def test_a_file_is_dropped_and_refused_in_words(visit: Callable[..., None], jobs: Jobs, tmp_path: Path) -> None:
    from nicegui.elements.upload_files import SmallFileUpload

    async def drop(user: Any, name: str, content: bytes) -> None:
        await user.page.wishes._upload.handle_uploads([SmallFileUpload(name, "", content)])

    async def visitor(user: Any) -> None:
        await drop(user, "../bad name.json", b'{"height_nm": 250, "orders": {"T(0,0)": 3}}')
        await user.should_see("bad_name.json", retries=50)
        assert user.page.wishes.file is None
        assert "/" not in user.page.wishes._wrong.text
        await drop(user, "wish.exe", b"MZ")
        await user.should_see("a target is a .json", retries=50)
        await drop(user, "beam.toml", b'height_nm = 250\n[orders]\n"T(0,0)" = {min = 0.1}\n')
        await user.should_see("Pillars 250 nm high, 1 order asked for", retries=50)
        user.page.n.set_value(2)
        user.page.steps.set_value(2)
        user.page.refine.set_value(False)
        press(user)
        await user.should_see("misrouted power, 0 is exact", retries=300)
        user.find("Use the form").click()
        assert user.page.wishes.file is None

    visit(visitor)
    assert list(jobs._finished.values())[-1].order.target.name == "beam"


def test_cancel_frees_the_place(visit: Callable[..., None], jobs: Jobs, held: threading.Event) -> None:
    async def visitor(user: Any) -> None:
        user.page.steps.set_value(4)
        press(user)
        await user.should_see("Cancel")
        assert jobs.load["jobs"] == 1
        press(user)
        held.set()
        while jobs.load["jobs"]:
            await asyncio.sleep(0.01)
        await user.should_see("Choose orders and their share of the light", retries=50)
        await user.should_see("Design")

    visit(visitor)


def test_one_who_asks_too_often_is_told(visit: Callable[..., None]) -> None:
    async def visitor(user: Any) -> None:
        for _ in range(2):
            user.page.n.set_value(1)
            user.page.steps.set_value(1)
            user.page.refine.set_value(False)
            press(user)
            while user.page.job is not None:
                await asyncio.sleep(0.05)
        press(user)
        assert "more than 2 in 3600 s requests came from this address" in user.page.error.text

    visit(visitor, rate="2/hour")
