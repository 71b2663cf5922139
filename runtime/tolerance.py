"""How a design bears what a lab gets wrong: misrouted power with one thing off at a time, solved by RCWA.

    designs = tolerances(designs, target)      # each now has .tolerance
    designs[0].tolerance.worst                 # Variation(parameter='edge', shift=-20.0, score=0.087)

The pillars 5 % too low or high; every edge moved by 10 and 20 nm, so that pillars grow or shrink along x and y and merge where they
touch (``Cell.from_pattern``); the wavelength 10 nm off, the refractive indices as they were; the incidence 1 degree off towards +x, -x,
+y or -y. That degree is counted where ``Geometry`` counts it, in the medium the light comes from: in silicon of index 3.48 it is 3.5
degrees outside the wafer. Twelve solves a design, four of them at oblique incidence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import DataError
from .fabrication import aligned
from .geometry import Geometry

if TYPE_CHECKING:
    from .design import Design
    from .physics.verify import Cancel
    from .target import Target

HEIGHT = 0.05  # of the height
EDGE_NM = (10.0, 20.0)
WAVELENGTH_NM = 10.0
TILT_DEG = 1.0
# By parameter: its unit and its words.
PARAMETERS = {
    "height": ("nm", "height"),
    "edge": ("nm", "pillar edges"),
    "wavelength": ("nm", "wavelength"),
    "tilt_x": ("deg", "incidence towards x"),
    "tilt_y": ("deg", "incidence towards y"),
}


class Variation(NamedTuple):
    """One thing off by ``shift``, in nm or degrees, and the misrouted power then."""

    parameter: str
    shift: float
    score: float


class Curve(NamedTuple):
    """Misrouted power over one parameter: (k,) shifts ascending through 0, in nm or degrees, and (k,) scores."""

    shifts: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Of the score per nm or degree at the design itself, by the central difference of the smallest shifts.

        Its sign says which way to err; at an optimum it is near 0, however sharp that is.
        """
        i = self.shifts.index(0.0)
        return (self.scores[i + 1] - self.scores[i - 1]) / (self.shifts[i + 1] - self.shifts[i - 1])

    @property
    def sensitivity(self) -> float:
        """The largest difference of the score between neighbouring shifts, per nm or degree; never negative."""
        return float(np.max(np.abs(np.diff(self.scores)) / np.diff(self.shifts)))


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What came of every variation of a design; ``curves`` by the names of ``PARAMETERS``."""

    curves: Mapping[str, Curve]

    @property
    def nominal(self) -> float:
        """Misrouted power as designed."""
        curve = self.curves["height"]
        return curve.scores[curve.shifts.index(0.0)]

    @property
    def worst(self) -> Variation:
        """The variation with the highest misrouted power, as designed among them."""
        return max(
            (Variation(name, *point) for name, curve in self.curves.items() for point in zip(*curve, strict=True)),
            key=lambda variation: variation.score,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; scores and slopes to six decimals and more where they are small."""
        worst = self.worst
        return {
            "nominal": round(self.nominal, 6),
            "worst": {"score": round(worst.score, 6), "parameter": worst.parameter, "shift": worst.shift},
            "parameters": {
                name: {
                    "unit": PARAMETERS[name][0],
                    "shifts": list(curve.shifts),
                    "scores": [round(score, 6) for score in curve.scores],
                    "slope": float(f"{curve.slope:.4g}"),
                    "sensitivity": float(f"{curve.sensitivity:.4g}"),
                }
                for name, curve in self.curves.items()
            },
        }


class _Case(NamedTuple):
    """One solve: the cell of ``design`` with its pillars grown by ``grow_nm``, of this height, in this geometry."""

    design: int
    parameter: str
    shift: float
    grow_nm: float
    height_nm: float
    geometry: Geometry


