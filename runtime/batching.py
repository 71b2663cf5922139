"""Many callers, one denoiser: what several threads sample at a time shares the calls of the network.

    with BatchingSampler(Bundle.open(path)) as sampler:     # a Sampler in every respect; use it from any number of threads
        designs = sampler.design(target)

A batch of 64 rows takes an engine far less time than 64 batches of one, and a GPU hardly more than one of them. So one thread runs the
network, and whenever it is free it takes what is waiting: rows of different targets and seeds, as long as they are sampled by the same
plan with the same guidance. A candidate's noise depends on its seed and number alone, so its company changes nothing but the engine's
rounding.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .errors import BackendError, Cancelled
from .inpaint import Known
from .loop import Guidance, denoise
from .sampler import Sampler
from .schedulers import Plan

_log = logging.getLogger(__name__)
_POLL_S = 0.1  # how often who waits looks whether it was cancelled
_NOTHING = np.empty(0, np.float32)

StepDone = Callable[[int, np.ndarray], None]
Arrays = Mapping[str, np.ndarray]


class _Part:
    """Rows that one caller wants: what :meth:`Sampler.denoise` takes, and what has come of it."""

    def __init__(
        self,
        plan: Plan,
        arrays: Arrays,
        free: Arrays | None,
        guidance: Guidance,
        seed: int,
        candidates: range,
        step_done: StepDone,
        clean: np.ndarray | None,
        known: Known | None,
    ) -> None:
        self.plan, self.arrays, self.free, self.guidance = plan, arrays, free, guidance
        self.seed, self.candidates, self.step_done, self.clean = seed, candidates, step_done, clean
        self.known = known
        self.done = threading.Event()
        self.samples = _NOTHING
        self.error: BaseException | None = None

    def goes_with(self, other: _Part) -> bool:
        """Whether one call of the network, and one row of the plan's table, can serve both."""
        if any(given is not None for given in (self.clean, other.clean, self.known, other.known)):
            return False
        return self.guidance == other.guidance and (self.free is None) == (other.free is None) and _same(self.plan, other.plan)

    def finish(self, error: BaseException | None = None) -> None:
        self.error = error
        self.done.set()


