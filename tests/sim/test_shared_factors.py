"""Factors that sequences share, and factors of their own: a fused kernel multiplies them for every head and sequence alike."""

from __future__ import annotations

import pytest

from einsight.einsum import library
from einsight.sim.additions import Addition
from einsight.sim.predict import predict
from einsight.sim.workload import Workload

B, H, SEQ, E, R = 3, 4, 512, 64, 16
PLAIN = 2 * 2.0 * B * H * SEQ * SEQ * E  # scores and values
FACTORS = "fragments/low_rank.casc"


def flops(target: str, kind: str, b: int = B) -> float:
    work = Workload.attention(batch=b, heads=H, seq_q=SEQ, head_dim=E, bias=(Addition(kind, (("r", R),)),))
    return predict(work, target).flops_matmul


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """low_rank with factors of every sequence's own."""
    text = (library.FOLDER / FACTORS).read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("own") / "own_factors.casc"
    path.write_text(text.replace("fragment low_rank", "fragment own_factors").replace("over g, j", "over b, g, j"))
    return str(path)


def test_fused_the_product_is_computed_for_every_pair_of_every_head_and_sequence(own: str) -> None:
    product = 2.0 * B * H * SEQ * SEQ * R
    assert flops("h100-sxm", "low_rank") == flops("h100-sxm", own) == PLAIN + product


def test_unfused_a_product_that_sequences_share_is_computed_once(own: str) -> None:
    shared = 2.0 * H * SEQ * SEQ * R
    assert flops("h100-sxm:unfused", "low_rank") == PLAIN + shared
    assert flops("h100-sxm:unfused", own) == PLAIN + B * shared


@pytest.mark.parametrize("kind", ["low_rank", "own"])
def test_the_count_is_what_the_tiles_run(kind: str, own: str) -> None:
    """Tiles that divide the sequence evenly run exactly the counted products, at the rate of the tensor cores."""
    work = Workload.attention(batch=B, heads=H, seq_q=SEQ, head_dim=E, dtype="fp16",
                              bias=(Addition(own if kind == "own" else kind, (("r", R),)),))  # fmt: skip
    found = predict(work, "a100-sxm-80gb:flash2")
    (bound,) = (b for b in found.bounds if b.name == "tensor cores")
    assert bound.time_s * found.peak_flops_per_s == pytest.approx(found.flops_matmul)


def test_what_a_kernel_makes_of_positions_counts_in_every_head() -> None:
    """Distances are those of a sequence; each head's kernel computes them again."""
    work = Workload.attention(batch=B, heads=H, seq_q=SEQ, head_dim=E, bias=(Addition("distance", (("x", 3),)),))
    fused, unfused = (predict(work, t).flops_by_class["macc"] for t in ("h100-sxm", "h100-sxm:unfused"))
    assert fused - unfused == (H - 1) * B * SEQ * SEQ * 3
