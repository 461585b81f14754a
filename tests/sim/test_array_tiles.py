"""Cycles and traffic on arrays against loops that walk every tile and count what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.einsum.compose import IllegalComposition
from einsight.sim.array import Run, run
from einsight.sim.array_case import ARTIFACT, IllegalArray
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import Array
from einsight.sim.array_search import front, resized, search
from einsight.sim.array_traffic import array_reads
from einsight.sim.hardware import load_hardware
from einsight.sim.mask import Mask, mask_from
from einsight.sim.mask_pairs import members
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

SIDE, E, F = 4, 6, 5
MASKS = [None, "causal", ["causal", {"window": 5}], ["causal", {"window": 6}, {"sink": 2}], {"window": 7}]


def array(name: str = "fusemax") -> Array:
    found = load_hardware(name)
    assert isinstance(found, Array)
    return found


def small(buffer_bytes: int = 4096, name: str = "fusemax") -> Array:
    return resized(array(name), SIDE, buffer_bytes)


def on(made: Array, design: str, *, m: int, n: int, heads: int = 2, groups: int | None = None, mask: object = None,
       cascade: str = "one_pass", replicate: frozenset[str] = frozenset()) -> Run:  # fmt: skip
    workload = Workload.attention(
        heads=heads, kv_heads=groups or heads, seq_q=m, seq_kv=n, head_dim=E, value_dim=F, mask=mask, cascade=cascade
    )
    return run(workload, made, load_design(design), replicate=replicate)


def pairs(mask: Mask, m: int, n: int, heads_per_group: int) -> np.ndarray:
    """Which (packed query row, key) pairs exist; the rows of one query are those of its heads."""
    return np.repeat(members(mask, m, n), heads_per_group, axis=0)


def tiles_of(seen: np.ndarray, rows: int, keys: int) -> list[np.ndarray]:
    """The tiles with any pair; those at the ends with the rows and keys that are left."""
    every = (seen[i : i + rows, k : k + keys] for i in range(0, seen.shape[0], rows) for k in range(0, seen.shape[1], keys))
    return [tile for tile in every if tile.any()]


def live_tiles(seen: np.ndarray, rows: int, keys: int) -> int:
    return len(tiles_of(seen, rows, keys))


sizes = st.tuples(st.integers(1, 23), st.integers(1, 23)).map(lambda mn: (min(mn), max(mn)))


@settings(max_examples=60)
@given(sizes, st.sampled_from(MASKS), st.sampled_from([(2, 2), (4, 2), (6, 1)]))
def test_cycles_are_the_tiles_that_run(mn: tuple[int, int], mask: object, heads: tuple[int, int]) -> None:
    """Ragged lengths, masks, GQA and few queries: a tile with any pair takes all of its cycles, an empty one none."""
    (m, n), (h, g) = mn, heads
    found = on(small(), "binding", m=m, n=n, heads=h, groups=g, mask=mask)
    seen = pairs(mask_from(mask), m, n, h // g)
    keys = min(SIDE, n)
    tiles = g * live_tiles(seen, SIDE, keys)
    expected = {"BQK": E, "LM": 1, "SLN": 7, "SLD": 1, "SLNV": F, "RM": 1, "PRM": 7, "SPD": 1, "RD": 1, "SPNV": F, "RNV": F}
    for name, per_tile in expected.items():
        assert found.cycles[name] == pytest.approx(per_tile * tiles, rel=1e-12), name
    assert found.cycles["AV"] == g * -(-m * (h // g) // SIDE) * F


@settings(max_examples=40)
@given(sizes, st.sampled_from(MASKS), st.sampled_from([(2, 2), (4, 2)]))
def test_cycles_of_an_output_stationary_array(mn: tuple[int, int], mask: object, heads: tuple[int, int]) -> None:
    """Lanes over the keys of one row; an output of the second product passes every key that one of its queries sees."""
    (m, n), (h, g) = mn, heads
    found = on(small(65536, "flat"), "flat-fused", m=m, n=n, heads=h, groups=g, mask=mask, cascade="stable")
    if found.case.residency.dataflow != "output":
        return
    seen = pairs(mask_from(mask), m, n, h // g)
    assert found.cycles["QK"] == pytest.approx(g * E * live_tiles(seen, SIDE, SIDE), rel=1e-12)
    assert found.cycles["AV"] == pytest.approx(g * -(-F // SIDE) * live_tiles(seen, SIDE, 1), rel=1e-12)
    for name, per_tile in {"GM": 1, "SN": 2, "SD": 1, "A": 1}.items():
        assert found.cycles[name] == pytest.approx(g * per_tile * live_tiles(seen, 1, SIDE), rel=1e-12)


@settings(max_examples=40)
@given(sizes, st.sampled_from(MASKS), st.sampled_from([(2, 2), (4, 2)]))
def test_work_is_the_pairs_that_exist(mn: tuple[int, int], mask: object, heads: tuple[int, int]) -> None:
    (m, n), (h, g) = mn, heads
    found = on(small(), "binding", m=m, n=n, heads=h, groups=g, mask=mask)
    existing = h * int(members(mask_from(mask), m, n).sum())
    by_name = {s.name: dict(found.case.applications(s)) for s in found.case.flow.stages}
    assert by_name["BQK"]["macc"] == pytest.approx(existing * E)
    assert by_name["SLN"] == pytest.approx({"exp": existing, "sub": existing})
    assert by_name["SLNV"]["macc"] == pytest.approx(existing * F)
    seen, keys = pairs(mask_from(mask), m, n, h // g), min(SIDE, n)
    rows = sum(tile.shape[0] for tile in tiles_of(seen, SIDE, keys))  # of a chunk's summary: those of its live tiles
    assert by_name["SPNV"]["mul"] == pytest.approx(g * rows * F)
    assert by_name["RM"]["max"] == pytest.approx(g * rows)


@settings(max_examples=60)
@given(sizes, st.sampled_from(MASKS), st.integers(300, 4000))
def test_keys_are_fetched_once_per_block_of_queries_that_sees_them(mn: tuple[int, int], mask: object, buffer: int) -> None:
    m, n = mn
    made = small(buffer)
    try:
        found = on(made, "binding", m=m, n=n, heads=1, mask=mask)
    except IllegalArray:
        assert buffer < 2 * (SIDE * (E + F) + SIDE * (E + F + 2))
        return
    seen = members(mask_from(mask), m, n)
    keys = sum(tile.shape[1] for tile in tiles_of(seen, found.case.block_rows, min(SIDE, n)))
    assert found.dram_bytes == pytest.approx(2 * (m * (E + F) + keys * (E + F)))
    state = found.case.residency.rows
    assert isinstance(state, int) and 2 * (state * (E + F + 2) + min(SIDE, n) * (E + F)) <= buffer  # kept on chip


@settings(max_examples=60)
@given(sizes, st.sampled_from(MASKS), st.sampled_from([(2, 2), (4, 2)]))
def test_the_buffer_hands_over_the_rows_and_keys_of_the_tiles_that_run(
    mn: tuple[int, int], mask: object, heads: tuple[int, int]
) -> None:
    (m, n), (h, g) = mn, heads
    found = on(small(), "binding", m=m, n=n, heads=h, groups=g, mask=mask)
    live = tiles_of(pairs(mask_from(mask), m, n, h // g), SIDE, min(SIDE, n))
    stage = next(s for s in found.case.flow.stages if s.name == "BQK")
    for tensor, side in (("Q", 0), ("K", 1)):
        words = g * E * sum(tile.shape[side] for tile in live)
        assert array_reads(found.case, stage, found.case.flow.data[tensor].ranks) == pytest.approx(words), tensor
    state = g * sum(tile.shape[0] for tile in live)  # the running maximum: read and written once per step of a row
    moved = [x for x in found.moves if x.tensor == x.einsum == "RM"]
    assert sum(x.buffer_writes for x in moved) == pytest.approx(state)


@pytest.mark.parametrize("target", ["fusemax:binding", "flat:flat-fused", "flat:cascade"])
@pytest.mark.parametrize("mask", [None, "causal"])
def test_one_more_token_than_a_tile_adds_passes_to_the_time_and_a_token_to_the_work(target: str, mask: object) -> None:
    name, _, design = target.partition(":")
    cascade = load_design(design).cascade
    whole, more, two = (
        on(array(name), design, m=n, n=n, heads=1, mask=mask, cascade=cascade) for n in (256, 257, 512)
    )  # fmt: skip
    assert more.cycles["QK" if "QK" in more.cycles else "BQK"] == two.cycles["QK" if "QK" in two.cycles else "BQK"]
    pairs_more = 257**2 / 256**2
    assert whole.energy_pj["2-D array"] < more.energy_pj["2-D array"] <= pairs_more * whole.energy_pj["2-D array"] * 1.001
    for run_ in (whole, more):
        assert sum(run_.energy_pj.values()) < sum(two.energy_pj.values())
    assert whole.dram_bytes < more.dram_bytes < two.dram_bytes
    assert whole.buffer_bytes < more.buffer_bytes < two.buffer_bytes


@settings(max_examples=30)
@given(st.integers(1, 23), st.integers(1, 23))
def test_operands_of_an_output_stationary_product(m: int, n: int) -> None:
    """Loops over output tiles: each takes its strip of Q and of K once."""
    found = on(small(65536, "flat"), "flat-fused", m=m, n=n, heads=1, cascade="stable")
    if found.case.residency.dataflow != "output":
        return
    q_words = k_words = 0
    for i in range(0, m, SIDE):
        for k in range(0, n, SIDE):
            q_words += min(SIDE, m - i) * E
            k_words += min(SIDE, n - k) * E
    stage = next(s for s in found.case.flow.stages if s.name == "QK")
    assert array_reads(found.case, stage, found.case.flow.data["Q"].ranks) == q_words
    assert array_reads(found.case, stage, found.case.flow.data["K"].ranks) == k_words


def test_decode_shares_the_keys_among_the_heads_of_a_group() -> None:
    """One query per head: with 8 heads on one KV head, K and V are read once, not 8 times."""
    grouped, single = (on(array(), "binding", m=1, n=8192, heads=8, groups=g) for g in (1, 8))
    assert single.dram_bytes - 2 * 8 * (E + F) == 8 * (grouped.dram_bytes - 2 * 8 * (E + F))
    assert single.cycles["BQK"] == 8 * grouped.cycles["BQK"]


@pytest.mark.parametrize("design", ["binding", "architecture"])
def test_a_causal_run_takes_half_the_tiles_and_the_diagonal(design: str) -> None:
    blocks = 64
    dense, causal = (on(array(), design, m=256 * blocks, n=256 * blocks, heads=1, mask=m) for m in (None, "causal"))
    assert causal.cycles["SLN"] * 2 * blocks == pytest.approx(dense.cycles["SLN"] * (blocks + 1), rel=1e-12)


def test_unfused_computes_what_the_mask_discards() -> None:
    dense, causal = (on(array("flat"), "unfused", m=512, n=512, mask=m, cascade="stable") for m in (None, "causal"))
    assert (dense.time_s, dense.dram_bytes) == (causal.time_s, causal.dram_bytes)


def test_a_mask_that_the_cascade_cannot_carry_is_refused() -> None:
    with pytest.raises(IllegalComposition, match="linear"):
        on(array(), "binding", m=512, n=512, mask="causal", cascade="linear")


def test_a_buffer_too_small_for_one_tile_is_refused() -> None:
    with pytest.raises(IllegalArray, match=r"the buffer holds 64 B, and one tile of design binding \(4 keys, 4 query rows\)"):
        on(small(64), "binding", m=64, n=64)
    with pytest.raises(IllegalArray, match="the operands of one block of design flat-fused"):
        on(small(64, "flat"), "flat-fused", m=64, n=64, cascade="stable")


def test_what_outlives_a_pass_is_spilled_when_it_must_be() -> None:
    """Scores of a two-pass cascade stay on chip while a row of tiles fits, and go through DRAM beyond."""
    fits, spills = (on(small(b), "binding", m=256, n=256, heads=1, cascade="stable_deferred") for b in (8192, 512))
    assert (fits.case.live_spilled, spills.case.live_spilled) == (0.0, 1.0)
    per_score = 2 * 2 * 256 * 256  # QK once out, once back in
    blocks = spills.case.row_blocks
    assert spills.dram_bytes == pytest.approx(2 * 256 * (E + F) * (1 + blocks) + per_score)


def test_what_heads_share_is_taken_by_each() -> None:
    """One bias matrix for all heads is fetched for every head, the keys of a KV head once for all of its queries."""
    made, design = array(), load_design("binding")
    shape = {"heads": 8, "kv_heads": 2, "batch": 3, "seq_q": 512, "head_dim": 64}
    plain, biased = (run(Workload.attention(**shape, bias=b), made, design) for b in ((), "dense_bias_shared"))  # type: ignore[arg-type]
    assert plain.dram_bytes == 2 * 3 * 512 * 64 * (8 * 2 + 2 * 2)
    assert biased.dram_bytes - plain.dram_bytes == 2 * 3 * 8 * 512**2
    moved = [x for x in biased.moves if x.tensor == "BIAS"]
    assert sum(x.buffer_reads for x in moved) == sum(x.buffer_writes for x in moved) == 3 * 8 * 512**2


def test_phases_pass_everything_through_dram() -> None:
    """One-pass attention without fusion: scores, weights and the chunks' results change arrays, each out and in once."""
    m, chunks = 64, 64 // SIDE
    found = on(small(2**20, "flat"), "unfused", m=m, n=m, heads=1)
    assert found.dram_bytes == 2 * (2 * m * (E + F) + 2 * 2 * m * m + 2 * m * chunks * F)
    assert [e.einsums[0] for e in found.epochs] == ["BQK", "LM", "SLNV", "PRM"]


