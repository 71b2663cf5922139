"""The manifest of a bundle: every field the runtime reads, what it may hold, and the one way to read it.

``FIELDS`` is the schema of format 1 for metasurfaces, ``SAMPLE_FIELDS`` for images and points, ``RESTORATION_FIELDS`` for images that are
denoised in one step; the field ``task`` says which it is. A digest proves that a manifest is as it was written, not that what was written
makes sense, so nothing of it is used before it was held against the schema. Fields that are not listed are left alone: a newer export may
add some.
``format`` and ``digest`` are judged before all others, ``geometry`` and the meaning of ``condition`` by their own classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .channels import LARGEST, fault
from .condition import LAYOUTS
from .errors import BundleError
from .labels import LAYOUT
from .schedulers import SCHEDULERS
from .strict_json import brief, read_json

FORMAT = 1
LARGEST_FILE = 1 << 30  # bytes of any file of a bundle
LARGEST_SIDE = 1024  # pixels or orders along an axis; the reference problem has 10 and 23
MOST_CHANNELS = 64
MOST_CLASSES = 1000
LARGEST_SAMPLE = 1 << 20  # numbers in a sample: 4 MiB each in float32
STRONGEST = 1e3  # guidance scale; far above all that is of use, and samples stay far from what a float32 can hold
_DTYPES = ("float16", "float32", "float64", "int64")

# Names that Windows keeps for devices, whatever follows their first dot
# (https://learn.microsoft.com/windows/win32/fileio/naming-a-file).
_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {f"{device}{n}" for device in ("COM", "LPT") for n in range(10)}
_FILE_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.+-]{0,126}[A-Za-z0-9_+-])?", re.ASCII)

_MISSING = object()


# --- The kinds of values, one helper each ---------------------------------------------------------------------------


class Rule(NamedTuple):
    """What a field may hold, in words and as a test; an optional one may also be absent."""

    expected: str
    accepts: Callable[[Any], bool]
    optional: bool = False


def _whole(low: int, high: int) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _number(low: float, high: float, optional: bool = False) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda value: _is_number(value, low, high), optional)


def _numbers(count: int, low: float, high: float) -> Rule:
    return Rule(
        f"{count} numbers from {low:g} to {high:g}", lambda value: _is_list(value, count) and all(_is_number(v, low, high) for v in value)
    )


def _names(what: str) -> Rule:
    """An object of which every name can be part of a message, a file name or an array's key."""
    fits = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII).fullmatch
    return Rule(
        f"an object of {what}, at least one and named in letters, digits, '_', '-' and '.'",
        lambda value: isinstance(value, dict) and len(value) > 0 and all(fits(name) for name in value),
    )


