"""Times of matrix, factors and no bias: kinds of a bias as values, what they move, and the break-even rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from einsight.einsum.compose import compose
from einsight.einsum.concatenate import concatenation
from einsight.einsum.format import format_cascade
from einsight.einsum.library import fragment, load
from einsight.sim.additions import Addition
from einsight.sim.bias_times import bias_times, concatenated, dense_kind, with_factors, with_matrix
from einsight.sim.family import load_family
from einsight.sim.hardware import Gpu, load_hardware
from einsight.sim.mapping import Mapping
from einsight.sim.mask_pairs import members
from einsight.sim.predict import estimate_of, predict
from einsight.sim.workload import Workload

N, H, B = 4096, 8, 4
PLAIN = Workload.attention(batch=B, heads=H, seq_q=N, head_dim=64)
TARGET = "h100-sxm"


def hbm(workload: Workload, target: str = TARGET) -> float:
    return predict(workload, target).bytes_by_memory["HBM"]


@pytest.mark.parametrize(
    ("per_sequence", "per_head", "copies"), [(False, True, H), (True, False, B), (True, True, B * H), (False, False, 1)]
)
def test_a_matrix_is_read_once_for_all_who_share_it(per_sequence: bool, per_head: bool, copies: int) -> None:
    """At least its own bytes, and no more than one reading per sequence and head."""
    kind = dense_kind(per_sequence, per_head)
    extra = hbm(with_matrix(PLAIN, kind)) - hbm(PLAIN)
    assert 0.99 * copies * 2 * N * N <= extra <= 1.01 * B * H * 2 * N * N


@pytest.mark.parametrize("mask", [None, "causal", ["causal", {"window": 512}], [{"blocks": {"size": 128, "density": 0.25}}]])
def test_of_a_matrix_the_tiles_that_run_are_read(mask: object) -> None:
    """A kernel that skips a tile does not load its bias: 128 x 64 elements for every tile with a visible pair."""
    short = Workload.attention(heads=H, seq_q=1024, head_dim=64, mask=mask)
    seen = members(short.mask, 1024, 1024).reshape(1024 // 128, 128, 1024 // 64, 64).any(axis=(1, 3))
    found = [predict(w, TARGET, mapping=Mapping(128, 64)).bytes_by_memory["HBM"] for w in (with_matrix(short), short)]
    assert found[0] - found[1] == pytest.approx(2 * H * 128 * 64 * seen.sum())


BIASES = [
    Addition("alibi"), Addition("toeplitz", (("u", 2 * N - 1),)), Addition("window_table", (("u", 127**2), ("w", 64))),
    Addition("low_rank", (("r", 8),)), Addition("low_rank_scale", (("r", 2),)), Addition("distance", (("x", 3),)),
]  # fmt: skip


@pytest.mark.parametrize("added", BIASES, ids=lambda a: a.kind)
@pytest.mark.parametrize("family", ["", ":unfused"])
def test_every_kind_moves_less_than_the_matrix_and_costs_more_than_none(added: Addition, family: str) -> None:
    tiles = None if family else Mapping(128, 64)
    plain, biased, matrix = (
        predict(replace(PLAIN, bias=b), TARGET + family, mapping=tiles) for b in ((), (added,), (Addition("dense_bias"),))
    )
    assert biased.time_s >= plain.time_s
    if not family:
        table = hbm(replace(PLAIN, bias=(added,))) - hbm(PLAIN)
        assert table < 0.05 * 2 * H * N * N
        assert biased.time_s < matrix.time_s
    else:  # unfused the bias passes through memory as the scores do
        assert biased.bytes_by_memory["HBM"] > plain.bytes_by_memory["HBM"] + 2 * B * H * N * N


def test_factors_move_their_own_bytes() -> None:
    """Once, where L2 holds what passes by before the next sequence reads them (6 MB of 1024 tokens); at most once a sequence
    where it does not (25 MB of 4096 tokens, half of H100's L2)."""
    rank, short = 32, Workload.attention(batch=B, heads=H, seq_q=1024, head_dim=64)
    own = 2 * H * 2 * rank  # bytes per token of both factors
    assert hbm(with_factors(short, rank)) - hbm(short) == pytest.approx(1024 * own, rel=0.05)
    assert N * own < hbm(with_factors(PLAIN, rank)) - hbm(PLAIN) < B * N * own


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_products_of_both_forms(rank: int) -> None:
    """2 M N (E + R + F) a head and sequence in both: a kernel multiplies factors that sequences share in each of them."""
    plain, bias = 2 * B * H * N * N * (64 + 64), 2 * B * H * N * N * rank
    assert predict(with_factors(PLAIN, rank), TARGET).flops_matmul == plain + bias
    assert predict(concatenated(PLAIN, rank), TARGET).flops_matmul == plain + bias


def test_concatenated_heads_share_no_keys() -> None:
    grouped = Workload.attention(heads=8, kv_heads=2, seq_q=1024, head_dim=64)
    assert concatenated(grouped, 16).sizes["g"] == 8 and concatenated(grouped, 0) is not None
    assert concatenated(grouped, 0).sizes == grouped.sizes


def test_break_even_is_where_the_times_cross() -> None:
    found = bias_times(PLAIN, 8, TARGET)
    rank = found.break_even_rank
    assert 0 < rank < N and not found.capped

    def fastest(r: int) -> float:
        return min(predict(form(PLAIN, r), TARGET).time_s for form in (with_factors, concatenated))

    assert fastest(rank) < found.dense.time_s <= fastest(rank + 1)
    assert found.useful and not replace(found, rank=rank + 1).useful
    assert found.none.time_s <= found.low_rank.time_s < found.dense.time_s
    assert found.memory_bytes_saved > 0


def test_ranks_of_one_granule_run_alike() -> None:
    """R = 2 keeps the tensor cores as busy as R = 16 does; only its bytes are fewer."""
    found = [predict(with_factors(PLAIN, r), f"{TARGET}:triton") for r in (2, 16, 17)]
    two, sixteen, seventeen = (next(b.time_s for b in p.bounds if b.name == "tensor cores") for p in found)
    assert two == sixteen < seventeen
    assert found[0].time_s == pytest.approx(found[1].time_s, rel=0.05)


def test_the_fold_s_kernel_takes_the_time_of_the_wider_workload(tmp_path: Path) -> None:
    """`einsum.concatenate` and `concatenated` are two ways to the same kernel: its cascade, written out, is predicted alike."""
    rank = 16
    found = concatenation(compose(load("one_pass"), [fragment("low_rank")], outer=False))
    assert found is not None
    packed = replace(found.packed, inputs=tuple(replace(t, outer=None) for t in found.packed.inputs))
    file = tmp_path / "packed.casc"
    file.write_text(format_cascade(packed), encoding="utf-8")
    wide = replace(PLAIN, cascade=str(file), sizes={**PLAIN.sizes, "e_r": PLAIN.sizes["e"] + rank})
    gpu = load_hardware(TARGET)
    assert isinstance(gpu, Gpu)
    folded, widened = (estimate_of(w, gpu, load_family("flash3")) for w in (wide, concatenated(PLAIN, rank)))
    np.testing.assert_allclose(folded.time_s, widened.time_s, rtol=1e-12)
    for name, bound in widened.bounds_s.items():
        np.testing.assert_allclose(folded.bounds_s[name], bound, rtol=1e-12)
