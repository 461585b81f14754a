"""Which configuration to measure next: a pool of candidates, a prior, what was seen, and a residual model between them.

Pure NumPy, deterministic given a seed; knows neither Optuna nor devices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

from einsight.tuner.surrogate import Surrogate
from einsight.tuner.trend import believed

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

FEWEST, FIRST = 6, 16  # measurements before the model is asked: a tenth of the pool, within these bounds
OWN, OWN_WITH_PRIOR = 0.01, 0.1  # expected share of single configurations' deviations; a prior errs on single ones too
REFIT = 10  # measurements between two fits of the hyperparameters, at least; a tenth of what was seen, beyond 100
ITERATIONS = 8  # of the optimiser in a fit, which starts where the last one ended
ALIKE = 2  # of the first batch, at most this many that differ from a candidate in a single parameter
TIED = 0.01  # predictions this close (of log time) say nothing about which is faster
ONE_THREAD = ThreadpoolController()  # the matrices are small: a second BLAS thread costs more than it brings
_ENDED = object()
TRUST = 0.5  # weight, in observations, of the assumption that the prior's slope is 1


@dataclass(frozen=True, slots=True)
class Standard:
    """What the surrogate sees of a log time: (log time - offset [N] - centre) / scale; of a failure, the worst time."""

    worst: float
    offset: Floats
    centre: float
    scale: float

    def of(self, row: int, log_time: float | None) -> float:
        told = self.worst if log_time is None else min(log_time, self.worst)
        return (told - float(self.offset[row]) - self.centre) / self.scale


class Pool:
    """Candidates with their coordinates, the log of their predicted time where there is one, and the observations.

    An observation is log time in any unit, or None for a failure. Failures count as the worst time seen: they steer the
    model away and never look like a win.
    """

    def __init__(
        self, coordinates: Floats, prior: Floats | None = None, seed: int = 0, features: Floats | None = None
    ) -> None:
        """coordinates [N, P]: one column per parameter; features [N, F]: what the model sees, default the coordinates;
        prior [N]: log of a predicted time in any unit."""
        if prior is not None and (prior.shape != (len(coordinates),) or not np.isfinite(prior).all()):
            raise ValueError(f"prior: expected {len(coordinates)} finite logarithms, got shape {prior.shape}")
        features = coordinates if features is None else features
        self.size = len(coordinates)
        with ONE_THREAD.limit(limits=1):
            self._prior = None if prior is None else believed(features, prior)
        self._seen: dict[int, float | None] = {}
        self._pending: set[int] = set()
        self._surrogate = Surrogate(features, OWN if prior is None else OWN_WITH_PRIOR)
        self._standard = Standard(0.0, np.zeros(self.size), 0.0, 1.0)
        self._fit: Iterator[None] | None = None  # under way
        self._refit_at = 0
        self._first = self._first_batch(coordinates, np.random.default_rng(seed))
        self._rest = np.random.default_rng(seed + 1).permutation(self.size) if self._prior is None else np.argsort(self._prior)
        self.expected_gain = np.inf

    def _first_batch(self, coordinates: Floats, random: np.random.Generator) -> list[int]:
        count = first_count(self.size)
        if self._prior is None:
            return [int(r) for r in random.choice(self.size, count, replace=False)]
        return spread_order(coordinates, self._prior, count)

    @property
    def first(self) -> tuple[int, ...]:
        """The rows of the first batch, in their order."""
        return tuple(self._first)

    @property
    def seen(self) -> dict[int, float | None]:
        return dict(self._seen)

    @property
    def best(self) -> float:
        """Least log time seen; inf before the first success."""
        return min((y for y in self._seen.values() if y is not None), default=np.inf)

    def observe(self, row: int, log_time: float | None) -> None:
        self._seen[row] = log_time
        self._pending.discard(row)

    def propose(self, pending: Collection[int] = ()) -> int | None:
        """The next row to measure, None when all are seen or pending. `pending`: being measured by someone else.

        Sets `expected_gain`: the expected reduction of log time by that row below the best seen (inf while the first
        batch lasts).
        """
        self._pending = set(pending) - set(self._seen)
        taken = self._pending | set(self._seen)
        if len(taken) >= self.size:
            return None
        for row in self._first:
            if row not in taken:
                self.expected_gain = np.inf
                return row
        if sum(y is not None for y in self._seen.values()) < 2:
            return next(int(r) for r in self._rest if int(r) not in taken)
        with ONE_THREAD.limit(limits=1):
            self._learn()
            gain = self._gain()
        gain[list(taken)] = -1.0
        row = int(np.argmax(gain))
        self.expected_gain = float(gain[row])
        return row

    def _learn(self) -> None:
        """Bring the surrogate up to date: a piece of a fit when enough is new, and what came since in single additions."""
        if self._fit is None and len(self._seen) >= self._refit_at:
            self._refit_at = len(self._seen) + max(REFIT, len(self._seen) // 10)
            self._fit = self._fitting(ITERATIONS)
        if not self._surrogate.rows or self._surrogate.full:
            _to_the_end(self._fit or self._fitting(0))
        if self._fit is not None and next(self._fit, _ENDED) is _ENDED:
            self._fit = None
        if not set(self._surrogate.pending) <= self._pending | set(self._seen):  # given back: its doubt comes back too
            _to_the_end(self._fitting(0))
        for row in self._surrogate.pending:
            if row in self._seen:
                self._surrogate.resolve(row, self._standard.of(row, self._seen[row]))
        known = set(self._surrogate.rows)
        for row in [*self._seen, *sorted(self._pending)]:
            if self._surrogate.full:
                _to_the_end(self._fitting(0))
                known = set(self._surrogate.rows)
            if row not in known:
                self._surrogate.add(row, self._standard.of(row, self._seen[row]) if row in self._seen else None)

    def _fitting(self, iterations: int) -> Iterator[None]:
        """A fit to what is seen when it begins, in pieces; the model of before serves until it ends."""
        rows = np.array([*self._seen], dtype=np.int64)
        standard = self._standardised(rows)
        y = np.array([standard.of(int(r), self._seen[int(r)]) for r in rows])
        room = max(REFIT, len(rows) // 10) + len(self._pending) + 64
        yield from self._surrogate.fit_in_pieces(rows, y, room, iterations)
        self._standard = standard

    def _standardised(self, rows: Rows) -> Standard:
        worst = max(y for y in self._seen.values() if y is not None)
        raw = Standard(worst, np.zeros(self.size), 0.0, 1.0)
        y = np.array([raw.of(int(r), self._seen[int(r)]) for r in rows])
        offset = self._baseline(rows, y)
        residual = y - offset[rows]
        return Standard(worst, offset, float(residual.mean()), max(float(residual.std()), 1e-6))

    def _baseline(self, rows: Rows, y: Floats) -> Floats:
        """The prior times its slope on what was seen, drawn towards 1 while little was seen: the model adds the rest."""
        if self._prior is None:
            return np.zeros(self.size)
        p = self._prior[rows] - self._prior[rows].mean()
        spread = float(self._prior.var())
        slope = (float(p @ (y - y.mean())) + TRUST * spread) / (float(p @ p) + TRUST * spread + 1e-12)
        return float(np.clip(slope, 0.0, 1.2)) * self._prior

    def _gain(self) -> Floats:
        """Expected improvement of log time (Jones, Schonlau and Welch 1998, eq. 15)."""
        told = self._standard
        mean = self._surrogate.mean * told.scale + told.centre + told.offset
        deviation = np.sqrt(self._surrogate.variance) * told.scale
        z = (self.best - mean) / deviation
        density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        gain: Floats = deviation * (z * ndtr(z) + density)
        return gain


def first_count(size: int) -> int:
    """Measurements before the model is asked."""
    return min(size, FIRST, max(FEWEST, size // 10))


def spread_order(coordinates: Floats, prior: Floats, count: int, most_alike: int = ALIKE) -> list[int]:
    """`count` rows in the order of the prior (log time); of those it cannot tell apart, the one farthest from the chosen.

    A row is passed over where `most_alike` chosen ones differ from it in a single parameter.
    """
    order = np.argsort(prior, kind="stable")
    chosen: list[int] = []
    gap = np.full(len(prior), np.inf)  # distance to the nearest chosen row
    alike = np.zeros(len(prior), dtype=np.int64)
    left = order
    while len(left) and len(chosen) < count:
        tied = left[prior[left] <= prior[left[0]] + TIED]
        row = int(tied[np.argmax(gap[tied])])
        chosen.append(row)
        gap = np.minimum(gap, np.linalg.norm(coordinates - coordinates[row], axis=1))
        alike += np.count_nonzero(coordinates != coordinates[row], axis=1) <= 1
        left = left[(alike[left] < most_alike) & (left != row)]
    return chosen


def _to_the_end(pieces: Iterator[None]) -> None:
    for _ in pieces:
        pass