class BatchingSampler(Sampler):
    """A sampler whose concurrent callers share the calls of the denoiser.

    Callbacks (``stop``, ``on_step``) run in the thread that runs the network and hold up everybody in the batch: keep them short. What one
    raises ends that caller's work alone.

    Args:
        waiting: entered by a caller's thread for as long as it waits for its samples; :class:`.serve.slots.Slots` lets another work
            meanwhile.
        linger_s: how long an idle network waits for company before it begins.
        on_batch: called with the number of candidates of each batch, in the thread that runs the network.
        The others are those of :class:`Sampler`.
    """

    def __init__(
        self,
        *args: Any,
        waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        linger_s: float = 0.005,
        on_batch: Callable[[int], object] = lambda rows: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.calls = self.rows = 0  # batches run, and candidates in them
        self._while_waiting, self._linger_s, self.on_batch = waiting, linger_s, on_batch
        self._parts: deque[_Part] = deque()
        self._changed, self._ended = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="metascatter-denoise", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """As :meth:`Sampler.close`; who still waits gets a BackendError, and the batch at work is finished first."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        super().close()

    def denoise(
        self,
        table: Plan,
        arrays: Arrays,
        free: Arrays | None,
        guidance: Guidance,
        seed: int,
        candidates: range,
        step_done: StepDone,
        clean: np.ndarray | None = None,
        known: Known | None = None,
    ) -> np.ndarray:
        """One batch of a stream, in company; see :func:`loop.denoise`."""
        part = _Part(table, arrays, free, guidance, seed, candidates, step_done, clean, known)
        with self._while_waiting():
            with self._changed:
                if self._ended:
                    raise BackendError("the sampler is closed; load the bundle again")
                self._parts.append(part)
                self._changed.notify_all()
            try:
                while not part.done.wait(_POLL_S):
                    step_done(-1, _NOTHING)  # raises where the caller has been cancelled
            except BaseException:
                # Out of the queue at once; rows at work are dropped before the next step.
                part.finish(Cancelled("sampling was cancelled"))
                with self._changed, contextlib.suppress(ValueError):
                    self._parts.remove(part)
                raise
        if part.error is not None:
            raise part.error
        return part.samples

    def _work(self) -> None:
        """The thread of the network: batch after batch until the sampler is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._ended)
                if self._linger_s and not self._ended:
                    self._changed.wait_for(lambda: self._ended, self._linger_s)
                if self._ended:
                    while self._parts:
                        self._parts.popleft().finish(BackendError("the sampler is closed; load the bundle again"))
                    return
                batch = self._take()
            if not batch:
                continue
            self._try(batch)

    def _try(self, batch: Sequence[_Part]) -> None:
        """Run a batch. Where it fails each part is run again by itself: one that the engine cannot take fails alone."""
        rows = sum(len(part.candidates) for part in batch)
        self.calls, self.rows = self.calls + 1, self.rows + rows
        self.on_batch(rows)
        try:
            self._run(batch)
        except BaseException as error:
            left = [part for part in batch if not part.done.is_set()]
            if len(batch) == 1:
                for part in left:
                    part.finish(error)
                return
            _log.warning("a batch of %d candidates failed, and its %d requests are sampled one by one: %s", rows, len(left), error)
            for part in left:
                self._try([part])

    def _take(self) -> list[_Part]:
        """The part that has waited longest, and of the others, in turn, those that go with it and fit."""
        if not self._parts:
            return []
        first = self._parts.popleft()
        batch, room = [first], self.batch_size() - len(first.candidates)
        for part in list(self._parts):
            if len(part.candidates) <= room and part.goes_with(first):
                self._parts.remove(part)
                batch.append(part)
                room -= len(part.candidates)
        return batch

    def _run(self, batch: Sequence[_Part]) -> None:
        """Denoise the rows of all parts at once; who is cancelled meanwhile leaves, and when all have left the work ends."""
        first = batch[0]
        ends = np.cumsum([len(part.candidates) for part in batch]).tolist()
        rows = [slice(end - len(part.candidates), end) for part, end in zip(batch, ends, strict=True)]

        def step_done(k: int, estimate: np.ndarray) -> None:
            for part, mine in zip(batch, rows, strict=True):
                if not part.done.is_set():
                    try:
                        # Callers may keep what they see, and this one stays at work when another has left.
                        part.step_done(k, estimate[mine].copy())
                    except BaseException as error:
                        part.finish(error)
            if all(part.done.is_set() for part in batch):
                raise Cancelled("sampling was cancelled")

        samples = denoise(
            self.networks["denoiser"],
            first.plan,
            tuple(self.bundle.manifest["sample_shape"]),
            _joined([part.arrays for part in batch], rows),
            None if first.free is None else _joined([part.free for part in batch if part.free is not None], rows),
            first.guidance,
            [part.seed for part in batch for _ in part.candidates],
            [candidate for part in batch for candidate in part.candidates],
            step_done,
            first.clean,
            known=first.known,
        )
        for part, mine in zip(batch, rows, strict=True):
            if not part.done.is_set():
                part.samples = samples[mine].copy()
                part.finish()


def _joined(conditions: Sequence[Arrays], rows: Sequence[slice]) -> Arrays:
    """Conditions, a batch of 1 each, as a row for every candidate; one alone stays a batch of 1."""
    if len(conditions) == 1:
        return conditions[0]

    def spread(key: str) -> Iterator[np.ndarray]:
        for condition, mine in zip(conditions, rows, strict=True):
            yield np.broadcast_to(condition[key], (mine.stop - mine.start, *condition[key].shape[1:]))

    return {key: np.concatenate(list(spread(key))) for key in conditions[0]}


def _same(a: Plan, b: Plan) -> bool:
    """Whether two plans take the same steps."""
    return a is b or (
        (a.memory, a.clip, a.threshold, a.init_noise_sigma) == (b.memory, b.clip, b.threshold, b.init_noise_sigma)
        and np.array_equal(a.timesteps, b.timesteps)
        and np.array_equal(a.table, b.table)
    )
