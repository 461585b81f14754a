"""What the prefill kernels of serving frameworks do beside the plain tile loop: planned splits, windows that are walked,
chunks, keys that come fresh, tiles that share an SM, and the clock of long runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from einsight.sim.calibration import Sample, constants_for
from einsight.sim.cases import Cases
from einsight.sim.estimate import build_cases, estimate
from einsight.sim.family import Family, load_family
from einsight.sim.framework import ADDED, added, additions
from einsight.sim.hardware import Gpu, Quantity, load_gpu
from einsight.sim.kernel_names import acting_phases, chunks, reads_fresh
from einsight.sim.mapping import Mapping
from einsight.sim.mask import CAUSAL, Causal, Mask, Window
from einsight.sim.rows import Rows, attention_plan, groups, sizes_of, times

L40S, H100 = load_gpu("l40s"), load_gpu("h100-sxm")


def rows(batch: int = 1, seq: int = 1024, heads: int = 8, kv_heads: int = 1, head_dim: int = 128, window: int = 0,
         chunk: int = 0, cache: str = "bf16", read: str = "") -> Rows:  # fmt: skip
    numbers = (np.array([float(x)]) for x in (batch, seq, seq, heads, kv_heads, head_dim, head_dim, window, chunk))
    return Rows(*numbers, *(np.array([t]) for t in ("bf16", cache, read or cache)))


def cases(family: Family, of: Rows, gpu: object = L40S) -> Cases:
    (plan, mask, _), = groups(of)  # fmt: skip
    return build_cases(plan, mask, sizes_of(of), True, gpu, family, None)[0]  # type: ignore[arg-type]


def plain(name: str) -> Family:
    """The family with its assumed constants."""
    return replace(load_family(name), fits=())


def test_flashinfer_takes_as_many_keys_as_let_two_blocks_fit() -> None:
    family = plain("flashinfer")

    def tile(head_dim: int, cache: str) -> tuple[float, float, float]:
        made = cases(family, rows(head_dim=head_dim, cache=cache))
        return made.block_m[0], made.block_n[0], made.blocks_per_sm[0]

    assert tile(64, "fp8_e4m3") == (128, 64, 2)
    assert tile(128, "bf16") == (128, 32, 2)
    assert tile(128, "fp8_e4m3") == (128, 64, 2)
    assert tile(256, "bf16") == (64, 16, 2)
    assert tile(256, "fp8_e4m3") == (64, 32, 2)


def test_flashinfer_plans_parts_of_128_keys_and_more_while_two_blocks_per_sm_are_free() -> None:
    """284 places: 16 tiles of 128 packed rows and 8 sequences leave room for two parts, twice the rows for one."""
    family = plain("flashinfer")
    splits = {seq: float(cases(family, rows(batch=8, seq=seq, head_dim=64)).splits[0]) for seq in (128, 256, 512)}
    assert splits == {128: 1.0, 256: 2.0, 512: 1.0}
    assert float(cases(family, rows(batch=1, seq=1024, head_dim=64)).splits[0]) == 4.0


def test_merging_costs_by_rows_so_that_the_longer_sequence_without_parts_is_faster() -> None:
    """Measured on L40S with vLLM, 8 sequences of 8 query heads on one KV head, head dimension 64: 67 and 31 us."""
    family, _ = load_family("flashinfer").on(L40S, "prefill", "bf16", "fp8_e4m3", "VLLM")
    split, whole = (times(rows(8, seq, head_dim=64, cache="fp8_e4m3"), L40S, family)[0] for seq in (256, 512))
    assert split == pytest.approx(67e-6, rel=0.25)
    assert whole == pytest.approx(31e-6, rel=0.25)


def test_keys_of_a_tile_that_fails_the_window_test_are_loaded_all_the_same() -> None:
    """64 rows by 128 keys: of 32 x 33 causal tiles of a head, a window of 128 keys leaves two or three per block of rows."""
    walks = plain("triton_extend")
    skips = replace(walks, window_skips=True)
    for cache, width in (("bf16", 2), ("fp8_e4m3", 1)):
        of = rows(seq=4096, heads=8, kv_heads=8, head_dim=64, window=128, cache=cache)
        (plan, mask, _), = groups(of)  # fmt: skip
        made = cases(walks, of)
        assert made.visited is not None and (made.block_m[0], made.block_n[0]) == (64, 128)
        assert made.visited.total[0] == 32 * 33
        passed = float(made.visited.total[0] - made.tiles.total[0])
        assert 32 * 33 - 3 * 64 <= passed <= 32 * 33 - 64
        near = [estimate(plan, mask, sizes_of(of), True, L40S, f).bounds_s["L2"][0] for f in (walks, skips)]
        rate = L40S.architecture.l2_bytes_per_cycle.value * L40S.sms.value * L40S.boost_hz.value
        assert (near[0] - near[1]) * rate == pytest.approx(8 * passed * 128 * 64 * width)


def test_narrow_keys_are_widened_by_every_warp_that_reads_them() -> None:
    """64 rows in four warps read each key four times, as 128 rows do: per score and element it costs twice."""
    family = plain("flashinfer")
    busy = replace(family.constants["convert_per_element"], value=16.0)  # beyond what the products hide
    family = replace(family, constants={**family.constants, "convert_per_element": busy})
    free = replace(family, constants={n: q for n, q in family.constants.items() if n != "convert_per_element"})

    def added(head_dim: int) -> float:
        of = rows(batch=8, seq=8192, heads=32, kv_heads=8, head_dim=head_dim, cache="fp8_e4m3")
        return float(times(of, L40S, family)[0] - times(of, L40S, free)[0]) / head_dim

    assert added(256) > 1.5 * added(128) > 0.0
    fresh = rows(batch=8, seq=8192, heads=32, kv_heads=8, cache="fp8_e4m3", read="bf16")
    assert times(fresh, L40S, family) == times(fresh, L40S, free)


def test_widening_that_nothing_hides_takes_its_turn_with_the_products() -> None:
    """Two blocks on an SM: fully hidden, the longer of products and lanes counts; in turn, products and widening do."""
    family = plain("flashinfer")
    long = rows(batch=8, seq=8192, heads=32, kv_heads=8, cache="fp8_e4m3")

    def seconds(unhidden: float, of: Rows = long) -> float:
        given = replace(family.constants["convert_unhidden"], value=unhidden)
        return float(times(of, L40S, replace(family, constants={**family.constants, "convert_unhidden": given}))[0])

    hidden, half, in_turn = map(seconds, (0.0, 0.5, 1.0))
    assert hidden < half < in_turn
    tile, readings = 128 * 128, 4  # elements of keys and values per tile of 64 keys, warps that read them
    widening = 2 * tile / 2 * readings * 8 / L40S.architecture.vector_ops_per_cycle.value  # cycles of one tile, 8 per element
    products = 4 * 128 * 64 * 128 / L40S.tensor_flops_per_cycle["bf16"].value / family.constant("mma_efficiency")
    assert widening < products  # so that the products are what counts where widening is hidden
    assert 1.0 < in_turn / hidden <= 1.0 + widening / products
    wide = rows(batch=8, seq=8192, heads=32, kv_heads=8)
    assert seconds(0.0, wide) == seconds(1.0, wide)


def test_fresh_keys_cost_what_16_bit_ones_do_beside_the_cache_writer() -> None:
    family = plain("flashinfer")
    narrow, wide = (cases(family, rows(cache=cache, read="bf16")) for cache in ("fp8_e4m3", "bf16"))
    assert narrow.widths["K"] == wide.widths["K"] == 2.0
    assert (narrow.stored, wide.stored) == (1.0, None)
    assert reads_fresh("flashinfer", "SGLang 0.5.14", "prefill")
    assert not reads_fresh("flashinfer", "SGLang 0.5.14", "decode")
    assert not reads_fresh("vllm_flashinfer_fiprefill", "VLLM 0.24.0", "prefill")


def test_a_chunked_run_is_one_run_per_chunk() -> None:
    family = plain("flash3")
    whole, chunked = (cases(family, rows(seq=16384, heads=40, kv_heads=8, window=8192, chunk=c), H100) for c in (0, 8192))
    parts = cases(family, rows(batch=2, seq=8192, heads=40, kv_heads=8), H100)
    assert chunked.tiles.total[0] == pytest.approx(2 * parts.tiles.total[0])
    assert chunked.tiles.longest[0] == parts.tiles.longest[0]
    assert whole.tiles.total[0] > 1.4 * chunked.tiles.total[0]
    short = rows(seq=4096, heads=40, kv_heads=8, window=8192, chunk=8192)
    assert times(short, H100, family) == times(rows(seq=4096, heads=40, kv_heads=8), H100, family)


def test_which_rows_are_chunked() -> None:
    dims, window = np.array([128.0, 128.0, 64.0]), np.array([8192.0, 128.0, 8192.0])
    assert chunks("fa3", "SGLang 0.5.14", "prefill", dims, window).tolist() == [8192.0, 0.0, 0.0]
    assert chunks("fa3", "SGLang 0.5.14", "decode", dims, window).tolist() == [0.0, 0.0, 0.0]
    assert chunks("vllm_flash_attn_fa3", "VLLM 1.0", "prefill", dims, window).tolist() == [0.0, 0.0, 0.0]


def test_a_kernel_that_tests_every_tile_is_slower_with_a_window_than_without() -> None:
    """SGLang's Triton prefill: every tile pays the test, so a window that hides nothing costs, and much of the causal
    tiles' time is left when nearly all are passed over."""
    family = plain("triton_extend")

    def time(seq: int, mask: Mask) -> float:
        one = {n: np.array([float(x)]) for n, x in
               {"B": 8, "G": 8, "J": 8, "M": seq, "N": seq, "E": 64, "F": 64}.items()}  # fmt: skip
        return float(estimate(attention_plan("bf16", "bf16", "bf16"), mask, one, True, L40S, family).time_s[0])

    window = Mask((Causal(), Window(128)))
    assert time(128, window) > 1.3 * time(128, CAUSAL)
    assert 0.5 * time(16384, CAUSAL) < time(16384, window) < 1.5 * time(16384, CAUSAL)


