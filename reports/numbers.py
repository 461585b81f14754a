"""Numbers as people read them: SI prefixes, three digits, times with their interval."""

from __future__ import annotations

import math

SYMBOLS = ("P", "T", "G", "M", "k", "", "m", "µ", "n")
PREFIXES = tuple((10.0 ** (15 - 3 * step), symbol) for step, symbol in enumerate(SYMBOLS))


def si(value: float, unit: str, digits: int = 3) -> str:
    """`si(1.07e9, "B") == "1.07 GB"`; decimal prefixes, so GB is 10^9 bytes."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    factor, prefix = next((p for p in PREFIXES if abs(value) >= p[0] * (1 - 0.5 * 10**-digits)), PREFIXES[-1])
    return f"{value / factor:.{digits}g} {prefix}{unit}" if abs(value / factor) < 1000 else f"{value:.{digits}g} {unit}"


def interval(time_s: float, low_s: float, high_s: float) -> str:
    """`1.23 ms (1.1 to 1.4 ms)`, all three in the unit of the middle one."""
    middle, unit = si(time_s, "s").split(" ")
    factor = next(f for f, prefix in PREFIXES if f"{prefix}s" == unit)
    return f"{middle} {unit} ({low_s / factor:.3g} to {high_s / factor:.3g})"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def times(ratio: float) -> str:
    return f"{ratio:.3g}x"
