"""The 90 % interval of a predicted time: how far measured times lie below and above it, by the resource that limits it.

A run that HBM limits is predicted better than one that its launch or its longest block limits, and misses are rarely as
large on one side as on the other. So each fit keeps, per limiting resource, how far held-back rows were off on each side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from einsight.sim.estimate import Estimate
from einsight.sim.family import Family
from einsight.sim.schedule import Array

COVERED = 0.88
"""Share of the rows that an interval is set to hold: of rows that no fit saw, 85 to 95 % are then inside."""
FEWEST = 60
"""Rows that a resource must limit before it gets an interval of its own."""


def ends(found: Estimate, family: Family, least: float = 0.0) -> tuple[Array, Array]:
    """(lower, upper) end of each case's interval in seconds; the lower end is never below a bound.

    `least`: what each side is at least, as a share of the time.
    """
    values = np.stack(list(found.bounds_s.values()))
    limiting, largest = values.argmax(axis=0), values.max(axis=0)
    sides = np.array([family.misses.get(name, (family.constant("interval"),) * 2) for name in found.bounds_s])
    below, above = np.maximum(sides[limiting], least).T
    return np.maximum(largest, found.time_s / (1.0 + below)), found.time_s * (1.0 + above)


def limiting(found: Estimate) -> NDArray[np.str_]:
    """The resource of each case whose bound is largest."""
    values = np.stack(list(found.bounds_s.values()))
    names: NDArray[np.str_] = np.array(list(found.bounds_s))[values.argmax(axis=0)]
    return names


def shortest(miss: Array) -> tuple[float, float]:
    """(below, above) of the shortest interval that holds `COVERED` of the rows; `miss` is log(measured / predicted)."""
    ordered = np.sort(miss)
    held = min(int(np.ceil(COVERED * (len(ordered) + 1))), len(ordered))  # one more: the row that is yet to come
    first = int(np.argmin(ordered[held - 1 :] - ordered[: len(ordered) - held + 1]))
    low, high = ordered[first], ordered[first + held - 1]
    return float(np.expm1(max(-low, 0.0))), float(np.expm1(max(high, 0.0)))


def by_resource(miss: Array, resource: NDArray[np.str_]) -> tuple[float, Mapping[str, tuple[float, float]]]:
    """(half width for whatever else limits, (below, above) of every resource that limits `FEWEST` rows or more)."""
    enough = [str(name) for name in np.unique(resource) if np.sum(resource == name) >= FEWEST]
    return max(shortest(miss)), {name: shortest(miss[resource == name]) for name in enough}
