"""What every engine shares: named arrays checked, batches cut and padded to what the engine was built for, contexts pooled.

A :class:`Network` may be used by any number of threads. It runs in *contexts*: a set of buffers (and, on a GPU, a stream and a
captured graph) that one thread uses at a time. :meth:`Network.bind` takes one from the pool, or has one made, and hands it back when
the binding is closed; so nobody waits for a lock, and a CUDA graph is captured once per context rather than once per design.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import BackendError

Arrays = Mapping[str, np.ndarray]


class Signature(NamedTuple):
    """What a model declares of one input or output: its shape without the batch, and its NumPy dtype's name."""

    shape: tuple[int, ...]
    dtype: str


class Context(Protocol):
    """Buffers of one batch size in an engine; one thread at a time."""

    def load(self, fixed: Arrays) -> None:
        """Take over the inputs that stay the same from call to call."""

    def run(self, varying: Arrays) -> dict[str, np.ndarray]:
        """Evaluate; the arrays returned may be overwritten by the next run."""

    def close(self) -> None:
        """Release the buffers."""


class Network:
    """One network on one device. Engines derive from this and say how a context is made.

    Args:
        name: what messages call it.
        backend, device, precision: words of ``backends``; what answers, not what was asked for.
        inputs, outputs: what the model declares.
        buckets: batch sizes the engine has compiled for, rising; a batch is padded to the next one, and one beyond the last
            is cut. Empty: any batch as it is.
        batch_size: what the engine is best fed with.
    """

    def __init__(
        self,
        name: str,
        backend: str,
        device: str,
        precision: str,
        inputs: Mapping[str, Signature],
        outputs: Mapping[str, Signature],
        buckets: tuple[int, ...] = (),
        batch_size: int = 64,
    ) -> None:
        self.name, self.backend, self.device, self.precision = name, backend, device, precision
        self.inputs, self.outputs = dict(inputs), dict(outputs)
        self.buckets, self.batch_size = tuple(buckets), batch_size
        self._idle: list[tuple[int, Context]] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def row_bytes(self) -> int:
        """Bytes of the inputs and outputs of one row of a batch."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in [*self.inputs.values(), *self.outputs.values()])

    def _context(self, bucket: int) -> Context:
        """A new context for batches of ``bucket``; 0 where the engine takes any."""
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of what all contexts share, once none is left."""

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Arrays in, arrays out, all with the batch as first axis, of any length.

        Raises:
            BackendError: an input is missing, unknown, or of the wrong shape or dtype; the engine failed; the network is closed.
        """
        self._check_open()
        check_inputs(self.name, self.inputs, inputs)
        with self.bind({}, len(next(iter(inputs.values())))) as bound:
            return {key: value.copy() for key, value in bound(inputs).items()}

    @contextlib.contextmanager
    def bind(self, fixed: Arrays, batch: int) -> Iterator[Binding]:
        """A :class:`Binding` for many calls with ``batch`` rows that share the inputs ``fixed``, for one thread.

        Args:
            fixed: inputs that stay, (batch, ...) or (1, ...) for the same in every row. They are taken to the device once.

        Raises:
            BackendError: as for a call.
        """
        if batch < 1:
            raise BackendError(f"{self.name}: the batch is {batch}; it must be at least 1")
        check_inputs(self.name, self.inputs, fixed, batch, partial=True)
        with contextlib.ExitStack() as stack:
            parts = []
            for rows in self.cut(batch):
                bucket = min((size for size in self.buckets if size >= rows.stop - rows.start), default=0)
                context = stack.enter_context(self._borrowed(bucket))
                count = bucket or rows.stop - rows.start
                context.load({key: _rows(value, rows, count) for key, value in fixed.items()})
                parts.append((rows, count, context))
            yield Binding(self, frozenset(fixed), batch, parts)

    def cut(self, batch: int) -> list[slice]:
        """The calls a batch is made of: whole largest buckets and a rest."""
        largest = self.buckets[-1] if self.buckets else batch
        return [slice(first, min(first + largest, batch)) for first in range(0, batch, largest)]

    def close(self) -> None:
        """Release the engine's memory: at once what is idle, and what is in use when its binding ends."""
        with self._lock:
            idle, self._idle, closed, self._closed = self._idle, [], self._closed, True
        for _, context in idle:
            context.close()
        if not closed:
            self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"{self.name} is closed; load the bundle again")

    @contextlib.contextmanager
    def _borrowed(self, bucket: int) -> Iterator[Context]:
        with self._lock:
            self._check_open()
            at = next((i for i, (size, _) in enumerate(self._idle) if size == bucket), None)
            context = self._idle.pop(at)[1] if at is not None else None
        if context is None:
            context = self._context(bucket)
        try:
            yield context
        finally:
            with self._lock:
                closed = self._closed
                if not closed:
                    self._idle.append((bucket, context))
            if closed:
                context.close()


