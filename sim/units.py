"""Text with a unit to a number, and nothing else: `parse("4.8 TB/s", "byte/s") == 4.8e12`.

One table of units and one of prefixes. Decimal and binary prefixes never mix: GB is 10^9 bytes, GiB is 2^30; `KB`,
which people use for either, is refused. Values are computed in decimal arithmetic and rounded once.

Own code rather than a units library: pint, the well-kept one, needs 0.3 s to import and build its registry, as much as
the whole command may take to start, and reads `Gb`, `K`, `b` (gigabit, kelvin, bit) where a profile should be refused.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import NamedTuple

DECIMAL_PREFIXES = {"f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
"""Power of ten (BIPM SI brochure, 9th edition, table 7)."""

BINARY_PREFIXES = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
"""Power of two (IEC 80000-13); for bytes only."""

Dimension = tuple[tuple[str, int], ...]  # sorted (base, exponent), exponents non-zero


class Unit(NamedTuple):
    factor: Decimal  # number of base units
    dimension: Dimension


def _base(name: str) -> Unit:
    return Unit(Decimal(1), ((name, 1),))


UNITS: dict[str, Unit] = {
    "B": _base("byte"), "byte": _base("byte"),
    "FLOP": _base("flop"), "flop": _base("flop"),
    "op": _base("op"),
    "cycle": _base("cycle"),
    "s": _base("s"),
    "Hz": Unit(Decimal(1), (("s", -1),)),
    "J": _base("J"),
    "W": Unit(Decimal(1), (("J", 1), ("s", -1))),
    "m^2": _base("m^2"), "mm^2": Unit(Decimal("1e-6"), (("m^2", 1),)), "um^2": Unit(Decimal("1e-12"), (("m^2", 1),)),
}  # fmt: skip
"""Every unit that exists here. Watt is joule per second; hertz is one per second; a count has no unit."""

PREFIXABLE = frozenset({"B", "FLOP", "op", "s", "Hz", "J", "W"})
COUNT = "count"
"""Name of the dimensionless unit: `parse("132", "count")`."""

_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)(?:\s*([^\d\s.,_].*))?")
_SEPARATED = re.compile(r"[+-]?\d+[,_']\d")
_HINTS = {
    "K": "kB is 1000 bytes and KiB is 1024",
    "b": "a capital B is bytes; bits are not a unit here",
    "g": "upper and lower case matter: GB, MHz, kB, FLOP, GiB",
    "i": "binary prefixes are Ki Mi Gi Ti and belong to bytes: GiB is 2^30 bytes",
    "clk": "a clock cycle is written `cycle`",
    "ps": "a rate is written with a slash: GB/s",
}


class UnitError(ValueError):
    """A quantity that cannot be read: `found`, `expected`, `hint` (may be empty)."""

    def __init__(self, found: str, expected: str, hint: str = "") -> None:
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(f"found {found}, expected {expected}" + (f"; {hint}" if hint else ""))


def parse(text: str, unit: str) -> float:
    """The number that `text` stands for, in `unit`.

    `unit` is an expression of the same table ("byte/s", "byte/cycle", "Hz", "W", "GB") or "count". Raises `UnitError`
    if number or unit cannot be read, the unit is missing, or it measures something else ("4.8 TB" for a rate).
    """
    wanted = unit_of(unit)
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        hint = "write digits without separators" if _SEPARATED.match(text.strip()) else ""
        raise UnitError(f'"{text}"', f"a number and a unit, {example(unit)}", hint)
    number, written = match.groups()
    if not written and wanted.dimension:
        raise UnitError(f'"{text}" without a unit', f"a number in {unit}, {example(unit)}")
    given = unit_of(written or COUNT)
    if given.dimension != wanted.dimension:
        raise UnitError(f'"{text}"', f"{describe(wanted.dimension)}, {example(unit)}", _why_other(given, wanted))
    value = float(Decimal(number) * given.factor / wanted.factor)
    if value in (float("inf"), float("-inf")):
        raise UnitError(f'"{text}"', "a finite number")
    return value


@cache
def unit_of(expression: str) -> Unit:
    """Factor and dimension of a unit expression, factors separated by `/`; raises `UnitError` for an unknown unit."""
    if expression == COUNT:
        return Unit(Decimal(1), ())
    factor, exponents = Decimal(1), dict[str, int]()
    for position, name in enumerate(expression.split("/")):
        sign = -1 if position else 1
        unit = _simple(name.strip(), expression)
        factor = factor * unit.factor if sign == 1 else factor / unit.factor
        for base, exponent in unit.dimension:
            exponents[base] = exponents.get(base, 0) + sign * exponent
    return Unit(factor, tuple(sorted((base, n) for base, n in exponents.items() if n)))


def _simple(name: str, expression: str) -> Unit:
    if name in UNITS:
        return UNITS[name]
    if name[:2] in BINARY_PREFIXES and name[2:] == "B":
        return Unit(Decimal(2 ** BINARY_PREFIXES[name[:2]]), UNITS["B"].dimension)
    if name[:1] in DECIMAL_PREFIXES and name[1:] in PREFIXABLE:
        unit = UNITS[name[1:]]
        return Unit(unit.factor.scaleb(DECIMAL_PREFIXES[name[:1]]), unit.dimension)
    found = f'the unit "{expression}"' if name == expression else f'"{name}" in the unit "{expression}"'
    raise UnitError(found, f"one of {' '.join(UNITS)}, with a prefix such as k M G T or Ki Mi Gi", _why_unknown(name))


def _why_unknown(name: str) -> str:
    if name.endswith("ps") and len(name) > 2:
        return _HINTS["ps"]
    if "clk" in name.lower():
        return _HINTS["clk"]
    if name == "KB":
        return _HINTS["K"]
    if name.endswith("b") and name[:-1] in DECIMAL_PREFIXES | BINARY_PREFIXES:
        return _HINTS["b"]
    if "i" in name.lower() and name.lower().endswith("b"):
        return _HINTS["i"]
    right = {prefix + unit for prefix in DECIMAL_PREFIXES for unit in PREFIXABLE} | set(UNITS)
    return _HINTS["g"] if name.upper() in {spelling.upper() for spelling in right} else ""


def _why_other(given: Unit, wanted: Unit) -> str:
    missing = dict(wanted.dimension)
    for base, exponent in given.dimension:
        missing[base] = missing.get(base, 0) - exponent
    left = {base: n for base, n in missing.items() if n}
    if len(left) == 1:
        base, exponent = next(iter(left.items()))
        return f"is `/{base}` missing?" if exponent == -1 else f"one `/{base}` too many?" if exponent == 1 else ""
    return ""


_EXAMPLES = {
    "byte/s": '"4.8 TB/s"', "byte": '"50 MiB"', "Hz": '"1980 MHz"', "W": '"700 W"', "byte/cycle": '"128 B/cycle"',
    "flop/cycle": '"4096 FLOP/cycle"', "op/cycle": '"16 op/cycle"', "flop/s": '"989.4 TFLOP/s"', COUNT: "132",
}  # fmt: skip


def example(unit: str) -> str:
    """How a quantity of this unit is written, for messages."""
    return f"for example {_EXAMPLES.get(unit, chr(34) + '1 ' + unit + chr(34))}"


def describe(dimension: Dimension) -> str:
    """A dimension in words for messages: `byte/s`, `a count without a unit`."""
    if not dimension:
        return "a count without a unit"
    above = [base for base, n in dimension if n > 0] or ["1"]
    below = [base for base, n in dimension if n < 0]
    return "a quantity in " + "/".join(["*".join(above), *below])


def format_si(value: float, unit: str) -> str:
    """A number with a decimal prefix and three significant digits: `format_si(1.0737e9, "B") == "1.07 GB"`."""
    for prefix, power in (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0)):
        if abs(value) >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def format_time(seconds: float) -> str:
    """A duration with three significant digits: 12.3 us, 4.56 ms, 1.20 s."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(seconds) >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
