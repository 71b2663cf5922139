"""The page, in NiceGUI: everything is drawn and decided here in Python, and the browser shows it.

NiceGUI and not Gradio: its elements are placed and changed from Python over one websocket, it is a FastAPI application itself so that the
API shares its port, its scripts and fonts come from this machine, and it brings no data frames, hub client or usage reports.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

from ..drawing import arrangement
from ..errors import Cancelled, MetascatterError, TargetError
from ..target import Target
from .api import DESIGNS
from .guard import Rate
from .jobs import MAX_BUDGET, MAX_CANDIDATES, MAX_TOP, Job, Jobs, Order
from .page_result import Result
from .page_wishes import Wishes
from .wishes import target_fields

_REFRESH_S = 0.2
_RECONNECT_S = 30.0  # a phone that sleeps for so long finds its designs again; then its job is given up

_STYLE = """
body { background: #f6f7f9; color: #222; }
.sharp img { image-rendering: pixelated; }
.nicegui-content { padding: 0; }
.q-btn { text-transform: none; }
.drop .q-uploader__list, .drop .q-uploader__subtitle { display: none; }
.drop .q-uploader__title { white-space: normal; font-weight: 400; font-size: 0.875rem; line-height: 1.2; }
.drop { border-style: dashed; min-height: 0; }
@media (max-width: 1023px) { .begun { min-height: 95vh; } }
"""


def add(app: Any, jobs: Jobs, rate: Rate, max_body: int) -> None:
    """Put the page at ``/`` of a FastAPI application."""
    from nicegui import ui

    def root() -> None:
        Page(jobs, rate, max_body)

    ui.run_with(app, root=root, title="metascatter", favicon="🔆", reconnect_timeout=_RECONNECT_S, show_welcome_message=False)


class Page:
    """One browser's page: the form on the left or on top, what came of it beside or below."""

    def __init__(self, jobs: Jobs, rate: Rate, max_body: int) -> None:
        from nicegui import ui

        self.jobs, self.rate = jobs, rate
        self.job: Job | None = None
        self.client = ui.context.client
        ui.add_css(_STYLE)
        ui.colors(primary="#33475b", accent="#d55e00")
        with ui.column().classes("w-full max-w-6xl mx-auto px-3 sm:px-6 py-4 gap-4"):
            with ui.row().classes("w-full items-baseline gap-x-4 gap-y-0"):
                ui.label("metascatter").classes("text-xl font-semibold")
                ui.label("Surfaces that scatter light as you want").classes("text-sm text-gray-600")
                ui.label(arrangement(jobs.sampler.bundle.geometry)).classes("w-full text-xs text-gray-500")
            with ui.element("div").classes("w-full grid grid-cols-1 lg:grid-cols-[25rem_minmax(0,1fr)] gap-4 items-start"):
                with ui.card().classes("w-full gap-3").props("flat bordered"):
                    self.wishes = Wishes(jobs.sampler.bundle, max_body, self.read)
                    self._sampling()
                    self.error = ui.label().classes("text-sm text-red-700").props("role=alert")
                    self.error.set_visibility(False)
                    self.button = ui.button("Design", on_click=self.press).classes("w-full").props("size=lg unelevated")
                with ui.card().classes("w-full gap-3 min-h-[12rem]").props("flat bordered") as self.card:
                    self.result = Result(jobs)
        self.timer = ui.timer(_REFRESH_S, self.look, active=False)
        self.client.on_delete(self.leave)

    def _sampling(self) -> None:
        from nicegui import ui

        manifest = self.jobs.sampler.bundle.manifest["sampling"]
        with ui.row().classes("w-full items-center gap-3 no-wrap"):
            self.refine = ui.switch("Refine", value=True).props("dense")
            ui.label("search on from the best candidates: better designs, a longer wait").classes("text-xs text-gray-500 leading-tight")
        with (
            ui.expansion("Settings").classes("w-full").props("dense header-class=q-px-none content-inset-level=0"),
            ui.grid(columns=2).classes("w-full gap-x-4 gap-y-1"),
        ):
            self.n = ui.number("Candidates", value=64, min=1, max=MAX_CANDIDATES, precision=0).props("dense")
            self.top = ui.number("Designs kept", value=4, min=1, max=MAX_TOP, precision=0).props("dense")
            self.seed = ui.number("Seed", value=0, min=0, precision=0).props("dense")
            self.steps = ui.number("Steps", value=manifest["steps"], min=1, precision=0).props("dense")
            self.budget = ui.number("Solves, if refined", value=32, min=1, max=MAX_BUDGET, precision=0).props("dense")
            self.budget.bind_enabled_from(self.refine, "value")
            self.time_limit = ui.number("Time limit (s)", min=0, placeholder="none").props("dense stack-label")

    async def read(self, name: str, content: bytes) -> Target:
        """The target in a file that was dropped. Raises MetascatterError, with the file's own name."""
        self.rate.hit(self.client.ip, "upload")
        sampler = self.jobs.sampler
        suffix = Path(name).suffix
        stem = re.sub(r"[^\w.+-]+", "_", Path(name).stem)[:80] or "target"

        def load() -> Target:
            with tempfile.TemporaryDirectory(prefix="metascatter-") as folder:
                path = Path(folder) / f"{stem}{suffix}"
                path.write_bytes(content)
                try:
                    return sampler.check(Target.load(path, None, sampler.bundle.channels))
                except MetascatterError as error:
                    raise type(error)(str(error).replace(f"{path}", path.name)) from None

        return await asyncio.to_thread(load)

    def order(self) -> Order:
        """What the form asks for. Raises TargetError."""
        target = self.wishes.file or Target.from_dict(target_fields(self.wishes.height.value, self.wishes.rows))
        boxes = {"n": self.n, "top": self.top, "seed": self.seed, "budget": self.budget, "steps": self.steps}
        empty = next((box.label for box in boxes.values() if box.value is None), None)
        if empty is not None:
            raise TargetError(f"there is no number in '{empty}'; give one")
        numbers = {name: int(box.value) for name, box in boxes.items()}
        return Order(
            target,
            numbers["n"],
            numbers["top"],
            numbers["seed"],
            refine=self.refine.value,
            budget=numbers["budget"],
            time_limit=self.time_limit.value,
            settings={"steps": numbers["steps"]},
        )

    def press(self) -> None:
        """Design, or give up what is being designed."""
        if self.job is not None:
            self.job.cancel()
            return
        self.say("")
        try:
            self.rate.hit(self.client.ip)
            self.job = self.jobs.submit(self.order())
        except MetascatterError as error:
            self.say(str(error))
            return
        self.button.set_text("Cancel")
        self.result.begin()
        # On a phone the form fills the screen, and what happens does so below it: there is room for all of it before anything is there.
        self.card.classes("begun")
        self.client.run_javascript(f"innerWidth < 1024 && getHtmlElement({self.card.id}).scrollIntoView({{behavior: 'smooth'}})")
        self.timer.activate()

    async def look(self) -> None:
        """How far the job is, and at its end what came of it."""
        job = self.job
        if job is None:
            return
        if not job.result.done():
            self.result.watch(job, self.jobs.load["jobs"])
            return
        self.job = None
        self.timer.deactivate()
        self.button.set_text("Design")
        if job.result.cancelled():
            self.result.clear()
            return
        error = job.result.exception()
        if error is not None:
            self.result.clear()
            if not isinstance(error, Cancelled):
                self.say(str(error) if isinstance(error, MetascatterError) else f"the work failed: {error!r}")
            return
        await self.result.show(job, f"{DESIGNS}/{job.id}/")

    def say(self, words: str) -> None:
        """An error, or none."""
        self.error.set_text(words)
        self.error.set_visibility(bool(words))

    def leave(self) -> None:
        """The browser has gone."""
        if self.job is not None:
            self.job.cancel()
