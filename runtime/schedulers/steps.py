"""The arithmetic of one sampling step, the same for every method: a row of coefficients applied to arrays in place."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import DTypeLike

from ..errors import BundleError

# One row per evaluation of the network, all float64. First the estimate of the clean sample,
#     x0 = gain (from_sample x + from_output m),   clipped or thresholded,
# then the next sample,
#     x <- sample x + output m + estimate x0 + previous (x0 one step before) + earlier (x0 two before) + noise z.
# That is all a step does, whatever the method: one that corrects the sample it arrived with (UniPC, Heun's second stage) only
# knows more of where it came from by its new estimate, so the correction is a sum of estimates and folds into the same row.
# The gain stands outside: near pure noise x and m almost cancel and the gain is large, so the difference has to be
# taken before it is magnified (at alphas_cumprod = 1e-8 the other order loses a digit in float32).
ROW = np.dtype(
    [(name, np.float64) for name in ("from_sample", "from_output", "gain", "sample", "output", "estimate", "previous", "earlier", "noise")]
)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Everything one sampling run needs, computed once and immutable: threads may share it.

    The sample stays on the scale of the forward process (variance-preserving), so it is the network's input as it is.

    ``timesteps``         (K,) int64: where the network is evaluated, in this order.
    ``sigmas``            (K,) float64: noise over signal there, sqrt((1 - alphas_cumprod) / alphas_cumprod).
    ``table``             (K,) of ``ROW``: the coefficients of each step.
    ``memory``            how many estimates, the current one included, the method looks at.
    ``clip``              the estimate is kept within [-clip, clip]; None leaves it alone.
    ``threshold``         (ratio, largest): dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3); it replaces
                          the clip. None is off.
    ``init_noise_sigma``  standard deviation of the sample at the first timestep.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray
    table: np.ndarray
    memory: int = 1
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    init_noise_sigma: float = 1.0
    needs_noise: np.ndarray = dataclasses.field(init=False)  # (K,) bool: which steps read fresh noise

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs_noise", self.table["noise"] != 0.0)
        for array in (self.timesteps, self.sigmas, self.table, self.needs_noise):
            array.setflags(write=False)

    @property
    def num_steps(self) -> int:
        """Evaluations of the network in one run, K: what diffusers calls num_inference_steps, but 2 N - 1 for N steps of Heun."""
        return len(self.timesteps)

    def start(self, noise: np.ndarray) -> np.ndarray:
        """Scale standard normal ``noise`` (B, ...) to the first sample, in place, and return it."""
        noise *= self.init_noise_sigma
        return noise

    def since(self, timestep: float) -> Plan:
        """The rest of this run: its steps from the first at or below ``timestep``, with nothing remembered of those before.

        Where a step looks back past the new beginning, what would have been estimated there is taken to be the first estimate there is. So
        a multistep method begins with a step of first order, and one that corrects the step before has nothing to correct.

        Raises ``BundleError`` where all steps are above.
        """
        below = np.flatnonzero(self.timesteps <= timestep)
        if not below.size:
            raise BundleError(
                f"the last of {self.num_steps} steps is at timestep {self.timesteps[-1]}, above {timestep:g}; take more steps"
            )
        first = int(below[0])
        place = np.stack([self.timesteps, self.sigmas], axis=1)
        # Heun comes twice to where a step ends and the next begins: a run begins with the second.
        while first + 1 < self.num_steps and np.array_equal(place[first], place[first + 1]):
            first += 1
        if first == 0:
            return self
        table = self.table[first:].copy()
        table["estimate"][0] += table["previous"][0] + table["earlier"][0]
        table["previous"][0] = 0.0
        table["previous"][1:2] += table["earlier"][1:2]
        table["earlier"][:2] = 0.0
        return dataclasses.replace(self, timesteps=self.timesteps[first:], sigmas=self.sigmas[first:], table=table, init_noise_sigma=1.0)

    def first_order(self) -> Plan:
        """The same steps, each as if it were the first of a run: with nothing remembered, as in :meth:`since`."""
        table = self.table.copy()
        table["estimate"] += table["previous"] + table["earlier"]
        table["previous"] = table["earlier"] = 0.0
        return dataclasses.replace(self, table=table)

    def noised(self, sample: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Clean data ``sample`` with as much of ``noise`` as there is at the first timestep, float32 of their common shape.

        x = (x_0 + sigma z) / sqrt(1 + sigma^2), which is sqrt(a) x_0 + sqrt(1 - a) z with a = alphas_cumprod (DDPM, eq. 4).
        """
        sigma = self.sigmas[0]
        return (sample / np.hypot(1.0, sigma) + noise / np.hypot(1.0, 1.0 / sigma)).astype(np.float32)

    def new_history(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
        """A run's own memory, (1 + memory, *shape): scratch, then a ring of the latest estimates.

        Allocate one per run or thread. It need not be cleared between runs: step 0 looks at nothing older than itself.
        """
        return np.empty((1 + self.memory, *shape), dtype)

    def step(self, k: int, model_output: np.ndarray, sample: np.ndarray, noise: np.ndarray | None, history: np.ndarray) -> np.ndarray:
        """Take step ``k``: overwrite ``sample`` with the next sample and return the estimate of the clean one.

        ``model_output``  (B, ...) float32: the network at (sample, ``timesteps[k]``); left as it is.
        ``sample``        (B, ...) float32: updated in place.
        ``noise``         (B, ...) float32: standard normal, left as it is; None where ``needs_noise[k]`` is False.
        ``history``       from :meth:`new_history`, passed to every step of one run, in order.

        The estimate (the network's view of the finished sample, clipped or thresholded) is a view into ``history``,
        overwritten ``memory`` steps later: copy it to keep it. Steps are elementwise, and thresholding works on each
        sample alone, so a result never depends on its batch. The arithmetic is the arrays' own dtype; nothing is
        allocated but for thresholding.

        Raises ``ValueError`` when noise is needed and none is given.
        """
        # tolist() gives Python floats, which leave float32 arrays float32; NumPy's own float64 scalars would not.
        from_sample, from_output, gain, by_sample, by_output, by_estimate, by_previous, by_earlier, by_noise = self.table[k].tolist()
        scratch = history[0]
        estimate, previous, earlier = (history[1 + (k - age) % self.memory] for age in range(3))

        np.multiply(model_output, from_output, out=estimate)
        _add(estimate, from_sample, sample, scratch)
        if gain != 1.0:
            estimate *= gain
        if self.threshold is not None:
            _threshold(estimate, *self.threshold)
        elif self.clip is not None:
            np.clip(estimate, -self.clip, self.clip, out=estimate)

        if by_sample != 1.0:
            sample *= by_sample
        _add(sample, by_output, model_output, scratch)
        _add(sample, by_estimate, estimate, scratch)
        _add(sample, by_previous, previous, scratch)
        _add(sample, by_earlier, earlier, scratch)
        if by_noise:
            if noise is None:
                raise ValueError(f"step {k} adds fresh noise (needs_noise[{k}] is True), but noise is None")
            _add(sample, by_noise, noise, scratch)
        return estimate


def _add(total: np.ndarray, coefficient: float, term: np.ndarray, scratch: np.ndarray) -> None:
    """total += coefficient * term, without allocating."""
    if coefficient == 1.0:
        total += term
    elif coefficient:
        np.multiply(term, coefficient, out=scratch)
        total += scratch


def _threshold(estimate: np.ndarray, ratio: float, largest: float) -> None:
    """Dynamic thresholding in place, each sample by itself.

    s is the ``ratio`` quantile of the sample's absolute values, kept within [1, ``largest``]; the sample is clipped to
    [-s, s] and divided by s (Imagen, section 2.3).
    """
    magnitude = np.abs(estimate).reshape(len(estimate), -1)
    limit = np.quantile(magnitude, ratio, axis=1).astype(estimate.dtype)
    limit = np.minimum(np.maximum(limit, 1.0), largest).reshape(-1, *[1] * (estimate.ndim - 1))
    np.clip(estimate, -limit, limit, out=estimate)
    estimate /= limit
