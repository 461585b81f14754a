"""How decode kernels choose tiles, parts and residency: rules read off measured steps, and what they do to a prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from einsight.sim.estimate import Estimate, estimate
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import Gpu, Quantity, load_gpu
from einsight.sim.mapping import choose_splits
from einsight.sim.mask import Mask, Window
from einsight.sim.rows import attention_plan

H100, B200, L40S = load_gpu("h100-sxm"), load_gpu("b200"), load_gpu("l40s")


def decode(
    gpu: Gpu, family: Family, batch: int, keys: int, group: int, head_dim: int = 128, kv: str = "bf16", kv_heads: int = 1,
    mask: Mask | None = None,
) -> Estimate:  # fmt: skip
    sizes = {"B": batch, "G": kv_heads, "J": group, "M": 1, "N": keys, "E": head_dim, "F": head_dim}
    arrays = {name: np.array([float(value)]) for name, value in sizes.items()}
    return estimate(attention_plan("bf16", kv, kv), mask or Mask(), arrays, True, gpu, family)


def with_constant(family: Family, name: str, value: float) -> Family:
    return replace(family, fits=(), constants={**family.constants, name: Quantity(value, str(value), "assumed", "test")})


@pytest.mark.parametrize(("keys", "blocks", "parts"), [
    (100, 64, 1), (1024, 64, 8), (2048, 16, 11), (8192, 4, 23), (65536, 1, 64), (8192, 64, 16), (131072, 128, 8),
])  # fmt: skip
def test_xqa_parts_grow_with_the_root_of_the_length_and_fill_eight_waves(keys: int, blocks: int, parts: int) -> None:
    """128 keys a part at least; round(sqrt(8 x keys / 128)) parts at most; 8 x 132 blocks at most."""
    rule = load_family("xqa").split["decode"]
    n = np.array([float(keys)])
    found = choose_splits(rule, np.array([float(blocks)]), np.ones(1), np.ceil(n / 256), n, 132, np.ones(1), 128.0)
    assert found[0] == parts


@pytest.mark.parametrize(("heads", "keys", "parts", "resident"), [
    (96, 1024, 2, 1), (16, 4096, 8, 1), (16, 8192, 9, 1), (256, 64, 1, 2), (512, 64, 1, 2), (1024, 64, 1, 4),
])  # fmt: skip
def test_mmha_parts_reach_past_the_sms_and_blocks_grow(heads: int, keys: int, parts: int, resident: int) -> None:
    """At head dimension 64 a part has 512 keys at least; the last SMs are filled: 16 heads of 9 parts take two rounds."""
    found = decode(H100, load_family("mmha"), heads, keys, 1, 64).cases
    assert (found.splits[0], found.blocks_per_sm[0]) == (parts, resident)


@pytest.mark.parametrize(("group", "head_dim", "kv", "keys", "blocks"), [
    (8, 128, "bf16", 64, 2), (8, 256, "bf16", 64, 1), (8, 64, "fp8_e4m3", 256, 2), (8, 128, "fp8_e4m3", 128, 2),
    (8, 256, "fp8_e4m3", 64, 1), (32, 128, "bf16", 64, 2), (32, 256, "bf16", 16, 2), (32, 256, "fp8_e4m3", 32, 2),
    (32, 128, "fp8_e4m3", 128, 2),
])  # fmt: skip
def test_flashinfer_tiles_follow_shared_memory(group: int, head_dim: int, kv: str, keys: int, blocks: int) -> None:
    """The steps of the measured time with the length on L40S; results of four warps are merged in shared memory, which
    leaves room for one block of 256 elements."""
    found = decode(L40S, load_family("flashinfer"), 64, 4096, group, head_dim, kv).cases
    assert (found.block_n[0], found.blocks_per_sm[0]) == (keys, blocks)
    assert decode(H100, load_family("flashinfer"), 64, 4096, group, head_dim, kv).cases.block_n[0] >= keys


def test_a_tile_past_the_last_key_is_not_fetched() -> None:
    family = load_family("trtllm_gen")
    short, full = (decode(B200, family, 4096, keys, 8).kernels[0] for keys in (16, 256))
    assert short.l2_bytes[0] < full.l2_bytes[0] / 8
    assert short.shared_bytes[0] == full.shared_bytes[0]


def test_rows_are_reduced_by_tile_and_moved_by_query() -> None:
    """17 to 32 packed heads share a tile of 32 rows: the step is at 16, and beyond it only the bytes grow."""
    family = with_constant(load_family("trtllm_gen"), "row_cycles", 100.0)
    t = {g: decode(B200, family, 4096, 16, g).time_s[0] for g in (8, 15, 16, 17, 32)}
    assert t[17] - t[16] > 4 * (t[16] - t[15]) > 0
    assert t[32] > t[17]


@pytest.mark.parametrize(("group", "head_dim", "rows", "blocks"), [
    (8, 256, 8, 3), (12, 256, 16, 2), (16, 128, 16, 3), (17, 128, 24, 2), (32, 128, 32, 2), (32, 64, 32, 3), (16, 192, 16, 2),
])  # fmt: skip
def test_blocks_with_large_results_leave_room_for_fewer(group: int, head_dim: int, rows: int, blocks: int) -> None:
    """XQA for an 8-bit cache is built for three blocks on an SM up to 2048 elements of result, else for two: the measured time
    of 4096 short sequences doubles from 8 to 12 query heads at 256 elements and from 16 to 32 at 128."""
    found = decode(H100, load_family("xqa_fp8"), 64, 4096, group, head_dim, "fp8_e4m3").cases
    assert (found.block_m[0], found.block_n[0], found.blocks_per_sm[0]) == (rows, 64, blocks)


def test_results_cost_by_the_rows_and_elements_that_a_tile_holds() -> None:
    """One of 8 rows or all of them, 192 elements or the 256 that the kernel is built for: the blocks of an SM take turns."""
    family = replace(load_family("xqa_fp8"), fits=())
    slow, fast = (with_constant(family, "result_cycles", c) for c in (2.0, 0.0))
    for per_sm, group, head_dim in ((1, 8, 256), (3, 8, 256), (3, 1, 192)):
        sequences = per_sm * int(H100.sms.value)
        more, less = (float(decode(H100, f, sequences, 16, group, head_dim, "fp8_e4m3").time_s[0]) for f in (slow, fast))
        assert more - less == pytest.approx(2.0 * per_sm * 8 * 256 / H100.boost_hz.value, rel=1e-4)


def test_a_window_is_dealt_to_parts_in_turn_or_lies_in_some_of_them() -> None:
    """XQA for an 8-bit cache: part i begins at tile i of the window, and those beyond its tiles leave at once. The other one
    cuts the whole cache: a window of a sixteenth of it lies in a sixteenth of the parts."""
    window = Mask((Window(8192),))
    dealt, cut = (
        decode(H100, load_family(name), 4, 131072, 8, 128, kv, mask=window).cases
        for name, kv in (("xqa_fp8", "fp8_e4m3"), ("xqa", "bf16"))
    )
    assert (dealt.splits[0], dealt.idle_parts[0]) == (91, 0)  # sqrt(8 x 1024) parts, 129 tiles of 64 keys
    assert (cut.splits[0], cut.idle_parts[0]) == (6, 85)
    short = decode(H100, load_family("xqa_fp8"), 4, 131072, 8, 128, "fp8_e4m3", mask=Mask((Window(128),))).cases
    assert (short.splits[0], short.idle_parts[0]) == (2, 89)


def test_keys_of_192_elements_are_computed_as_256_and_read_as_192() -> None:
    family = replace(load_family("xqa"), fits=())
    narrow, wide = (decode(H100, family, 64, 4096, 8, d).kernels[0] for d in (192, 256))
    assert narrow.bounds_s["tensor cores"][0] == wide.bounds_s["tensor cores"][0]
    assert narrow.hbm_bytes[0] == pytest.approx(0.75 * wide.hbm_bytes[0])


def test_conversion_costs_a_narrow_cache_alone_and_every_reading() -> None:
    plain = with_constant(load_family("flashinfer"), "convert_per_element", 0.0)
    slow = with_constant(load_family("flashinfer"), "convert_per_element", 8.0)

    def pipe(family: Family, kv: str, group: int) -> float:
        return float(decode(L40S, family, 64, 4096, group, kv=kv).kernels[0].bounds_s["fp32 pipe"][0])

    assert pipe(slow, "bf16", 8) == pipe(plain, "bf16", 8)
    one, four = (pipe(slow, "fp8_e4m3", g) - pipe(plain, "fp8_e4m3", g) for g in (16, 64))
    assert four == pytest.approx(4 * one) and one > 0
    cache = replace(load_family("xqa_fp8"), fits=())
    assert decode(H100, with_constant(cache, "convert_per_element", 8.0), 64, 4096, 8, kv="fp8_e4m3").time_s[0] == (
        decode(H100, cache, 64, 4096, 8, kv="fp8_e4m3").time_s[0]
    )


def test_merging_inside_the_kernel_costs_blocks_of_split_runs_alone() -> None:
    family = replace(load_family("mmha"), fits=())
    more = with_constant(family, "part_cycles", 10000.0)
    for heads, split in ((16, True), (256, False)):
        slow, fast = (float(decode(H100, f, heads, 8192, 1).time_s[0]) for f in (more, family))
        assert (slow > fast) is split


def test_parts_before_a_window_still_run() -> None:
    window = Mask((Window(128),))
    found = decode(H100, load_family("mmha"), 16, 131072, 1, mask=window).cases
    assert found.splits[0] + found.idle_parts[0] == 9 and found.idle_parts[0] > 0


def test_constants_travel_to_chips_with_as_much_shared_memory() -> None:
    """FlashInfer on H100 takes what was fitted on B200, whose SM is as large, not L40S's; RTX PRO 6000 takes L40S's."""
    for name, nearest in (("h100-sxm", "sm_100"), ("h200-sxm", "sm_100"), ("rtx-pro-6000", "sm_89")):
        note = load_family("flashinfer").on(load_gpu(name), "decode", "bf16", "bf16", "SGLang")[1]
        assert f"fitted for {nearest} " in note


def test_a_library_keeps_its_own_copies_in_any_framework() -> None:
    """FlashAttention-2 regroups the heads of a decode call itself: no other kernel of the same framework pays for it."""
    flash2, flash3 = (
        load_family(f).on(gpu, "decode", "bf16", "bf16", "VLLM")[0] for f, gpu in (("flash2", L40S), ("flash3", H100))
    )
    assert flash2.constant("regroup_s") > 0.0 == flash3.constant("regroup_s")


def test_what_of_l2_is_usable_stays_with_the_class_of_chips() -> None:
    """A100's L2 is two halves, L40S's is one: L40S takes no share of L2 from A100, RTX PRO 6000 takes L40S's."""
    pro = load_gpu("rtx-pro-6000")
    for name, fitted, there, kept in (("flash2", "sm_80", L40S, False), ("flashinfer", "sm_89", pro, True)):
        family = load_family(name)
        fits = tuple(f for f in family.fits if (f.architecture, f.phase, f.dtypes) == (fitted, "decode", ("bf16", "bf16")))
        found = replace(family, fits=fits).on(there, "decode", "bf16", "bf16")[0].constant("l2_usable")
        assert found == (fits[0].constants["l2_usable"] if kept else 0.7)
