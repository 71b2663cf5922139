"""The scattering of a data set's patterns at another wavelength or polarisation, added to it as further maps.

add("a.npz", "both.npz", "1480", {"wavelength_nm": 1480.0})

``both.npz`` has all that ``a.npz`` has, and ``Rm_1480``, ``Tm_1480`` and ``geometry_1480``. Killed, the same call goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..channels import fault_of_label
from ..data import load, open_npz
from ..errors import DataError
from ..files import write_npz
from ..geometry import Geometry, propagating
from .simulate import Solve, simulate

if TYPE_CHECKING:
    from ..cluster import Wish

_log = logging.getLogger(__name__)


def add(
    patterns: str | os.PathLike[str],
    out: str | os.PathLike[str],
    name: str,
    changes: Mapping[str, Any],
    workers: int | None = None,
    progress: bool = True,
    solver: Callable[[Geometry, int], Solve] | None = None,
    cluster: Wish | None = None,
) -> Path:
    """Write to ``out`` the data set ``patterns`` with its patterns' scattering under a second geometry.

    Args:
        patterns: a data set, one ``.npz``; all of its arrays are kept as they are.
        out: the ``.npz`` to write. What is solved grows beside it, in ``OUT.added.npz`` and its ``.parts``.
        name: NAME of the maps ``Rm_NAME`` and ``Tm_NAME`` and of ``geometry_NAME``.
        changes: fields in which the second geometry differs from that of ``patterns``.
        workers, progress, solver, cluster: as for :func:`.simulate.simulate`.

    Returns:
        ``out``.

    Raises:
        DataError: a bad or taken name, no change, another period (the cell is the same), more orders that carry light than the data's maps
            hold, an ``out`` that holds something else or cannot be written.
        GeometryError: a change is none.
        MetascatterError: a worker process died.
    """
    source, out = Path(patterns), Path(out)
    wrong = fault_of_label(name)
    if wrong:
        raise DataError(f"the name of the maps to add {wrong}")
    if out.suffix != ".npz" or out.is_dir():
        raise DataError(f"{out} cannot be a data file; name a file that ends in .npz")
    data, kept = load(source), open_npz(source)
    keys = (f"Rm_{name}", f"Tm_{name}", f"geometry_{name}")
    taken = next((key for key in keys if key in kept), None)
    if taken is not None:
        raise DataError(f"{source} already has '{taken}'; add the maps under another name")
    geometry = dataclasses.replace(data.geometry, **changes)
    if geometry.period_nm != data.geometry.period_nm:
        raise DataError(f"{source} has cells with a period of {list(data.geometry.period_nm)} nm; the maps to add are of the same cells")
    if geometry.difference(data.geometry) is None:
        raise DataError(f"the maps to add have the geometry that {source} states; say what differs, such as the wavelength")
    orders = data.Rm.shape[-1] // 2
    _check_orders(source, geometry, orders)
    # Named by what it holds, and no data set in its own right: it becomes a part of one below.
    solved = out.with_name(f"{out.name}.added.npz")
    if out.exists():
        if not _holds(out, kept, keys, geometry):
            raise DataError(f"{out} exists and holds other data than asked for; choose another name or move it away")
        solved.unlink(missing_ok=True)
        if progress:
            _log.info("%s already holds these maps; nothing to do", out)
        return out
    simulate(solved, None, 0, geometry, orders=orders, workers=workers, progress=progress, patterns=source, solver=solver, cluster=cluster)
    found = load(solved)
    write_npz(out, **kept, **dict(zip(keys, (found.Rm, found.Tm, np.array(geometry.to_json())), strict=True)))
    with contextlib.suppress(OSError):
        solved.unlink()
    return out


def _check_orders(source: Path, geometry: Geometry, orders: int) -> None:
    """Refuse maps too small for the light: what lies beyond them would be missing from R and T."""
    wider = propagating(geometry, min(2 * orders + 1, geometry.harmonics))
    reach = max(int(np.abs(np.argwhere(free) - len(free) // 2).max(initial=0)) for free in wider)
    if reach > orders:
        raise DataError(
            f"{source} has maps of orders from -{orders} to {orders} and at {geometry.wavelength_nm:g} nm those up to {reach} carry light; "
            f"ask for no more than {orders} harmonics, or add to data simulated at the shortest wavelength"
        )


def _holds(out: Path, kept: Mapping[str, np.ndarray], keys: tuple[str, str, str], geometry: Geometry) -> bool:
    """Whether a finished file has all that was to be kept, and the maps of this geometry."""
    found = open_npz(out)
    whole = all(key in found for key in keys) and str(found[keys[2]]) == geometry.to_json()
    return whole and all(key in found and np.array_equal(found[key], value) for key, value in kept.items())