def test_tile_lines_by_architecture_and_warps_of_a_line() -> None:
    family = plain("triton_extend")
    assert cases(family, rows(head_dim=128), H100).block_m[0] == 128
    assert cases(family, rows(head_dim=128)).block_m[0] == 64
    assert float(cases(family, rows(head_dim=128)).warps[0]) == 8.0  # type: ignore[index]
    assert float(cases(family, rows(head_dim=64)).warps[0]) == 4.0  # type: ignore[index]
    given = Mapping(block_m=64, block_n=64)
    (plan, mask, _), = groups(rows())  # fmt: skip
    assert build_cases(plan, mask, sizes_of(rows()), True, L40S, family, given)[0].warps is None


def test_keys_past_the_last_one_are_not_fetched() -> None:
    """One token: a block reads one key, however wide its tile."""
    family = plain("flash3")

    def l2_bytes(seq: int) -> float:
        (plan, mask, _), = groups(rows(batch=256, seq=seq, heads=96, kv_heads=96))  # fmt: skip
        of = rows(batch=256, seq=seq, heads=96, kv_heads=96)
        return float(estimate(plan, mask, sizes_of(of), True, H100, family).kernels[0].l2_bytes[0])

    blocks, key = 256 * 96, 2 * 128 * 2.0  # K and V of one position, bf16
    assert l2_bytes(2) - l2_bytes(1) == pytest.approx(blocks * key)
    assert l2_bytes(128) - l2_bytes(64) == pytest.approx(64 * blocks * key)


