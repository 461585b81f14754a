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


def makespan(n: Array, work: Array, longest: Array, shortest: Array, slots: Array, persistent: Flags) -> Array:
    """Cycles until the last of `n` blocks ends on `slots` slots.

    `n` equal blocks take ceil(n / slots) rounds. Otherwise what exceeds the tail block spreads evenly over the slots
    and only the tail is quantised: longest first (persistent) ends on the shortest blocks, launch order (static) on a
    block of mean length. Never below work / slots nor below the longest block, and never slower with more slots.
    """
    count = np.maximum(n, 1.0)
    tail = np.where(persistent, shortest, work / count)
    spread = (work - tail * n) / slots + tail * np.ceil(n / slots)
    slowest: Array = np.maximum(spread, np.where(n > 0, longest, 0.0))
    return slowest


def simulate_blocks(durations: Iterable[float], slots: int) -> float:
    """The reference: blocks in the given order, each to the slot that is free first (greedy list scheduling)."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
