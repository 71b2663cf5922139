"""Many computers, or many processes of one, by Ray: the functions that run here, run there. Ray places, restarts and retries; we do not.

    with connect(Wish("auto")) as cluster:
        for solved in cluster.actors(worker, items): ...

Two kinds of work: tasks, of functions that need nothing loaded (solves of a simulation), and actors, each of which loads a bundle once and
keeps its share of CPUs, or its GPU, as long as there is work (``ray.util.ActorPool``). A process that is killed is started again by Ray
and what it was at is done again, elsewhere if its computer is gone; since every item gives the same result wherever and however often it
is tried, and only this process writes, nothing is lost and nothing is there twice. Results come back item by item, so neither a shared
file system nor memory for all of them is needed.

Ray Data is for rows of tables and brings pandas and Arrow with it; these are pieces of work of seconds to minutes, each a file when done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .environment import environment
from .errors import BackendError, MetascatterError
from .version import __version__

_RETRIES = 3  # of an item whose process died: more would be the item's own fault
# Ray must not report to its makers, nor hide GPUs from those who asked for none (engines are told not to use them).
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

Call = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked of a cluster.

    Args:
        address: ``HOST:PORT`` of a cluster, or ``auto``: the one that runs on this computer or that ``RAY_ADDRESS`` names, else a new
            one of this computer alone, which ends with the work.
        cpus: CPUs of a worker; also the threads of its engine and of its solver.
        gpus: GPUs of a worker; None is 1 for work that can use one where the cluster has any, else 0.
        workers: how many; None is as many as fit.
    """

    address: str = "auto"
    cpus: float = 1.0
    gpus: float | None = None
    workers: int | None = None

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, int(self.cpus))