class Binding:
    """A network with some inputs fixed; one thread's, while the ``with`` of :meth:`Network.bind` lasts."""

    def __init__(self, network: Network, fixed: frozenset[str], batch: int, parts: list[tuple[slice, int, Context]]) -> None:
        self._network, self._batch, self._parts = network, batch, parts
        self._varying = {key: value for key, value in network.inputs.items() if key not in fixed}

    def __call__(self, varying: Arrays) -> dict[str, np.ndarray]:
        """Evaluate with the inputs that were not fixed, (batch, ...); the arrays returned may be overwritten by the next call.

        Raises:
            BackendError: as for a call of the network.
        """
        network = self._network
        check_inputs(network.name, self._varying, varying, self._batch)
        results = []
        for rows, count, context in self._parts:
            found = context.run({key: _rows(value, rows, count) for key, value in varying.items()})
            results.append({key: value[: rows.stop - rows.start] for key, value in found.items()})
        if len(results) == 1:
            return results[0]
        return {key: np.concatenate([result[key] for result in results]) for key in network.outputs}


def _rows(value: np.ndarray, rows: slice, count: int) -> np.ndarray:
    """``count`` contiguous rows of an array: those of ``rows``, the last repeated where an engine wants more."""
    if len(value) == 1:
        return np.ascontiguousarray(np.broadcast_to(value, (count, *value.shape[1:])))
    part = value[rows]
    if len(part) < count:
        part = np.concatenate([part, np.broadcast_to(part[-1:], (count - len(part), *part.shape[1:]))])
    return np.ascontiguousarray(part)


def check_inputs(name: str, declared: Mapping[str, Signature], inputs: Arrays, batch: int | None = None, partial: bool = False) -> None:
    """Compare ``inputs`` with what a model declares.

    Args:
        batch: rows every input must have; None takes any number they agree on.
        partial: inputs may be left out, and may have one row that stands for all.

    Raises:
        BackendError: naming the input, what was found and what was expected.
    """
    for key in inputs:
        if key not in declared:
            raise BackendError(f"{name} has no input '{key}'; its inputs are {', '.join(declared)}")
    batches = set()
    for key, (shape, dtype) in declared.items():
        if key not in inputs:
            if partial:
                continue
            raise BackendError(f"{name} lacks its input '{key}'; expected {', '.join(declared)}")
        value = inputs[key]
        if not isinstance(value, np.ndarray):
            raise BackendError(f"{name}: input '{key}' is a {type(value).__name__}; expected a NumPy array of {dtype}")
        if value.ndim != len(shape) + 1 or value.shape[1:] != shape or value.shape[0] == 0:
            wanted = ", ".join(["batch", *map(str, shape)])
            raise BackendError(f"{name}: input '{key}' has shape {value.shape}; expected ({wanted})")
        if value.dtype.name != dtype:
            raise BackendError(f"{name}: input '{key}' has dtype {value.dtype.name}; expected {dtype}")
        if not (partial and len(value) == 1):
            batches.add(len(value))
    if batch is not None and batches - {batch}:
        raise BackendError(f"{name}: inputs have batches of {sorted(batches)}; expected {batch}")
    if len(batches) > 1:
        raise BackendError(f"{name}: inputs have batches of {sorted(batches)}; expected one batch size")