def test_products_end_with_the_last_key_where_the_kernel_leaves_the_rest_out() -> None:
    """TensorRT-LLM on Blackwell multiplies up to the last 16 keys that hold any, on Hopper whole tiles of 128."""
    def tensor_cores(name: str, seq: int) -> float:
        of = rows(batch=64, seq=seq, heads=32, kv_heads=8)
        (plan, mask, _), = groups(of)  # fmt: skip
        gpu = load_gpu("b200") if name == "trtllm_blackwell" else H100
        return float(estimate(plan, mask, sizes_of(of), True, gpu, plain(name)).kernels[0].bounds_s["tensor cores"][0])

    one, forty, full, more = (tensor_cores("trtllm_blackwell", n) for n in (1, 40, 128, 129))
    assert forty == pytest.approx(3 * one) and full == pytest.approx(8 * one)
    assert more > full
    assert tensor_cores("trtllm_hopper", 1) == pytest.approx(tensor_cores("trtllm_hopper", 40))


def test_the_sustained_clock_follows_from_boost_tdp_and_energy() -> None:
    for gpu in (L40S, H100):
        drawn = gpu.architecture.joule_per_flop("bf16") * gpu.tensor_flops_per_s("bf16") / gpu.tdp_w.value
        assert gpu.sustained_hz("bf16") == pytest.approx(gpu.boost_hz.value / (1.0 + drawn))
        assert 0.6 * gpu.boost_hz.value < gpu.sustained_hz("bf16") < 0.95 * gpu.boost_hz.value
    cool = replace(L40S, tdp_w=replace(L40S.tdp_w, value=1e9))
    assert cool.sustained_hz("bf16") == pytest.approx(L40S.boost_hz.value)
    family, long = plain("flash2"), rows(batch=64, seq=8192, heads=32, kv_heads=8)
    brief = rows(seq=1024)
    assert times(long, L40S, family)[0] > 1.1 * times(long, cool, family)[0]
    assert times(brief, L40S, family)[0] < 1.01 * times(brief, cool, family)[0]