@contextlib.contextmanager
def connect(wish: Wish) -> Iterator[Cluster]:
    """A cluster for the time of the block. Who has connected to Ray already (``ray.init``) works there, and stays connected.

    Raises:
        BackendError: Ray is not installed, or the cluster does not answer.
    """
    import logging

    check(wish)
    import ray

    if ray.is_initialized():
        yield Cluster(wish)
        return
    try:
        with environment(_ENVIRONMENT):
            ray.init(
                address=None if wish.address == "auto" else wish.address,
                include_dashboard=False if wish.address == "auto" else None,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
    except Exception as error:  # each layer of Ray has its own
        where = f"no Ray cluster answers at '{wish.address}'"
        raise BackendError(f"{where} ({_first_line(error)}); start one with 'ray start --head'") from None
    try:
        yield Cluster(wish)
    finally:
        ray.shutdown()


def check(wish: Wish) -> None:
    """Refuse a cluster that cannot be, without starting anything.

    Raises:
        BackendError: Ray is not installed, or nobody listens at the address, where Ray itself would try for half an hour.
    """
    import importlib.util
    import socket

    try:
        known = importlib.util.find_spec("ray")
    except (ImportError, ValueError):
        known = None
    if known is None:
        raise BackendError("Ray is not installed; install metascatter[cluster]")
    address = os.environ.get("RAY_ADDRESS", "auto") if wish.address == "auto" else wish.address
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        raise BackendError(f"the cluster's address is '{address}'; it must be auto or HOST:PORT, as 'ray start --head' prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BackendError(f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head'") from None


class Cluster:
    """A cluster that is connected to; made by :func:`connect`."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish

    def gpus(self, device: str) -> float:
        """GPUs of a worker for an engine on ``device``."""
        if self.wish.gpus is not None:
            return self.wish.gpus
        import ray

        return 1.0 if device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1) else 0.0

    def slots(self, gpus: float = 0.0) -> int:
        """How many workers fit into the cluster, or are asked for.

        Raises:
            BackendError: no computer of it can have one.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shares = {kind: share for kind, share in (("CPU", self.wish.cpus), ("GPU", gpus)) if share}
        fits = sum(int(min(node.get(kind, 0) / share for kind, share in shares.items())) for node in nodes)
        if not fits:
            most = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise BackendError(
                f"no computer of the cluster has {self.wish.cpus:g} CPUs and {gpus:g} GPUs for a worker (it has {most}); "
                "ask for fewer with --cpus-per-worker and --gpus-per-worker"
            )
        return self.wish.workers or fits

    def tasks(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """``function(*item)`` of every item, in the order in which they are done; two items a worker are under way at a time.

        Raises:
            MetascatterError: what the function raised, or a worker died of an item again and again.
        """
        import ray

        remote = ray.remote(_checked).options(num_cpus=self.wish.cpus, max_retries=_RETRIES)
        most = 2 * self.slots()
        running: list[Any] = []
        with _plain_errors():
            for item in items:
                if len(running) >= most:
                    done, running = ray.wait(running, num_returns=1)
                    yield ray.get(done[0])
                running.append(remote.remote(__version__, function, item))
            while running:
                done, running = ray.wait(running, num_returns=1)
                yield ray.get(done[0])

    def actors(self, make: Callable[..., Call], arguments: tuple[Any, ...], items: Iterable[Any], gpus: float = 0.0) -> Iterator[Any]:
        """The results of ``make(*arguments)(item)`` for every item, in the order in which they are done.

        Each worker makes its function once. An item is taken from ``items`` when a worker is free for it. ``arguments`` are stored in the
        cluster once for all.

        Raises:
            MetascatterError: what either function raised, or a worker died of an item again and again.
        """
        import ray
        from ray.util import ActorPool

        todo = iter(items)
        with _plain_errors():
            first = list(itertools.islice(todo, self.slots(gpus)))
            kind = ray.remote(_Worker).options(num_cpus=self.wish.cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES)
            kept = ray.put(arguments)
            pool = ActorPool([kind.remote(__version__, make) for _ in first])

            def submit(worker: Any, item: Any) -> Any:
                return worker.call.remote([kept], item)  # in a list it is fetched where it is asked for, and not with every item

            for item in first:
                pool.submit(submit, item)
            while pool.has_next():
                result = pool.get_next_unordered()
                following = next(todo, self)
                if following is self:
                    # Its share is free again: a worker whose computer is gone can start anew there with the item that it was at.
                    pool.pop_idle()
                else:
                    pool.submit(submit, following)
                yield result


class _Worker:
    """An actor: a function that is made when it is first called, since what its making raises then has a name."""

    def __init__(self, version: str, make: Callable[..., Call]) -> None:
        self._version, self._make = version, make
        self._call: Call | None = None

    def call(self, arguments: list[Any], item: Any) -> Any:
        import ray

        _check_version(self._version)
        if self._call is None:
            self._call = self._make(*ray.get(arguments[0]))
        return self._call(item)


def _checked(version: str, function: Callable[..., Any], item: tuple[Any, ...]) -> Any:
    _check_version(version)
    return function(*item)


def _check_version(version: str) -> None:
    if version != __version__:
        raise BackendError(f"a computer of the cluster has metascatter {__version__} and this one {version}; install the same on all")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of other processes as if they were raised here; those of Ray in one sentence."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, MetascatterError):
            raise _again(cause) from None
        raise MetascatterError(f"a worker of the cluster failed: {type(cause).__name__}: {_first_line(cause)}") from None
    except exceptions.RayError as error:
        if "No module named" in str(error):
            raise BackendError("a computer of the cluster lacks metascatter or a package that it needs; install the same on all") from None
        raise MetascatterError(
            f"a worker of the cluster died {_RETRIES + 1} times at the same piece of work, perhaps for lack of memory "
            f"({_first_line(error)}); give the same command again to go on"
        ) from None


def _again(error: MetascatterError) -> MetascatterError:
    """The same error without Ray's dressing."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == MetascatterError.__module__)
    return kind(*error.args)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# --- What is loaded -----------------------------------------------------------------------------------------------------


def carried(bundle: Bundle) -> dict[str, bytes]:
    """The files of a bundle that a sampler needs, each checked against its hash, to be carried to computers that do not have it."""
    networks = [name for network in bundle.manifest["networks"].values() for name in network["files"].values()]
    manifest = (bundle.path / "manifest.json").read_bytes()
    return {"manifest.json": manifest, **{name: bundle.read(name) for name in ("scheduler_config.json", *networks)}}


def open_sampler(files: Mapping[str, bytes], engine: Mapping[str, Any], threads: int) -> Any:
    """In a worker: a sampler of carried files, which are checked against their hashes once more.

    Raises:
        BundleError, BackendError: as for ``sampler.load``.
    """
    from .sampler import load

    with tempfile.TemporaryDirectory(prefix="metascatter-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        sampler = load(folder, **engine, threads=threads)
        sampler.every_network()  # the last that is read from the folder
    return sampler
