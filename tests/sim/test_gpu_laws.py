"""Laws that every profile and cascade must keep at a fixed mapping, whatever the constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.einsum import library
from einsight.sim import hardware
from einsight.sim.additions import WorkloadError
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import Gpu, Quantity, load_hardware
from einsight.sim.mapping import Mapping
from einsight.sim.mask import Mask
from einsight.sim.predict import estimate_of, predict
from einsight.sim.workload import Workload

GPUS = [n for n in hardware.names() if load_hardware(n).kind == "gpu"]
CASCADES = [name for name in library.names() if library.load(name).rank("M")]  # queries of their own number
SEQUENCES = [name for name in library.names() if not library.load(name).rank("M")]
FIXED = Mapping(block_m=128, block_n=64, splits=1, blocks_per_sm=1)
SPLIT = replace(FIXED, splits=4, pack_gqa=True)
ROUNDING = 1 + 1e-9


def family_of(gpu: Gpu) -> Family:
    return load_family(gpu.family["prefill"])


def workload(cascade: str, m: int = 700, n: int = 1500, mask: object = None, b: int = 2, cache: str = "cold") -> Workload:
    made = Workload.attention(
        batch=b, heads=8, kv_heads=2, seq_q=m, seq_kv=n, head_dim=64, mask=mask, cascade=cascade, phase="prefill", cache=cache
    )  # fmt: skip
    return replace(made, sizes={**made.sizes, "r": 16}) if library.load(cascade).rank("R") else made


def time_of(w: Workload, gpu: Gpu, mapping: Mapping = FIXED) -> float:
    return float(estimate_of(w, gpu, family_of(gpu), mapping).time_s[0])


def faster(q: Quantity, factor: float) -> Quantity:
    return replace(q, value=q.value * factor)


def upgrades(gpu: Gpu, factor: float) -> list[Gpu]:
    arch = gpu.architecture
    return [
        replace(gpu, hbm_bytes_per_s=faster(gpu.hbm_bytes_per_s, factor)),
        replace(gpu, boost_hz=faster(gpu.boost_hz, factor)),
        replace(gpu, sms=replace(gpu.sms, value=float(int(gpu.sms.value * factor)))),
        replace(gpu, l2_bytes=faster(gpu.l2_bytes, factor)),
        replace(gpu, architecture=replace(arch, special_ops_per_cycle=faster(arch.special_ops_per_cycle, factor))),
        replace(gpu, architecture=replace(arch, vector_ops_per_cycle=faster(arch.vector_ops_per_cycle, factor))),
        replace(gpu, architecture=replace(arch, shared_bytes_per_cycle=faster(arch.shared_bytes_per_cycle, factor))),
        replace(gpu, architecture=replace(arch, l2_bytes_per_cycle=faster(arch.l2_bytes_per_cycle, factor))),
        replace(gpu, tensor_flops_per_cycle={d: faster(q, factor) for d, q in gpu.tensor_flops_per_cycle.items()}),
    ]  # fmt: skip


@pytest.mark.parametrize("cascade", CASCADES)
@pytest.mark.parametrize("target", GPUS)
def test_time_is_at_least_every_bound(target: str, cascade: str) -> None:
    gpu = load_hardware(target)
    for cache in ("cold", "warm"):
        found = estimate_of(workload(cascade, cache=cache), gpu, family_of(gpu), FIXED)
        for name, bound in found.bounds_s.items():
            assert found.time_s[0] * ROUNDING >= bound[0] >= 0, name
        p = predict(workload(cascade, cache=cache), target)
        assert p.time_low_s <= p.time_s <= p.time_high_s
        assert all(p.time_low_s * ROUNDING >= b.time_s for b in p.bounds)
        assert p.bound == p.bounds[0] and all(b.because for b in p.bounds)


@pytest.mark.parametrize("cascade", CASCADES)
@pytest.mark.parametrize("target", GPUS)
def test_better_hardware_is_never_slower(target: str, cascade: str) -> None:
    gpu = load_hardware(target)
    for w in (workload(cascade), workload(cascade, m=1, n=20000, b=3)):
        base = time_of(w, gpu)
        for factor in (1.01, 1.37, 2.0, 8.0):
            for better in upgrades(gpu, factor):
                assert time_of(w, better) <= base * ROUNDING


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_better_hardware_is_never_slower_however_deep_the_pipeline(stages: int) -> None:
    """Small tiles, whose loads take longer than they do: a block with `stages` buffers waits for each load once in `stages`
    tiles, and a faster unit never makes it wait longer."""
    gpu, w = load_hardware("h100-sxm"), workload("one_pass")
    deep = Mapping(block_m=16, block_n=32, warps=4, stages=stages)
    for factor in (1.37, 8.0):
        for better in upgrades(gpu, factor):
            assert time_of(w, better, deep) <= time_of(w, gpu, deep) * ROUNDING
    assert time_of(w, gpu, replace(deep, stages=stages + 1)) <= time_of(w, gpu, deep) * ROUNDING


@settings(max_examples=60)
@given(
    st.sampled_from(CASCADES), st.sampled_from(["h100-sxm", "l40s"]), st.integers(1, 3000), st.integers(1, 3000),
    st.integers(1, 400), st.sampled_from([FIXED, SPLIT, replace(FIXED, schedule="persistent", blocks_per_sm=2)]),
)  # fmt: skip
def test_longer_is_never_faster(cascade: str, target: str, m: int, n: int, more: int, mapping: Mapping) -> None:
    gpu = load_hardware(target)
    if mapping.splits > 1 and library.load(cascade).name not in ("one_pass", "sigmoid", "split_kv"):
        mapping = replace(mapping, splits=1)
    here = time_of(workload(cascade, m, n), gpu, mapping)
    assert here <= time_of(workload(cascade, m, n + more), gpu, mapping) * ROUNDING
    assert here <= time_of(workload(cascade, m + more, n), gpu, mapping) * ROUNDING
    assert here <= time_of(workload(cascade, m, n, b=3), gpu, mapping) * ROUNDING


@settings(max_examples=60)
@given(st.integers(1, 2500), st.integers(0, 2500), st.integers(1, 3000), st.integers(1, 500), st.sampled_from([FIXED, SPLIT]))
def test_a_wider_window_and_a_longer_causal_sequence_are_never_faster(
    m: int, extra: int, window: int, more: int, mapping: Mapping
) -> None:
    gpu, n = load_hardware("h100-sxm"), m + extra
    narrow = time_of(workload("one_pass", m, n, ["causal", {"window": window}]), gpu, mapping)
    assert narrow <= time_of(workload("one_pass", m, n, ["causal", {"window": window + more}]), gpu, mapping) * ROUNDING
    causal = time_of(workload("one_pass", m, n, "causal"), gpu, mapping)
    assert narrow <= causal * ROUNDING
    assert causal <= time_of(workload("one_pass", m + more, n + more, "causal"), gpu, mapping) * ROUNDING
    if m >= 8 * mapping.block_m:  # below that the diagonal saves no tile and its masked tiles cost a little more
        assert causal <= time_of(workload("one_pass", m, n, Mask()), gpu, mapping) * ROUNDING


def recurrence(cascade: str, n: int) -> Workload:
    return Workload(f"{cascade} {n}", cascade, {"b": 2, "h": 8, "m": n, "n": n, "e": 64, "f": 64})


@pytest.mark.parametrize("cascade", SEQUENCES)
@pytest.mark.parametrize("target", GPUS)
def test_a_recurrence_takes_time_in_proportion_to_its_length(target: str, cascade: str) -> None:
    """A block is a head's state, whatever the length; bounds, hardware and length keep the same laws as for attention."""
    gpu = load_hardware(target)
    for name, bound in (found := estimate_of(recurrence(cascade, 4096), gpu, family_of(gpu), FIXED)).bounds_s.items():
        assert found.time_s[0] * ROUNDING >= bound[0] >= 0, name
    for better in upgrades(gpu, 1.37):
        assert time_of(recurrence(cascade, 4096), better) <= time_of(recurrence(cascade, 4096), gpu) * ROUNDING
    short, long = (time_of(recurrence(cascade, n), gpu) for n in (2**15, 2**18))
    falling = gpu.boost_hz.value / gpu.sustained_hz("bf16")  # the clock of a long run
    assert 6.0 < long / short <= 8.0 * falling * ROUNDING
    tensor = {}
    for chunk in (64, 128):
        found = estimate_of(recurrence(cascade, 2**15), gpu, family_of(gpu), replace(FIXED, block_n=chunk))
        tensor[chunk] = found.bounds_s["tensor cores"][0]
    state, pairs = 2 * 64 * 64, 2 * 64  # products per position: into and out of the state; with each key of the chunk
    assert tensor[128] / tensor[64] == pytest.approx((state + pairs * 128) / (state + pairs * 64), rel=0.1)


