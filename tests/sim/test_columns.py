"""Kernels that hold keys and walk queries: what they are made of, and their tiles and bytes against explicit loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from einsight.einsum import library
from einsight.einsum.compose import compose
from einsight.sim import columns, work
from einsight.sim.array_case import IllegalArray
from einsight.sim.columns import turned
from einsight.sim.estimate import build_cases
from einsight.sim.family import load_family
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.mapping import Mapping
from einsight.sim.mask import mask_from
from einsight.sim.mask_pairs import live_points
from einsight.sim.predict import estimate_of, plan_of, predict
from einsight.sim.workload import Workload

TARGET, FAMILY = "a100-sxm-80gb", "flash2"
HELD, WALKED = 64, 32
TILES = Mapping(block_m=HELD, block_n=WALKED, splits=1, blocks_per_sm=1)
FORWARD = [n for n in library.names() if not library.load(n).mark("slope")]


def names(tensors: tuple) -> set[str]:  # type: ignore[type-arg]
    return {t.name for t in tensors}


def backward(cascade: str = "backward", m: int = 256, n: int = 384, kv_heads: int = 2, mask: object = None) -> Workload:
    return Workload.attention(
        batch=2, heads=6, kv_heads=kv_heads, seq_q=m, seq_kv=n, head_dim=32, dtype="fp16", cascade=cascade, mask=mask
    )


def test_the_gradients_of_keys_make_a_kernel_that_holds_keys() -> None:
    before, kernel = columns.kernels(compose(library.load("backward_low_rank")), True)
    assert before.grid == "einsum" and names(before.outputs) == {"D"}
    (sweep,) = kernel.sweeps
    assert kernel.grid == "column"
    assert names(kernel.residents) == {"K", "V", "PK"}
    assert names(kernel.outputs) == {"DK", "DV", "DPK"}
    assert names(sweep.streams) == {"Q", "DO", "L", "D", "PQ"}
    assert names(sweep.sums) == {"DQ", "DPQ"}
    assert not sweep.writes
    assert [t.name for t in sweep.reuse.across] == ["DS", "K", "DS", "PK"]  # DQ and DPQ sum over the keys
    assert sorted(t.name for t in sweep.reuse.again) == ["DO", "PQ", "Q"]
    assert sweep.reuse.converted == 2  # the weights and their slopes


def test_the_gradient_of_a_matrix_is_written_tile_by_tile() -> None:
    (sweep,) = columns.kernels(compose(library.load("backward_dense_bias")), True)[-1].sweeps
    assert names(sweep.writes) == {"DBIAS"} and "BIAS" in names(sweep.streams)


@pytest.mark.parametrize("name", FORWARD)
def test_forward_cascades_have_the_kernels_they_had(name: str) -> None:
    cascade = compose(library.load(name))
    for fused in (False, True):
        assert columns.kernels(cascade, fused) == work.kernels(cascade, fused)


def test_scores_that_are_computed_twice_make_two_kernels(tmp_path: Path) -> None:
    """Without a tensor of pairs in common, the gradient of the queries needs no additions in memory: 7 products, not 5."""
    text = (library.FOLDER / "backward.casc").read_text(encoding="utf-8").replace("cascade backward", "cascade twice")
    again = [line.replace("QK[", "QK2[").replace("P[", "P2[").replace("DS[", "DS2[") for line in text.splitlines()
             if line.startswith(("QK[", "P[", "DP[", "DS[", "DQ["))]  # fmt: skip
    kept = [line for line in text.splitlines() if not line.startswith("DQ[")]
    file = tmp_path / "twice.casc"
    file.write_text("\n".join((*kept, *again)) + "\n", encoding="utf-8")
    kernels = plan_of(backward(str(file)), load_family(FAMILY)).works
    assert [k.grid for k in kernels] == ["einsum", "query", "column"]
    assert names(kernels[1].outputs) == {"DQ"} and not kernels[2].sweeps[0].sums
    ones, twos = (predict(backward(c), f"{TARGET}:{FAMILY}").flops_matmul for c in ("backward", str(file)))
    assert twos / ones == pytest.approx(7 / 5)


def test_bytes_through_the_l2_port_are_those_of_the_loops() -> None:
    b, g, j, m, n, e = 2, 2, 3, 256, 384, 32
    moved = 0
    for _block in range(b * g * (n // HELD)):
        moved += 2 * HELD * e * 2 + 2 * HELD * e * 2  # K and V in, their gradients out
        for _tile in range(j * (m // WALKED)):
            moved += WALKED * (2 * e + 2) * 2  # Q, the output's gradient, two numbers a row
            moved += WALKED * e * 4 * 2  # the gradient of the queries, added in fp32: read and written
    row_sums = b * g * j * m * (2 * e + 1) * 2  # output and its gradient in, one number a row out
    found = estimate_of(backward(), gpu(), load_family(FAMILY), TILES)
    assert sum(k.l2_bytes[0] for k in found.kernels) == moved + row_sums


def test_shared_memory_is_read_by_every_product_and_group_of_rows() -> None:
    b, g, j, m, n, e, rows = 2, 2, 3, 256, 384, 32, 16
    moved = 0
    for _tile in range(b * g * (n // HELD) * j * (m // WALKED)):
        operands, numbers = 2 * WALKED * e * 2, 2 * WALKED * 2
        moved += operands + numbers  # in from L2
        moved += (HELD // rows) * (2 * operands + numbers)  # queries and output gradients are in two products each
        moved += 2 * HELD * WALKED * 2  # the slopes cross from keys to queries: out and in
        moved += (WALKED // rows) * HELD * e * 2  # and meet the keys there
    row_sums = b * g * j * m * (2 * e + 1) * 2  # a kernel of its own
    found = estimate_of(backward(), gpu(), load_family(FAMILY), TILES)
    assert load_family(FAMILY).operand_rows == rows
    assert sum(k.shared_bytes[0] for k in found.kernels) == moved + row_sums


def test_both_score_sized_operands_of_a_tile_are_converted() -> None:
    """Per score: two subtractions, a product, and the family's conversion of the weights and of their slopes."""
    family, arch = load_family(FAMILY), gpu().architecture
    found = estimate_of(backward(), gpu(), family, TILES)
    scores, rows = 2 * 6 * 256 * 384, 2 * 6 * 256
    costs = arch.operators
    each = 2 * costs["sub"]["vector"] + costs["mul"]["vector"] + 2 * family.constant("vector_per_score")
    each += costs["exp"].get("vector", 0.0)
    operations = scores * each + rows * 32 * costs["macc"].get("vector", 0.0)
    seconds = operations / arch.vector_ops_per_cycle.value / gpu().sms.value / gpu().boost_hz.value
    assert found.bounds_s["fp32 pipe"][0] == pytest.approx(seconds)


