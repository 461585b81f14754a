"""The model's operation counts against compiled inner loops (the shipped table), and what the simulator is told."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from einsight.kernels import resources, table
from einsight.kernels.catalog import KERNELS
from einsight.kernels.linear_space import least_shared_bytes
from einsight.kernels.resources import Estimate
from einsight.kernels.spaces import LIMITS, Config, Heads, matrix_instruction, parse_config, shared_bytes, tmem_columns
from einsight.sim.hardware import Gpu, load_hardware, names
from einsight.sim.mapping import occupancy
from einsight.tuner.instructions import LoopMix, expected_mix, found_mix, why_unchecked
from einsight.tuner.resources import Build, agrees, capability_of

CHECKED = (80, 89, 90, 120)  # accumulators in registers; sm_100 keeps them in tensor memory


def gpus() -> dict[int, Gpu]:
    found = {}
    for name in names():
        gpu = load_hardware(name)
        if isinstance(gpu, Gpu) and gpu.architecture.compute_capability.replace(".", "").isdigit():
            found.setdefault(capability_of(gpu), gpu)
    return found


def builds() -> Iterator[tuple[str, Build, Estimate]]:
    targets = gpus()
    for name in table.load()["builds"]:
        kernel, capability, width, config = name.split(" ")
        sizes = {k: int(v) for k, v in re.findall(r"([A-Z]|bytes)=(\d+)", width)}
        heads = Heads(sizes["E"], sizes["F"], sizes["bytes"], sizes.get("R", 0), KERNELS[kernel].matrix)
        build = Build(KERNELS[kernel], heads, parse_config(config), targets[int(capability.removeprefix("sm_"))])
        estimate = table.lookup(build.kernel, heads, build.config, build.capability)
        assert estimate is not None and estimate.source == "table"
        yield name, build, estimate


def test_the_table_has_the_default_and_five_other_builds_of_every_kernel() -> None:
    entries = list(builds())
    for capability in (80, 90, 100):
        for kernel in KERNELS:
            configs = {b.config for _, b, _ in entries if b.capability == capability and b.kernel.name == kernel}
            assert len(configs) >= 6 and KERNELS[kernel].default(128, 128) in configs, (kernel, capability)


def test_counts_of_the_cascade_are_what_the_compiler_emits() -> None:
    """Tensor-core and special-function instructions exactly, fp32 operations within 10 %, for builds that do not spill."""
    checked = dict.fromkeys(CHECKED, 0)
    for name, build, estimate in builds():
        if build.capability not in CHECKED or estimate.spill_bytes or estimate.status != "ok":
            continue
        both = build.instruction_check(estimate)
        if both is None:
            continue
        assert agrees(*both), (name, both)
        checked[build.capability] += 1
    assert all(number >= 4 for number in checked.values()), checked


def test_shared_and_tensor_memory_are_the_closed_form() -> None:
    for name, build, estimate in builds():
        if not build.kernel.closed:
            assert estimate.shared_bytes is not None and estimate.shared_bytes >= least_shared_bytes(build.heads, build.config)
            continue
        extra = (estimate.shared_bytes or 0) - shared_bytes(build.heads, build.config, build.capability)
        tcgen05 = matrix_instruction(build.config, build.capability) == "tcgen05"
        assert 0 <= extra <= (4096 if tcgen05 else 0), (name, extra)
        assert estimate.tmem_columns == tmem_columns(build.heads, build.config, build.capability), name


def test_occupancy_is_the_same_from_limits_and_from_the_profile() -> None:
    for name, build, estimate in builds():
        told = build.resources(estimate)
        blocks = occupancy(build.gpu.architecture, np.array(float(told.shared_bytes)), told.warps, told.registers_per_thread)
        if estimate.status == "ok" and not told.tmem_columns:
            assert int(blocks) == estimate.blocks_per_sm == build.mapping(estimate).blocks_per_sm, name


@pytest.mark.parametrize(
    ("registers", "warps", "blocks"),
    [(176, 1, 8), (176, 2, 4), (176, 4, 2), (255, 2, 4), (255, 8, 1), (168, 2, 6), (96, 2, 10), (40, 4, 12), (129, 8, 1)],
)
def test_a_warp_finds_its_registers_in_one_quarter_of_an_sm(registers: int, warps: int, blocks: int) -> None:
    """16384 registers a quarter. 176 x 32 are 5632: two warps each, eight in all, where 65536 / 5632 would say eleven."""
    raw = {"registers": registers, "warps": warps, "shared_bytes": 1024, "tmem_columns": 0}
    by_hand = 4 * (16384 // (-(-registers // 8) * 8 * 32)) // warps
    profile = occupancy(gpus()[90].architecture, np.array(1024.0), warps, registers)
    assert blocks == by_hand == resources._blocks_per_sm(raw, LIMITS[90]) == int(profile)


def test_a_loop_by_hand() -> None:
    """128 x 64 tile, E = F = 128, 8 warps: a thread holds 32 scores, 64 outputs and 2 rows."""
    hopper, config = gpus()[90].architecture, Config(128, 64, 8, 2)
    scores, outputs, rows = 32, 64, 2
    reductions = 2 * (scores + rows)  # 16 scores a row: 15 in the thread and 2 exchanges
    fp32 = reductions + rows + scores + rows + rows + outputs  # running maximum, exp, decay, running sum, rescale
    assert expected_mix(KERNELS["attention"], Heads(128, 128), config, hopper) == LoopMix(8 + 4, scores + rows, fp32)
    biased = expected_mix(KERNELS["flashbias"], Heads(128, 128, rank=16), config, hopper)
    assert biased == LoopMix(8 + 4 + 1, scores + rows, fp32 + scores)
    ampere = gpus()[80].architecture
    mix = expected_mix(KERNELS["attention"], Heads(128, 128), config, ampere)
    assert mix is not None and mix.tensor == 2 * 128 * 64 * 128 / (16 * 8 * 16) / 8
    assert expected_mix(KERNELS["attention"], Heads(128, 128), config, gpus()[100].architecture) is None


def test_a_loop_by_hand_where_warps_share_rows() -> None:
    """16 x 64 tile, 4 warps along the columns: 8 scores, 16 outputs and 2 rows a thread; four warps join what they reduced."""
    scores, outputs, rows, joins = 8, 16, 2, 2
    reductions = 2 * (scores - rows + 2 * rows + joins)
    fp32 = reductions + rows + scores + rows + rows + outputs
    ampere, config = gpus()[80].architecture, Config(16, 64, 4, 2)
    found = expected_mix(KERNELS["decode"], Heads(128, 128), config, ampere)
    assert found == LoopMix(2 * 16 * 64 * 128 / (16 * 8 * 16) / 4, scores + rows, fp32)
    assert "too few rows or columns" in why_unchecked(KERNELS["decode"], Heads(128, 128), Config(16, 32, 8, 2), ampere)
    assert "chunk" in why_unchecked(KERNELS["gla"], Heads(128, 128), Config(64, 32, 4, 1), ampere)
    assert "tensor memory" in why_unchecked(KERNELS["attention"], Heads(128, 128), config, gpus()[100].architecture)


def test_every_weight_of_a_sigmoid_is_two_special_and_two_fp32_operations() -> None:
    weights = 128 * 64 / 256  # of one thread
    found = expected_mix(KERNELS["sigmoid"], Heads(128, 128), Config(128, 64, 8, 2), gpus()[90].architecture)
    assert found == LoopMix(8 + 4, 2 * weights, 2 * weights)


def test_products_of_chunks_are_what_the_compiler_emits() -> None:
    """Scores, output, queries and keys times the state, in instructions of 16 x 8 x 16; warps lie along rows, and repeat the
    work on a chunk of fewer rows than they hold."""
    checked = 0
    for name, build, estimate in builds():
        config, capability = build.config, build.capability
        if build.kernel.name != "lightning" or capability not in (80, 89, 120) or estimate.status != "ok":
            continue
        C, F, E, warps = config.block_m, config.block_n, build.heads.e, config.num_warps
        products = ((C, C, E), (C, F, C), (C, F, E), (E, F, C))
        wanted = sum(math.ceil(rows / 16 / warps) * columns / 8 * depth / 16 for rows, columns, depth in products)
        assert estimate.loop["HMMA"] == wanted, (name, wanted)
        checked += 1
    assert checked >= 12


def test_a_wrong_count_would_be_seen() -> None:
    found = found_mix({"HGMMA": 12, "MUFU.EX2": 34, "FADD": 36, "FMUL": 66, "FFMA": 34, "FMNMX": 36, "total": 378})
    assert found == LoopMix(12, 34, 172)
    assert agrees(LoopMix(12, 34, 170), found)
    for wrong in (LoopMix(12, 32, 170), LoopMix(13, 34, 170), LoopMix(12, 34, 190)):
        assert not agrees(wrong, found)


@pytest.mark.parametrize("status", ["ok", "shared_memory"])
def test_a_build_that_cannot_run_has_no_mapping(status: str) -> None:
    build = Build(KERNELS["attention"], Heads(128, 128), Config(128, 128 if status != "ok" else 64, 8, 4), gpus()[90])
    estimate = build.estimate("closed_form")
    assert estimate.status == status
    if status == "ok":
        assert build.mapping(estimate).block_n == 64 and build.resources(estimate).source == "closed_form"
    else:
        with pytest.raises(ValueError, match="294912 bytes"):
            build.mapping(estimate)


def recorded() -> Iterator[tuple[Heads, Config, dict[str, Any]]]:
    """Offline compilations of another attention kernel: no causal mask, its scale a multiplication of every score."""
    folder = Path(os.environ.get("EINSIGHT_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
    file = folder / "triton_offline_compile.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there (name the folder by EINSIGHT_REFERENCE)")
    for row in map(json.loads, file.read_text().splitlines()):
        yield Heads(row["D"], row["D"]), Config(row["BM"], row["BN"], row["nw"], row["ns"]), row


def test_recorded_loops_are_what_the_rules_ask_for() -> None:
    """Every recorded build without spills for which there is a rule, its multiplications by the scale counted as well."""
    checked = 0
    for heads, config, row in recorded():
        expected = expected_mix(KERNELS["attention"], heads, config, gpus()[row["cc"]].architecture)
        if expected is None or row["stack"]:
            continue
        scale = config.block_m * config.block_n / (32 * config.num_warps)
        assert agrees(replace(expected, fp32=expected.fp32 + scale), found_mix(row["h"])), (row, expected)
        checked += 1
    assert checked == 109


def test_registers_of_recorded_and_tabled_builds_are_near_the_estimate_without_a_compiler() -> None:
    """The estimate is for our kernels; the recorded one is simpler and takes fewer. Half of each lie within a fifth."""
    ours, theirs = [], []
    for _, build, estimate in builds():
        if build.kernel.closed and estimate.status == "ok" and not estimate.spill_bytes:
            guessed = build.resources(replace(estimate, registers=None)).registers_per_thread
            ours.append(guessed / (estimate.registers or 1))
    for heads, config, row in recorded():
        if row["stack"] == 0 and row["tmem"] <= 512:
            build = Build(KERNELS["attention"], heads, config, gpus()[row["cc"]])
            theirs.append(build.resources(build.estimate("closed_form")).registers_per_thread / row["reg"])
    assert len(ours) > 90 and len(theirs) > 150
    assert 0.95 < np.median(ours) < 1.05 and np.mean(np.abs(np.log(ours)) < np.log(1.2)) > 0.5
    assert 1.0 <= np.median(theirs) < 1.25 and np.max(theirs) < 2.5
