"""A few configurations for many shapes: which to keep, which shape uses which, what is lost against the best of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEW = 20_000  # subsets that are simply all tried; beyond, the greedy choice with exchanges


class PortfolioError(ValueError):
    """No set of configurations covers the shapes; says which shape."""


@dataclass(frozen=True, slots=True)
class Portfolio:
    """kept: columns of the table, in ascending order; chosen: per shape the column it uses; loss: per shape its time over
    the best of all columns, less 1."""

    kept: tuple[int, ...]
    chosen: tuple[int, ...]
    loss: tuple[float, ...]

    @property
    def mean_loss(self) -> float:
        return float(np.mean(self.loss))

    @property
    def worst_loss(self) -> float:
        return max(self.loss)


def portfolio(times: Floats, size: int, weights: Sequence[float] | None = None, names: Sequence[str] = ()) -> Portfolio:
    """At most `size` columns of times [shapes, configurations] (NaN where one is not valid or not measured).

    Chosen to make the weighted mean of the slowdown over shapes least. Raises PortfolioError when a shape has no time.
    """
    for shape, row in enumerate(times):
        if not np.isfinite(row).any():
            raise PortfolioError(f"shape {names[shape] if names else shape}: no configuration has a time")
    best = np.nanmin(times, axis=1)
    slow = np.where(np.isfinite(times), times / best[:, None], np.inf)
    weight = np.ones(len(times)) if weights is None else np.asarray(weights, dtype=np.float64)
    useful = [int(c) for c in np.flatnonzero(np.isfinite(slow).any(0))]
    kept = _least(slow, weight, useful, min(size, len(useful)))
    if not np.isfinite(_cost(slow, weight, kept)):
        lost = int(np.flatnonzero(~np.isfinite(slow[:, list(kept)]).any(1))[0])
        raise PortfolioError(f"shape {names[lost] if names else lost}: none of {size} configurations is valid for it")
    chosen = [kept[int(np.argmin(slow[s, list(kept)]))] for s in range(len(times))]
    used = tuple(sorted(set(chosen)))
    return Portfolio(used, tuple(chosen), tuple(float(slow[s, c]) - 1 for s, c in enumerate(chosen)))


def _cost(slow: Floats, weight: Floats, kept: Sequence[int]) -> float:
    return float(weight @ slow[:, list(kept)].min(1)) if kept else np.inf


def _least(slow: Floats, weight: Floats, useful: list[int], size: int) -> tuple[int, ...]:
    if _choices(len(useful), size) <= FEW:
        return min(combinations(useful, size), key=lambda kept: _cost(slow, weight, kept))
    kept: list[int] = []
    for _ in range(size):
        kept.append(min((c for c in useful if c not in kept), key=lambda c: _surrogate(slow, weight, [*kept, c])))
    improved = True
    while improved:
        improved = False
        for place in range(size):
            for c in useful:
                other = [*kept[:place], c, *kept[place + 1 :]]
                if c not in kept and _cost(slow, weight, other) < _cost(slow, weight, kept) * (1 - 1e-12):
                    kept, improved = other, True
    return tuple(sorted(kept))


def _surrogate(slow: Floats, weight: Floats, kept: Sequence[int]) -> float:
    """The cost with a shape that nothing covers yet counted as a slowdown of 100, so that covering comes first."""
    return float(weight @ np.minimum(slow[:, list(kept)].min(1), 100.0))


def _choices(n: int, k: int) -> float:
    return float(np.prod([(n - i) / (i + 1) for i in range(k)]))