def _one_of(*choices: str) -> Rule:
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def _is_list(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count


def _is_map(value: Any, highest: float = 1e3) -> bool:
    """A square table of efficiencies. A little above 1 is what unfactorised solvers give."""
    side = len(value) if isinstance(value, list) else 0
    return 1 <= side <= LARGEST_SIDE and all(_is_list(row, side) and all(_is_number(v, 0, highest) for v in row) for row in value)


def _is_sample_shape(value: Any) -> bool:
    return _is_list(value, 3) and all(type(v) is int and 1 <= v <= LARGEST_SIDE for v in value) and math.prod(value) <= LARGEST_SAMPLE


def _is_batch_shape(value: Any) -> bool:
    if not isinstance(value, list) or not 1 <= len(value) <= 8 or value[0] != "batch":
        return False
    return all(type(v) is int and 1 <= v <= 1 << 24 for v in value[1:]) and math.prod(value[1:]) <= 1 << 24


_OBJECT = Rule("an object", lambda value: isinstance(value, dict))
_TEXT = Rule("a text of 1 to 200 characters", lambda value: isinstance(value, str) and 1 <= len(value) <= 200)
_MAP = Rule(f"rows and columns of efficiencies, as many of each and at most {LARGEST_SIDE}", _is_map)
_ARRAY = {
    "": _OBJECT,
    "/shape": Rule("'batch' and up to 7 sizes from 1, 2^24 numbers a row at most", _is_batch_shape),
    "/dtype": _one_of(*_DTYPES),
}

# --- The schema: a path of names, * for every name there is. What a path leads through stands before it. -------------

_CELLS: dict[str, Rule] = {
    "geometry": _OBJECT,
    "condition": _OBJECT,
    "condition/layout": _one_of(*LAYOUTS),
    "condition/height_range_nm": _numbers(2, 1e-6, 1e9),
    "condition/mean_R": _MAP,
    "condition/mean_T": _MAP,
    "condition/scale": _numbers(4, -1e3, 1e3),
    "condition/canvas": _whole(0, LARGEST_SIDE),
    "condition/height_plane": _numbers(2, -1e6, 1e6)._replace(optional=True),
    "condition/channels": Rule(
        f"a list of at most {MOST_CHANNELS} names of channels",
        lambda value: isinstance(value, list) and len(value) <= MOST_CHANNELS and fault(value) is None,
        optional=True,
    ),
    "condition/mean_channels": Rule(
        f"a list of at most {MOST_CHANNELS} maps like the other means",
        lambda value: isinstance(value, list) and len(value) <= MOST_CHANNELS and all(_is_map(mean, LARGEST) for mean in value),
        optional=True,
    ),
    "channels": Rule(
        "an object of geometries, or null for one that is not known, by name of the channel",
        lambda value: isinstance(value, dict) and all(geometry is None or isinstance(geometry, dict) for geometry in value.values()),
        optional=True,
    ),
    "pattern_size": _whole(1, LARGEST_SIDE),
    "window": Rule(
        f"2 whole numbers from 0 to {LARGEST_SIDE}",
        lambda value: _is_list(value, 2) and all(type(v) is int and 0 <= v <= LARGEST_SIDE for v in value),
    ),
}
_LABELS: dict[str, Rule] = {
    "condition": _OBJECT,
    "condition/layout": _one_of(LAYOUT),
    "condition/classes": Rule(
        f"a list of at most {MOST_CLASSES} names",
        lambda value: isinstance(value, list) and len(value) <= MOST_CLASSES and all(_TEXT.accepts(name) for name in value),
    ),
    "condition/offset": _number(-1e6, 1e6),
    "condition/scale": _number(1e-6, 1e6),
}
_COMMON: dict[str, Rule] = {
    "task": _one_of("metasurface", "samples", "restoration"),
    "sample_shape": Rule(
        f"channels, rows and columns, each from 1 to {LARGEST_SIDE} and {LARGEST_SAMPLE} numbers in all at most", _is_sample_shape
    ),
    "max_batch": Rule("a whole number from 1 to 4096", lambda value: type(value) is int and 1 <= value <= 4096, optional=True),
    "networks": _names("networks"),
    "networks/denoiser": _OBJECT,
    "networks/*": _OBJECT,
    "networks/*/files": _names("precisions"),
    "networks/*/files/*": _TEXT,
    "networks/*/inputs": _names("arrays"),
    **{f"networks/*/inputs/*{part}": rule for part, rule in _ARRAY.items()},
    "networks/*/outputs": _names("arrays"),
    **{f"networks/*/outputs/*{part}": rule for part, rule in _ARRAY.items()},
    "networks/denoiser/inputs/sample": _OBJECT,
    "networks/denoiser/outputs/output": _OBJECT,
    "files": _OBJECT,
    "files/*": _OBJECT,
    "files/*/sha256": Rule(
        "64 hexadecimal digits", lambda value: isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value, re.ASCII) is not None
    ),
    "files/*/bytes": _whole(0, LARGEST_FILE),
}
_SAMPLING: dict[str, Rule] = {
    "networks/denoiser/inputs/timestep": _OBJECT,
    "sampling": _OBJECT,
    "sampling/scheduler": _one_of(*SCHEDULERS),
    "sampling/steps": _whole(1, 10_000),
    "sampling/guidance_scale": _number(-STRONGEST, STRONGEST),
    "sampling/eta": _number(0, 1, optional=True),
    "sampling/guidance_interval": Rule(
        "null or two noise levels, 0 <= lowest <= highest",
        lambda value: value is None or (_is_list(value, 2) and all(_is_number(v, 0, 1e12) for v in value) and value[0] <= value[1]),
        optional=True,
    ),
}
FIELDS = {**_COMMON, **_SAMPLING, **_CELLS}
SAMPLE_FIELDS = {**_COMMON, **_SAMPLING, **_LABELS}
RESTORATION_FIELDS = {**_COMMON, **_LABELS, "noise_sigma": _number(1e-6, 1e3)}


