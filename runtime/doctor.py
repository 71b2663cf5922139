"""What is installed, which engines answer on which devices and why not, and whether a bundle passes its self-test on each."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from . import backends, selftest
from .bundle import Bundle
from .engine import models
from .errors import MetascatterError
from .version import __version__

# What the runtime can use, and the extra that brings it (None: always there; "" for a package of its own).
PACKAGES = {
    "numpy": None,
    "scipy": None,
    "click": None,
    "tqdm": None,
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "onnxruntime-openvino": "",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "rtx",
    "cuda-python": "tensorrt",
    "matplotlib": "lab",
    "gdstk": "lab",
    "h5py": "lab",
    "nicegui": "ui",
    "limits": "ui",
    "prometheus-client": "ui",
}


def examine(bundle: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """A report as plain JSON values; ``report["ok"]`` says whether a design can be made here.

    Never raises for what is missing: that is what it reports. Every engine that answers runs the bundle's golden inputs in every
    precision it and the bundle have.
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
        "engines": [],
        "auto": None,
        "bundle": None,
    }
    opened = None
    try:
        opened = Bundle.open(bundle)
        for name in opened.manifest["files"]:
            opened.read(name)
        recipe = opened.manifest.get("recipe")
        title = recipe.get("name") if isinstance(recipe, dict) else None
        report["bundle"] = {"path": str(opened.path), "recipe": title, "ok": True}
    except MetascatterError as error:
        report["bundle"] = {"path": None if bundle is None else str(bundle), "ok": False, "problem": str(error)}
        opened = None
    for backend, engine in backends.BACKENDS.items():
        for device in engine.devices:
            report["engines"] += _engine(opened, backend, device)
    if opened is not None:
        try:
            found = backends.open_networks(models(opened))
        except MetascatterError as error:
            report["bundle"].update(ok=False, problem=str(error))
        else:
            report["auto"] = {**found.choice._asdict(), "reason": found.reason}
            result = selftest.compare(opened, found.networks)
            for network in found.networks.values():
                network.close()
            report["bundle"].update(result)
    report["ok"] = report["bundle"]["ok"]
    return report


def _engine(bundle: Bundle | None, backend: str, device: str) -> list[dict[str, Any]]:
    """A row for each precision an engine offers on a device, or one that says why there is none."""
    try:
        refusal = backends.engine(backend).why_not(backend, device)
        offered = backends.engine(backend).precisions(backend, device) if refusal is None else ()
    except MetascatterError as error:
        refusal, offered = str(error), ()
    if refusal is not None:
        return [{"backend": backend, "device": device, "precision": None, "ok": False, "reason": refusal}]
    rows = []
    for precision in offered:
        row: dict[str, Any] = {"backend": backend, "device": device, "precision": precision, "ok": False, "reason": None}
        rows.append(row)
        if bundle is None:
            row["reason"] = "not tried, for want of a bundle"
            continue
        if any(backends.file_precision(precision, model.precisions) is None for model in models(bundle).values()):
            row["reason"] = f"the bundle has no {precision} files; export it with --{precision}"
            continue
        try:
            found = backends.open_networks(models(bundle), backend, device, precision)
        except MetascatterError as error:
            row["reason"] = str(error)
            continue
        result = selftest.compare(bundle, found.networks)
        for network in found.networks.values():
            network.close()
        row.update(ok=result["ok"], reason=result.get("problem"), networks=result["networks"])
    return rows


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"metascatter {report['metascatter']}, Python {report['python']}, {report['system']}, {report['cpus']} CPUs", "", "packages"]
    for name, entry in report["packages"].items():
        missing = f"not installed (extra '{entry['extra']}')" if entry["extra"] else "not installed"
        lines.append(f"  {name:<22}{entry['version'] or missing}")
    lines += ["", "engines"]
    told: dict[tuple[str, str], list[str]] = {}
    for row in report["engines"]:
        if row["ok"]:
            worst = max(entry["relative_difference"] for entry in row["networks"].values())
            found = f"ready, {worst:.0e} from the golden outputs"
        else:
            found = f"no: {row['reason']}"
        where = f"{row['device']} {row['precision'] or ''}".strip()
        told.setdefault((row["backend"], found), []).append(where)
    for (backend, found), places in told.items():
        lines.append(f"  {backend:<22}{', '.join(places):<15}{found}")
    bundle, auto = report["bundle"], report["auto"]
    if auto is not None:
        lines += ["", f"auto takes {auto['backend']} on {auto['device']} in {auto['precision']}, the fastest of those that are ready"]
    lines += ["", f"bundle {bundle['path'] or '(none)'}"]
    lines.append("  self-test passed" if bundle["ok"] else f"  self-test failed: {bundle['problem']}")
    return "\n".join(lines)
