"""The one-pass designs against closed forms written out by hand, at sizes that no published table has.

u = B H M N / A^2 tiles; FuseMax (MICRO 2024), section VI and its artifact, in our letters: M queries, N keys, A the side.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.sim.array import Run, run
from einsight.sim.array_case import ARTIFACT
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import Array
from einsight.sim.array_search import resized
from einsight.sim.hardware import load_hardware
from einsight.sim.workload import Workload

CLOCK, BATCH = 940e6, 4


def array(name: str) -> Array:
    found = load_hardware(name)
    assert isinstance(found, Array)
    return found


def published(target: str, e: int, f: int, n: int, heads: int) -> Run:
    name, _, design = target.partition(":")
    made = load_design(design)
    workload = Workload.attention(batch=BATCH, heads=heads, seq_q=n, head_dim=e, value_dim=f, cascade=made.cascade)
    return run(workload, array(name), made, replicate=ARTIFACT)


def row_blocks(n: int, side: int, e: int, f: int, words: float, per_row: int) -> int:
    """Blocks of queries: the largest divisor of N/A that fits beside one tile of K and of V."""
    most = int((words - side * (e + f)) // (side * per_row))
    blocks = n // side
    return blocks // next(d for d in range(min(most, blocks), 0, -1) if blocks % d == 0)


CASES = [(64, 64, 8192), (96, 96, 8192), (96, 96, 24576), (128, 128, 24576), (64, 128, 8192), (80, 64, 2048)]


@pytest.mark.parametrize(("e", "f", "n"), CASES)
@pytest.mark.parametrize("target", ["fusemax:binding", "fusemax:architecture", "edge-32:binding", "edge-32:architecture",
                                    "edge-32:cascade", "fusemax:cascade",
                                    "flat:cascade"])  # fmt: skip
def test_cycles_traffic_and_utilisation(target: str, e: int, f: int, n: int) -> None:
    found, heads = published(target, e, f, n, heads=3), 3
    side = array(target.partition(":")[0]).array_2d.sides[0]
    bh = BATCH * heads
    u, a = bh * n * n / side**2, bh * f * n / side
    words = min(array(target.partition(":")[0]).buffer_bytes.value, 16 * 2**20) / 2
    if target.endswith(":binding"):
        cycles = max((e + 1) * u, (f + 1) * u + a) + u + 8 * u + f * u
        busy_2d, busy_1d, per_row = (e + f + 9) * u, (2 * f + 10) * u + a, e + f + 2
    elif target.endswith(":architecture"):
        cycles = max((e + 1) * u, u + a) + side * u + u + 8 * u + 2 * f * u
        busy_2d, busy_1d, per_row = (e + f + 9) * u, (2 * f + 10) * u + a, e + f + 2
    else:
        busy_2d, busy_1d, per_row = (e + f) * u, (4 * side + 5 + 2 * f) * u + a, e + f + 2 * side + 2
        cycles = max(busy_2d, busy_1d)
    traffic = 2 * bh * (e * n + f * n + row_blocks(n, side, e, f, words, per_row) * (e + f) * n)
    rate = {"fusemax": 400, "flat": 400, "edge-32": 50}[target.partition(":")[0]] * 2**30
    latency = max(cycles / CLOCK, traffic / rate)
    assert found.dram_bytes == traffic
    assert found.time_s == pytest.approx(latency, rel=1e-12)
    assert found.busy["2d"] == pytest.approx(busy_2d / CLOCK / latency, rel=1e-12)
    assert found.busy["1d"] == pytest.approx(busy_1d / CLOCK / latency, rel=1e-12)


@pytest.mark.parametrize(("e", "f", "n"), CASES)
def test_energy_of_the_binding(e: int, f: int, n: int) -> None:
    found, bh = published("fusemax:binding", e, f, n, heads=3), BATCH * 3
    t = bh * n * n
    x = t / 256
    mac, top, add, div = 17.1645, 0.028036, 8.3395, 36.251153
    operators = t * ((e + f + 6) * mac + top + 2 * add) + x * (top + 7 * mac + 2 * add + f * (mac + add)) + bh * f * n * div
    blocks = row_blocks(n, 256, e, f, 8 * 2**20, e + f + 2)
    reads = e * x * 2 + f * x * 2 + 2 * x + bh * f * n + bh * n
    writes = bh * (e * n + blocks * (e + f) * n) + f * x + 2 * x
    vector = (x + f * x - bh * f * n) * 2.194455 + (3 * x + f * x) * 1.906455
    assert found.energy_pj["2-D array"] + found.energy_pj["1-D array"] == pytest.approx(operators, rel=1e-12)
    assert found.energy_pj["buffer"] == pytest.approx((12518.90 * reads + 15751.45 * writes) / 256, rel=1e-12)
    assert found.energy_pj["registers"] == pytest.approx(vector, rel=1e-12)
    assert found.energy_pj["DRAM"] == pytest.approx(249.6 / 8 * found.dram_bytes, rel=1e-12)


@given(
    side=st.sampled_from([4, 8, 16, 32]), tiles=st.integers(1, 12), e=st.integers(1, 40), f=st.integers(1, 40),
    heads=st.integers(1, 4), kilobytes=st.integers(16, 256),
)  # fmt: skip
def test_the_binding_on_any_array(side: int, tiles: int, e: int, f: int, heads: int, kilobytes: int) -> None:
    made, n = resized(array("fusemax"), side, kilobytes * 1024), side * tiles
    design = load_design("binding")
    workload = Workload.attention(batch=1, heads=heads, seq_q=n, head_dim=e, value_dim=f)
    found = run(workload, made, design, replicate=ARTIFACT)
    u, a = heads * tiles**2, heads * f * tiles
    assert sum(x.length for x in found.epochs) == max((e + 1) * u, (f + 1) * u + a) + 9 * u + f * u
    fewest = max(1, -(-tiles // int((kilobytes * 512 - side * (e + f)) // (side * (e + f + 2)))))
    least = 2 * heads * (e + f) * n * (1 + fewest)
    assert least <= found.dram_bytes <= 2 * heads * (e + f) * n * (1 + 2 * fewest)
    assert max(found.busy.values()) <= 1 + 1e-12  # rounding of the division


def test_the_default_adds_only_what_is_physical() -> None:
    """Fill and drain lengthen a run by a few tiles; nothing else of the one-pass design changes its time."""
    design, workload = load_design("binding"), Workload.attention(heads=8, seq_q=4096, head_dim=64)
    ideal, real = (run(workload, array("fusemax"), design, replicate=r) for r in (ARTIFACT, frozenset[str]()))
    tile = sum(e.length for e in ideal.epochs) / (8 * 16 * 16)
    assert (real.time_s - ideal.time_s) * CLOCK == pytest.approx(3 * tile + 2 * 256, rel=1e-6)
    points, chunks = 8 * 4096**2, 8 * 4096**2 / 256
    operations = points * (64 + 64 + 9) + chunks * (10 + 64 + 64) + 8 * 4096 * 64
    assert real.energy_pj["registers"] == pytest.approx(operations * (2 * 2.194455 + 1.906455), rel=1e-12)


def test_an_unknown_switch_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no switch gravity; there are binary bandwidth"):
        run(Workload.attention(heads=1, seq_q=256, head_dim=64), array("fusemax"), load_design("binding"),
            replicate=frozenset({"gravity"}))  # fmt: skip
