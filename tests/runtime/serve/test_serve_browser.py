"""In Chromium: a file is uploaded, patterns appear, and GDSII and MATLAB files come down; on a desk and on a phone.

``METASCATTER_SCREENSHOTS`` names a folder to leave screenshots in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
PATIENCE_MS = 120_000.0


@pytest.fixture(scope="module")
def address(small_bundle: Path) -> Iterator[str]:
    """The command as a user starts it."""
    pytest.importorskip("nicegui")
    command = [sys.executable, "cli.py", "serve", "--port", "0", "--bundle", str(small_bundle), "--backend", "onnxruntime"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield opened
        opened.close()


@pytest.mark.parametrize("size", SIZES)
def test_from_upload_to_download(size: str, address: str, browser: Any, small_data: Path, tmp_path: Path) -> None:
    from scipy.io import savemat

    from runtime.data import load, reorder_lab

    data = load(small_data)
    k = int(np.flatnonzero((data.h > 150) & (data.h < 350))[0])
    target = tmp_path / "measured.mat"
    savemat(target, {"Rm": reorder_lab(data.Rm[k : k + 1])[0], "Tm": reorder_lab(data.Tm[k : k + 1])[0], "h": float(data.h[k])})
    width, height = SIZES[size]
    with browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone", is_mobile=size == "phone") as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        faults: list[str] = []
        elsewhere: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else elsewhere.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Design", exact=True).wait_for()
        _shot(page, f"{size}-form")
        page.locator("input[type=file]").set_input_files(target)
        page.get_by_text(f"Pillars {data.h[k]:g} nm high, every order asked for").wait_for()
        page.get_by_text("Settings", exact=True).click()
        page.get_by_label("Candidates", exact=True).fill("16")
        page.get_by_label("Steps").fill("1000")  # long enough to be seen at work
        page.get_by_label("Steps").blur()
        page.get_by_role("button", name="Design", exact=True).click()
        page.get_by_text("The network's present view of its candidates").wait_for()
        _shot(page, f"{size}-sampling")
        page.get_by_text("misrouted power, 0 is exact").wait_for()
        page.get_by_alt_text("reflected orders, wanted and achieved").wait_for()
        _shot(page, f"{size}-designs")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing hangs over the edge"
        got = {}
        for name in ("designs.gds", "designs.mat"):
            with page.expect_download() as download:
                page.get_by_role("link", name=name).click()
            assert download.value.suggested_filename == name
            got[name] = tmp_path / name
            download.value.save_as(got[name])
    assert not faults
    assert not elsewhere, "the page needs nothing from other machines"
    designs = loadmat(got["designs.mat"])
    assert designs["xx"].shape == (4, 25)
    assert designs["h"].ravel().tolist() == [float(data.h[k])] * 4
    assert got["designs.gds"].read_bytes()[:4] == b"\x00\x06\x00\x02", "a GDSII header"


def test_orders_are_clicked_in_the_map(address: str, browser: Any) -> None:
    """The square to the right of the middle is T(1,0): away and back again."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(address)
        page.get_by_text("Mirror").click()
        page.get_by_label("remove R(0,0)").wait_for()
        page.get_by_text("Transmitted").click()
        chart = page.locator("[data-orders=T]")
        chart.wait_for()
        box = chart.bounding_box()
        chart.click(position={"x": box["width"] / 2 + box["width"] / 3, "y": box["height"] / 2})
        page.get_by_label("remove T(1,0)").wait_for()
        page.get_by_label("remove R(0,0)").click()
        page.get_by_label("remove T(1,0)").click()
        page.get_by_role("button", name="Design", exact=True).click()
        page.get_by_text("no order is asked for; click one in the map").wait_for()


def _shot(page: Any, name: str) -> None:
    folder = os.environ.get("METASCATTER_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)  # the browser is still drawing
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