def tolerances(
    designs: Sequence[Design],
    target: Target,
    workers: int | None = None,
    cancel: Cancel = None,
    on_done: Callable[[int, int], None] | None = None,
) -> list[Design]:
    """The same designs in the same order, each with its :class:`Tolerance` towards the target's R and T.

    A verified design is not solved again as it stands: twelve solves each, one more where it was not verified.

    Args:
        designs: of any geometry.
        target: what they were made for; at other wavelengths it may ask for (:mod:`.pairs`), nothing is solved here.
        workers, cancel, on_done: as for ``physics.verify.solve_many``.

    Raises:
        TargetError: the target asks for orders beyond a design's maps.
        GeometryError: the incidence is so oblique that a degree more is none.
        Cancelled: ``cancel`` said so.
    """
    from .physics.fourier import Cell
    from .physics.rcwa import Solver
    from .physics.verify import in_threads
    from .score import misrouted_power

    cases = [case for i, design in enumerate(designs) for case in _cases(i, design)]
    cases.sort(key=lambda case: -case.geometry.theta_deg)  # the longest solves first, so that no core is left waiting at the end
    orders = [target.orders if design.R is None else len(design.R) // 2 for design in designs]
    wanted = {count: target.resized(count) for count in orders}
    solvers = {key: Solver(*key) for key in {(case.geometry, orders[case.design]) for case in cases}}
    found: dict[tuple[int, str, float], float] = {}

    def solve(k: int) -> None:
        case = cases[k]
        count = orders[case.design]
        cell = Cell.from_pattern(designs[case.design].pattern, case.geometry, case.grow_nm)
        R, T = solvers[case.geometry, count].solve(cell, case.height_nm)
        found[case.design, case.parameter, case.shift] = float(misrouted_power(R, T, wanted[count]))

    in_threads(solve, len(cases), workers, cancel, on_done)
    results = []
    for i, design in enumerate(designs):
        nominal = found.get((i, "", 0.0))
        if nominal is None:
            assert design.R is not None
            assert design.T is not None
            nominal = float(misrouted_power(design.R, design.T, wanted[orders[i]]))
        curves = {}
        for name in PARAMETERS:
            points = sorted([(0.0, nominal), *((case.shift, found[case[:3]]) for case in cases if case[:2] == (i, name))])
            curves[name] = Curve(tuple(shift for shift, _ in points), tuple(score for _, score in points))
        results.append(dataclasses.replace(design, tolerance=Tolerance(curves)))
    return results


def tilted(geometry: Geometry, towards_x_deg: float, towards_y_deg: float) -> Geometry:
    """The geometry with its direction of incidence turned towards +x (about the y axis), then towards +y (about the x axis).

    Raises:
        GeometryError: the light would come from along the surface or behind it.
    """
    theta, phi = math.radians(geometry.theta_deg), math.radians(geometry.phi_deg)
    x, y, z = math.sin(theta) * math.cos(phi), math.sin(theta) * math.sin(phi), math.cos(theta)
    a, b = math.radians(towards_x_deg), math.radians(towards_y_deg)
    x, z = x * math.cos(a) + z * math.sin(a), z * math.cos(a) - x * math.sin(a)
    y, z = y * math.cos(b) + z * math.sin(b), z * math.cos(b) - y * math.sin(b)
    return dataclasses.replace(geometry, theta_deg=math.degrees(math.atan2(math.hypot(x, y), z)), phi_deg=math.degrees(math.atan2(y, x)))


def table(designs: Sequence[Design]) -> str:
    """Misrouted power with one thing off at a time, a column per design, best first; for people.

    Raises:
        DataError: a design without a tolerance.
    """
    known = [design.tolerance for design in designs if design.tolerance is not None]
    if not known or len(known) < len(designs):
        raise DataError("the tolerance of a design is not known; call tolerances first")
    rows = [["misrouted power", *(str(rank) for rank in range(1, len(known) + 1))]]
    rows.append(["as designed", *(f"{tolerance.nominal:.3f}" for tolerance in known)])
    for name, (_, words) in PARAMETERS.items():
        for k, shift in enumerate(known[0].curves[name].shifts):
            if shift:
                label = f"{words} {math.copysign(100 * HEIGHT, shift):+g} %" if name == "height" else f"{words} {_amount(name, shift)}"
                rows.append([label, *(f"{tolerance.curves[name].scores[k]:.3f}" for tolerance in known)])
    rows.append(["worst case", *(f"{tolerance.worst.score:.3f}" for tolerance in known)])
    for name, (unit, words) in PARAMETERS.items():
        rows.append([f"sensitivity to {words}, per {unit}", *(f"{tolerance.curves[name].sensitivity:.2g}" for tolerance in known)])
    width = max(len(row[0]) for row in rows)
    return aligned([[row[0].ljust(width), *row[1:]] for row in rows])


def _amount(name: str, shift: float) -> str:
    """A shift with its sign and unit."""
    unit = PARAMETERS[name][0]
    return f"{shift:+g}{'°' if unit == 'deg' else f' {unit}'}"


def _cases(i: int, design: Design) -> list[_Case]:
    """What has to be solved for design ``i``."""
    height, geometry = design.height_nm, design.geometry
    cases = [] if design.verified else [_Case(i, "", 0.0, 0.0, height, geometry)]
    for sign in (-1.0, 1.0):
        off = sign * HEIGHT * height
        cases.append(_Case(i, "height", off, 0.0, height + off, geometry))
        cases += [_Case(i, "edge", sign * edge, sign * edge, height, geometry) for edge in EDGE_NM]
        light = dataclasses.replace(geometry, wavelength_nm=geometry.wavelength_nm + sign * WAVELENGTH_NM)
        cases.append(_Case(i, "wavelength", sign * WAVELENGTH_NM, 0.0, height, light))
        cases.append(_Case(i, "tilt_x", sign * TILT_DEG, 0.0, height, tilted(geometry, sign * TILT_DEG, 0.0)))
        cases.append(_Case(i, "tilt_y", sign * TILT_DEG, 0.0, height, tilted(geometry, 0.0, sign * TILT_DEG)))
    return cases
