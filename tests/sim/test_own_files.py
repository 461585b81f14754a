"""A stranger's cascade and GPU, one file each, from the pages in docs/ to a predicted time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einsight.sim.predict import predict
from einsight.sim.workload import Workload

DOCS = Path(__file__).parents[2] / "docs"
GPU = re.findall(r"```yaml\n(name: a30 .*?)```", (DOCS / "hardware-profiles.md").read_text(encoding="utf-8"), re.DOTALL)[0]
CASCADES = re.findall(r"```casc\n(cascade .*?)```", (DOCS / "cascade-language.md").read_text(encoding="utf-8"), re.DOTALL)
SIZES = {"h": 8, "m": 2048, "n": 2048, "e": 64}
LATENT = """\
cascade latent
computes latent_attention
rank M, N, E, F, R
in  Q[m,e] C[n,r]
in  UK[r,e] over g
in  UV[r,f] over g
out AV[m,f]
score QK[m,n]
K[n,e]  = C[n,r] * UK[r,e]
V[n,f]  = C[n,r] * UV[r,f]
QK[m,n] = Q[m,e] * K[n,e]
AV[m,f] = QK[m,n] * V[n,f]
"""


def own(folder: Path, name: str) -> str:
    """The page's cascade of that name, saved as a file."""
    path = folder / f"{name}.casc"
    path.write_text(next(c for c in CASCADES if c.startswith(f"cascade {name}\n")), encoding="utf-8")
    return str(path)


def test_the_pages_cascade_on_the_pages_gpu(tmp_path: Path) -> None:
    profile = tmp_path / "a30.yaml"
    profile.write_text(GPU, encoding="utf-8")
    workload = Workload.attention(cascade=own(tmp_path, "relu_attention"), heads=8, seq_q=2048, head_dim=64, mask="causal")
    made = predict(workload, str(profile))
    assert (made.target, made.cascade) == ("a30", "relu_attention")
    assert made.flops_matmul == 4 * 8 * 64 * (2048 * 2049 // 2)
    assert all(ratio > 0 for ratio in made.speedup.values())


def test_a_cascade_with_ranks_that_no_baseline_has(tmp_path: Path) -> None:
    path = tmp_path / "latent.casc"
    path.write_text(LATENT, encoding="utf-8")
    made = predict(Workload("latent", str(path), SIZES | {"r": 32}, dtypes={"C": "fp8_e4m3"}), "h100-sxm")
    assert made.flops_matmul == 8 * 2 * (2048 * 2048 * 128 + 2 * 2048 * 32 * 64)
    assert made.speedup["over_dense_fused"] > 0


@pytest.mark.parametrize("target", ["h100-sxm", "b200:unfused"])
def test_a_condition_of_the_cascades_own_counts_exactly_and_skips_no_tile(tmp_path: Path, target: str) -> None:
    sizes = SIZES | {"w": 128, "s": 16}
    made = predict(Workload("window", own(tmp_path, "strided_window"), sizes), target)
    assert made.flops_matmul == 4 * 8 * 64 * 2048 * 128
    assert any("do not skip tiles: QK" in note for note in made.assumptions)
    dense = predict(Workload("dense", "stable_deferred", SIZES), target)  # the same Einsums at every pair
    assert made.time_s == pytest.approx(dense.time_s, rel=1e-9)
