"""The queue: what is asked for, what has come of it, and the threads that work on it.

A job is a call of :meth:`Sampler.design` in a thread of its own. The threads share one :class:`BatchingSampler`, so many jobs are sampled
by one call of the denoiser, and :class:`Slots`, so no more of them solve and refine at a time than there are cores.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import design as room
from ..batching import BatchingSampler
from ..bundle import Bundle
from ..design import Design
from ..design_files import WRITERS, document
from ..errors import BundleError, DataError, MetascatterError, TargetError
from ..physics.verify import default_workers
from ..target import Target
from .memory import give_back
from .slots import Slots

MAX_CANDIDATES, MAX_TOP, MAX_STEPS, MAX_BUDGET = 4096, 64, 1000, 1000
FILES = tuple(name for name, _, _ in WRITERS)
_THREADS = 64  # jobs at work at a time: most of them wait for their samples, together
_KEPT = 256  # finished jobs whose designs may still be asked for


class Busy(MetascatterError):
    """The queue is full, or the server is stopping; the request may be made again later."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What a client asks for.

    Args:
        target: what the light should do.
        n, top, seed: candidates sampled, designs returned, and the seed.
        verify: solve Maxwell's equations for the best.
        refine, budget: search on from the best, within so many solves in all.
        time_limit: seconds from the start of the work after which the best so far is the answer; None sets no limit.
        settings: further arguments of ``Sampler.design``: steps, scheduler, eta, guidance_scale, guidance_interval.
    """

    target: Target
    n: int = 64
    top: int = 4
    seed: int = 0
    verify: bool = True
    refine: bool = True
    budget: int = 32
    time_limit: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self) -> None:
        """Refuse what is out of range before it is queued. Raises TargetError."""
        for name, value, most in (
            ("n", self.n, MAX_CANDIDATES),
            ("top", self.top, MAX_TOP),
            ("steps", self.settings.get("steps"), MAX_STEPS),
            ("budget", self.budget, MAX_BUDGET),
        ):
            if value is not None and not 1 <= value <= most:
                raise TargetError(f"{name} is {value}; it must be a whole number from 1 to {most}")
        if not 0 <= self.seed < 1 << 63:
            raise TargetError(f"seed is {self.seed}; it must be a whole number from 0 to 2^63 - 1")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise TargetError(f"time_limit is {self.time_limit:g}; it must be a number of seconds above 0")


class Job:
    """An order at work. ``result`` is a future of its designs; the rest is for who watches."""

    def __init__(self, order: Order) -> None:
        self.id = secrets.token_urlsafe(12)
        self.order = order
        self.result: Future[list[Design]] = Future()
        self.sampled = self.solved = (0, 0)  # (done, of how many)
        self.estimate: np.ndarray | None = None  # the network's present view of the batch at work
        self.first: Design | None = None  # the first design solved, and the best so far
        self.best: Design | None = None
        self.seconds: float | None = None
        self._cancelled = threading.Event()
        self.writing = threading.Lock()

    def cancel(self) -> None:
        """Give up: its place in the queue is free at once, or within one step or one solve where it is at work."""
        self._cancelled.set()
        self.result.cancel()

    def is_set(self) -> bool:
        """Whether it was cancelled, as ``Sampler.design`` asks."""
        return self._cancelled.is_set()

    def on_step(self, done: int, total: int, estimate: np.ndarray) -> None:
        self.sampled, self.estimate = (done, total), estimate

    def on_solve(self, done: int, total: int) -> None:
        self.solved = (done, total)

    def on_best(self, design: Design) -> None:
        self.first, self.best = self.first or design, design


class Jobs:
    """The queue of one bundle in one engine. Thread-safe; a context manager.

    Args:
        bundle, engine: as for ``metascatter.load``; engine holds backend, device and precision.
        max_queue: jobs waiting and at work; more are refused.
        workers: cores for solving; None is all this process may use.

    Raises:
        BundleError: the bundle is none of metasurfaces, or damaged.
    """

    def __init__(self, bundle: str | Path | None, engine: dict[str, Any], max_queue: int = 128, workers: int | None = None) -> None:
        opened = Bundle.open(bundle)
        if not opened.designs:
            raise BundleError(f"{opened.path} is of images or points, and the server designs metasurfaces; name a bundle of those")
        self.slots = Slots(workers or default_workers())
        self.sampler = BatchingSampler(opened, **engine, waiting=self.slots.lend)
        self.max_queue, self.stopping = max_queue, False
        self.on_end: Callable[[Job], object] = lambda job: None  # called with each job that has ended, in any thread
        self._pool = ThreadPoolExecutor(_THREADS, "metascatter-job")
        self._changed = threading.Condition()
        self._open: dict[str, Job] = {}
        self._finished: OrderedDict[str, Job] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="metascatter-serve-")

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, order: Order) -> Job:
        """Queue an order, once it is sure that the bundle can be asked for it.

        Raises:
            TargetError, BundleError: the order is wrong.
            Busy: the queue is full, or no more is taken.
        """
        order.check()
        sampler = self.sampler
        sampler.plan(*(order.settings.get(name) for name in ("steps", "scheduler", "eta")))
        sampler.guidance(order.settings.get("guidance_scale"), order.settings.get("guidance_interval"))
        job = Job(dataclasses.replace(order, target=sampler.check(order.target)))
        with self._changed:
            if self.stopping:
                raise Busy("the server is stopping; ask again when it is back")
            if len(self._open) >= self.max_queue:
                raise Busy(f"{len(self._open)} requests are waiting or at work, as many as the queue holds; ask again later")
            self._open[job.id] = job
        job.result.add_done_callback(lambda _: self._close(job))
        self._pool.submit(self._run, job)
        return job

    def find(self, name: str) -> Job:
        """A finished job. Raises DataError where there is none, or no longer."""
        with self._changed:
            if name not in self._finished:
                raise DataError("there is no such job, or it was so long ago that it has been forgotten; design again")
            return self._finished[name]

    def document(self, job: Job) -> dict[str, Any]:
        """The fields of a finished job's ``designs.json``."""
        return document(job.result.result(), job.order.target)

    def file(self, job: Job, name: str) -> Path:
        """One of ``FILES`` of a finished job, written when it is first asked for.

        Raises:
            DataError: there is no such file, or its package is not installed.
        """
        if name not in FILES:
            raise DataError(f"there is no file '{name}'; there are {', '.join(FILES)}")
        folder = Path(self._folder.name) / job.id
        with job.writing:
            if not (folder / name).exists():
                with self.slots.hold():
                    saved = room.save(job.result.result(), job.order.target, folder, only=[name])
                if saved.missing:
                    raise DataError(f"{name} cannot be made here; install metascatter[{saved.missing[0][1]}]")
        return folder / name

    @property
    def load(self) -> dict[str, int]:
        """How busy it is: jobs open and how many there may be, batches of the denoiser so far and candidates in them."""
        return {"jobs": len(self._open), "max_queue": self.max_queue, "batches": self.sampler.calls, "candidates": self.sampler.rows}

    def stop(self) -> None:
        """Take no more jobs; those that are open go on."""
        with self._changed:
            self.stopping = True

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until no job is open; False where time ran out before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, timeout_s)

    def close(self) -> None:
        """Cancel what is open, and release the engine and all files."""
        self.stop()
        with self._changed:
            left = list(self._open.values())
        for job in left:
            job.cancel()
        self._pool.shutdown()
        self.sampler.close()
        self._folder.cleanup()

    def _run(self, job: Job) -> None:
        """A job, in a thread of the pool."""
        if not job.result.set_running_or_notify_cancel():
            return
        order = job.order

        def found(design: Design) -> None:
            job.on_best(design)
            self.slots.turn()  # none of the job's solves is under way

        try:
            with self.slots.hold(job.is_set, at_once=False):
                start = time.monotonic()
                # One core each where there are many; all of them for who is alone.
                workers = max(1, self.slots.count // max(1, len(self._open)))
                designs = self.sampler.design(
                    order.target,
                    n=order.n,
                    top=order.top,
                    seed=order.seed,
                    verify=order.verify,
                    refine=order.refine,
                    budget=order.budget,
                    deadline_s=order.time_limit,
                    cancel=job,
                    on_step=job.on_step,
                    on_solve=job.on_solve,
                    on_best=found,
                    workers=workers,
                    **order.settings,
                )
            job.seconds = time.monotonic() - start
            job.result.set_result(designs)
        except BaseException as error:
            job.result.set_exception(error)
        finally:
            job.estimate = None
            if job.solved[0]:
                give_back()

    def _close(self, job: Job) -> None:
        """A job has ended, one way or another."""
        forgotten: list[str] = []
        with self._changed:
            self._open.pop(job.id, None)
            if not job.result.cancelled() and job.result.exception() is None:
                self._finished[job.id] = job
                while len(self._finished) > _KEPT:
                    forgotten.append(self._finished.popitem(last=False)[0])
            self._changed.notify_all()
        self.on_end(job)
        for name in forgotten:
            _remove(Path(self._folder.name) / name)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
