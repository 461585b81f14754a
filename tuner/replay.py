"""The whole search against a recorded space: deterministic, without a device, judged on what it found and when."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from einsight.tuner.recorded import Recorded
from einsight.tuner.search import Search, open_study, sampler

Floats = NDArray[np.float64]
PriorFor = Callable[[int], Floats]  # seed -> log of the predicted time of every row

TOLERANCES = (1, 2, 5)  # percent above the optimum
REGRET_AT = (1, 8, 16, 32, 64)  # evaluations


@dataclass(frozen=True)
class Replay:
    """What one method did on one recorded space.

    evaluated   per seed, the rows in the order in which they were measured; failures count as evaluations
    fraction    [seeds, trials]: optimum over the best time found so far; 0 before the first success
    """

    recorded: Recorded
    method: str
    seeds: tuple[int, ...]
    evaluated: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def fraction(self) -> Floats:
        times = self.recorded.times_s
        found = np.where(np.isfinite(times), times, np.inf)[np.array(self.evaluated)]
        best: Floats = np.nanmin(times) / np.minimum.accumulate(found, axis=1)
        return best

    @property
    def curve(self) -> Floats:
        """[trials] mean over seeds, in percent of the optimum."""
        mean: Floats = 100 * self.fraction.mean(0)
        return mean

    @property
    def percent_of_optimum(self) -> float:
        return float(self.curve[-1])

    def evaluations_to(self, percent: float) -> tuple[float | None, float]:
        """(median over seeds of the evaluations to within `percent` of the optimum, share of seeds that got there).

        The median is None where fewer than half of the seeds got there.
        """
        reached = self.fraction >= 1 / (1 + percent / 100)
        share = float(reached[:, -1].mean())
        when = np.where(reached.any(1), reached.argmax(1) + 1.0, np.inf)
        median = float(np.median(when))
        return (median if np.isfinite(median) else None), share

    def regret_at(self, evaluations: int) -> float:
        """Mean over seeds of best found over optimum, less 1; infinite while some seed has no success."""
        with np.errstate(divide="ignore"):
            return float((1 / self.fraction[:, min(evaluations, self.fraction.shape[1]) - 1] - 1).mean())

    def as_json(self) -> dict[str, Any]:
        rows = [list(rows) for rows in self.evaluated]
        percent = 100 * self.fraction[:, -1]
        trials = self.fraction.shape[1]
        known = math.inf if trials == len(self.recorded.space) else trials  # nothing is left that could still be found
        return {
            "space": self.recorded.name, "kernel": self.recorded.kernel, "device": self.recorded.device,
            "configurations": len(self.recorded.space), "method": self.method, "trials": trials,
            "percent_of_optimum": self.percent_of_optimum,
            "curve": self.curve.tolist(),
            "evaluations_to": {
                str(p): dict(zip(("median", "share"), self.evaluations_to(p), strict=True)) for p in TOLERANCES
            },
            "regret": {str(k): self.regret_at(k) if k <= known else None for k in REGRET_AT},
            "evaluated": rows,
            "seeds": [
                {"seed": seed, "percent_of_optimum": float(p), "evaluated": evaluated}
                for seed, p, evaluated in zip(self.seeds, percent, rows, strict=True)
            ],
        }  # fmt: skip


def run_one(recorded: Recorded, method: str, trials: int, seed: int, prior: PriorFor | None) -> tuple[int, ...]:
    """The rows that one seeded search measures, in order: `trials` of them, or all there are."""
    believed = prior(seed) if prior is not None else None
    study = open_study(recorded.name, None, sampler(method, recorded.space, believed, seed))
    search = Search(study, recorded.space)
    rows: list[int] = []
    while len(rows) < trials and (asked := search.ask()) is not None:
        search.tell(asked, recorded.measure(asked.row))
        rows.append(asked.row)
    return tuple(rows)


def replay(
    recorded: Recorded, method: str, trials: int, seeds: Sequence[int], prior: PriorFor | None = None,
    each: Callable[[int], None] = lambda seed: None,
) -> Replay:  # fmt: skip
    """One search per seed. `each` is called after every seed."""
    return Replay(recorded, method, tuple(seeds), tuple(_runs(recorded, method, trials, seeds, prior, each)))


def _runs(
    recorded: Recorded, method: str, trials: int, seeds: Sequence[int], prior: PriorFor | None,
    each: Callable[[int], None],
) -> Iterator[tuple[int, ...]]:  # fmt: skip
    for seed in seeds:
        yield run_one(recorded, method, trials, seed, prior)
        each(seed)


def random_curve(recorded: Recorded, trials: int) -> Floats:
    """[trials] expected percent of the optimum of random search without repetition, exactly.

    With values sorted from the best, P(the best of k drawn is the i-th of N) = C(N - i, k - 1) / C(N, k).
    """
    times = recorded.times_s
    value = np.sort(np.where(np.isfinite(times), np.nanmin(times) / times, 0.0))[::-1]
    n = len(value)
    k = np.arange(1, min(trials, n) + 1)[:, None]
    left = n - np.arange(1, n + 1)[None, :]
    possible = left >= k - 1
    room = np.where(possible, left - k + 1, 0)
    logs = gammaln(left + 1) - gammaln(room + 1) - gammaln(k) - (gammaln(n + 1) - gammaln(n - k + 1) - gammaln(k + 1))
    curve: Floats = 100 * (np.where(possible, np.exp(logs), 0.0) @ value)
    return curve


def paired_difference(a: Floats, b: Floats) -> tuple[float, float]:
    """(mean of a - b over seeds, half width of its 95 % interval by the normal approximation)."""
    difference = a - b
    return float(difference.mean()), float(1.96 * difference.std(ddof=1) / np.sqrt(len(difference)))
