"""Regimes of a prediction: ranges of how much of the time each resource explains, and how far measured times lie off there.

A run that HBM explains by nine tenths is predicted better than one of which a launch, a lonely block and HBM explain a third
each; which resource is the largest says little of that, how large it is says more. So each fit keeps a list of regimes, cut
from the rows that fit, and a prediction's interval is that of the first regime that its shares lie in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from einsight.sim.schedule import Array

RESOURCES = (
    "tensor cores", "special functions", "fp32 pipe", "shared memory", "L2", "HBM", "longest block", "launch",
)  # fmt: skip
"""What can limit a kernel on a GPU, as the model names its bounds."""
COVERED = 0.89
"""Share of a regime's rows that its interval is set to hold: of rows that no fit saw, 85 to 95 % are then inside."""
FEWEST = 60
"""Rows that a regime must have: the six or seven farthest of them set its ends."""
MOST = 32
"""Regimes of one fit."""
GAIN = 10.0
"""What a cut must save of the sum over rows of log(width). Chance saves as much (of 150 rows) or more (of more rows), which
is why the rows seen are held a little too well, and `COVERED` is above 85 %: a higher hurdle ends the search before cuts
that only pay together."""
LEAST = 0.01
"""What each side is at least, in log time: half of the noise floor of the measured tables, about 2 %."""
CUTS = np.round([0.02, *np.arange(0.05, 1.0, 0.05), 0.98], 2)
"""Shares at which a regime can end."""


@dataclass(frozen=True, slots=True)
class Regime:
    """Where each named resource explains a share of the time in [low, high), [low, 1] at the upper end, measured times lie
    from time / (1 + below) to time * (1 + above)."""

    shares: Mapping[str, tuple[float, float]]
    below: float
    above: float


@dataclass(frozen=True, eq=False)
class Regimes:
    """The regimes of one fit; of those that hold a case the first counts."""

    listed: tuple[Regime, ...] = ()

    def sides(self, shares: Mapping[str, Array], otherwise: float) -> tuple[Array, Array]:
        """(below, above) of every case by its shares, `otherwise` where no regime holds it. A resource that a kernel does not
        use explains nothing."""
        low, high = self._ranges
        shape = np.broadcast_shapes(*(s.shape for s in shares.values()))
        given = np.stack([np.broadcast_to(shares.get(name, 0.0), shape) for name in RESOURCES], axis=-1)[..., None, :]
        first = ((given >= low) & (given < high)).all(axis=-1).argmax(axis=-1)
        below, above = (np.array([*(getattr(r, side) for r in self.listed), otherwise]) for side in ("below", "above"))
        return below[first], above[first]

    @cached_property
    def _ranges(self) -> tuple[Array, Array]:
        """Per regime and resource, the share where it begins and the one where it ends; last, what holds every case."""
        everywhere = dict[str, tuple[float, float]]()
        listed = [*(r.shares for r in self.listed), everywhere]
        ends = np.array([[shares.get(name, (0.0, 1.0)) for name in RESOURCES] for shares in listed])
        return ends[..., 0], np.where(ends[..., 1] >= 1.0, np.inf, ends[..., 1])

    def widened(self, by: float) -> Regimes:
        """With so much more on every side: what is not known elsewhere does not follow the regime."""
        return Regimes(tuple(Regime(r.shares, r.below + by, r.above + by) for r in self.listed))


NO_REGIMES = Regimes()


def shortest(miss: Array) -> tuple[float, float]:
    """(below, above) of the shortest interval that holds `COVERED` of the rows and the prediction.

    `miss`: log(measured / predicted)."""
    low, high = _ends(np.sort(miss))
    return float(np.expm1(-low)), float(np.expm1(high))


def regimes(miss: Array, shares: Mapping[str, Array]) -> Regimes:
    """The regimes of rows with these misses: the whole, cut again and again where that makes the intervals shortest.

    miss    log(measured / predicted) of every row
    shares  of every resource, as long as `miss`
    Greedy: the cut that saves most of the sum over rows of log(width) comes first, as in regression trees.
    """
    order = np.argsort(miss, kind="stable")
    whole = _Leaf(miss[order], {name: s[order] for name, s in shares.items()}, {})
    leaves = [whole]
    while len(leaves) < MOST:
        leaf = max(leaves, key=lambda leaf: leaf.cut[0])
        gain, name, at = leaf.cut
        if gain < GAIN:
            break
        place = leaves.index(leaf)
        leaves[place : place + 1] = leaf.parted(name, at)
    return Regimes(tuple(Regime(leaf.within, *shortest(leaf.miss)) for leaf in leaves))


@dataclass(frozen=True, eq=False)
class _Leaf:
    """Rows of a regime to be, in the order of their misses."""

    miss: Array
    shares: Mapping[str, Array]
    within: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def cut(self) -> tuple[float, str, float]:
        """(gain, resource, share) of the best cut; no gain where none leaves enough rows on both sides."""
        best, whole = (0.0, "", 0.0), _cost(self.miss)
        for name, share in self.shares.items():
            for at in CUTS.tolist():
                under = share < at
                rows = int(under.sum())
                if FEWEST <= rows <= len(share) - FEWEST:
                    best = max(best, (whole - _cost(self.miss[under]) - _cost(self.miss[~under]), name, at))
        return best

    def parted(self, name: str, at: float) -> tuple[_Leaf, _Leaf]:
        """The rows under a share of a resource, and the others."""
        under, (low, high) = self.shares[name] < at, self.within.get(name, (0.0, 1.0))
        return self._taken(under, {name: (low, at)}), self._taken(~under, {name: (at, high)})

    def _taken(self, rows: NDArray[np.bool_], within: Mapping[str, tuple[float, float]]) -> _Leaf:
        return _Leaf(self.miss[rows], {n: s[rows] for n, s in self.shares.items()}, {**self.within, **within})


def _cost(ordered: Array) -> float:
    """Rows times log(width of their interval)."""
    low, high = _ends(ordered)
    return len(ordered) * float(np.log(high - low))


def _ends(ordered: Array) -> tuple[float, float]:
    """Ends, in log time, of the shortest interval that holds `COVERED` of the rows, and the prediction with `LEAST` around."""
    held = min(int(np.ceil(COVERED * (len(ordered) + 1))), len(ordered))  # one more: the row that is yet to come
    first = int(np.argmin(ordered[held - 1 :] - ordered[: len(ordered) - held + 1]))
    return min(float(ordered[first]), -LEAST), max(float(ordered[first + held - 1]), LEAST)