def test_the_buffer_can_limit() -> None:
    workload, design = Workload.attention(heads=8, seq_q=8192, head_dim=64), load_design("binding")
    free = run(workload, array(), design)
    limited = run(workload, array(), design, limit_buffer=True)
    ports = free.buffer_bytes / (512 * 4) / 940e6
    assert limited.bounds_s["buffer"] == pytest.approx(ports) and free.bounds_s["buffer"] == 0
    assert limited.time_s == pytest.approx(max(free.time_s, ports))


def test_arrays_that_no_other_beats() -> None:
    workload, design = Workload.attention(heads=8, seq_q=4096, head_dim=64), load_design("binding")
    points, refused = search(workload, array(), design, (32, 64, 128), (1024, 2**18, 2**20))
    assert len(points) == 6 and len(refused) == 3 and "the buffer holds" in refused[0]
    best = front(points)
    assert best and all(any(p is b for p in points) for b in best)
    for p in points:
        beaten = any(all(a <= b for a, b in zip(q.costs, p.costs, strict=True)) and q.costs != p.costs for q in points)
        assert beaten != any(p is b for b in best)
    assert [p.costs[0] for p in best] == sorted(p.costs[0] for p in best)


def test_every_switch_of_the_artifact_acts_somewhere() -> None:
    runs = {
        "flat:unfused": Workload.attention(heads=12, batch=64, seq_q=2**18, head_dim=64, cascade="stable"),
        "flat:cascade": Workload.attention(heads=12, batch=64, seq_q=2**18, head_dim=64),
    }
    acting = set()
    for target, workload in runs.items():
        name, _, design = target.partition(":")
        whole = run(workload, array(name), load_design(design), replicate=ARTIFACT)
        for switch in ARTIFACT:
            other = run(workload, array(name), load_design(design), replicate=ARTIFACT - {switch})
            if (other.time_s, other.dram_bytes, other.energy_pj) != (whole.time_s, whole.dram_bytes, whole.energy_pj):
                acting.add(switch)
    assert acting == ARTIFACT


