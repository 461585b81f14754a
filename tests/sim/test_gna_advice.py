"""Advice: every stride and tile at once gives what one at a time gives, and what it recommends holds."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from einsight.sim.gna_advice import (
    Strides,
    advise,
    all_strides,
    best_tiles,
    every_stride,
    legal_pairs,
    over_windows,
    stride_choices,
)
from einsight.sim.gna_bounds import block_sparsity, bounds
from einsight.sim.gna_kernel import kernel_for, load_gna_kernel
from einsight.sim.gna_tiles import count_tiles
from einsight.sim.gna_time import Problem, attention_times, predict_gna
from einsight.sim.hardware import load_hardware
from einsight.sim.mask import Gna

GPU = load_hardware("h100-sxm")
KERNEL = kernel_for(GPU)
SMALL = Problem(Gna((12, 16, 24), (6, 8, 8), (2, 3, 1), (1, 2, 1), (False, False, False)), heads=8, head_dim=128)


def at(problem: Problem, stride: tuple[int, ...]) -> Problem:
    return replace(problem, gna=replace(problem.gna, stride=stride))


@pytest.mark.parametrize("name", ["hopper-fna", "cutlass-fna", "triton-gna"])
def test_all_strides_at_once_are_each_stride_alone(name: str) -> None:
    kernel = load_gna_kernel(name)
    pair = legal_pairs(SMALL, kernel)[0]
    swept: Strides = all_strides(SMALL, GPU, kernel, pair)
    assert len(swept.stride) == 6 * 8 * 8
    for i in range(0, len(swept.stride), 29):
        case = at(SMALL, tuple(swept.stride[i].tolist()))
        tiles = count_tiles(case.gna, pair.q, pair.kv, kernel.tiling)
        bound = bounds(case.gna, tiles)
        assert swept.worst[i] == pytest.approx(bound.worst) and swept.average[i] == pytest.approx(bound.average)
        assert swept.fully[i] == block_sparsity(case.gna, pair.q, pair.kv, kernel.tiling).fully
        alone = predict_gna(case, GPU, kernel, pair.q, pair.kv, kernel.tiling)
        assert swept.time_s[i] == pytest.approx(alone.time_s) and swept.permute_s == pytest.approx(alone.permute_s)


@pytest.mark.parametrize("causal", [False, True])
def test_every_stride_comes_with_what_its_best_tiles_give(causal: bool) -> None:
    case = replace(SMALL, gna=replace(SMALL.gna, causal=(causal, False, False)))
    pairs = legal_pairs(case, KERNEL)
    found = every_stride(case, GPU, KERNEL, pairs)
    assert len({c.stride for c in found}) == len(found) == 6 * 8 * 8
    assert [prod(c.stride) for c in found] == sorted(prod(c.stride) for c in found)
    for c in found[::41]:
        alone = best_tiles(at(case, c.stride), GPU, KERNEL, pairs)[0]
        for name in ("flop_speedup", "tile_speedup_max", "tile_speedup_avg", "time_s", "total_s", "dense_s"):
            same_time = c.tiles == alone.tiles or name == "total_s"  # of pairs equally fast any may stand
            assert not same_time or getattr(c, name) == pytest.approx(getattr(alone, name)), name


def test_advice_holds() -> None:
    video = Problem(Gna((30, 48, 80), (18, 24, 24), (1, 8, 8), (1, 1, 1), (False,) * 3), heads=24, head_dim=128)
    found = advise(video, GPU, KERNEL, legal_pairs(video, KERNEL))
    assert [c.total_s for c in found.tiles] == sorted(c.total_s for c in found.tiles)
    assert len(found.tiles) == len(legal_pairs(video, KERNEL))
    for c in found.near:
        assert block_sparsity(at(video, c.stride).gna, c.tiles.q, c.tiles.kv).fully
    assert found.near[0].stride == (2, 8, 8)
    assert all(c.total_s < found.tiles[0].total_s for c in found.better)
    assert all(c.flop_speedup == found.tiles[0].flop_speedup for c in found.better)
    shared = [prod(c.stride) for c in found.front]
    times = [c.total_s for c in found.front]
    assert shared == sorted(shared) and times == sorted(times, reverse=True)
    assert found.front[0].stride == (1, 1, 1)


def test_a_causal_dimension_has_no_fully_block_sparse_stride() -> None:
    causal = replace(SMALL, gna=replace(SMALL.gna, causal=(True, False, False)))
    assert advise(causal, GPU, KERNEL, legal_pairs(causal, KERNEL)).near == ()


@pytest.mark.parametrize("name", ["hopper-fna", "triton-gna"])
def test_near_strides_are_the_nearest_fully_block_sparse_ones(name: str) -> None:
    """Against every stride with every pair of tiles, one at a time: by distance, then by time."""
    kernel, asked = load_gna_kernel(name), SMALL.gna.stride
    pairs = legal_pairs(SMALL, kernel)[:3]
    best: dict[tuple[int, ...], tuple[float, float]] = {}
    for pair in pairs:
        swept = all_strides(SMALL, GPU, kernel, pair)
        for i in np.flatnonzero(swept.fully):
            stride = tuple(swept.stride[i].tolist())
            distance = sum(abs(float(np.log2(a / b))) for a, b in zip(stride, asked, strict=True))
            best[stride] = min(best.get(stride, (distance, np.inf)), (distance, swept.time_s[i] + swept.permute_s))
    found = advise(SMALL, GPU, kernel, pairs).near
    wanted = sorted(best.values())[:3]
    assert [best[c.stride] for c in found] == wanted and len(found) == min(3, len(best)) > 0
    assert [c.total_s for c in found] == pytest.approx([time for _, time in wanted])
    assert all(c.fully_block_sparse for c in found)


def test_strides_with_the_same_tiles_are_predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of the whole grid has the same tiles at every stride: one case for each pair, not 12 * 16 * 24."""
    cases: list[int] = []

    def counted(*args: object) -> object:
        cases.append(args[-1].total.size)  # type: ignore[attr-defined]
        return attention_times(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("einsight.sim.gna_advice.attention_times", counted)
    whole = replace(SMALL, gna=Gna((12, 16, 24), (12, 16, 24), (1, 1, 1), (1, 1, 1), (False,) * 3))
    swept = all_strides(whole, GPU, KERNEL, legal_pairs(whole, KERNEL)[0])
    assert cases == [1]
    assert len(swept.stride) == len(swept.time_s) == 12 * 16 * 24 and len({*swept.time_s.tolist()}) == 1


@pytest.mark.parametrize(("rank", "pairs", "large"), [(1, 3, 1), (2, 27, 10), (3, 76, 30)])
def test_natten_s_cutlass_tiles_are_all_there(rank: int, pairs: int, large: int) -> None:
    """Every box without a side of 1 of 64 x 64, 64 x 128 and 32 x 128; 64 x 128 is not built for compute capability 8.9."""
    kernel = load_gna_kernel("cutlass-fna")
    case = Problem(Gna((64,) * rank, (32,) * rank, (1,) * rank, (1,) * rank, (False,) * rank), head_dim=128)
    on_a100, on_ada = (legal_pairs(case, kernel, load_hardware(name)) for name in ("a100-sxm-80gb", "rtx-4090"))
    assert len({(t.q, t.kv) for t in on_a100}) == len(on_a100) == pairs
    assert set(on_a100) - set(on_ada) == {t for t in on_a100 if prod(t.q) * prod(t.kv) == 64 * 128}
    assert len(on_ada) == pairs - large
    for t in on_a100:
        grown = [b // a for a, b in zip(t.q, t.kv, strict=True) if b % a == 0]
        assert len(grown) == rank and prod(grown) == {64: prod(t.kv) // 64, 32: 4}[prod(t.q)]
        assert rank == 1 or min(t.q) > 1


def test_best_tiles_are_the_best_of_all() -> None:
    found = best_tiles(SMALL, GPU, KERNEL, legal_pairs(SMALL, KERNEL))
    assert found[0].total_s == min(c.total_s for c in found)


def test_windows_grow_and_stay_legal() -> None:
    found = over_windows(SMALL, GPU, KERNEL, legal_pairs(SMALL, KERNEL))
    for c in found:
        replace(SMALL.gna, window=c.window, stride=c.stride)  # raises if it were not
    assert [prod(c.window) for c in found] == sorted(prod(c.window) for c in found)


def test_long_windows_try_a_choice_of_strides() -> None:
    line = Gna((1 << 20,), (3 << 15,), (77,), (1,), (False,))
    (strides,) = stride_choices(line)
    assert {1, 2, 77, 3 << 15, 1 << 15} <= set(strides) and len(strides) < 200
    assert all(1 <= s <= 3 << 15 for s in strides)
    swept = all_strides(Problem(line, head_dim=128), GPU, KERNEL, legal_pairs(Problem(line, head_dim=128), KERNEL)[0])
    assert np.all(swept.time_s > 0)
