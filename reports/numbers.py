"""Numbers as people read them, beside the SI texts of `sim.units`."""

from __future__ import annotations

from einsight.sim.units import format_time


def interval(time_s: float, low_s: float, high_s: float) -> str:
    """`1.23 ms (0.9 ms to 1.4 ms)`."""
    return f"{format_time(time_s)} ({format_time(low_s)} to {format_time(high_s)})"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def times(ratio: float) -> str:
    return f"{ratio:.3g}x"
