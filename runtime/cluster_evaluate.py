"""``evaluate`` on a cluster: targets are sampled, ranked, solved and refined by actors that hold the bundle and the baseline.

Here remain the seed's protocol, the surrogate's error, the nearest training samples and all that is computed of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .cluster import Cluster, carried, open_sampler
from .errors import BackendError
from .evaluate_work import Elsewhere, Work
from .sampler import Sampler

Parts = Mapping[str, tuple[Mapping[str, bytes], Mapping[str, Any]]]  # by name a bundle's files and the words for its engine


def elsewhere(cluster: Cluster, samplers: Mapping[str, Sampler]) -> Elsewhere:
    """What :func:`.evaluate.evaluate` takes for a cluster: its workers open the bundles of ``samplers`` in the engines that these are in.

    Raises:
        BackendError: the samplers are on a GPU, and the workers are to have none.
        BundleError: a bundle is spoiled.
    """
    gpus = cluster.gpus(samplers["bundle"].device)
    if not gpus and samplers["bundle"].device == "cuda":
        raise BackendError("the device here is cuda and the workers get no GPU; use --device cpu or --gpus-per-worker 1")
    parts = {name: (carried(one.bundle), one.choice._asdict()) for name, one in samplers.items()}
    return lambda calls: cluster.actors(_evaluator, (parts, cluster.wish.threads), calls, gpus)


class _Opened(dict[str, Any]):
    """Samplers, each opened when it is first asked for."""

    def __init__(self, parts: Parts, threads: int) -> None:
        super().__init__()
        self._parts, self._threads = parts, threads

    def __missing__(self, name: str) -> Any:
        self[name] = open_sampler(*self._parts[name], self._threads)
        return self[name]


def _evaluator(parts: Parts, threads: int) -> Callable[[Any], Any]:
    """In a worker: what answers the calls."""
    samplers = _Opened(parts, threads)

    def answer(call: tuple[int, Callable[..., Any], Work, tuple[Any, ...]]) -> tuple[int, Any, dict[str, float]]:
        k, function, work, item = call
        work.workers = threads
        return k, function(work, samplers, *item), work.seconds

    return answer
