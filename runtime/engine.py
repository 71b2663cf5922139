"""A bundle's networks in an engine, whatever they are then asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Self

from . import backends
from .bundle import Bundle
from .errors import BackendError, BundleError, TargetError

# A network keeps about this many times its inputs and outputs alive (measured on the spectral network and the seed's UNet);
# half of the free memory is left to everybody else.
_ALIVE = 64


def models(bundle: Bundle) -> dict[str, backends.Model]:
    """The networks of a bundle as engines take them: their bytes are read, and checked, when one is opened."""

    def model(name: str, files: Mapping[str, str]) -> backends.Model:
        return backends.Model(f"{name}.onnx", tuple(files), lambda precision: bundle.network(name, precision))

    return {name: model(name, entry["files"]) for name, entry in bundle.manifest["networks"].items()}


class Engine:
    """A bundle in an engine. A context manager; any number of threads may use it at once.

    Every call has a context of the engine to itself (buffers, and on a GPU a stream and a captured graph), taken from a pool that grows
    to as many as are in use at a time; nothing waits for a lock. ``choice`` says which backend, device and precision answer, and
    ``reason`` why.

    Args:
        bundle: opened.
        backend, device, precision, threads, concurrency: as for ``metascatter.load``.

    Raises:
        BundleError: the bundle was altered, or has not that precision.
        BackendError: the engine or device is not there.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        concurrency: int = 1,
    ) -> None:
        self.bundle = bundle
        wanted = models(bundle)
        if precision not in backends.PRECISIONS:
            raise BundleError(f"there is no precision '{precision}'; choose {', '.join(backends.PRECISIONS)}")
        for name, model in wanted.items():
            if precision != "auto" and backends.file_precision(precision, model.precisions) is None:
                raise BundleError(f"the bundle {bundle.path} has no {name} in {precision}; it has {', '.join(model.precisions)}")
        self._ranking = wanted.pop("surrogate", None)
        self._load = backends.Load(threads, concurrency, int(bundle.manifest.get("max_batch", backends.BUCKETS[-1])))
        self._opening, self._closed = threading.Lock(), False
        self.networks, self.choice, self.reason = backends.open_networks(wanted, backend, device, precision, self._load)
        self.backend, self.device, self.precision = self.choice

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine; it cannot be used afterwards. Runs in other threads end with a BackendError or finish."""
        with self._opening:
            self._closed = True
        for network in self.networks.values():
            network.close()

    @property
    def surrogate(self) -> backends.Network | None:
        """The network that predicts what a pattern scatters, in the engine of the others; None where the bundle has none.

        It is opened when it is first asked for: who does not rank does not wait for it.
        """
        if self._ranking is None:
            return None
        with self._opening:
            if self._closed:
                raise BackendError("the bundle is closed; load the bundle again")
            if "surrogate" not in self.networks:
                self.networks |= backends.open_networks({"surrogate": self._ranking}, *self.choice, self._load).networks
        return self.networks["surrogate"]

    def every_network(self) -> dict[str, backends.Network]:
        """All networks of the bundle, opened."""
        return dict(self.networks) if self.surrogate is None else {**self.networks, "surrogate": self.surrogate}

    def batch_size(self, asked: int | None = None) -> int:
        """Candidates of one network call: what is asked for, else what the engine is best fed with and the memory free now allows.

        Raises:
            TargetError: less than one.
        """
        if asked is not None:
            if asked < 1:
                raise TargetError(f"the batch size is {asked}; it must be at least 1")
            return asked
        denoiser = self.networks["denoiser"]
        return max(1, min(denoiser.batch_size, self._load.max_batch, _free_memory() // (2 * _ALIVE * denoiser.row_bytes)))


def _free_memory() -> int:
    """Bytes that can be had without swapping, as far as the system says."""
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError), open("/proc/meminfo", encoding="ascii") as lines:
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return 1 << 62
