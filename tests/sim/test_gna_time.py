"""Predicted times of neighborhood attention: measured profiles, laws, and what a mask's operations cost."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from einsight.sim.family import load_family
from einsight.sim.gna_kernel import GnaKernel, family_of, kernel_for, load_gna_kernel, names, runs_on
from einsight.sim.gna_tiles import count_tiles
from einsight.sim.gna_time import (
    Problem,
    attention_times,
    dense_seconds,
    mask_operations,
    permute_seconds,
    predict_gna,
    run_tiles,
)
from einsight.sim.hardware import DTYPE_BYTES, Gpu, load_hardware
from einsight.sim.hardware import names as hardware_names
from einsight.sim.mask import Gna
from einsight.sim.strict_yaml import SpecError

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
DEVICES = {"NVIDIA H100": "h100-sxm", "NVIDIA B200": "b200"}
SHAPES = {1: ((16384,), (4096,)), 2: ((96, 96), (48, 48)), 3: ((32, 32, 32), (16, 16, 16))}


def problem(rank: int, stride: tuple[int, ...] | None = None, heads: int = 24) -> Problem:
    layout, window = SHAPES[rank]
    gna = Gna(layout, window, stride or (1,) * rank, (1,) * rank, (False,) * rank)
    return Problem(gna, heads=heads, head_dim=128)


def seconds(p: Problem, gpu: Gpu, kernel: GnaKernel) -> float:
    pair = kernel.legal_tiles(len(p.gna.layout), p.head_dim)[0]
    return predict_gna(p, gpu, kernel, pair.q, pair.kv, kernel.tiling).time_s


def gpus() -> list[Gpu]:
    return [g for g in map(load_hardware, hardware_names()) if isinstance(g, Gpu)]


def test_measured_profiles_of_hopper_and_blackwell_within_fifteen_percent() -> None:
    """Dense rows of the vendor's library included; which rows were fitted stands in the family files."""
    file = REFERENCE / "natten_profiler.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for record in json.loads(file.read_text())["records"]:
        if record["device"] not in DEVICES:
            continue
        gpu, p = load_hardware(DEVICES[record["device"]]), record["problem"]
        mask = Gna(*(tuple(p[k]) for k in ("input_size", "window_size", "stride", "dilation", "is_causal")))
        asked = Problem(mask, p["batch"], p["heads"], p["head_dim"], p["dtype"])
        kernel, tiles = kernel_for(gpu), record["tile_config"]
        if tiles["q_tile"] is None:
            found = dense_seconds(asked, gpu, load_family(kernel.dense))
        else:
            found = predict_gna(asked, gpu, kernel, tuple(tiles["q_tile"]), tuple(tiles["kv_tile"]), "static").time_s
        measured = record["kernels"][0]["time_us"] * 1e-6
        assert found == pytest.approx(measured, rel=0.15), record["id"]


def test_copies_that_permute_within_a_fifth() -> None:
    file = REFERENCE / "natten_profiler.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for record in json.loads(file.read_text())["records"]:
        if record["backend"] != "hopper-fna" or len(record["kernels"]) < 2:
            continue
        gpu, p = load_hardware("h100-sxm"), record["problem"]
        mask = Gna(*(tuple(p[k]) for k in ("input_size", "window_size", "stride", "dilation", "is_causal")))
        asked = Problem(mask, p["batch"], p["heads"], p["head_dim"], p["dtype"])
        tile = tuple(record["tile_config"]["q_tile"]), tuple(record["tile_config"]["kv_tile"])
        measured = sum(k["time_us"] for k in record["kernels"][1:]) * 1e-6
        assert permute_seconds(asked, gpu, kernel_for(gpu), *tile) == pytest.approx(measured, rel=0.2)


def test_a_masked_tile_costs_more_with_every_masked_dimension() -> None:
    """Two comparisons per dimension, one with the end of the keys, one select; all one slot on Hopper."""
    arch = load_hardware("h100-sxm").architecture
    assert mask_operations(arch, np.array([1.0, 2.0, 3.0])).tolist() == [4.0, 6.0, 8.0]
    gpu = load_hardware("h100-sxm")
    kernel = kernel_for(gpu)
    ratios = []
    for rank in (1, 2, 3):
        p = problem(rank, heads=480)  # many blocks: no wave is half empty
        pair = kernel.legal_tiles(rank, 128)[-1]
        tiles = count_tiles(p.gna, pair.q, pair.kv)
        masked, bare = (run_tiles(kernel, p.gna, tiles, fully_block_sparse=flag) for flag in (False, True))
        family = load_family(kernel.family)
        times = [float(attention_times(p, gpu, kernel, family, 128, 128, run).time_s[0]) for run in (masked, bare)]
        ratios.append(times[0] / times[1])
    assert 1.2 < ratios[0] < ratios[1] < ratios[2] < 2.0


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_gpu_runs_some_kernel_and_never_beats_its_bounds(rank: int) -> None:
    for gpu in gpus():
        kernel = kernel_for(gpu)
        assert runs_on(kernel, gpu)
        p = problem(rank)
        pair = kernel.legal_tiles(rank, 128)[0]
        found = predict_gna(p, gpu, kernel, pair.q, pair.kv, kernel.tiling)
        assert found.time_s >= max(v for k, v in found.bounds_s.items() if k != "HBM") * (1 - 1e-9)
        assert found.low_s < found.time_s < found.high_s and found.total_s >= found.time_s


def test_more_sms_and_more_clock_are_never_slower() -> None:
    gpu = load_hardware("h100-sxm")
    kernel = kernel_for(gpu)
    for rank in (1, 2, 3):
        base = seconds(problem(rank), gpu, kernel)
        for field in ("sms", "boost_hz", "hbm_bytes_per_s"):
            more = replace(gpu, **{field: replace(getattr(gpu, field), value=2 * getattr(gpu, field).value)})
            assert seconds(problem(rank), more, kernel) <= base * (1 + 1e-9), field


def test_masking_cut_tiles_only_is_never_slower_than_masking_all() -> None:
    gpu = load_hardware("h100-sxm")
    every = load_gna_kernel("hopper-fna")
    cut = replace(every, masks="cut")
    for rank in (1, 2, 3):
        assert seconds(problem(rank), gpu, cut) < seconds(problem(rank), gpu, every)
        sparse = problem(rank, stride=SHAPES[rank][1])
        assert seconds(sparse, gpu, cut) == pytest.approx(seconds(sparse, gpu, every))


def test_permuting_moves_four_tensors_twice() -> None:
    gpu = load_hardware("h100-sxm")
    kernel = kernel_for(gpu)
    p = problem(3)
    moved = 8 * p.gna.tokens * p.heads * p.head_dim * DTYPE_BYTES[p.dtype]  # nothing is padded here
    rate = min(kernel.permute_rate.value * gpu.sms.value * gpu.boost_hz.value, gpu.hbm_bytes_per_s.value)
    assert permute_seconds(p, gpu, kernel, (4, 4, 8), (4, 4, 8)) == pytest.approx(moved / rate)
    assert permute_seconds(problem(1), gpu, kernel, (128,), (128,)) == 0.0
    assert permute_seconds(p, gpu, load_gna_kernel("cutlass-fna"), (4, 4, 4), (4, 4, 4)) == 0.0


def test_kernel_files_are_complete() -> None:
    for name in names():
        kernel = load_gna_kernel(name)
        assert kernel.name == name and family_of(kernel).fuses
        assert {len(t.q) for t in kernel.tiles} == {1, 2, 3}
    with pytest.raises(SpecError, match="hopper-fna"):
        load_gna_kernel("hoper-fna")
