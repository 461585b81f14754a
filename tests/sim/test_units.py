"""The unit table, prefix by prefix, against powers written out here a second time."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.sim import units

DECIMAL = {
    "f": 1e-15,
    "p": 1e-12,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
}
BINARY = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5, "Ei": 1024**6}


PREFIXABLE = [("B", "byte"), ("FLOP", "flop"), ("op", "op"), ("s", "s"), ("Hz", "Hz"), ("J", "J"), ("W", "W")]


def test_every_prefix_of_the_table_is_checked_here() -> None:
    assert set(units.DECIMAL_PREFIXES) == set(DECIMAL)
    assert set(units.BINARY_PREFIXES) == set(BINARY)
    assert set(units.PREFIXABLE) == {symbol for symbol, _ in PREFIXABLE}


@pytest.mark.parametrize("prefix", DECIMAL)
@pytest.mark.parametrize(
    ("symbol", "unit"),
    [("B", "byte"), ("FLOP", "flop"), ("op", "op"), ("s", "s"), ("Hz", "Hz"), ("J", "J"), ("W", "W")],
)
def test_decimal_prefixes(prefix: str, symbol: str, unit: str) -> None:
    assert units.parse(f"3 {prefix}{symbol}", unit) == pytest.approx(3 * DECIMAL[prefix], rel=1e-15)


@pytest.mark.parametrize("prefix", BINARY)
def test_binary_prefixes_belong_to_bytes_and_are_exact(prefix: str) -> None:
    assert units.parse(f"3 {prefix}B", "byte") == 3 * BINARY[prefix]
    for unit in ("Hz", "FLOP", "W"):
        with pytest.raises(units.UnitError):
            units.parse(f"3 {prefix}{unit}", unit)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("4.8 TB/s", "byte/s", 4.8e12),
        ("3.35 TB/s", "byte/s", 3.35e12),
        ("1555 GB/s", "byte/s", 1.555e12),
        ("50 MiB", "byte", 50 * 2**20),
        ("141 GB", "byte", 141e9),
        ("128 B/cycle", "byte/cycle", 128),
        ("4096 FLOP/cycle", "flop/cycle", 4096),
        ("16 op/cycle", "op/cycle", 16),
        ("1980 MHz", "Hz", 1.98e9),
        ("700 W", "W", 700),
        ("700 J/s", "W", 700),
        ("989.4 TFLOP/s", "flop/s", 989.4e12),
        ("5.5 us", "s", 5.5e-6),
        ("0.5 pJ/op", "J/op", 0.5e-12),
        ("100 um^2", "mm^2", 1e-4),
        ("132", "count", 132),
        ("4.8 TB/s", "GB/s", 4800),
        ("2.5e3 GB/s", "byte/s", 2.5e12),
        ("50MiB", "byte", 50 * 2**20),
        ("-3 W", "W", -3),
    ],
)
def test_examples(text: str, unit: str, value: float) -> None:
    assert units.parse(text, unit) == value


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("4.8 TB", "byte/s", "is `/s` missing?"),
        ("4.8 TB/s", "byte", "one `/s` too many?"),
        ("700 W", "Hz", "a quantity in 1/s"),
        ("50", "byte", "without a unit"),
        ("132 B", "count", "a count without a unit"),
        ("64 KB", "byte", "kB is 1000 bytes and KiB is 1024"),
        ("64 GIB", "byte", "binary prefixes"),
        ("64 gib", "byte", "binary prefixes"),
        ("64 gb", "byte", "upper and lower case"),
        ("64 Gb/s", "byte/s", "capital B is bytes"),
        ("4.8 TBps", "byte/s", "with a slash"),
        ("128 B/clk", "byte/cycle", "`cycle`"),
        ("1980 mhz", "Hz", "upper and lower case"),
        ("1980 MHZ", "Hz", "upper and lower case"),
        ("1,000 W", "W", "without separators"),
        ("1_000 W", "W", "without separators"),
        ("fast", "Hz", "a number and a unit"),
        ("", "Hz", "a number and a unit"),
        ("1e999 W", "W", "finite"),
        ("3 B//s", "byte/s", "unit"),
        ("3 furlong", "byte", "furlong"),
        ("inf W", "W", "a number and a unit"),
        ("nan W", "W", "a number and a unit"),
        ("0x10 W", "W", "found"),
    ],
)
def test_refusals_name_the_reason(text: str, unit: str, message: str) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse(text, unit)
    assert message in str(caught.value)


@given(st.text(max_size=30), st.sampled_from(["byte", "byte/s", "Hz", "W", "count", "flop/cycle"]))
def test_any_text_gives_a_finite_number_or_a_unit_error(text: str, unit: str) -> None:
    with contextlib.suppress(units.UnitError):
        assert math.isfinite(units.parse(text, unit))


@given(st.floats(1e-3, 1e6), st.sampled_from([*DECIMAL.items(), *BINARY.items()]))
def test_value_scales_with_the_prefix(number: float, prefix: tuple[str, float]) -> None:
    assert units.parse(f"{number!r} {prefix[0]}B", "byte") == pytest.approx(number * prefix[1], rel=1e-15)
