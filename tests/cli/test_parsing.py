"""The small notations of the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.cli.parsing import CommandError, SweepRange, sizes, sweep, target, whole


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("8192", 8192), ("8k", 8 * 1024), ("128K", 128 * 1024), ("1m", 1024**2)]
)
def test_whole_numbers(text: str, number: int) -> None:
    assert whole(text, "--seq") == number


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "8 k", "1e3", "k", "8kb", "٣", "9" * 30])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--seq: found"):
        whole(text, "--seq")


def test_sizes() -> None:
    assert sizes(["m=6,n=16", "e=1k"]) == {"m": 6, "n": 16, "e": 1024}
    assert sizes([]) == {}


@pytest.mark.parametrize("text", ["m", "m=", "=3", "m=6,,n=2", "m=6;n=3", "m=6,m=6", "m-1=3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(CommandError):
        sizes([text])


def test_targets() -> None:
    assert target("h100-sxm") == ("h100-sxm", None)
    assert target("h100-sxm:flash3") == ("h100-sxm", "flash3")
    with pytest.raises(CommandError):
        target(":flash3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n=1k:128k", SweepRange("n", 1024, 131072, 8, "log")),
        ("n=1k:128k:15", SweepRange("n", 1024, 131072, 15, "log")),
        ("n=1k:128k:linear", SweepRange("n", 1024, 131072, 8, "linear")),
        ("b=1:4:4:linear", SweepRange("b", 1, 4, 4, "linear")),
        ("n=5:5", SweepRange("n", 5, 5, 2, "log")),
    ],
)
def test_sweeps(text: str, expected: SweepRange) -> None:
    assert sweep(text) == expected


@pytest.mark.parametrize(
    "text", ["n", "n=1k", "n=4:2", "n=1:2:3:4", "n=1:2:3:log:x", "n=0:4", "n=1:2:cubic", "n=1:9:200000"]
)
def test_bad_sweeps(text: str) -> None:
    with pytest.raises(CommandError, match="--sweep"):
        sweep(text)


def test_log_sweep_by_default_walks_powers_of_two() -> None:
    assert sweep("n=1k:128k").values == tuple(1024 * 2**i for i in range(8))


def test_linear_sweep_has_equal_steps() -> None:
    assert sweep("b=1:4:4:linear").values == (1, 2, 3, 4)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(2, 60), st.sampled_from(["log", "linear"]))
def test_a_sweep_starts_and_ends_where_it_says(first: int, more: int, points: int, scale: str) -> None:
    values = SweepRange("n", first, first + more, points, scale).values
    assert values[0] == first and values[-1] == first + more
    assert list(values) == sorted(set(values)) and len(values) <= points
