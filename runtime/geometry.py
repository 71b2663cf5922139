"""The optical arrangement a pattern stands in, and the solver settings that define its scattering.

A ``Geometry`` travels as JSON inside every data file, design and bundle, so that a number can always be
traced to the wavelength, materials and solver that made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import GeometryError

_CHOICES = {
    "incidence": ("substrate", "cover"),
    "polarisation": ("x", "y"),
    "rule": ("li", "laurent"),
    "truncation": ("circle", "square"),
    "dtype": ("complex64", "complex128"),
}
# Lengths in nm and indices. No optics comes near either end; their squares and ratios stay finite.
_SMALLEST, _LARGEST = 1e-9, 1e9


@dataclasses.dataclass(frozen=True)
class Geometry:
    """One patterned layer between a substrate (z < 0) and a cover (z > 0), lit by one plane wave.

    The fields are the JSON on disk (see :meth:`to_json`). (x, y, z) is right-handed and z points from the
    substrate to the cover. Lengths are in nanometres, angles in degrees, indices are real.

    ``theta_deg`` is the angle of incidence from the normal in the incident medium, ``phi_deg`` the azimuth of
    the incident transverse wavevector from +x towards +y. At normal incidence ``polarisation`` is the axis the
    electric field points along.
    """

    wavelength_nm: float = 1550.0
    period_nm: tuple[float, float] = (4000.0, 4000.0)
    index_pillar: float = 3.48
    index_gap: float = 1.0
    index_substrate: float = 3.48
    index_cover: float = 1.0
    incidence: str = "substrate"
    polarisation: str = "x"
    theta_deg: float = 0.0
    phi_deg: float = 0.0
    rule: str = "li"
    harmonics: int = 11
    truncation: str = "circle"
    dtype: str = "complex64"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise GeometryError(f"geometry field '{name}' is {_brief(value)}; it must be {' or '.join(allowed)}")
        period = self.period_nm
        if not isinstance(period, tuple | list) or len(period) != 2:
            raise GeometryError(f"geometry field 'period_nm' is {_brief(period)}; it must be two lengths in nm, along x and y")
        object.__setattr__(self, "period_nm", (_number("period_nm", period[0]), _number("period_nm", period[1])))
        for field in dataclasses.fields(self):
            if field.type == "float":
                object.__setattr__(self, field.name, _number(field.name, getattr(self, field.name)))
        for name in ("wavelength_nm", "index_pillar", "index_gap", "index_substrate", "index_cover"):
            if not _SMALLEST <= getattr(self, name) <= _LARGEST:
                raise GeometryError(f"geometry field '{name}' is {getattr(self, name)}; it must be above 0, from {_SMALLEST} to {_LARGEST}")
        if not all(_SMALLEST <= length <= _LARGEST for length in self.period_nm):
            raise GeometryError(
                f"geometry field 'period_nm' is {list(self.period_nm)}; both lengths must be above 0, from {_SMALLEST} to {_LARGEST}"
            )
        if not 0 <= self.theta_deg < 90:
            raise GeometryError(f"geometry field 'theta_deg' is {self.theta_deg}; it must be from 0 to below 90")
        if isinstance(self.harmonics, bool) or not isinstance(self.harmonics, int) or not 0 <= self.harmonics <= 60:
            raise GeometryError(f"geometry field 'harmonics' is {_brief(self.harmonics)}; it must be a whole number from 0 to 60")

    @property
    def index_incident(self) -> float:
        """Refractive index of the medium the light comes from."""
        return self.index_substrate if self.incidence == "substrate" else self.index_cover

    @property
    def index_exit(self) -> float:
        """Refractive index of the medium the light leaves into."""
        return self.index_cover if self.incidence == "substrate" else self.index_substrate

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "period_nm": list(self.period_nm)}

    def to_json(self) -> str:
        """The JSON text stored in data files, designs and bundles."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Geometry:
        """Read the JSON object form; unknown fields are refused, missing ones are named.

        Raises:
            GeometryError: naming the field that is unknown, missing or out of range.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(fields, Mapping):
            raise GeometryError(f"geometry is {type(fields).__name__}; it must be a JSON object with the fields {', '.join(known)}")
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise GeometryError(f"geometry has the unknown field {_brief(unknown[0])}; the fields are {', '.join(known)}")
        missing = [name for name in known if name not in fields]
        if missing:
            raise GeometryError(f"geometry lacks the field '{missing[0]}'; the fields are {', '.join(known)}")
        return cls(**dict(fields))

    @classmethod
    def from_json(cls, text: str) -> Geometry:
        """Read :meth:`to_json`'s text. Raises GeometryError as :meth:`from_dict` does."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GeometryError(f"geometry is not JSON ({error}); write it with Geometry.to_json") from None
        return cls.from_dict(fields)

    def difference(self, other: Geometry) -> str | None:
        """Name the first optical field in which two geometries differ (solver settings left aside), or None."""
        for name in (
            "wavelength_nm",
            "period_nm",
            "index_pillar",
            "index_gap",
            "index_substrate",
            "index_cover",
            "incidence",
            "polarisation",
            "theta_deg",
            "phi_deg",
        ):
            if getattr(self, name) != getattr(other, name):
                return f"{name} is {getattr(self, name)} in one and {getattr(other, name)} in the other"
        return None


def propagating(geometry: Geometry, orders: int) -> tuple[np.ndarray, np.ndarray]:
    """The orders that can carry power: two (2M+1, 2M+1) bool maps, reflected and transmitted, M = ``orders``.

    An order's transverse wavevector over k0, the incident one plus (m wavelength / period x, n wavelength / period y), must be
    shorter than the index of the medium it leaves through. Exactly at grazing it carries nothing.
    """
    order = np.arange(-orders, orders + 1)
    sine, phi = geometry.index_incident * math.sin(math.radians(geometry.theta_deg)), math.radians(geometry.phi_deg)
    kx = sine * math.cos(phi) + order * geometry.wavelength_nm / geometry.period_nm[0]
    ky = sine * math.sin(phi) + order * geometry.wavelength_nm / geometry.period_nm[1]
    squared = kx[:, None] ** 2 + ky[None, :] ** 2
    return squared < geometry.index_incident**2, squared < geometry.index_exit**2


def _number(name: str, value: Any) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number too long for a float
            number = float(value)
    if not math.isfinite(number):
        raise GeometryError(f"geometry field '{name}' is {_brief(value)}; it must be a finite number")
    return number


def _brief(value: Any) -> str:
    return reprlib.repr(value)[:80]