def test_bytes_from_l2_lower_the_clock_of_long_runs_on_the_sms_alone() -> None:
    """Narrow tiles fetch each key more often: their run falls further. HBM has a clock of its own."""

    def on(joule_per_byte: float) -> Gpu:
        energy = Quantity(joule_per_byte, "given", "assumed", "a test")
        return replace(L40S, architecture=replace(L40S.architecture, l2_energy=energy))

    family, dear, free = plain("flash2"), on(50e-12), on(0.0)
    (plan, mask, _), = groups(long := rows(batch=64, seq=8192, heads=32, kv_heads=8))  # fmt: skip

    def slower(block_m: int) -> float:
        given = Mapping(block_m=block_m, block_n=64)
        found = [estimate(plan, mask, sizes_of(long), True, gpu, family, given).time_s[0] for gpu in (dear, free)]
        return float(found[0] - found[1])

    assert slower(64) == pytest.approx(2.0 * slower(128), rel=0.05)
    brief = rows(seq=1024)
    assert times(brief, dear, family)[0] < 1.001 * times(brief, free, family)[0]
    far = replace(free, hbm_bytes_per_s=replace(L40S.hbm_bytes_per_s, value=1e9))
    near = replace(far, architecture=dear.architecture)
    none = replace(family.constants["unhidden_memory"], value=0.0)
    hidden = replace(family, constants={**family.constants, "unhidden_memory": none})
    assert times(long, near, hidden)[0] == times(long, far, hidden)[0]


def test_other_instructions_keep_the_products_per_cycle_not_the_share_of_the_peak() -> None:
    """A kernel fitted on wgmma, taken to mma.sync: the share of the peak grows as the peak shrinks."""
    family = load_family("triton_extend")
    there = replace(family, fits=tuple(f for f in family.fits if f.architecture == "sm_90"))
    own, _ = there.on(H100, "prefill", "bf16", "bf16", "SGLang")
    far, note = there.on(L40S, "prefill", "bf16", "bf16", "SGLang")
    rates = [g.tensor_flops_per_cycle["bf16"].value for g in (H100, L40S)]
    kept = own.constant("mma_efficiency") * rates[0] / rates[1]
    assert far.constant("mma_efficiency") == pytest.approx(min(kept, 1.0))
    assert "none for sm_89" in note


def test_another_phase_on_other_instructions_is_no_ground_for_constants() -> None:
    family = load_family("flashinfer")
    decode = replace(family, fits=tuple(f for f in family.fits if f.phase == "decode" and f.architecture == "sm_100"))
    found, note = decode.on(L40S, "prefill", "bf16", "bf16", "SGLang")
    of_kernel, assumed = ({n: q for n, q in f.constants.items() if n not in ADDED} for f in (found, family))
    assert of_kernel == assumed
    assert "assumed" in note


PLAIN = ("bf16", "bf16")


def test_a_kernel_that_was_never_fitted_has_its_framework_s_copies_around_it() -> None:
    """A framework writes its cache and orders its queries the same way, whichever kernel comes after."""
    family = plain("trtllm_hopper")
    brought = {n: v for n, v in added("TRTLLM", family.name, "sm_90", "prefill", ("bf16", "bf16")).items() if n in ADDED}
    assert brought["q_copy"] > 0 and family.constant("q_copy") == 0.0
    there, note = family.on(H100, "prefill", "bf16", "bf16", "TRTLLM")
    assert {n: there.constant(n) for n in brought} == brought and not note
    assert there.constant("launch_s") == family.constant("launch_s")  # part of the kernel's, so not another's
    for unknown in ("", "nobody's"):
        assert family.on(H100, "prefill", "bf16", "bf16", unknown)[0] == family


def test_around_a_kernel_that_a_framework_was_never_fitted_with_copies_are_those_of_most_of_its_kernels() -> None:
    entries = [a for a in additions("TRTLLM") if (a.phase, a.dtypes) == ("prefill", PLAIN)]
    kernels = {(a.family, a.architecture): a.constants for a in entries}
    assert len(kernels) == 3
    found = added("TRTLLM", "trtllm_mma", "sm_120", "prefill", PLAIN)
    for name in ("kv_copy", "q_copy"):
        assert found[name] == sorted(c.get(name, 0.0) for c in kernels.values())[1] > 0
    assert "launch_s" not in found


def test_one_new_token_is_a_decode_to_frameworks_that_go_by_their_number() -> None:
    frameworks = np.array(["VLLM 0.24.0", "VLLM 0.24.0", "SGLang 0.5.14"])
    found = acting_phases(frameworks, np.array(["prefill"] * 3), np.array([1.0, 2.0, 1.0]))
    assert found.tolist() == ["decode", "prefill", "prefill"]


def test_constants_that_the_rows_can_tell() -> None:
    """Copies of 16-bit queries where something makes them; widening where keys are narrower than the products."""

    def names(family: str, of: Rows) -> tuple[str, ...]:
        return constants_for(load_family(family), "prefill", [Sample(L40S, of, np.ones(1))])

    assert "q_copy" not in names("flash3", rows())
    assert "q_copy" in names("trtllm_mma", rows())
    assert "convert_per_element" in names("flashinfer", rows(cache="fp8_e4m3"))
    assert "convert_per_element" not in names("flashinfer", rows(cache="fp8_e4m3", read="bf16"))
    assert "merge_cycles" in names("flashinfer", rows())
    assert "merge_cycles" not in names("flash2", rows())
