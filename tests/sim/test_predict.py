"""One prediction: its FLOPs, traffic, words and refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from einsight.einsum.compose import IllegalComposition
from einsight.sim import Workload, predict
from einsight.sim.family import names
from einsight.sim.hardware import load_gpu
from einsight.sim.predict import IllegalMapping
from einsight.sim.strict_yaml import SpecError
from einsight.sim.units import format_si

B, H, G, N, E = 2, 8, 2, 4096, 128


def attention(**more: object) -> Workload:
    sizes = {"batch": B, "heads": H, "kv_heads": G, "seq_q": N, "head_dim": E}
    return Workload.attention(**(sizes | more))  # type: ignore[arg-type]


def test_matmul_flops_follow_the_flash_attention_convention() -> None:
    assert predict(attention(), "h100-sxm").flops_matmul == 4 * B * H * N * N * E
    assert predict(attention(mask="causal"), "h100-sxm").flops_matmul == 4 * B * H * E * N * (N + 1) // 2
    window = predict(attention(mask=["causal", {"window": 256}]), "h100-sxm")
    assert window.flops_matmul == 4 * B * H * E * (256 * N - 256 * 255 // 2)


def test_cold_traffic_is_at_least_every_operand_once() -> None:
    once = 2 * B * N * E * (2 * H + 2 * G)
    assert predict(attention(), "h100-sxm").bytes_by_memory["HBM"] == once
    assert predict(attention(seq_q=65536, batch=8), "a100-sxm-40gb").bytes_by_memory["HBM"] >= 8 * 16 * once / B


def test_unfused_attention_moves_the_scores_eight_times() -> None:
    """FuseMax's 3-pass cascade: QK written and read twice, SN written and read twice, A written and read once."""
    p = predict(attention(cascade="stable"), "h100-sxm:unfused")
    scores, operands = 2 * B * H * N * N, 2 * B * N * E * (2 * H + 2 * G)
    rows = 2 * B * H * N * (2 + 2)  # GM and SD, each written and read once
    assert p.bytes_by_memory["L2"] == 8 * scores + operands + rows


def test_the_bound_names_amount_rate_and_source() -> None:
    p = predict(attention(seq_q=1, seq_kv=N * 8, batch=64), "h200-sxm")
    assert p.bound.name == "HBM" and "4.8 TB/s (datasheet)" in p.bound.because
    assert p.bound.time_s == pytest.approx(p.bytes_by_memory["HBM"] / 4.8e12)


def test_json_has_the_interchange_fields() -> None:
    fields = {
        "workload", "key", "target", "family", "time_s", "time_low_s", "time_high_s", "bound", "bounds", "flops", "bytes",
        "intensity", "tflops", "fraction_of_peak", "passes", "speedup", "assumptions", "model_version",
    }  # fmt: skip
    out = json.loads(json.dumps(predict(attention(), "b200").as_json()))
    assert fields <= out.keys()
    assert set(out["speedup"]) == {"over_dense_unfused", "over_dense_fused"}
    assert set(out["bound"]) == {"name", "time_s", "because"}


def test_speedup_over_itself_is_one_and_a_mask_gains() -> None:
    assert predict(attention(), "h100-sxm").speedup["over_dense_fused"] == pytest.approx(1.0)
    assert 1.2 < predict(attention(mask="causal"), "h100-sxm").speedup["over_dense_fused"] <= 2.0
    assert predict(attention(), "h100-sxm").speedup["over_dense_unfused"] > 3


REFUSED = [("rtx-4090", "fp8_e4m3"), ("h100-sxm:flash2", "fp8_e4m3"), ("l40s:flash3", "bf16")]


@pytest.mark.parametrize(("target", "dtype"), REFUSED)
def test_a_refused_type_names_every_family_that_runs_with_it(target: str, dtype: str) -> None:
    with pytest.raises(IllegalMapping, match=rf"with {dtype} run there: ") as caught:
        predict(attention(dtype=dtype), target)
    named, profile = str(caught.value).rpartition(": ")[2].split(", "), target.partition(":")[0]
    for family in names():
        if family in named:
            assert predict(attention(dtype=dtype), f"{profile}:{family}").time_s > 0
        else:
            with pytest.raises(IllegalMapping):
                predict(attention(dtype=dtype), f"{profile}:{family}")


