"""Comparisons on rows whose measured time is the prediction times a known factor: every error is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.reports.compare import Comparison, compare, live_pairs, plain_roofline_s, rows_of
from einsight.reports.measured import COLUMNS, TEXTS, Measured
from einsight.reports.outliers import set_aside, spikes
from einsight.reports.report import Results, comparison_section
from einsight.reports.scores import by_group, clusters, rank_correlation, score, worst
from einsight.sim.hardware import load_gpu
from einsight.sim.mask import mask_from
from einsight.sim.mask_pairs import members
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

A100 = {
    "device": "NVIDIA A100-SXM4-80GB", "framework": "VLLM 0.14.0", "kernel": "vllm_flash_attn", "phase": "prefill", "batch": 4,
    "seq_q": 2048, "seq_kv": 2048, "heads_q": 32, "heads_kv": 8, "head_dim": 128, "dtype": "bfloat16",
    "kv_dtype": "bfloat16", "window": 0, "latency_ms": 1.0,
}  # fmt: skip


def rows(*changes: dict[str, object]) -> Measured:
    cells = [A100 | change for change in changes]
    made = {n: np.array([c[n] for c in cells], dtype=np.str_ if n in TEXTS else np.float64) for n in COLUMNS}
    return Measured(**made)


def lengths(*values: int, times: Sequence[float] | None = None, **more: object) -> list[dict[str, object]]:
    """Prefill rows that differ in length, with the times given."""
    given = times or [1.0] * len(values)
    return [{"seq_q": n, "seq_kv": n, "latency_ms": t, **more} for n, t in zip(values, given, strict=True)]


def exact(changes: Sequence[dict[str, object]], factors: Sequence[float]) -> Comparison:
    """Rows that took factor times what is predicted for them; what the factors set aside is taken back."""
    found = compare(rows(*changes)).predicted_s
    times = [{"latency_ms": 1e3 * t * f} for t, f in zip(found.tolist(), factors, strict=True)]
    compared = compare(rows(*(a | b for a, b in zip(changes, times, strict=True))))
    return replace(compared, set_aside=np.zeros(len(found), dtype=bool))


def test_a_row_is_predicted_as_predict_does() -> None:
    """Through the tables of devices and kernels, or by hand: the same time, interval and bound."""
    compared = compare(rows({}, {"phase": "decode", "seq_q": 1, "seq_kv": 16384}))
    for row, (phase, queries, keys) in enumerate((("prefill", 2048, 2048), ("decode", 1, 16384))):
        workload = Workload.attention(
            batch=4, heads=32, kv_heads=8, seq_q=queries, seq_kv=keys, head_dim=128, mask="causal", phase=phase, cache="warm"
        )
        found = predict(workload, f"{compared.target[row]}:{compared.family[row]}")
        assert compared.predicted_s[row] == pytest.approx(found.time_s, rel=1e-9)
        interval = compared.low_s[row], compared.high_s[row]
        assert interval == pytest.approx((found.time_low_s, found.time_high_s))
        assert compared.bound[row] == found.bound.name


def test_errors_are_those_that_were_put_in() -> None:
    """Measured = predicted x f, so the error is 1 / f - 1."""
    factors = np.array([1.0, 1.25, 0.8, 2.0, 0.5])
    s = score(exact([{"batch": b} for b in (1, 2, 4, 8, 16)], factors))
    errors = 1.0 / factors - 1.0
    assert s.n == 5 and s.unpredicted == s.n_short == s.n_set_aside == 0
    assert s.mape_percent == pytest.approx(100 * np.abs(errors).mean())
    assert s.mdape_percent == pytest.approx(100 * np.median(np.abs(errors)))
    assert s.p90_percent == pytest.approx(100 * np.percentile(np.abs(errors), 90))
    assert s.bias_percent == pytest.approx(100 * errors.mean())
    assert s.mape_all_percent == pytest.approx(s.mape_percent)


def test_a_right_prediction_lies_in_its_interval_and_a_wild_one_does_not() -> None:
    s = score(exact([{"batch": b} for b in (1, 2, 4, 8)], [1.0, 1.0, 50.0, 50.0]))
    assert s.coverage_percent == pytest.approx(50.0) and s.width_percent is not None and s.width_percent > 0


def test_short_rows_stand_apart() -> None:
    compared = compare(rows({"latency_ms": 0.0149}, {"latency_ms": 0.015}))
    s = score(compared)
    assert (s.n, s.n_short) == (1, 1)
    assert s.mape_percent == pytest.approx(100 * abs(compared.predicted_s[1] / 15e-6 - 1))


def test_unknown_kernels_and_devices_are_counted_and_left_out() -> None:
    compared = compare(rows({}, {"kernel": "mystery"}, {"kernel": "mystery"}, {"device": "NVIDIA Nothing"}, {"dtype": "int3"}))
    s = score(compared)
    assert (s.n, s.unpredicted) == (1, 4)
    assert sorted(u.rows for u in compared.unpredicted) == [1, 1, 2]
    told = " ".join(u.reason for u in compared.unpredicted)
    assert "'mystery'" in told and "'NVIDIA Nothing'" in told and "'int3'" in told


def test_target_and_family_override_the_tables() -> None:
    compared = compare(rows({"device": "NVIDIA Nothing", "kernel": "mystery"}), target="h100-sxm", family="flash3")
    assert (compared.target[0], compared.family[0], compared.known[0]) == ("h100-sxm", "flash3", True)


def test_a_family_that_cannot_run_there_says_so() -> None:
    compared = compare(rows({}), family="flash3")
    assert not compared.known.any() and "instructions" in compared.unpredicted[0].reason


def test_the_rank_correlation_of_known_orders() -> None:
    rising = np.arange(10.0)
    assert rank_correlation(rising, np.exp(rising)) == pytest.approx(1.0)
    assert rank_correlation(rising, -rising) == pytest.approx(-1.0)
    assert rank_correlation(rising[:2], rising[:2]) is None and rank_correlation(rising, np.ones(10)) is None


def test_groups_partition_the_rows() -> None:
    changes = [{"batch": b, "head_dim": d} for b in (1, 2) for d in (64, 128, 256)]
    compared = exact(changes, [1.0, 1.1, 1.2, 1.0, 1.1, 1.2])
    groups = by_group(compared, ("head_dim",))
    assert [values["head_dim"] for values, _ in groups] == [64, 128, 256] and all(s.n == 2 for _, s in groups)
    assert [s.mape_percent for _, s in groups] == pytest.approx([0.0, 100 * (1 - 1 / 1.1), 100 * (1 - 1 / 1.2)], abs=1e-6)
    assert [v["group"] for v, _ in by_group(compared, ("group", "windowed", "length"))] == [4]


def test_the_worst_row_is_the_farthest_in_log_time() -> None:
    compared = exact([{"batch": b} for b in (1, 2, 4)], [1.5, 0.4, 2.0])
    assert worst(compared, 2).tolist() == [1, 2]


def test_the_largest_cluster_holds_most_of_the_error() -> None:
    changes = [{"batch": 1, "head_dim": d, "seq_kv": n} for d in (64, 128) for n in (2048, 2560, 3072)]
    found = clusters(exact(changes, [1.0, 1.0, 1.0, 1.5, 1.5, 1.5]), 1)
    assert found[0].values["head_dim"] == 128 and found[0].share_percent == pytest.approx(100.0, abs=1e-3)


def test_the_report_has_a_section_only_with_measured_cases() -> None:
    assert comparison_section(Results((), {}, {})) is None
    section = comparison_section(Results((), {}, {}, exact([{"batch": 1}, {"batch": 2}], [1.0, 1.25])))
    assert section is not None and section.body.count("<svg") == 1 and "10.0" in section.body  # (0 + 20 %) / 2


# -- the plain roofline ------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 9))
def test_pairs_equal_a_count_one_by_one(queries: int, before: int, window: int) -> None:
    keys = queries + before
    mask = mask_from(["causal", {"window": window}] if window else "causal")
    found = live_pairs(np.array([float(queries)]), np.array([float(keys)]), np.array([float(window)]))
    assert found[0] == members(mask, queries, keys).sum()


def test_the_plain_roofline_is_flops_over_peak_or_bytes_over_bandwidth() -> None:
    gpu = load_gpu("a100-sxm-80gb")
    B, H, G, N, D = 4, 32, 8, 2048, 128
    long, decode = rows({}), rows({"phase": "decode", "seq_q": 1})
    flops = 2 * B * H * (N * (N + 1) / 2) * 2 * D
    moved = 2 * (2 * B * H * D + 2 * B * G * N * D)
    assert plain_roofline_s(rows_of(long), gpu)[0] == pytest.approx(flops / gpu.peak_flops_per_s["bf16"].value)
    assert plain_roofline_s(rows_of(decode), gpu)[0] == pytest.approx(moved / gpu.hbm_bytes_per_s.value)


# -- noise -------------------------------------------------------------------------------------------------------------

WALK = (256, 512, 1024, 2048, 4096)


def test_a_lone_spike_is_set_aside_up_or_down() -> None:
    up = rows(*lengths(*WALK, times=[1, 2, 12.1, 8, 16]))
    assert set_aside(up).tolist() == [False, False, True, False, False]
    assert spikes(up)[2] == pytest.approx(np.log(12.1 / 8))
    down = rows(*lengths(*WALK, times=[4, 4, 2.6, 4, 4]))
    assert set_aside(down).tolist() == [False, False, True, False, False]


def test_less_than_the_threshold_and_the_ends_stay() -> None:
    assert not set_aside(rows(*lengths(*WALK, times=[9, 7, 11.9, 8, 0.1]))).any()


def test_rows_that_differ_in_more_than_length_are_no_neighbours() -> None:
    mixed = [a | {"batch": b} for a, b in zip(lengths(*WALK, times=[1, 2, 40, 8, 16]), (1, 1, 2, 1, 1), strict=True)]
    assert not set_aside(rows(*mixed)).any()


def test_a_spike_that_another_shape_repeats_is_behaviour() -> None:
    times = [1.0, 2.0, 40.0, 8.0, 16.0]
    both = rows(*lengths(*WALK, times=times, batch=1), *lengths(*WALK, times=times, batch=2))
    assert not set_aside(both).any()
    other_way = rows(*lengths(*WALK, times=times, batch=1), *lengths(*WALK, times=[4, 4, 1, 4, 4], batch=2))
    assert set_aside(other_way).sum() == 1  # one in a table of ten: more than 1 % would go


def test_at_most_one_percent_and_the_largest_first() -> None:
    """Three spikes at three lengths among 150 rows: two may go."""
    plain = [c for b in range(1, 28) for c in lengths(*WALK, times=[1, 2, 4, 8, 16], batch=b)]
    spiked = [
        *lengths(*WALK, times=[1, 20, 4, 8, 16], batch=101), *lengths(*WALK, times=[1, 2, 90, 8, 16], batch=102),
        *lengths(*WALK, times=[1, 2, 4, 30, 16], batch=103),
    ]  # fmt: skip
    gone = np.flatnonzero(set_aside(rows(*plain, *spiked)))
    assert gone.tolist() == [len(plain) + 1, len(plain) + 5 + 2]


def test_setting_aside_asks_no_prediction() -> None:
    """The same rows on a device and kernel that no model knows."""
    times = [1, 2, 12.1, 8, 16]
    known, unknown = (rows(*lengths(*WALK, times=times, **more)) for more in ({}, {"device": "x", "kernel": "y"}))
    assert set_aside(known).tolist() == set_aside(unknown).tolist()


def test_rows_set_aside_are_not_judged_but_counted() -> None:
    compared = compare(rows(*lengths(*WALK, times=[0.1, 0.2, 12.1, 0.8, 1.6])))
    s = score(compared)
    assert (s.n, s.n_set_aside) == (4, 1) and not compared.judged[2]
