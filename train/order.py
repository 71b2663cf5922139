"""Which samples a step shows, and the pieces a large batch is put together from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# Rows that share a random stream. A process of many puts together the pieces its part of the batch lies in and no others, so what it
# waits for does not grow with the number of processes.
PIECE = 256


class Order:
    """Indices into a data set, step by step: successive pieces of a new order each time all samples have been gone through.

    Args:
        size: of the data set.
        seed, stream: of the draws; epoch e takes the stream ``stream + e``.
        odds: (size,) of each sample; an order is then as many draws with replacement.
    """

    def __init__(self, size: int, seed: int, stream: int, odds: np.ndarray | None = None) -> None:
        self.size, self.seed, self.stream = size, seed, stream
        self.odds = None if odds is None else odds / odds.sum()
        self._last = -1, np.zeros(0, np.int64)  # an epoch and its order, together: a thread may be ahead of another

    def rows(self, step: int, count: int) -> np.ndarray:
        """The (count,) indices of a step whose batches have ``count``; the last batch of an epoch is filled up from its beginning."""
        epoch, position = divmod(step, math.ceil(self.size / count))
        known, order = self._last
        if epoch != known:
            draws = np.random.Generator(np.random.Philox(key=[self.seed, self.stream + epoch]))
            order = draws.permutation(self.size) if self.odds is None else draws.choice(self.size, self.size, p=self.odds)
            self._last = epoch, order
        return np.take(order, np.arange(position * count, (position + 1) * count), mode="wrap")


def in_pieces(
    make: Callable[[slice, np.random.Generator], dict[str, np.ndarray]], batch_size: int, seed: int, step: int, start: int, end: int | None
) -> dict[str, np.ndarray]:
    """Rows ``start`` to ``end`` of the batch of a step.

    Args:
        make: the arrays of some rows of the batch, from the random numbers that belong to them.
        end: None is the last.
    """
    end = batch_size if end is None else end
    first = start // PIECE * PIECE
    pieces = []
    for begin in range(first, end, PIECE):
        random = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, begin // PIECE]))
        pieces.append(make(slice(begin, min(begin + PIECE, batch_size)), random))
    # One piece needs no copy, and most batches are one.
    whole = pieces[0] if len(pieces) == 1 else {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
    return {key: value[start - first : end - first] for key, value in whole.items()}