# --- Reading it -----------------------------------------------------------------------------------------------------


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's canonical JSON (sorted keys, no spaces) without the digest itself."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(content: bytes, where: str) -> dict[str, Any]:
    """The manifest in ``content``, once every field the runtime reads is known to make sense.

    Args:
        where: what errors call the file.

    Raises:
        BundleError: naming the field that is missing, altered or out of bounds, or the format this version does not read.
    """
    manifest = read_json(content, where, finite=True)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is not int or version != FORMAT:
        raise BundleError(f"{where} has format {brief(version)}; this version of metascatter reads format {FORMAT}")
    if "digest" not in manifest:
        raise BundleError(f"{where} lacks 'digest'; export the bundle again")
    if digest(manifest) != manifest["digest"]:
        raise BundleError(f"{where} was altered after it was written (its digest does not match); copy the bundle again")
    if isinstance(manifest.get("files"), dict):
        _check_file_names(manifest["files"], where)
    kinds = {"samples": SAMPLE_FIELDS, "restoration": RESTORATION_FIELDS}
    task = manifest.get("task")
    for path, rule in (kinds.get(task, FIELDS) if isinstance(task, str) else FIELDS).items():
        for name, value in _places(manifest, path.split("/")):
            if value is _MISSING:
                if not rule.optional:
                    raise BundleError(f"{where} lacks '{name}'; export the bundle again")
            elif not rule.accepts(value):
                raise BundleError(f"{where}: '{name}' is {brief(value)}; expected {rule.expected}, export the bundle again")
    _check_together(manifest, where)
    return manifest


def _places(value: Any, path: list[str], name: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values that a path of ``FIELDS`` leads to; ``_MISSING`` where it ends."""
    if not path or value is _MISSING:
        yield name, value
        return
    for key in value if path[0] == "*" else path[:1]:
        yield from _places(value.get(key, _MISSING), path[1:], f"{name}/{key}" if name else key)


def _check_file_names(files: Mapping[str, Any], where: str) -> None:
    """A bundle travels between systems: a name has to be that of a plain file in the bundle's folder on all of them."""
    for name in files:
        if not name or name.startswith(".") or any(c in name for c in "/\\:\0"):
            raise BundleError(f"{where} names the file {brief(name)} outside the bundle; do not use this bundle")
        if not _FILE_NAME.fullmatch(name) or name.split(".")[0].upper() in _DEVICES:
            raise BundleError(f"{where} names the file {brief(name)}, which not every system can store; do not use this bundle")
    taken = {"manifest.json"}
    for name in files:
        if name.lower() in taken:
            raise BundleError(f"{where} names the file {brief(name)} twice, as systems see it that ignore case; do not use this bundle")
        taken.add(name.lower())


def _check_together(manifest: Mapping[str, Any], where: str) -> None:
    """Fields that are sound one by one and contradict each other."""
    shape, condition, denoiser = manifest["sample_shape"], manifest["condition"], manifest["networks"]["denoiser"]
    if manifest["task"] == "metasurface":
        _check_cells(manifest, where)
    elif len(set(condition["classes"])) != len(condition["classes"]):
        raise BundleError(f"{where}: 'condition/classes' names a class twice; export the bundle again")
    for name, array in (("inputs/sample", denoiser["inputs"]["sample"]), ("outputs/output", denoiser["outputs"]["output"])):
        if array["shape"] != ["batch", *shape]:
            raise BundleError(
                f"{where}: 'networks/denoiser/{name}/shape' is {brief(array['shape'])} and 'sample_shape' {shape}; "
                "expected the batch of that sample, export the bundle again"
            )
    for network, entry in manifest["networks"].items():
        for precision, file in entry["files"].items():
            if file not in manifest["files"]:
                raise BundleError(
                    f"{where}: 'networks/{network}/files/{precision}' is {brief(file)}, which 'files' does not list; "
                    "export the bundle again"
                )


def _check_cells(manifest: Mapping[str, Any], where: str) -> None:
    """:func:`_check_together` for what only bundles of metasurfaces have."""
    size, window, shape, condition = manifest["pattern_size"], manifest["window"], manifest["sample_shape"], manifest["condition"]
    if any(start + size > side for start, side in zip(window, shape[1:], strict=True)):
        raise BundleError(
            f"{where}: a pattern of {size} pixels ('pattern_size') at {window} ('window') leaves the sample of {shape} ('sample_shape'); "
            "export the bundle again"
        )
    if set(manifest.get("channels", {})) != set(condition.get("channels", [])):
        raise BundleError(
            f"{where}: 'channels' names {brief(list(manifest.get('channels', {})))} and 'condition/channels' "
            f"{brief(condition.get('channels', []))}; expected the same, export the bundle again"
        )
    if condition["layout"] == "planes" and shape[1:] != [condition["canvas"]] * 2:
        raise BundleError(
            f"{where}: 'sample_shape' is {shape} and 'condition/canvas' {condition['canvas']}; "
            "layout 'planes' needs samples as large as the canvas, export the bundle again"
        )