@settings(max_examples=30, deadline=None)
@given(sizes, st.sampled_from(MASKS), st.sampled_from([1, 3]))
def test_scores_that_change_arrays_pass_the_buffer_in_the_tiles_that_run(mn: tuple[int, int], mask: object, group: int) -> None:
    """+Cascade: scores leave the 2-D array and weights return to it, as many words as the live tiles have pairs of a row and
    a key; a tile is read as it was written."""
    (m, n), words = mn, 2.0
    found = on(small(2**20, "flat"), "cascade", m=m, n=n, heads=2 * group, groups=2, mask=mask)
    seen = pairs(mask_from(mask), m, n, group)
    held = 2 * sum(tile.size for tile in tiles_of(seen, SIDE, SIDE))
    for name in ("BQK", "SLN"):
        moved = [x for x in found.moves if x.tensor == name]
        assert sum(x.buffer_writes for x in moved) == pytest.approx(held)
        assert sum(x.buffer_reads for x in moved) == pytest.approx(held)
        assert found.case.widths[name] == words and not any(x.dram_reads + x.dram_writes for x in moved)


def test_keys_that_queries_and_other_keys_read_come_once_per_block_of_queries(tmp_path: Path) -> None:
    """KN reads K on its own, QK with the queries: a tile of K in the buffer serves both, for every block of queries."""
    file = tmp_path / "normed.casc"
    file.write_text(
        "cascade normed\ncomputes normed\nrank M, N, E, F\nin Q[m,e] K[n,e] V[n,f]\nout AV[m,f]\nscore QK[m,n]\n"
        "KN[n] = K[n,e] * K[n,e]\nS[m,n] = Q[m,e] * K[n,e]\nQK[m,n] = S[m,n] * KN[n]\nAV[m,f] = QK[m,n] * V[n,f]\n"
    )
    found = on(small(512), "binding", m=64, n=32, heads=1, cascade=str(file))
    assert found.case.row_blocks > 1
    fetched = sum(x.dram_reads for x in found.moves if x.tensor == "K")
    loops = len({s.loop for s in found.case.flow.readers("K")})
    assert fetched == 32 * E * found.case.row_blocks * loops