@pytest.mark.parametrize("cascade", SEQUENCES)
def test_a_recurrence_is_not_split_over_its_chunks(cascade: str) -> None:
    """Few heads leave SMs idle whatever the length: time grows with it, by the family's own tiles too."""
    few = [replace(recurrence(cascade, n), sizes={"h": 4, "m": n, "n": n, "e": 128}) for n in range(1024, 4097, 512)]
    found = [predict(w, "h100-sxm") for w in few]
    assert all(p.mapping["splits"] == 1 for p in found)
    assert [p.time_s for p in found] == sorted(p.time_s for p in found)


@pytest.mark.parametrize("cascade", SEQUENCES)
def test_query_heads_that_share_keys_all_take_their_own_products(cascade: str) -> None:
    """The states, or at least the outputs, of a recurrence are of query heads, however few KV heads there are."""
    gpu, own = load_hardware("h100-sxm"), recurrence(cascade, 2**13)
    shared = replace(own, sizes={**own.sizes, "g": 2, "j": 4})
    apart, grouped = (estimate_of(w, gpu, family_of(gpu), FIXED) for w in (own, shared))
    assert grouped.bounds_s["tensor cores"][0] == pytest.approx(apart.bounds_s["tensor cores"][0])
    assert sum(k.l2_bytes[0] for k in grouped.kernels) * ROUNDING >= sum(k.hbm_bytes[0] for k in grouped.kernels)


