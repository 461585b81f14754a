"""Fused sigmoid attention against the plain formula in float64, judged by the plain formula's own error."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.resources import Request, compile_offline  # noqa: E402
from einsight.kernels.sigmoid import sigmoid_attention  # noqa: E402
from einsight.kernels.spaces import Config, Heads, shared_bytes  # noqa: E402

SMALL = Config(64, 32, 4, 2)
HALF, BRAIN = torch.float16, torch.bfloat16


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, N: int, E: int, F: int, size: float = 1.0) -> Any:
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F))
    return tuple((torch.randn(*shape, generator=make) * size).to(dtype).to(device) for shape in shapes)


def check(q: Any, k: Any, v: Any, *, config: Config | None = SMALL, mask: dict[str, Any] | None = None, **rest: Any) -> Any:
    """Run into a poisoned buffer and compare; returns what the kernel wrote."""
    mask = mask or {}
    out = torch.full((*q.shape[:3], v.shape[3]), math.nan, dtype=q.dtype, device=q.device)
    sigmoid_attention(q, k, v, config=config, out=out, **mask, **rest)
    exact = references.sigmoid_attention(q, k, v, band=band(**mask), **rest)
    same = references.sigmoid_attention(q, k, v, band=band(**mask), dtype=q.dtype, **rest)
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, q.dtype)
    return out


MASKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "causal last key": {"causal": True},
    "causal first key": {"causal": True, "align": "first"},
    "causal window": {"causal": True, "window": 50},
    "lopsided window": {"window": (70, 5), "align": "first"},
}


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("M", "N"), [(63, 200), (200, 63), (128, 64)])
def test_masks_and_ragged_sizes(device: str, dtype: Any, mask: dict[str, Any], M: int, N: int) -> None:
    check(*inputs(device, dtype, 1, 2, 1, M, N, 32, 32), mask=mask)


def test_the_reference_is_the_definition_of_the_cascade(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 1, 1, 20, 30, 32, 40)
    score = (q[0, 0].double() @ k[0, 0].double().T) / math.sqrt(32) - math.log(30)
    expected = (1 / (1 + torch.exp(-score))) @ v[0, 0].double()
    assert torch.allclose(references.sigmoid_attention(q, k, v)[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("bias", [0.0, -3.0, 2.5])
def test_another_bias(device: str, bias: float) -> None:
    check(*inputs(device, BRAIN, 2, 4, 2, 40, 70, 32, 32), bias=bias, mask={"causal": True})


def test_small_weights_keep_their_digits_in_float16(device: str) -> None:
    """At 2^-20 a float16 number has 4 bits: the kernel must be better than that, to the rounding of a weight and the output."""
    q, k, v = inputs(device, HALF, 1, 1, 1, 64, 96, 32, 32)
    v = v.abs() + 1000  # outputs of about 0.1: the output's own format is not what is tested
    out = sigmoid_attention(q, k, v, bias=-20 * math.log(2), config=SMALL)
    exact = references.sigmoid_attention(q, k, v, bias=-20 * math.log(2))
    assert ((out.double() - exact).abs() / exact).max().item() <= 2 * 2**-11


def test_extreme_scores_saturate(device: str) -> None:
    out = check(*inputs(device, BRAIN, 1, 1, 1, 64, 96, 64, 64, size=40.0), scale=1.0)
    assert torch.isfinite(out).all()
    q, k, v = inputs(device, HALF, 1, 1, 1, 64, 96, 64, 64)
    check(q * 30, k * 30, v, scale=1.0)


def test_rows_that_see_no_key_give_zero(device: str) -> None:
    M, N = 100, 40
    out = check(*inputs(device, HALF, 1, 2, 2, M, N, 32, 32), mask={"causal": True})
    assert (out[:, :, : M - N] == 0).all() and (out[:, :, M - N :] != 0).any()
    q, k, v = inputs(device, HALF, 1, 1, 1, 40, 0, 32, 32)
    assert (sigmoid_attention(q, k, v, config=SMALL) == 0).all()


def test_results_of_two_sets_of_keys_add(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 1, 1, 64, 96, 32, 32)
    whole = sigmoid_attention(q, k, v, bias=-4.0, config=SMALL).double()
    parts = [sigmoid_attention(q, k[:, :, s], v[:, :, s], bias=-4.0, config=SMALL).double() for s in (slice(50), slice(50, 96))]
    assert (parts[0] + parts[1] - whole).abs().max().item() <= 3 * 2**-11 * max(p.abs().max().item() for p in (*parts, whole))


@pytest.mark.parametrize("mask", [{}, {"causal": True, "window": 24}], ids=str)
def test_lengths_of_each_batch_element(device: str, mask: dict[str, Any]) -> None:
    q, k, v = inputs(device, HALF, 3, 2, 1, 70, 90, 32, 32)
    lengths_q = torch.tensor([45, 0, 33], dtype=torch.int32, device=device)
    lengths_k = torch.tensor([41, 90, 0], dtype=torch.int32, device=device)
    check(q, k, v, mask=mask, lengths_q=lengths_q, lengths_k=lengths_k)
    check(q, k, v, mask=mask, lengths_k=lengths_k, bias=-2.0)


@pytest.mark.parametrize(("E", "F"), [(40, 56), (64, 128), (192, 128)])
def test_head_dimensions_and_default_config(device: str, E: int, F: int) -> None:
    check(*inputs(device, BRAIN, 1, 1, 1, 40, 72, E, F), mask={"causal": True}, config=None)


def test_heads_inside_the_sequence(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 80, 3, 4, 32, generator=make).half().to(device)  # [B, N, (q k v), H, E]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    assert not q.is_contiguous()
    check(q, k[:, :2, 1:64], v[:, :2, 1:64], mask={"causal": True})


def test_a_bad_call_says_what_is_wrong() -> None:
    q, k, v = inputs("cpu", HALF, 1, 4, 2, 8, 16, 32, 32)
    for message, arguments in (
        (r"bias: got inf, expected a finite number", {"bias": math.inf}),
        (r"out: got torch.float16 \[1\]", {"out": torch.zeros(1).half()}),
        (r"scale: got -1", {"scale": -1.0}),
    ):
        with pytest.raises(ValueError, match=message):
            sigmoid_attention(q, k, v, **arguments)


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed (extra `gpu`)")
def test_it_compiles_without_a_gpu_and_its_loop_is_the_cascades() -> None:
    """Per thread and tile, for every weight: an exponential, a reciprocal, a multiply-add and an addition; no row statistics,
    and none of the range reduction of a division."""
    config = Config(128, 64, 8, 2)
    arguments = {"sizes": [1, 8, 2, 4096, 4096, 128, 128], "dtype": "float16", "mask": {"right": 0},
                 "config": [128, 64, 8, 2]}  # fmt: skip
    order = [Request("einsight.kernels.sigmoid", "compile_named", arguments, cc, cc != 100) for cc in (80, 90, 100)]
    for asked, estimate in compile_offline(order):
        assert estimate.status == "ok" and estimate.spill_bytes == 0, (asked, estimate)
        if asked.capability == 100:
            continue
        assert estimate.shared_bytes == shared_bytes(Heads(128, 128), config, asked.capability)
        weights = config.block_m * config.block_n // (32 * config.num_warps)
        assert estimate.loop["MUFU.EX2"] == weights and estimate.loop["MUFU.RCP"] == weights, estimate.loop
        assert estimate.loop["FFMA"] == weights and estimate.loop["FADD"] == weights, estimate.loop
        assert "FMUL" not in estimate.loop and "FSETP" not in estimate.loop, estimate.loop