def gpu() -> Gpu:
    found = load_hardware(TARGET)
    assert isinstance(found, Gpu)
    return found


def test_query_heads_of_a_group_are_walked_by_one_block() -> None:
    grouped, alone = (estimate_of(backward(kv_heads=k), gpu(), load_family(FAMILY), TILES) for k in (2, 6))
    assert grouped.bounds_s["tensor cores"] == pytest.approx(alone.bounds_s["tensor cores"])
    assert grouped.bounds_s["longest block"] > 2 * alone.bounds_s["longest block"]


@pytest.mark.parametrize("mask", [None, "causal", ["causal", {"window": 100}], {"window": 70}, ["causal", {"prefix": 90}]])
@pytest.mark.parametrize(("m", "n"), [(256, 256), (200, 390)])
def test_tiles_under_a_mask_are_those_that_hold_a_pair(mask: object, m: int, n: int) -> None:
    work = backward(m=m, n=n, mask=mask)
    family = load_family(FAMILY)
    sizes = {name: np.array([float(v)]) for name, v in work.rank_sizes.items()}
    cases, _ = build_cases(plan_of(work, family), work.canonical_mask, sizes, False, gpu(), family, TILES)
    found = turned(cases, work.canonical_mask, True).tiles
    pairs = visible(mask, m, n)
    live = np.array([
        [pairs[q : q + WALKED, k : k + HELD].any() for q in range(0, m, WALKED)] for k in range(0, n, HELD)
    ])  # fmt: skip
    heads = 3
    assert found.total[0] == heads * live.sum()
    assert found.blocks[0] == len(live)
    longest, shortest = live.sum(1).max(), live.sum(1).min()
    assert heads * longest <= found.longest[0] <= heads * (longest + 2)
    assert found.shortest[0] <= heads * max(shortest, live.sum() // len(live))


def visible(mask: object, m: int, n: int) -> np.ndarray:  # type: ignore[type-arg]
    """Pairs that exist, by the words of the mask."""
    position, key = np.arange(m)[:, None] + n - m, np.arange(n)[None, :]
    seen = np.ones((m, n), dtype=bool)
    for one in mask if isinstance(mask, list) else [mask]:
        if one == "causal":
            seen &= key <= position
        elif isinstance(one, dict) and "window" in one:
            seen &= np.abs(position - key) < one["window"]
    for one in mask if isinstance(mask, list) else []:
        if isinstance(one, dict) and "prefix" in one:
            seen |= key < one["prefix"]
    assert seen.sum() == live_points(mask_from(mask), m, n)
    return seen


def test_a_prediction_says_what_it_rests_on_and_compares_with_no_forward_pass() -> None:
    found = predict(backward(), f"{TARGET}:{FAMILY}")
    assert any("holds keys and walks queries" in note for note in found.assumptions)
    assert not dict(found.speedup)
    assert found.mapping["splits"] == 1
    assert not any("more splits" in b.because for b in found.bounds)
    assert found.time_high_s / found.time_s >= 1.4  # the interval of constants that nothing was fitted to
    assert found.flops_matmul == 5 * 2 * 2 * 6 * 256 * 384 * 32


def test_an_array_refuses_what_its_designs_cannot_finish() -> None:
    with pytest.raises(IllegalArray, match="backward sums over queries into DV, DK; the designs of arrays hold queries"):
        predict(backward(), "fusemax")