@pytest.mark.parametrize("cascade", SEQUENCES)
def test_what_a_recurrence_takes_from_hbm_and_writes_there_passes_l2(cascade: str) -> None:
    """A block writes the results of a chunk with the chunk, not once at its end."""
    gpu = load_hardware("h100-sxm")
    for kernel in estimate_of(recurrence(cascade, 2**15), gpu, family_of(gpu), FIXED).kernels:
        assert kernel.l2_bytes[0] * ROUNDING >= kernel.hbm_bytes[0] > 0


@pytest.mark.parametrize("cascade", SEQUENCES)
def test_a_recurrence_has_as_many_queries_as_keys(cascade: str) -> None:
    with pytest.raises(WorkloadError, match="walks one sequence"):
        Workload("x", cascade, {"h": 8, "m": 1, "n": 64, "e": 64}, phase="decode").check()


@pytest.mark.parametrize("cascade", CASCADES)
def test_work_is_conserved_whatever_the_splits(cascade: str) -> None:
    """Splitting moves tiles between blocks; the cycles that the tensor cores need stay the same."""
    gpu = load_hardware("h100-sxm")
    whole = estimate_of(workload(cascade, n=8192), gpu, family_of(gpu), FIXED)
    parts = estimate_of(workload(cascade, n=8192), gpu, family_of(gpu), replace(FIXED, splits=4))
    for unit in ("tensor cores", "special functions", "shared memory"):
        assert np.isclose(whole.bounds_s[unit][0], parts.bounds_s[unit][0])


def test_a_warm_small_problem_does_not_touch_hbm_and_a_large_one_does() -> None:
    gpu = load_hardware("h100-sxm")
    small = estimate_of(workload("one_pass", 512, 512, cache="warm"), gpu, family_of(gpu), FIXED)
    large = estimate_of(workload("one_pass", 512, 200_000, b=8, cache="warm"), gpu, family_of(gpu), FIXED)
    cold = estimate_of(workload("one_pass", 512, 200_000, b=8), gpu, family_of(gpu), FIXED)
    assert small.bounds_s["HBM"][0] == 0
    assert large.bounds_s["HBM"][0] == pytest.approx(cold.bounds_s["HBM"][0])
