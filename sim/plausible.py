"""Which values a hardware profile can have: a wrong prefix or a digit too many is refused where it stands in the file.

A range rests on one of three things. SHIPPED: a tenth of the smallest to ten times the largest value among the shipped
profiles; the widest device that anyone will write a profile for is nearer to these than a prefix of 1000 is. COUNTED: from
one, since every device has one, to ten times the largest. PHYSICS: what no device passes, where shipped ones are too much
alike for that: nothing made of silicon runs at more than about 9 GHz, and a phone draws a watt.
Printed peaks have no range: they are held against SMs, rate and clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einsight.sim.strict_yaml import Item
from einsight.sim.units import COUNT, parse

SHIPPED = "1/10 to 10 times what shipped profiles have"
COUNTED = "at most 10 times what shipped profiles have"
PHYSICS = "what devices can have"


@dataclass(frozen=True, slots=True)
class Range:
    """The values of some keys of profiles, ends included, written as in a profile."""

    keys: tuple[str, ...]
    unit: str
    low: str
    high: str
    basis: str

    def ends(self) -> tuple[float, float]:
        return parse(self.low, self.unit), parse(self.high, self.unit)


RANGES = (
    Range(("boost", "peak_clock", "clock"), "Hz", "10 MHz", "10 GHz", PHYSICS),  # 10 MHz: a prototype on an FPGA
    Range(("tdp",), "W", "1 W", "12 kW", PHYSICS),  # 1 W: a phone; 12 kW: ten times what one package is cooled for today
    Range(("memory",), "byte", "2.4 GB", "2700 GB", SHIPPED),
    Range(("memory_rate", "dram_rate"), "byte/s", "5 GB/s", "80 TB/s", SHIPPED),
    Range(("l2",), "byte", "51.2 KiB", "2560 MiB", PHYSICS),  # embedded GPUs have 128 KiB
    Range(("buffer",), "byte", "1 KiB", "2560 MiB", PHYSICS),  # FuseMax sizes arrays down to 16 KiB
    Range(("tensor",), "flop/cycle", "25.6 FLOP/cycle", "163840 FLOP/cycle", SHIPPED),
    Range(("tensor_energy",), "J/flop", "0.0015 pJ/FLOP", "3 pJ/FLOP", SHIPPED),
    Range(("l2_energy",), "J/byte", "1 pJ/B", "100 pJ/B", SHIPPED),
    Range(("vector_rate",), "op/cycle", "6.4 op/cycle", "1280 op/cycle", SHIPPED),
    Range(("special_rate",), "op/cycle", "1.6 op/cycle", "320 op/cycle", SHIPPED),
    Range(("shared_rate",), "byte/cycle", "12.8 B/cycle", "1280 B/cycle", SHIPPED),
    Range(("l2_rate",), "byte/cycle", "1.47 B/cycle", "370 B/cycle", SHIPPED),
    Range(("shared_memory", "shared_memory_per_block"), "byte", "6.4 KiB", "2280 KiB", SHIPPED),
    Range(("registers",), COUNT, "6554", "1310720", SHIPPED),
    Range(("registers_per_thread",), COUNT, "26", "5120", SHIPPED),
    Range(("tensor_memory_columns",), COUNT, "52", "5120", SHIPPED),
    Range(("buffer_row",), "byte", "6.4 B", "5120 B", SHIPPED),
    Range(("energy",), "pJ", "0.0028 pJ", "1480 pJ", SHIPPED),  # of one application, in an array
    Range(("sms",), COUNT, "1", "3040", COUNTED),
    Range(("warps",), COUNT, "1", "640", COUNTED),
    Range(("blocks",), COUNT, "1", "320", COUNTED),
    Range(("array_2d.rows", "array_2d.columns", "array_1d.lanes"), COUNT, "1", "2560", COUNTED),
    Range(("array_2d.registers", "array_1d.registers"), COUNT, "1", "320", COUNTED),
    Range(("buffer_ports",), COUNT, "1", "40", COUNTED),
)

BY_KEY: Mapping[str, Range] = {key: found for found in RANGES for key in found.keys}


def check(item: Item, key: str, value: float) -> None:
    """Raises SpecError where the value of `key` ("sms", "tensor.bf16", "array_2d.rows"), in the range's unit and written
    at `item`, is outside; keys without a range pass."""
    found = BY_KEY.get(key) or BY_KEY.get(key.split(".")[0])
    if found is None:
        return
    low, high = found.ends()
    if not low <= value <= high:
        raise item.error(f"{found.low} to {found.high}, {found.basis}", _likely(value, low, high, found.unit))


def _likely(value: float, low: float, high: float, unit: str) -> str:
    """The power of 1000 that would bring the value back, if one does: usually a prefix."""
    way = "large" if value > high else "small"
    for power in (3, 6, 9, 12, 15, 18):
        if low <= (value / 10.0**power if value > high else value * 10.0**power) <= high:
            what = "number" if unit == COUNT else "number or its prefix"
            return f"is the {what} 10^{power} too {way}?"
    return ""
