"""The 90 % interval of a predicted time: how far measured times lie below and above it, by what its time is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from einsight.sim.estimate import Estimate
from einsight.sim.family import Family
from einsight.sim.schedule import Array


def ends(found: Estimate, family: Family, least: float = 0.0) -> tuple[Array, Array]:
    """(lower, upper) end of each case's interval in seconds; the lower end is never below a bound.

    `least`: what each side is at least, as a share of the time.
    """
    below, above = family.regimes.sides(shares(found), family.constant("interval"))
    largest = np.max(list(found.bounds_s.values()), axis=0)
    return np.maximum(largest, found.time_s / (1.0 + np.maximum(below, least))), found.time_s * (1.0 + np.maximum(above, least))


def shares(found: Estimate) -> Mapping[str, Array]:
    """How much of each case's time every resource alone explains: its bound over the time, from 0 to 1."""
    return {name: bound / found.time_s for name, bound in found.bounds_s.items()}


def limiting(found: Estimate) -> NDArray[np.str_]:
    """The resource of each case whose bound is largest."""
    values = np.stack(list(found.bounds_s.values()))
    names: NDArray[np.str_] = np.array(list(found.bounds_s))[values.argmax(axis=0)]
    return names
