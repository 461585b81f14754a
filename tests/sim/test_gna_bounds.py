"""Bounds on what neighborhood attention can gain, and when it is fully block-sparse."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import pytest

from einsight.sim.gna_bounds import block_sparsity, bounds, end_to_end, natten_rule
from einsight.sim.gna_tiles import count_tiles
from einsight.sim.mask import Gna

REFERENCE = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna"
SHARES = {"flux4k": 0.518, "hunyuan": 0.607}  # self attention in a run, Table 1 of the GNA paper


def video(stride: tuple[int, int, int], window: tuple[int, int, int] = (18, 24, 24)) -> Gna:
    return Gna((30, 48, 80), window, stride, (1, 1, 1), (False, False, False))


def line(length: int, window: int, stride: int, dilation: int = 1, causal: bool = False) -> Gna:
    return Gna((length,), (window,), (stride,), (dilation,), (causal,))


@pytest.mark.parametrize(("stride", "worst"), [
    ((1, 1, 1), 900 / 275), ((2, 1, 1), 900 / 250), ((1, 1, 8), 900 / 165), ((2, 1, 8), 900 / 150), ((1, 8, 8), 900 / 99),
    ((2, 8, 8), 900 / 90), ((16, 8, 8), 900 / 81), ((18, 24, 24), 900 / 135),
])  # fmt: skip
def test_worst_tile_of_the_papers_video_model(stride: tuple[int, int, int], worst: float) -> None:
    """T_Q 4x8x8, T_KV 2x8x8: 15 x 6 x 10 KV tiles dense, worst tiles counted by hand per dimension."""
    found = bounds(video(stride), count_tiles(video(stride), (4, 8, 8), (2, 8, 8)))
    assert found.worst == pytest.approx(worst)
    assert found.flop == pytest.approx(30 * 48 * 80 / (18 * 24 * 24))
    assert found.worst <= found.average + 1e-12 and found.average <= found.flop + 1e-9


def test_the_papers_simulator_column() -> None:
    file = REFERENCE / "gna_paper_rows.json"
    if not file.is_file():
        pytest.skip(f"no {file}")
    for row in json.loads(file.read_text())["rows"]:
        rank = len(row["input_size"])
        mask = Gna(tuple(row["input_size"]), tuple(row["window_size"]), tuple(row["stride"]), (1,) * rank, (False,) * rank)
        bound = bounds(mask, count_tiles(mask, tuple(row["q_tile"]), tuple(row["kv_tile"])))
        steps = row["sa_steps"], row["total_steps"]
        share = SHARES.get(row["model"], row["attention_share_of_e2e"] / (1 - steps[0] / steps[1]))
        assert end_to_end(bound.worst, share, *steps) == pytest.approx(row["e2e_nattensim_paper"], abs=0.02)
        assert end_to_end(bound.flop, share, *steps) == pytest.approx(row["e2e_flopwise_paper"], abs=0.02)


def test_end_to_end_is_amdahls_law() -> None:
    assert end_to_end(4.0, 0.5) == pytest.approx(1 / (0.5 + 0.5 / 4))
    assert end_to_end(4.0, 0.5, 15, 50) == pytest.approx(1 / (1 - 0.35 + 0.35 / 4))
    assert end_to_end(4.0, 0.5, 50, 50) == 1.0
    for share, dense, steps in ((1.5, 0, 1), (0.5, 3, 2), (0.5, 0, 0)):
        with pytest.raises(ValueError, match="expected"):
            end_to_end(2.0, share, dense, steps)


def test_smallest_fully_block_sparse_stride_of_a_long_line() -> None:
    """NATTEN's documentation: 32768 tokens, window 2048, KV tile 128: 256 for Q tiles of 128 and of 256."""
    for q in (128, 256):
        sparse = [s for s in range(1, 2049) if block_sparsity(line(32768, 2048, s), (q,), (128,)).fully]
        assert sparse[0] == 256


def test_nattens_rule_is_conservative() -> None:
    """From Q tiles of 2 on it never says yes where a tile is cut, and sometimes no where none is."""
    missed = 0
    for length, q, k in product(range(2, 17), (2, 4, 8), (1, 2, 4)):
        for window in range(2, length + 1):
            for stride in range(1, window + 1):
                mask = line(length, window, stride)
                rule, truth = natten_rule(mask, (q,), (k,)), block_sparsity(mask, (q,), (k,)).fully
                assert truth or not rule, mask
                missed += truth and not rule
    assert missed > 0


@pytest.mark.parametrize(("mask", "q", "kv", "reason"), [
    (line(64, 16, 3), 4, 4, "stride 3 is no multiple of the Q tile's 4"),
    (line(64, 18, 4), 4, 4, "window 18 is no multiple of the KV tile's 4"),
    (line(64, 16, 4), 4, 4, "windows start 2 keys after a KV tile's first"),
    (line(64, 16, 4, causal=True), 4, 4, "causal: the diagonal cuts tiles"),
    (line(62, 16, 8), 4, 4, "the far border starts at 46"),
    (line(63, 16, 8, dilation=2), 4, 4, "the far border starts at 15"),
    (line(6, 4, 1), 1, 2, "stride 1 is no multiple of the KV tile's 2"),
])  # fmt: skip
def test_the_reason_names_the_first_condition_that_fails(mask: Gna, q: int, kv: int, reason: str) -> None:
    found = block_sparsity(mask, (q,), (kv,))
    assert not found.fully and reason in found.reason and found.reason.startswith("dimension 0: ")


def test_keys_of_the_padding_need_no_mask() -> None:
    """A whole window over a ragged line: the last tile is padded, not cut."""
    assert block_sparsity(line(10, 10, 1), (4,), (4,)).fully
    assert count_tiles(line(10, 10, 1), (4,), (4,)).masked == 3
