"""Sweeps: the axis text, agreement with `predict` point by point, and the inverse questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from einsight.sim import Workload, predict
from einsight.sim.sweep import SweepError, crossovers, longest_within, parse_axis, sweep
from einsight.sim.workload import WorkloadError


def prefill(seq: int, **more: object) -> Workload:
    return Workload.attention(heads=16, kv_heads=4, seq_q=seq, head_dim=128, mask="causal", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "first", "last", "count"),
    [("n=1k:128k", 1024, 131072, 29), ("n=1k:4k:3:linear", 1024, 4096, 3), ("b=1,2,8", 1, 8, 3), ("n=7:7", 7, 7, 1)],
)
def test_axis_texts(text: str, first: int, last: int, count: int) -> None:
    axis = parse_axis(text)
    assert (axis.values[0], axis.values[-1], len(axis.values)) == (first, last, count)


@pytest.mark.parametrize(
    "text",
    ["", "n", "n=", "n=1k", "n=4k:1k", "n=1:2:3:4:5", "n=a:b", "n=0:5", "n=-1:5",
     "n=1k:2k:3:cubic", "=1:2", "n=1.5:2", "n=1:9:2000000", "n=1:2\u00b2", "n=1k:99999999999999999999999", "n=1:2048g",
     "n=1k:1048577m"],
)  # fmt: skip
def test_bad_axis_texts_say_what_is_expected(text: str) -> None:
    with pytest.raises(SweepError, match=r"expected|at most"):
        parse_axis(text)


@pytest.mark.parametrize("target", ["h100-sxm", "l40s", "h100-sxm:unfused"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_point_is_the_prediction_at_that_size(target: str, phase: str) -> None:
    axis = parse_axis("n=128,1000,4096,10000")
    seq = {"prefill": lambda n: prefill(n), "decode": lambda n: prefill(1, seq_kv=n)}[phase]
    [curve] = sweep(seq(4096), axis, [target])
    for n, time in zip(axis.values, curve.time_s, strict=True):
        assert time == pytest.approx(predict(seq(n), target).time_s, rel=1e-12)


@pytest.mark.parametrize("target", ["h100-sxm", "l40s:flash2", "fusemax"])
def test_longest_context_within_a_time_is_exact(target: str) -> None:
    work = prefill(1024)
    [curve] = sweep(work, parse_axis("n=1k:128k:6"), [target])
    limit = 0.5 * (curve.time_s[2] + curve.time_s[3])
    found = longest_within(work, curve, limit)
    assert found is not None and curve.axis.values[2] < found < curve.axis.values[3]
    assert predict(prefill(found), target).time_s <= limit < predict(prefill(found + 1), target).time_s
    assert longest_within(work, curve, curve.time_s[0] / 2) is None
    assert longest_within(work, curve, 2 * curve.time_s[-1]) == curve.axis.values[-1]


def test_keys_and_values_grow_together_where_they_are_alike() -> None:
    [both] = sweep(prefill(1024), parse_axis("e=64,128"), ["h100-sxm"])
    work = prefill(1024)
    assert both.time_s[0] == pytest.approx(predict(replace(work, sizes={**work.sizes, "e": 64, "f": 64}), "h100-sxm").time_s)
    apart = replace(work, sizes={**work.sizes, "e": 192, "f": 128})
    [keys] = sweep(apart, parse_axis("e=64,192"), ["h100-sxm"])
    assert keys.time_s[0] == pytest.approx(predict(replace(apart, sizes={**apart.sizes, "e": 64}), "h100-sxm").time_s)


def test_the_target_with_more_bandwidth_wins_a_long_decode() -> None:
    curves = sweep(prefill(1, seq_kv=1024, batch=32), parse_axis("n=8k:64k"), ["h100-sxm", "h200-sxm"])
    assert crossovers(curves)[-1][1] == "h200-sxm"


def test_heads_are_swept_in_whole_groups() -> None:
    with pytest.raises(SweepError, match="multiple of g = 4"):
        sweep(prefill(1024), parse_axis("h=4,6"), ["h100-sxm"])
    [curve] = sweep(prefill(1024), parse_axis("h=4,8,64"), ["h100-sxm"])
    assert list(curve.time_s) == sorted(curve.time_s)


def test_a_size_that_the_workload_lacks_is_named() -> None:
    with pytest.raises(SweepError, match="no size 'r'"):
        sweep(prefill(1024), parse_axis("r=1:4"), ["h100-sxm"])


def test_kv_heads_are_swept_under_the_same_query_heads() -> None:
    [curve] = sweep(prefill(1, seq_kv=65536, batch=8), parse_axis("g=1,4,16"), ["h100-sxm"])
    assert list(curve.time_s) == sorted(curve.time_s)
    with pytest.raises(SweepError, match="does not divide h = 16"):
        sweep(prefill(1024), parse_axis("g=3,5"), ["h100-sxm"])
    with pytest.raises(SweepError, match="j follows"):
        sweep(prefill(1024), parse_axis("j=1,2"), ["h100-sxm"])


def test_a_step_back_of_the_time_comes_with_another_mapping() -> None:
    """Where a longer cache takes less time, the family's rule has split it into more parts."""
    [curve] = sweep(prefill(1, seq_kv=1024), parse_axis("n=128:32k:200:linear"), ["h100-sxm"])
    steps = zip(curve.time_s, curve.time_s[1:], curve.mapping, curve.mapping[1:], strict=False)
    assert all(before != after for t, later, before, after in steps if later < t * (1 - 1e-9))


@pytest.mark.parametrize(
    ("phase", "queries", "keys", "axis", "refused"),
    [("decode", 1, 8192, "m=1:65", "65 queries"), ("decode", 4, 8192, "n=2:8192", "4 queries"),
     ("prefill", 4096, 8192, "n=1k:8k", "4096 queries for 1024 keys")],
)  # fmt: skip
def test_a_sweep_refuses_the_sizes_that_a_workload_refuses(
    phase: str, queries: int, keys: int, axis: str, refused: str
) -> None:
    work = Workload.attention(heads=8, seq_q=queries, seq_kv=keys, head_dim=128, mask="causal", phase=phase)
    with pytest.raises(WorkloadError, match=refused):
        sweep(work, parse_axis(axis), ["h100-sxm"])


def test_two_families_of_one_target_are_two_curves() -> None:
    curves = sweep(prefill(1024), parse_axis("n=1k,4k"), ["h100-sxm", "h100-sxm:unfused"])
    assert [c.label for c in curves] == ["h100-sxm", "h100-sxm:unfused"]
    assert crossovers(curves) == ((1024, "h100-sxm"),)
    assert crossovers(curves[::-1]) == ((1024, "h100-sxm"),)
    assert crossovers(curves[1:]) == ((1024, "h100-sxm:unfused"),)
