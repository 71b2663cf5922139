"""The other half of the page: candidates as they come out of noise, the best so far, at last each design wanted against achieved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..refine import REACHED
from ..report import STRONGEST, at
from . import drawings

if TYPE_CHECKING:
    from ..design import Design
    from ..target import Target
    from .jobs import Job, Jobs

_FILES = (
    ("designs.gds", "for the mask"),
    ("designs.mat", "for MATLAB"),
    ("design.png", "figure of the best"),
    ("designs.npz", "for NumPy"),
    ("designs.json", "for programs"),
)


class Result:
    """What is there to see: nothing yet, a job at work, or its designs."""

    def __init__(self, jobs: Jobs) -> None:
        from nicegui import ui

        self.jobs = jobs
        self._seen: Any = None
        self._pictures: dict[int, tuple[str, str, str]] = {}
        self._hint = ui.label("Choose orders and their share of the light, then press Design.").classes("text-gray-500 m-auto text-center")
        self._work = ui.column().classes("w-full items-center gap-2")
        with self._work:
            self._doing = ui.label().classes("text-sm").props("role=status")
            self._bar = ui.linear_progress(show_value=False).props("instant-feedback").classes("w-full")
            self._mosaic = (
                ui.interactive_image().classes("sharp w-full max-w-[26rem] border border-gray-300").props('aria-label="candidates at work"')
            )
            self._words = ui.label("The network's present view of its candidates").classes("text-xs text-gray-500")
            self._best = ui.column().classes("w-full gap-3")
            with self._best:
                self._score = ui.column().classes("w-full")
                with ui.element("div").classes("w-full grid grid-cols-1 sm:grid-cols-2 gap-3 items-center"):
                    self._pattern = ui.interactive_image().classes("sharp w-full max-w-[16rem] mx-auto border border-gray-300")
                    self._pattern.props('aria-label="pattern so far, 3 x 3 cells"')
                    self._orders = ui.column().classes("w-full")
        self._done = ui.column().classes("w-full gap-3")
        self.clear()

    def clear(self) -> None:
        """Nothing to see."""
        self._hint.set_visibility(True)
        self._work.set_visibility(False)
        self._done.set_visibility(False)

    def begin(self) -> None:
        """A job is queued."""
        for part, seen in ((self._hint, False), (self._done, False), (self._work, True), (self._best, False)):
            part.set_visibility(seen)
        self._mosaic.set_visibility(False)
        self._words.set_visibility(False)
        self._doing.set_text("Waiting")
        self._bar.set_value(0)

    def watch(self, job: Job, others: int) -> None:
        """How far a job is."""
        words, share = progress(job, others)
        self._doing.set_text(words)
        self._bar.set_value(share)
        estimate, best = job.estimate, job.best
        if best is not None:
            if best is not self._seen:
                self._seen = best
                self._preview(job, best)
        elif estimate is not None and estimate is not self._seen:
            self._seen = estimate
            self._mosaic.set_source(drawings.mosaic(self.jobs.sampler.window(estimate)))
            self._mosaic.set_visibility(True)
            self._words.set_visibility(True)

    def _preview(self, job: Job, best: Design) -> None:
        """The best design so far, in what is quickly drawn."""
        self._mosaic.set_visibility(False)
        self._words.set_visibility(False)
        self._best.set_visibility(True)
        self._pattern.set_source(drawings.cells(best.pattern))
        self._score.clear()
        self._orders.clear()
        with self._score:
            began = "" if job.first is best or job.first is None else f", {job.first.score:.3f} at first"
            _headline(best, f"misrouted power of the best so far{began}")
        with self._orders:
            _numbers(best, job.order.target)

    async def show(self, job: Job, files: str) -> None:
        """The designs of a finished job; ``files`` is where its files are."""
        from nicegui import ui

        designs, target = job.result.result(), job.order.target
        self._pictures.clear()
        self._doing.set_text("Drawing")
        self._bar.set_value(1.0)
        self._pictures[0] = await asyncio.to_thread(self._draw, designs[0], target)
        self._work.set_visibility(False)
        self._done.set_visibility(True)
        self._done.clear()
        with self._done:
            with ui.row().classes("w-full items-baseline justify-between gap-x-4 gap-y-0"):
                ui.label(f"{len(designs)} designs").classes("font-semibold")
                solves = f", {job.solved[0]} solves" if job.solved[0] else ""
                took = f"{job.order.n} candidates{solves} in {job.seconds:.1f} s, pillars {target.height_nm:g} nm high"
                ui.label(took).classes("text-xs text-gray-500")
            if len(designs) > 1:
                names = {
                    k: f"{k + 1}  ·  {design.score:.3f}" if design.score is not None else str(k + 1) for k, design in enumerate(designs)
                }
                ui.toggle(names, value=0, on_change=lambda event: self._choose(place, designs, target, event.value)).props(
                    "unelevated size=sm padding='3px 10px' toggle-color=primary color=grey-3 text-color=grey-9"
                ).classes("flex-wrap")
            place: Any = ui.column().classes("w-full gap-3")
            ui.separator()
            with ui.row().classes("w-full gap-2"):
                for name, what in _FILES:
                    link = ui.button(name, icon="download").props(f'outline size=sm href="{files}{name}" download="{name}"').classes("px-2")
                    link.tooltip(what)
        await self._choose(place, designs, target, 0)

    async def _choose(self, place: Any, designs: list[Design], target: Target, k: int) -> None:
        """One design: how good it is, what it looks like, and its orders."""
        from nicegui import ui

        design = designs[k]
        if k not in self._pictures:
            self._pictures[k] = await asyncio.to_thread(self._draw, design, target)
        pattern, transmitted, reflected = self._pictures[k]
        place.clear()
        with place:
            doubt = "" if design.uncertainty is None else f" · solver's own error {design.uncertainty:.3f}"
            facts = (" · refined" if design.refined else "") + (" · verified by RCWA" if design.verified else "")
            _headline(design, f"misrouted power, 0 is exact{doubt}{facts}")
            with ui.element("div").classes("w-full grid grid-cols-1 sm:grid-cols-2 gap-3 items-center"):
                ui.image(pattern).classes("w-full max-w-[20rem] mx-auto").props('ratio=1 no-spinner alt="pattern, 3 x 3 cells"')
                _numbers(design, target)
            for picture, what in ((transmitted, "transmitted"), (reflected, "reflected")):
                ui.image(picture).classes("w-full max-w-[32rem] mx-auto").props(f'no-spinner alt="{what} orders, wanted and achieved"')

    def _draw(self, design: Design, target: Target) -> tuple[str, str, str]:
        with self.jobs.slots.hold():
            sides = [drawings.orders_picture(design, target, side) for side in "TR"]
            return drawings.pattern_picture(design), sides[0], sides[1]


def progress(job: Job, others: int) -> tuple[str, float]:
    """What a job is at, in words, and the share of its way behind it; ``others`` jobs are in the queue with it, itself counted."""
    (step, steps), (solved, to_solve), order = job.sampled, job.solved, job.order
    refined = order.refine and order.verify
    sampling = 0.3 if refined else 0.7 if order.verify else 1.0
    share = sampling + (0.9 if refined else 1.0) * (1 - sampling) * solved / max(to_solve, 1)
    if refined and job.best is not None and step >= steps:
        if solved >= to_solve or (job.best.score or 0.0) <= REACHED:
            return "Solving the designs once more with more harmonics, for the solver's own error", max(share, 0.93)
        return f"Refining the best: {solved} of {to_solve} solves", share
    if to_solve:
        return "Solving Maxwell's equations for the most promising" + ("" if refined else f": {solved} of {to_solve}"), share
    if steps and step == steps:
        return "Ranking", sampling
    if steps:
        return f"Sampling {order.n} candidates: step {step} of {steps}", sampling * step / steps
    if others > 1:
        return f"Waiting beside {others - 1} other request{'s' * (others > 2)}", 0.0
    return "Waiting", 0.0


def _headline(design: Design, words: str) -> None:
    """The score, large, and what it is."""
    from nicegui import ui

    with ui.row().classes("w-full items-baseline gap-x-3 gap-y-0"):
        ui.label("not solved" if design.score is None else f"{design.score:.3f}").classes("text-3xl font-semibold")
        ui.label(words).classes("text-sm text-gray-600")


def _numbers(design: Design, target: Target) -> None:
    """The orders that matter most, wanted and achieved."""
    from nicegui import ui

    rows = []
    for side, m, n in target.strongest(STRONGEST):
        got = at(design.T if side == "T" else design.R, m, n)
        low, high = target.range_of(side, m, n)
        mark = "" if got is None else "✓" if low - 5e-4 <= got <= high + 5e-4 else "↓" if got < low else "↑"
        achieved = "–" if got is None else f"{100 * got:.1f} % {mark}".rstrip()
        rows.append({"order": f"{side}({m},{n})", "wanted": drawings.per_cent(low, high), "achieved": achieved})
    columns = [{"name": name, "label": name, "field": name, "align": "left" if name == "order" else "right"} for name in rows[0]]
    ui.table(rows=rows, columns=columns, row_key="order").classes("w-full").props("dense flat bordered")
