"""How long a grid of independent blocks takes on a number of slots: closed forms, and the event simulation that judges them.

All durations are in cycles. Blocks differ (causal masks), so a grid is described by the number of blocks `n`, their
total `work`, the `longest` and the `shortest`; arrays over cases throughout.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
SCHEDULES = ("static", "persistent")
ONE: Array = np.ones(())
ZERO: Array = np.zeros(())
"""Starting points of products and sums over cases; never written to."""


RAGGED = 0.6
"""How far the last of unequal blocks reaches past an even finish, in lengths of the longest: list scheduling of causal
grids in launch order gives 0.55 to 0.65 from 1.3 rounds on (2/3 less the phase of the others, for lengths spread evenly)."""


def makespan(n: Array, work: Array, longest: Array, shortest: Array, slots: Array, persistent: Flags) -> Array:
    """Cycles until the last of `n` blocks ends on `slots` slots.

    `n` equal blocks take ceil(n / slots) rounds. Of unequal ones, only the common part of their lengths is quantised:
    longest first (persistent) ends on the shortest blocks; in launch order (static) the common part is that of a ramp
    with the same mean, and a long block that starts late ends `RAGGED` of the difference after the rest. Never below
    work / slots nor below the longest block, and never slower with more slots.
    """
    count = np.maximum(n, 1.0)
    tail = np.where(persistent, shortest, np.maximum(shortest, 2.0 * work / count - longest))
    spread = (work - tail * n) / slots + tail * np.ceil(n / slots)
    spread = spread + np.where(persistent | (n <= slots), 0.0, RAGGED * (longest - tail))
    slowest: Array = np.where((n <= slots) & ~persistent, 0.0, spread)
    return np.maximum(slowest, np.where(n > 0, longest, 0.0))


def simulate_blocks(durations: Iterable[float], slots: int) -> float:
    """The reference: blocks in the given order, each to the slot that is free first (greedy list scheduling)."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
