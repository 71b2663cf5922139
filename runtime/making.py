"""What is asked of designs beyond their score: limits of fabrication, tolerances, and a ranking by either; then what is said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import fabrication, tolerance
from .design_files import RANKING
from .fabrication import Limits, violations
from .search import SOLVED

if TYPE_CHECKING:
    from .design import Design
    from .physics.verify import Cancel
    from .target import Target


@dataclasses.dataclass(frozen=True)
class Making:
    """How to choose among solved designs.

    Args:
        limits: designs that keep them come first, the others after; none is dropped. None ranks without.
        tolerance: solve the variations of the designs kept; see :mod:`.tolerance`.
        robust: rank by the worst case of these, solved for every design there is to choose from.
    """

    limits: Limits | None = None
    tolerance: bool = False
    robust: bool = False

    def pool(self, top: int) -> int:
        """How many solved designs to choose ``top`` from: as many as a ranking solves anyway."""
        return max(top, SOLVED) if self.robust or self.limits is not None else top

    @property
    def ranking(self) -> str:
        """What designs are ranked by, in words."""
        words = "worst case of the tolerances" if self.robust else RANKING
        return words if self.limits is None else f"{_stated(self.limits)} first, then {words}"

    def arrange(
        self,
        designs: Sequence[Design],
        target: Target,
        top: int,
        workers: int | None = None,
        cancel: Cancel = None,
        on_done: Callable[[int, int], None] | None = None,
    ) -> list[Design]:
        """The best ``top`` of designs that are ranked by score, best first, with their tolerances where these are asked for.

        Args:
            workers, cancel, on_done: as for ``physics.verify.solve_many``.

        Raises:
            Cancelled: ``cancel`` said so.
        """
        found = list(designs)
        if self.robust:
            found = tolerance.tolerances(found, target, workers, cancel, on_done)
            found.sort(key=_worst)
        if self.limits is not None:
            found.sort(key=lambda design: not self.keeps(design))
        found = found[:top]
        return tolerance.tolerances(found, target, workers, cancel, on_done) if self.tolerance and not self.robust else found

    def keeps(self, design: Design) -> bool:
        """Whether a design keeps the limits; True where there are none."""
        return self.limits is None or violations(design.pattern, design.geometry, self.limits) == 0

    def text(self, designs: Sequence[Design]) -> str:
        """What is known of how the designs can be made, for people."""
        parts = [fabrication.table(designs)]
        if designs and all(design.tolerance is not None for design in designs):
            parts.append(tolerance.table(designs))
        if self.limits is not None:
            kept = sum(map(self.keeps, designs))
            where = "which come first" if kept else "so the limits ranked nothing; sample more candidates (-n) and keep more (--top)"
            parts.append(f"{_stated(self.limits, capital=True)}: {kept} of {len(designs)} designs, {where}.")
        if self.robust:
            parts.append("Ranked by worst case.")
        return "\n\n".join(parts)


def _stated(limits: Limits, capital: bool = False) -> str:
    """Limits in words."""
    words = [f"pillars and gaps of at least {limits.min_width_nm:g} nm"] if limits.min_width_nm else []
    text = " and ".join(words + ([] if limits.corners else ["no corner contacts"]))
    return text[0].upper() + text[1:] if capital else text


def _worst(design: Design) -> float:
    assert design.tolerance is not None
    return design.tolerance.worst.score
