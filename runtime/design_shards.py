"""Designs for thousands of targets: shards that appear whole in one folder, and a run that may be killed and started again.

``DIR/settings.json`` says what the run is of, ``DIR/shards/00000.npz`` holds the designs of the first so many targets, and
``DIR/index.csv``, a line a target, is written when all are there. A shard has the keys of ``designs.npz``, so what reads one reads the
other, and for each design ``target`` (the target's number, from 0), ``source`` and ``row`` (where it was read), ``rank`` (from 1) and,
where tolerances were asked for, ``worst``. What lies in which shard follows from the input alone, so any number of processes, computers
and interruptions end with the same shards.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import Bundle
from .data import open_npz
from .design_job import Job, Shard, Solved, Work
from .errors import BackendError, DataError
from .evaluate_measures import UNDER, quartiles
from .files import atomic_file, write_json, write_npz
from .freedom import Freedom
from .sampler import check_target
from .target import Target
from .target_stream import Item, Source
from .version import __version__

SIZE = 16  # targets of a shard at most, unless more are asked for: what a kill loses per worker
_SHARDS = 64  # shards that fewer targets are spread over, so that every worker has some
_FORMAT = 1


class Shards:
    """The folder of a run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.engine: str | None = None  # that of the first shard; all have the same

    def begin(self) -> None:
        """Say what the run is of, unless that is said.

        Raises:
            DataError: the folder is another run's, or cannot be written.
        """
        where = self.folder / "settings.json"
        try:
            found = json.loads(where.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(path.suffix == ".npz" for path in (self.folder / "shards").glob("*")):
                raise DataError(f"{self.folder} holds shards and no settings.json; choose another folder or remove them") from None
            write_json(where, self.settings)
            return
        except (OSError, ValueError) as error:
            raise DataError(f"{where} cannot be read ({error}); choose another folder or remove this one") from None
        for name in {**self.settings, **(found if isinstance(found, dict) else {})}:
            was, now = (one.get(name) if isinstance(one, dict) else None for one in (found, self.settings))
            if was != now:
                if name == "input":
                    raise DataError(f"{self.folder} holds a run of other targets; finish it with its own or choose another folder")
                raise DataError(
                    f"{self.folder} holds a run with {name} {json.dumps(was)}, not {json.dumps(now)}; finish it with its own settings "
                    "or choose another folder"
                )

    def path(self, number: int) -> Path:
        """Where a shard belongs."""
        return self.folder / "shards" / f"{number:05d}.npz"

    def done(self, shard: Shard) -> bool:
        """Whether a shard is there, whole. Raises DataError where it is of other targets."""
        if not self.path(shard.number).is_file():
            return False
        try:
            arrays = open_npz(self.path(shard.number))
            digest, engine = str(arrays["input"]), str(arrays["engine"])
        except (DataError, KeyError):
            return False
        if digest != shard.digest:
            raise DataError(f"{self.path(shard.number)} is of other targets than those read now; give the same or choose another folder")
        self._same(engine)
        return True

    def write(self, solved: Solved) -> None:
        """Put a shard in its place.

        Raises:
            BackendError: another engine made it than the others, so designs would differ by more than their targets.
            DataError: it cannot be written.
        """
        self._same(str(solved.arrays["engine"]))
        write_npz(self.path(solved.number), **solved.arrays)

    def _same(self, engine: str) -> None:
        self.engine = self.engine or engine
        if engine != self.engine:
            raise BackendError(
                f"{self.folder} holds designs by {self.engine}, and now {engine} answers; name one with --backend, --device and --precision"
            )

    def index(self, count: int) -> list[float]:
        """Write ``index.csv`` from ``count`` shards; the misrouted power of every target's best design, NaN where it was not solved.

        Raises:
            DataError: a shard is gone or damaged, or the file cannot be written.
        """
        scores: list[float] = []
        with atomic_file(self.folder / "index.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["target", "source", "row", "height_nm", "score", "verified", "designs", "shard"])
            for number in range(count):
                arrays = open_npz(self.path(number))
                best = np.flatnonzero(arrays["rank"] == 1)
                designs = np.diff([*best, len(arrays["rank"])])
                for i, kept in zip(best.tolist(), designs.tolist(), strict=True):
                    scores.append(float(arrays["score"][i]))
                    score = "" if np.isnan(scores[-1]) else f"{scores[-1]:.6f}"
                    place = [arrays["target"][i], arrays["source"][i], arrays["row"][i], f"{arrays['h'][i]:g}"]
                    writer.writerow([*place, score, int(arrays["verified"][i]), kept, f"{number:05d}"])
        return scores


def run(
    source: Source,
    job: Job,
    bundle: Bundle,
    folder: str | os.PathLike[str],
    work: Work,
    size: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Designs for every target of a source, into ``folder``; the same call goes on where a killed one stopped.

    Every target is read and checked before the first costs any time, except those of stdin, which are read once and as they are needed.

    Args:
        source, job, bundle: what for, what and with which.
        work: :func:`.design_job.in_process`, or a cluster's.
        size: targets of a shard; None is ``SIZE``, or fewer where that makes less than 64 shards.
        progress: a bar on stderr, where that is a terminal.

    Returns:
        JSON values: ``directory``, ``targets``, ``shards``, ``shards_made`` (now), ``index``, ``engine``, ``seconds`` and ``score``:
        quartiles of the best designs' misrouted power and their shares ``under`` 0.02, 0.05 and 0.10, None where none was solved.

    Raises:
        TargetError, DataError: a target the bundle cannot be asked for, or a folder of another run.
        BackendError: no engine, or several different ones.
    """
    from tqdm import tqdm

    folder, began = Path(folder), time.monotonic()
    freedom = Freedom.of(bundle, **job.search)
    read = _Reader(bundle, freedom)
    total, input_hash = None, None
    if source.repeatable:
        everything, total = hashlib.sha256(), 0
        for item in source:
            everything.update(_digest(item, read(item)))
            total += 1
        input_hash = everything.hexdigest()
        read.report()
        read = _Reader(bundle, freedom)
    size = size or (SIZE if total is None else max(1, min(SIZE, -(-total // _SHARDS))))
    settings = {"format": _FORMAT, "metascatter": __version__, "bundle": bundle.manifest["digest"], "targets": total, "input": input_hash}
    shards = Shards(folder, {**settings, "shard_size": size, **job.to_dict()})
    shards.begin()
    count = made = targets = 0
    with tqdm(total=total, unit="target", disable=None if progress else True, file=sys.stderr) as bar:

        def missing() -> Iterator[Shard]:
            nonlocal count, targets
            for shard in _cut(source, read, size):
                count, targets = shard.number + 1, targets + len(shard.targets)
                if shards.done(shard):
                    if not bar.disable:
                        bar.initial += len(shard.targets)  # what is there already does not count for the rate
                    bar.update(len(shard.targets))
                else:
                    yield shard

        for solved in work(missing(), bar.update):
            shards.write(solved)
            made += 1
    if not source.repeatable:
        read.report()
    scores = np.array(shards.index(count))
    known = scores[~np.isnan(scores)]
    return {
        "directory": str(folder),
        "targets": targets,
        "shards": count,
        "shards_made": made,
        "index": str(folder / "index.csv"),
        "engine": shards.engine,
        "seconds": round(time.monotonic() - began, 2),
        "score": {**quartiles(known.tolist()), "under": {f"{u:.2f}": float((known < u).mean()) for u in UNDER}} if len(known) else None,
    }


def text(result: Mapping[str, Any]) -> str:
    """What :func:`run` returns, for people."""
    score = result["score"]
    made = f"{result['shards_made']} of them made now in {result['seconds']:.1f} s by {result['engine']}"
    lines = [f"{result['targets']} targets in {result['shards']} shards, {made}"]
    if score is not None:
        shares = ", ".join(f"{share:.0%} under {limit}" for limit, share in score["under"].items())
        middle = f"median {score['median']:.3f}, quartiles {score['q25']:.3f} to {score['q75']:.3f}"
        lines.append(f"misrouted power of the best designs: {middle}; {shares}")
    lines += [f"  {'shards':<8}{Path(result['directory']) / 'shards'}", f"  {'index':<8}{result['index']}"]
    return "\n".join(lines)


def _cut(items: Iterable[Item], read: Callable[[Item], Target], size: int) -> Iterator[Shard]:
    """The targets in shards, read as they are needed."""
    stream = iter(items)
    for number in itertools.count():
        part = list(itertools.islice(stream, size))
        if not part:
            return
        targets = [read(item) for item in part]
        digest = hashlib.sha256(b"".join(map(_digest, part, targets))).hexdigest()
        yield Shard(number, number * size, digest, [(item.file, item.row) for item in part], targets)


def _digest(item: Item, target: Target) -> bytes:
    """A hash of all that is asked and where it was read."""
    geometry = None if target.geometry is None else target.geometry.to_dict()
    digest = hashlib.sha256(json.dumps([item.file, item.row, target.height_nm, geometry, list(target.extra)]).encode())
    further = (one for channel in target.extra.values() for one in (channel.wanted, channel.mask))
    for array in (target.R, target.T, target.mask_R, target.mask_T, *target.limits, *further):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


class _Reader:
    """Reads targets and checks them against a bundle; the warnings of thousands become one."""

    def __init__(self, bundle: Bundle, freedom: Freedom) -> None:
        self._bundle, self._freedom = bundle, freedom
        self._adjusted, self._first = 0, ""

    def __call__(self, item: Item) -> Target:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            target = check_target(self._bundle, self._freedom.targets(item.read())[0])
        if seen:
            self._adjusted += 1
            self._first = self._first or str(seen[0].message)
        return target

    def report(self) -> None:
        """The warning."""
        if self._adjusted:
            more = f" ({self._adjusted} targets were adjusted, this is the first)" if self._adjusted > 1 else ""
            warnings.warn(f"{self._first}{more}", UserWarning, stacklevel=3)
