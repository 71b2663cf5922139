"""The self-test: every network of a bundle against the outputs that were recorded when it was exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .backends import Network
from .bundle import Bundle
from .errors import BundleError, MetascatterError

# Root mean square difference over the root mean square of the golden outputs, by what is computed in: wide enough for any processor's
# rounding (measured on the shipped bundle: fp32 1e-6, bf16 1e-2), narrow enough for a wrong weight or a wrong instruction.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2, "int8": 3e-1}


def compare(bundle: Bundle, networks: Mapping[str, Network]) -> dict[str, Any]:
    """Run every network on the bundle's golden inputs.

    Returns:
        ``ok``; ``networks`` with the ``relative_difference`` (rms) and ``largest_difference`` of each, None where not finite; and
        ``problem``, the sentence that says what failed, where something did.
    """
    differences: dict[str, Any] = {}
    try:
        golden = bundle.arrays("golden.npz")
        for name, network in networks.items():
            found = network({key.split(".in.")[1]: value for key, value in golden.items() if key.startswith(f"{name}.in.")})
            relative, largest = difference(found, {key: golden[f"{name}.out.{key}"] for key in found})
            finite = bool(np.isfinite(relative))
            differences[name] = {"relative_difference": relative if finite else None, "largest_difference": largest if finite else None}
            limit = TOLERANCE[network.precision]
            if not relative <= limit:
                what = f"differs from its golden outputs by {relative:.1e}, more than {limit:.0e}" if finite else "gives values not finite"
                return {
                    "ok": False,
                    "networks": differences,
                    "problem": f"{network.name} {what} ({network.backend} on {network.device} in {network.precision}); "
                    "do not trust designs from this machine",
                }
    except MetascatterError as error:
        return {"ok": False, "networks": differences, "problem": str(error)}
    except KeyError as error:
        return {"ok": False, "networks": differences, "problem": f"golden.npz of {bundle.path} lacks {error}; export the bundle again"}
    except (IndexError, ValueError) as error:
        problem = f"golden.npz of {bundle.path} does not fit the networks ({error}); export the bundle again"
        return {"ok": False, "networks": differences, "problem": problem}
    return {"ok": True, "networks": differences}


def difference(found: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Of all outputs of a network the largest root mean square difference, relative to the golden output's, and the largest difference."""
    with np.errstate(all="ignore"):
        expected = {key: golden[key].astype(np.float64) for key in found}
        apart = {key: np.abs(value - expected[key]) for key, value in found.items()}
        # Not Python's max, which passes over a NaN that is not the first.
        relative = np.max([np.sqrt(np.mean(a**2) / max(np.mean(expected[key] ** 2), 1e-12)) for key, a in apart.items()])
        return float(relative), float(np.max([a.max() for a in apart.values()]))


def require(bundle: Bundle, networks: Mapping[str, Network]) -> None:
    """:func:`compare`, as an error.

    Raises:
        BundleError: with the sentence that says what failed.
    """
    result = compare(bundle, networks)
    if not result["ok"]:
        raise BundleError(result["problem"])
