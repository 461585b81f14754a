"""How long a grid of independent blocks takes on a number of slots: closed forms, and the event simulation that judges them.

All durations are in cycles. Blocks differ (causal masks), so a grid is described by the number of blocks `n`, their
total `work`, the `longest` and the `shortest`; arrays over cases throughout. Blocks that share an SM slow each other down.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
SCHEDULES = ("static", "persistent")
ONE: Array = np.ones(())
ZERO: Array = np.zeros(())
STATIC: Flags = np.zeros((), dtype=np.bool_)
"""Starting points of products and sums over cases; never written to."""


RAGGED = 0.6
"""How far the last of unequal blocks reaches past an even finish, in lengths of the longest: list scheduling of causal
grids in launch order gives 0.55 to 0.65 from 1.3 rounds on (2/3 less the phase of the others, for lengths spread evenly)."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Cycles of a grid's blocks: `work` of all together, of the `longest` and of the `shortest`."""

    work: Array
    longest: Array
    shortest: Array


def makespan(
    n: Array, blocks: Callable[[Array], Blocks], sms: float, most: Array, persistent: Flags, ramp: Array
) -> Array:
    """Cycles until the last of `n` blocks ends on `sms` SMs that hold up to `most` of them at a time.

    `blocks(k)`: how long they take while k share an SM. An SM is one server: k blocks together end no later than k one
    after the other, and once a neighbour has ended the rest run faster. `n` equal blocks take ceil(n / sms) places on an
    SM, `most` at a time. Of unequal ones, only the common part of their lengths is quantised: longest first (persistent)
    ends on the shortest blocks; in launch order (static) the common part is that of a ramp with the same mean, and a long
    block that starts late ends `RAGGED` of the difference after the rest, half of its way beside one neighbour and half
    alone (`simulate_shared`). None starts late where all find a place at once (`_resident`); `ramp`: blocks from one
    shortest to the next. Never below work / SMs nor below the longest block alone, and never slower with more SMs.
    """
    places = np.ceil(n / sms)
    whole = np.floor(places / most)
    rest = places - whole * most
    together, single = blocks(most), blocks(ONE)
    common = whole * _common(n, together, persistent)
    common = common + np.where(rest > 0, _common(n, blocks(np.maximum(rest, 1.0)), persistent), 0.0)
    shared_by = np.clip(n / sms, 1.0, most)
    average = blocks(shared_by)
    spread = common + (average.work - n * _common(n, average, persistent)) / (sms * shared_by)
    pair = blocks(np.minimum(most, 2.0))
    late = RAGGED * 0.5 * sum((end.longest - _common(n, end, persistent) for end in (single, pair)), ZERO)
    at_once = ~persistent & (places <= most)
    spread = spread + np.where(persistent | at_once, 0.0, late)
    least = np.where(n > 0, single.longest, 0.0)
    if np.any(at_once & (places > 1) & (single.longest > single.shortest)):
        deepest = int(np.max(np.where(at_once, places, 1.0)))
        least = np.maximum(least, np.where(at_once & (places > 1), _resident(n, blocks, sms, ramp, deepest), 0.0))
    alone: Array = np.where((n <= sms) & ~persistent, 0.0, spread)
    return np.maximum(alone, least)


def _resident(n: Array, blocks: Callable[[Array], Blocks], sms: float, ramp: Array, deepest: int) -> Array:
    """Cycles until the longest of blocks that all find a place at once ends: block i is on SM i mod `sms`, and lengths rise
    from the shortest to the longest within `ramp` blocks, head after head.

    The longest block runs beside its j-th neighbour for as long as that one lasts. A last ramp that begins after the
    neighbour tells how long exactly; where several ramps pass, SMs pair any two places of theirs, and the worst pair is
    3 / (j + 3) of the rise long (3/4, the mean of the longer of two neighbours over all offsets; the next ones shorter).
    """
    steps = [blocks(np.minimum(float(k), np.maximum(np.ceil(n / sms), 1.0))) for k in range(1, deepest + 1)]
    rises = [b.longest - _common(n, b, STATIC) for b in steps]
    end = _common(n, steps[-1], STATIC) + rises[0]
    for j, (fewer, more) in enumerate(pairwise(rises), start=1):
        end = end + np.clip((n - j * sms) / ramp, 0.0, 3.0 / (j + 3.0)) * (more - fewer)
    return end


def _common(n: Array, blocks: Blocks, persistent: Flags) -> Array:
    """The part of the blocks' lengths that all of them have."""
    ramp = np.maximum(blocks.shortest, 2.0 * blocks.work / np.maximum(n, 1.0) - blocks.longest)
    found: Array = np.where(persistent, blocks.shortest, ramp)
    return found


def simulate_shared(steps: Sequence[float], sms: int, most: int, alone: float, busy: float) -> float:
    """The reference for blocks that share an SM: in the given order, each where a place is free first. A block of `steps[i]`
    steps shares with k - 1 others at max(alone, k busy) cycles a step."""
    places: list[list[float]] = [[] for _ in range(sms)]
    queue, seen, end = list(reversed(steps)), [0.0] * sms, 0.0
    for _ in range(most):
        for place in places:
            place.extend([queue.pop()] if queue else [])

    def pace(place: list[float]) -> float:
        return max(alone, len(place) * busy)

    events = [(min(place) * pace(place), s) for s, place in enumerate(places) if place]
    heapq.heapify(events)
    while events:
        end, s = heapq.heappop(events)
        left = [step - (end - seen[s]) / pace(places[s]) for step in places[s]]
        places[s] = [step for step in left if step > 1e-9]
        places[s] += [queue.pop() for step in left if step <= 1e-9 and queue]
        seen[s] = end
        if places[s]:
            heapq.heappush(events, (end + min(places[s]) * pace(places[s]), s))
    return end


def simulate_blocks(durations: Iterable[float], slots: int) -> float:
    """The reference: blocks in the given order, each to the slot that is free first (greedy list scheduling)."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
