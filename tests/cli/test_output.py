"""What people read: titles in one piece, no empty headings, tables apart, numbers written out, legible columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from einsight.cli.output import print_table

Einsight = Callable[..., Any]


def test_a_title_longer_than_its_table_stays_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    title = "a title of many more words than the table below it has columns, " * 3
    print_table(title.strip(), ("a", "b"), [("1", "2")])
    assert capsys.readouterr().out.splitlines()[0] == title.strip()


def test_columns_without_names_have_no_heading(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ("", ""), [("mask", "causal")])
    assert capsys.readouterr().out.split() == ["title", "mask", "causal"]


@pytest.mark.parametrize(
    ("words", "titles"),
    [
        (("cascades",), ["Fragments: biases"]),
        (("hardware",), ["Arrays"]),
        (("bias", "--kind", "alibi", "--heads", "8", "--seq", "1024", "--target", "h100-sxm"), ["h100-sxm, alibi"]),
        (("gna", "-i", "16x32x32", "-w", "8x8x8", "--target", "h100-sxm"), ["Tiles for this", "Fully block", "Strides: the"]),
    ],
)
def test_a_table_is_set_apart_from_the_one_above(einsight: Einsight, words: tuple[str, ...], titles: list[str]) -> None:
    lines = einsight(*words).out.splitlines()
    for title in titles:
        (at,) = (k for k, line in enumerate(lines) if line.startswith(title))
        assert lines[at - 1] == "", title


def test_no_column_of_the_cascades_is_a_thread_of_letters(einsight: Einsight) -> None:
    out = einsight("cascades").out
    assert all(piece in out for piece in ("FlashAttention-2, Dao", "softmax attention ", "from the"))
    assert len(out.splitlines()) < 110


def test_cycles_and_bytes_are_written_out(einsight: Einsight) -> None:
    sizes = ("--size", "m=4096,n=4096,e=128,f=128")
    told = einsight("explain", "one_pass", *sizes, "--target", "h100-sxm").out
    array = einsight("simulate", "--heads", "32", "--seq", "8k", "--target", "fusemax").out
    for out in (told.partition("Cycles of")[2], array):
        assert not re.search(r"\de[+-]?\d", out)
    assert "tensor cores 2,097,152" in told and "34.00 MiB (recompute" in told


def test_ratios_of_the_reproduction_are_a_number_of_times(einsight: Einsight) -> None:
    out = einsight("reproduce", "flashbias").out
    assert re.search(r"backward over forward +N 8192 +2\.77 x", out) and not re.search(r"\d ratio\b", out)


def test_an_array_lists_its_numbers_by_name_without_units_twice(einsight: Einsight) -> None:
    out = einsight("hardware").out
    assert "clock 940 MHz" in out and "_hz" not in out and "bytes" not in out
    assert "Known to drivers" in einsight("hardware", "h200-sxm").out
    assert "Known to drivers" not in einsight("hardware", "fusemax").out