@pytest.mark.parametrize("target", ["h100-sxm:flash3", "h200-sxm:xqa_fp8", "b200:trtllm_blackwell"])
def test_a_kernel_that_multiplies_in_the_cache_s_type_refuses_a_cache_that_it_cannot_multiply(target: str) -> None:
    four_bit = replace(attention(), dtypes={"K": "fp4_e2m1", "V": "fp4_e2m1"})
    with pytest.raises(IllegalMapping, match="multiplies in the cache's type, fp4_e2m1"):
        predict(four_bit, target)


def test_products_in_the_cache_s_type_are_told_at_that_type_s_rate() -> None:
    eight_bit = replace(attention(), dtypes={"K": "fp8_e4m3", "V": "fp8_e4m3"})
    gpu, found = load_gpu("h100-sxm"), predict(eight_bit, "h100-sxm:flash3")
    bound, run = next(b for b in found.bounds if b.name == "tensor cores"), 4 * B * H * E * N * N  # and ragged last tiles
    assert f"x {gpu.tensor_flops_per_cycle['fp8_e4m3'].value:g} FLOP/cycle" in bound.because
    done = bound.time_s * gpu.tensor_flops_per_s("fp8_e4m3")
    assert run <= done < 1.05 * run and format_si(done, "FLOP") in bound.because
    assert found.peak_flops_per_s == gpu.tensor_flops_per_s("fp8_e4m3")


def test_a_type_that_no_family_runs_with_says_so() -> None:
    with pytest.raises(IllegalMapping, match="no family runs with tf32 there"):
        predict(attention(dtype="tf32"), "b200")


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(IllegalMapping, match=r"flash3 needs wgmma.*l40s has mma\.sync"):
        predict(attention(), "l40s:flash3")
    with pytest.raises(IllegalMapping, match="profile a100-sxm-80gb has no tensor-core rate for fp8_e4m3; it has bf16"):
        predict(attention(dtype="fp8"), "a100-sxm-80gb")
    with pytest.raises(IllegalComposition, match="linear has no score"):
        predict(attention(cascade="linear", mask="causal"), "h100-sxm")
    with pytest.raises(SpecError, match='did you mean "h100-sxm"'):
        predict(attention(), "h100-smx")
    with pytest.raises(SpecError, match="flash2"):
        predict(attention(), "h100-sxm:flash9")


def test_a_window_re_reads_only_what_its_neighbours_share() -> None:
    """Keys of a head exceed L2, but a block reads 4k of them and the next block the same ones: each comes from HBM once."""
    long = attention(batch=1, seq_q=512 * 1024, mask=["causal", {"window": 4096}])
    once = 2 * 512 * 1024 * E * (2 * H + 2 * G)
    assert predict(long, "h100-sxm").bytes_by_memory["HBM"] == once
    whole = predict(attention(batch=1, seq_q=512 * 1024, mask="causal"), "h100-sxm")
    assert whole.bytes_by_memory["HBM"] > 2 * once


@pytest.mark.parametrize(("keys", "fits"), [(2_441_000, True), (2_442_000, False)])
def test_operands_beyond_the_memory_of_the_device_are_said(keys: int, fits: bool) -> None:
    """K and V of 32 sequences, 2 KV heads and 128 dimensions in two bytes take 32 KiB a key; the device has 80 GB."""
    work = Workload.attention(batch=32, heads=16, kv_heads=2, seq_q=1, seq_kv=keys, head_dim=128, phase="decode")
    beyond = [note for note in predict(work, "h100-sxm").assumptions if "operands and results" in note]
    taken = 2 * 32 * 2 * keys * 128 * 2 + 2 * 32 * 16 * 128 * 2
    assert (taken <= 80e9) == fits == (not beyond)
    assert all(f"take {format_si(taken, 'B')}, more than the 80 GB of h100-sxm" in note for note in beyond)


@pytest.mark.parametrize("target", ["h100-sxm", "h100-sxm:unfused"])
def test_a_launch_is_told_with_its_unit(target: str) -> None:
    [launch] = [b for b in predict(attention(), target).bounds if b.name == "launch"]
    assert re.match(r"launch: [0-9.]+ us per call \((fitted|assumed): ", launch.because), launch.because


def test_a_mask_without_any_pair_is_predicted_in_silence(recwarn: pytest.WarningsRecorder) -> None:
    nothing = {"blocks": {"size": 64, "keep": [[0, 3]]}}
    w = Workload.attention(heads=8, seq_q=512, head_dim=64, mask=["causal", nothing])
    for target in ("h100-sxm", "fusemax"):
        assert predict(w, target).flops_matmul == 0
    assert not list(recwarn)
