"""What is installed, which devices answer and why not, and whether a bundle passes its self-test."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import numpy as np

from . import backends
from .bundle import Bundle
from .errors import BundleError, MetascatterError
from .version import __version__

# What the runtime can use, and the extra that brings it (None: always there).
PACKAGES = {
    "numpy": None,
    "scipy": None,
    "click": None,
    "tqdm": None,
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "matplotlib": "lab",
    "gdstk": "lab",
    "h5py": "lab",
}
TOLERANCE = 1e-3  # max abs difference from the golden outputs: between engines and processors, not between runs


def examine(bundle: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """A report as plain JSON values; ``report["ok"]`` says whether a design can be made here.

    Never raises for what is missing: that is what it reports.
    """
    packages = {}
    for name, extra in PACKAGES.items():
        try:
            packages[name] = {"version": metadata.version(name), "extra": extra}
        except metadata.PackageNotFoundError:
            packages[name] = {"version": None, "extra": extra}
    report: dict[str, Any] = {
        "metascatter": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": packages,
        "devices": [],
        "bundle": None,
    }
    opened = None
    try:
        opened = Bundle.open(bundle)
        recipe = opened.manifest.get("recipe")
        title = recipe.get("name") if isinstance(recipe, dict) else None
        report["bundle"] = {"path": str(opened.path), "recipe": title, **self_test(opened)}
    except MetascatterError as error:
        report["bundle"] = {"path": None if bundle is None else str(bundle), "ok": False, "problem": str(error)}
    report["devices"] = [_device(backend, device, opened) for backend in backends.BACKENDS for device in ("cpu", "cuda")]
    report["ok"] = report["bundle"]["ok"]
    return report


def self_test(bundle: Bundle, backend: str = "auto", device: str = "auto") -> dict[str, Any]:
    """Every file against its hash, every network against the golden outputs.

    Returns:
        ``ok``, and ``networks`` with the largest difference of each, or ``problem`` with the sentence that says what failed.
    """
    try:
        for name in bundle.manifest["files"]:
            bundle.read(name)
        golden = bundle.arrays("golden.npz")
        differences = {}
        for name in bundle.manifest["networks"]:
            file = bundle.network_file(name, "fp32")
            network = backends.open_network(bundle.read(file), file, backend, device)
            found = network({key.split(".in.")[1]: value for key, value in golden.items() if key.startswith(f"{name}.in.")})
            # Not Python's max, which passes over a NaN that is not the first.
            worst = float(np.max([np.abs(found[key] - golden[f"{name}.out.{key}"]).max() for key in found]))
            finite = bool(np.isfinite(worst))
            differences[name] = {"device": network.device, "largest_difference": worst if finite else None}
            network.close()
            if not worst <= TOLERANCE:
                what = f"differs from its golden outputs by {worst:.1e}, more than {TOLERANCE:.0e}" if finite else "gives values not finite"
                return {"ok": False, "networks": differences, "problem": f"{file} {what}; do not trust designs from this machine"}
    except MetascatterError as error:
        return {"ok": False, "problem": str(error)}
    except KeyError as error:
        return {"ok": False, "problem": f"golden.npz of {bundle.path} lacks {error}; export the bundle again"}
    except (IndexError, ValueError) as error:
        return {"ok": False, "problem": f"golden.npz of {bundle.path} does not fit the networks ({error}); export the bundle again"}
    return {"ok": True, "networks": differences}


def _device(backend: str, device: str, bundle: Bundle | None) -> dict[str, Any]:
    """Whether an engine answers on a device, with the reason where it does not."""
    import importlib

    try:
        reason = importlib.import_module(f".backends.{backend}", __package__).why_not(device)
    except MetascatterError as error:
        reason = str(error)
    if reason is None and device != "cpu":
        # Only a session shows whether the driver and libraries are there.
        try:
            if bundle is None:
                raise BundleError("not tried, for want of a bundle")
            file = bundle.network_file("denoiser", "fp32")
            backends.open_network(bundle.read(file), file, backend, device).close()
        except MetascatterError as error:
            reason = str(error)
    return {"backend": backend, "device": device, "ok": reason is None, "reason": reason}


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"metascatter {report['metascatter']}, Python {report['python']}, {report['system']}, {report['cpus']} CPUs", "", "packages"]
    for name, entry in report["packages"].items():
        missing = f"not installed (extra '{entry['extra']}')"
        lines.append(f"  {name:<18}{entry['version'] or missing}")
    lines += ["", "devices"]
    for entry in report["devices"]:
        lines.append(f"  {entry['backend']:<13}{entry['device']:<6}{'ready' if entry['ok'] else 'no: ' + entry['reason']}")
    bundle = report["bundle"]
    lines += ["", f"bundle {bundle['path'] or '(none)'}"]
    for name, entry in bundle.get("networks", {}).items():
        worst = entry["largest_difference"]
        found = "gives values not finite" if worst is None else f"differs from its golden outputs by {worst:.1e}"
        lines.append(f"  {name:<13}{entry['device']:<6}{found}")
    lines.append("  self-test passed" if bundle["ok"] else f"  self-test failed: {bundle['problem']}")
    return "\n".join(lines)
