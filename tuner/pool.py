"""Which configuration to measure next: a pool of candidates, a prior, what was seen, and a residual model between them.

Pure NumPy, deterministic given a seed; knows neither Optuna nor devices.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

from einsight.tuner.surrogate import Surrogate

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

FEWEST, FIRST = 6, 16  # measurements before the model is asked: a tenth of the pool, within these bounds
OWN, OWN_WITH_PRIOR = 0.01, 0.1  # expected share of single configurations' deviations; a prior errs on single ones too
REFIT = 10  # measurements between two fits of the hyperparameters, at least; a tenth of what was seen, beyond 100
ITERATIONS = 8  # of the optimiser in a fit, which starts where the last one ended
ALIKE = 2  # of the first batch, at most this many that differ from a candidate in a single parameter
ONE_THREAD = ThreadpoolController()  # the matrices are small: a second BLAS thread costs more than it brings
TRUST = 0.5  # weight, in observations, of the assumption that the prior's slope is 1


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
        self.size = len(coordinates)
        self._prior = prior
        self._seen: dict[int, float | None] = {}
        self._pending: set[int] = set()
        self._surrogate = Surrogate(coordinates if features is None else features, OWN if prior is None else OWN_WITH_PRIOR)
        self._modelled: list[int] = []  # rows in the surrogate, in order; a pending one keeps its place without a value
        self._believed: set[int] = set()
        self._refit_at = 0
        self._first = self._first_batch(coordinates, np.random.default_rng(seed))
        self._rest = np.random.default_rng(seed + 1).permutation(self.size) if prior is None else np.argsort(prior)
        self.expected_gain = np.inf

    def _first_batch(self, coordinates: Floats, random: np.random.Generator) -> list[int]:
        count = min(self.size, FIRST, max(FEWEST, self.size // 10))
        if self._prior is None:
            return [int(r) for r in random.choice(self.size, count, replace=False)]
        chosen: list[int] = []
        for row in np.argsort(self._prior, kind="stable"):
            near = [c for c in chosen if np.count_nonzero(coordinates[c] != coordinates[row]) <= 1]
            if len(near) < ALIKE:
                chosen.append(int(row))
            if len(chosen) == count:
                break
        return chosen

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
        """Bring the surrogate up to date: a fit when enough is new, single additions otherwise."""
        rows = [*self._seen]
        stale = any(r in self._seen for r in self._believed) or not self._believed <= self._pending
        if len(rows) >= self._refit_at or stale or not self._modelled:
            fit_hyper = len(rows) >= self._refit_at
            self._fit(np.array(rows, dtype=np.int64), ITERATIONS if fit_hyper else 0)
            if fit_hyper:
                self._refit_at = len(rows) + max(REFIT, len(rows) // 10)
        known = set(self._modelled)
        for row in (r for r in rows if r not in known):
            self._surrogate.add(row, self._residual(row))
            self._modelled.append(row)
        for row in sorted(self._pending - self._believed):
            self._surrogate.add(row, None)
            self._believed.add(row)
            self._modelled.append(row)

    def _fit(self, rows: Rows, iterations: int) -> None:
        times = [y for y in self._seen.values() if y is not None]
        self._worst = max(times)
        y = np.array([self._log_time(int(r)) for r in rows])
        self._offset = self._baseline(rows, y)
        residual = y - self._offset[rows]
        self._centre, self._scale = float(residual.mean()), max(float(residual.std()), 1e-6)
        room = max(REFIT, len(rows) // 10) + len(self._pending) + 64
        self._surrogate.fit(rows, (residual - self._centre) / self._scale, room, iterations)
        self._modelled, self._believed = [int(r) for r in rows], set()

    def _log_time(self, row: int) -> float:
        seen = self._seen[row]
        return self._worst if seen is None else min(seen, self._worst)

    def _baseline(self, rows: Rows, y: Floats) -> Floats:
        """The prior times its slope on what was seen, drawn towards 1 while little was seen: the model adds the rest."""
        if self._prior is None:
            return np.zeros(self.size)
        p = self._prior[rows] - self._prior[rows].mean()
        spread = float(self._prior.var())
        slope = (float(p @ (y - y.mean())) + TRUST * spread) / (float(p @ p) + TRUST * spread + 1e-12)
        return float(np.clip(slope, 0.0, 1.2)) * self._prior

    def _residual(self, row: int) -> float:
        return (self._log_time(row) - float(self._offset[row]) - self._centre) / self._scale

    def _gain(self) -> Floats:
        """Expected improvement of log time (Jones, Schonlau and Welch 1998, eq. 15)."""
        mean = self._surrogate.mean * self._scale + self._centre + self._offset
        deviation = np.sqrt(self._surrogate.variance) * self._scale
        z = (self.best - mean) / deviation
        density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        gain: Floats = deviation * (z * ndtr(z) + density)
        return gain