def test_a_resized_array_has_a_lane_and_a_word_of_a_row_for_each_column() -> None:
    made = resized(array(), (8, 32), 2**16)
    assert (made.array_2d.sides, made.array_1d.elements) == ((8, 32), 32)
    assert (made.buffer_bytes.value, made.buffer_row_bytes.value) == (2**16, 64)


def test_the_printed_range_is_from_full_to_no_overlap() -> None:
    workload, made = Workload.attention(heads=8, seq_q=1000, head_dim=64, mask="causal"), array()
    direct, found = run(workload, made, load_design("binding")), predict(workload, "fusemax")
    apart = [direct.bounds_s[name] for name in ("DRAM", "2-D array", "1-D array")]
    assert found.time_low_s == max(direct.bounds_s.values()) <= found.time_s
    assert found.time_high_s == pytest.approx(sum(apart)) and sum(apart) > found.time_s


def test_what_does_not_fit_is_said_in_percent() -> None:
    workload = Workload.attention(heads=1, seq_q=4096, head_dim=64, cascade="stable")
    direct, found = run(workload, array("flat"), load_design("flat-fused")), predict(workload, "flat:flat-fused")
    lost = 100 * direct.case.spilled
    assert 0 < lost < 100 and any(note.startswith(f"{lost:.3g} % of the tensors") for note in found.assumptions)
