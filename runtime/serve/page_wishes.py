"""The form of the page: presets, height, the map of orders to click on, a row for each order wished for, or a file instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..errors import MetascatterError
from ..geometry import propagating
from ..presets import HEIGHT_NM
from .drawings import CELL, order_map, per_cent
from .wishes import BETWEEN, RELATIONS, TITLES, Wish, of_preset

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..target import Target

_FILES = (".mat", ".npz", ".json", ".toml", ".csv")
_STRONGEST = 6  # orders of a file that are named


class Wishes:
    """What is wished for: ``rows`` and ``height``, or ``file`` where one was dropped."""

    def __init__(self, bundle: Bundle, max_body: int, read: Callable[[str, bytes], Awaitable[Target]]) -> None:
        from nicegui import ui

        self.rows: list[Wish] = []
        self.file: Target | None = None
        self._read = read
        reach = bundle.condition.orders
        self._light = dict(zip("RT", (_cut(light) for light in propagating(bundle.geometry, reach)), strict=True))
        low, high = bundle.condition.height_range_nm
        self._by_hand = ui.column().classes("w-full gap-3")
        with self._by_hand:
            with ui.row().classes("w-full gap-1"):
                for name, title in TITLES.items():
                    ui.button(title, on_click=lambda name=name: self.take(name)).props("outline size=sm dense").classes("px-2")
            with ui.row().classes("w-full items-center gap-3 no-wrap"):
                start = min(max(HEIGHT_NM, low), high)
                self.height = ui.number("Height (nm)", value=start, min=low, max=high).props("dense").classes("w-28")
                ui.slider(min=low, max=high, step=1).bind_value(self.height).classes("grow").props("aria-label=height")
            with ui.row().classes("w-full items-center justify-between"):
                self.side = ui.toggle({"T": "Transmitted", "R": "Reflected"}, value="T", on_change=self._draw)
                self.side.props("unelevated size=sm padding='3px 10px' toggle-color=primary color=grey-3 text-color=grey-9")
                ui.label("Click the orders you want").classes("text-xs text-gray-500")
            self._map = ui.column().classes("w-full items-center gap-1")
            self._list = ui.column().classes("w-full gap-1")
        self._chosen = ui.column().classes("w-full gap-1")
        self._chosen.set_visibility(False)
        self._upload = ui.upload(
            label="… or drop a target: .mat, .npz, .json, .toml, .csv",
            auto_upload=True,
            max_file_size=max_body,
            on_upload=self._dropped,
            on_rejected=lambda: self._complain(f"the file is larger than {max_body / 2**20:g} MB or not one of {', '.join(_FILES)}"),
        )
        self._upload.classes("w-full drop").props(f'accept="{",".join(_FILES)}" flat bordered color=white text-color=grey-8')
        self._wrong = ui.label().classes("text-sm text-red-700").props("role=alert")
        self._wrong.set_visibility(False)
        self.take("deflector")

    def take(self, preset: str) -> None:
        """The rows of a preset in place of those there are."""
        self.rows = of_preset(preset)
        self.side.set_value("R" if all(row.side == "R" for row in self.rows) else "T")
        self._draw()

    def _draw(self) -> None:
        """Map and rows anew."""
        from nicegui import ui

        side = self.side.value
        light = self._light[side]
        reach, size = len(light) // 2, len(light) * CELL
        content = order_map(light, {(row.m, row.n): row.words for row in self.rows if row.side == side})

        def clicked(event: Any) -> None:
            self.click(side, int(event.image_x // CELL) - reach, reach - int(event.image_y // CELL))

        self._map.clear()
        with self._map:
            image = ui.interactive_image(size=(size, size), content=content, on_mouse=clicked, events=["click"])
            image.classes("w-full").style(f"max-width: {min(size, 24 * CELL if reach > 4 else 7 * CELL)}px; cursor: pointer")
            image.props(f'data-orders={side} aria-label="map of orders"')
            ui.label("m → right, n ↑ up, seen from the air").classes("text-xs text-gray-500")
        self._list.clear()
        with self._list:
            for row in self.rows:
                self._row(row)

    def _row(self, row: Wish) -> None:
        from nicegui import ui

        with ui.row().classes("w-full items-center gap-2 no-wrap"):
            ui.label(row.name).classes("w-16 shrink-0 font-mono text-sm")

            def changed() -> None:
                second.set_visibility(row.relation == BETWEEN)
                self._mark()

            choice = ui.select(list(RELATIONS), value=row.relation).props("dense options-dense borderless").classes("w-24")
            choice.bind_value_to(row, "relation").on_value_change(changed)
            box = "dense suffix=%"
            first = (
                ui.number(value=row.share, min=0, max=100, format="%.4g").props(f'{box} aria-label="share of {row.name}"').classes("w-20")
            )
            first.bind_value_to(row, "share").on_value_change(self._mark)
            second = (
                ui.number(value=row.most, min=0, max=100, format="%.4g").props(f'{box} aria-label="most of {row.name}"').classes("w-20")
            )
            second.bind_value_to(row, "most").on_value_change(self._mark)
            second.set_visibility(row.relation == BETWEEN)
            ui.space()
            away = ui.button(icon="close", on_click=lambda: self.click(row.side, row.m, row.n))
            away.props(f'flat round dense size=sm aria-label="remove {row.name}"')

    def click(self, side: str, m: int, n: int) -> None:
        """Ask for an order, or no longer."""
        left = [row for row in self.rows if (row.side, row.m, row.n) != (side, m, n)]
        reach = len(self._light[side]) // 2
        if len(left) == len(self.rows) and max(abs(m), abs(n)) <= reach and self._light[side][m + reach, n + reach]:
            left.append(Wish(side, m, n))
        self.rows = left
        self._draw()

    def _mark(self) -> None:
        """The map's words, after a number was changed; the rows stay, for one of them is being typed in."""
        side = self.side.value
        for image in self._map.default_slot.children[:1]:
            image.set_content(order_map(self._light[side], {(row.m, row.n): row.words for row in self.rows if row.side == side}))

    async def _dropped(self, event: Any) -> None:
        self._complain("")
        self._upload.reset()
        try:
            self.file = await self._read(event.file.name, await event.file.read())
        except MetascatterError as error:
            self._complain(str(error))
            return
        self._by_hand.set_visibility(False)
        self._show(self.file)

    def _show(self, target: Target) -> None:
        """A file's target in a few words."""
        from nicegui import ui

        asked = int(target.mask_R.sum() + target.mask_T.sum())
        named = [order for order in target.strongest(_STRONGEST) if target.wanted(*order) > 0 or target.partial]
        self._chosen.clear()
        self._chosen.set_visibility(True)
        with self._chosen:
            with ui.row().classes("w-full items-center justify-between no-wrap"):
                ui.label(target.name).classes("font-semibold break-all")
                ui.button("Use the form", on_click=self._by_form).props("flat dense size=sm icon=undo")
            many = f"{asked} order{'s' * (asked != 1)} asked for" if target.partial else "every order asked for"
            ui.label(f"Pillars {target.height_nm:g} nm high, {many}").classes("text-sm")
            for side, m, n in named:
                ui.label(f"{side}({m},{n})  {per_cent(*target.range_of(side, m, n))}").classes("font-mono text-xs text-gray-700")

    def _by_form(self) -> None:
        self.file = None
        self._chosen.set_visibility(False)
        self._by_hand.set_visibility(True)

    def _complain(self, sentence: str) -> None:
        self._wrong.set_text(sentence)
        self._wrong.set_visibility(bool(sentence))


def _cut(light: Any) -> Any:
    """A map of orders (2M+1, 2M+1) cut to the orders that carry light, and to a square around (0, 0)."""
    import numpy as np

    middle = len(light) // 2
    reach = max([1, *np.abs(np.argwhere(light) - middle).ravel().tolist()])
    return light[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
