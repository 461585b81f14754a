"""Attention with a bias, as factors and as a matrix, forward and backward, against the plain formula in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import flashbias as module  # noqa: E402
from einsight.kernels import references  # noqa: E402
from einsight.kernels.attention import attention  # noqa: E402
from einsight.kernels.attention_backward import Setting  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.flashbias import attention_with_bias, flashbias, pad_rank  # noqa: E402
from einsight.kernels.spaces import Config  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
SMALL = Config(32, 32, 4, 1)
SHARED = {"own": (None, None), "shared by heads": (None, 1), "shared by batch": (1, None), "shared by all": (1, 1)}


def inputs(device: str, dtype: Any, sizes: tuple[int, ...], rank: int, shared: Any = (None, None)) -> Any:
    """q, k, v, dout and the bias: two factors of the rank, or a matrix where it is 0."""
    B, H, G, M, N, E, F = sizes
    b, h = shared[0] or B, shared[1] or H
    make = torch.Generator().manual_seed(sum(sizes) + rank)
    of_bias = ((b, h, M, rank), (b, h, N, rank)) if rank else ((b, h, M, N),)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F), *of_bias)
    return [torch.randn(*shape, generator=make).to(dtype).to(device) for shape in shapes]


def plain(q: Any, k: Any, v: Any, *bias: Any, dtype: Any, **rest: Any) -> Any:
    matrix = bias[0].to(dtype) @ bias[1].to(dtype).transpose(-1, -2) if len(bias) == 2 else bias[0]
    return references.attention(q, k, v, bias=matrix, dtype=dtype, **rest)


def check(q: Any, k: Any, v: Any, dout: Any, *bias: Any, mask: dict[str, Any] | None = None, config: Config = SMALL,
          backward: bool = True, **rest: Any) -> None:  # fmt: skip
    """Forward into poisoned buffers, then every gradient."""
    mask = mask or {}
    forward = flashbias if len(bias) == 2 else attention_with_bias
    out, lse = torch.full_like(dout, math.nan), torch.full(dout.shape[:3], math.nan, device=q.device)
    forward(q, k, v, *bias, **mask, **rest, config=config, out=out, lse=lse)
    told = {"band": band(**mask), **rest}
    leaves = [[x.detach().to(t).requires_grad_() for x in (q, k, v, *bias)] for t in (torch.float64, q.dtype)]
    (exact, exact_lse), (same, _) = (plain(*x, dtype=x[0].dtype, **told) for x in leaves)
    assert references.largest_error(out, exact.detach()) <= references.allowed_error(same.detach(), exact.detach(), q.dtype)
    biggest = exact_lse.detach().masked_fill(exact_lse.isinf(), 0.0).abs().max().item()
    assert references.largest_error(lse, exact_lse) <= 2e-5 * (1.0 + biggest)
    if not backward:
        return
    rest["scale"] = rest.get("scale") or q.shape[3] ** -0.5
    run = module.flashbias_backward if len(bias) == 2 else module.bias_backward
    got = run(dout, q, k, v, *bias, out, lse, Setting(band(**mask), **rest), config=config)
    judged = [torch.autograd.grad((o * dout.to(o.dtype)).sum(), x) for o, x in zip((exact, same), leaves, strict=True)]
    for i, (ours, judge, usual) in enumerate(zip(got, *judged, strict=True)):
        assert ours.shape == judge.shape and ours.dtype == (q, k, v, *bias)[i].dtype
        assert references.largest_error(ours, judge) <= references.allowed_error(usual, judge, q.dtype), i


@pytest.mark.parametrize("rank", [1, 8, 16, 20, 0], ids=lambda r: f"rank {r}" if r else "matrix")
@pytest.mark.parametrize(("M", "N", "dtype", "mask"), [
    (63, 200, HALF, {}), (200, 63, BRAIN, {"causal": True, "align": "first"}), (128, 128, HALF, {"causal": True}),
    (100, 130, BRAIN, {"causal": True, "window": 50}), (90, 100, HALF, {"window": (70, 5)}),
], ids=str)  # fmt: skip
def test_ranks_masks_and_ragged_sizes(device: str, rank: int, M: int, N: int, dtype: Any, mask: dict[str, Any]) -> None:
    check(*inputs(device, dtype, (1, 2, 1, M, N, 32, 32), rank), mask=mask)


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED.keys())
@pytest.mark.parametrize("rank", [5, 0], ids=["factors", "matrix"])
def test_a_shared_bias_is_read_and_gets_the_sum_of_its_gradients(device: str, rank: int, shared: Any) -> None:
    check(*inputs(device, HALF, (2, 4, 2, 40, 70, 32, 32), rank, shared), mask={"causal": True})


@pytest.mark.parametrize("rank", [40, 128, 0])
def test_wide_heads_and_ranks(device: str, rank: int) -> None:
    check(*inputs(device, HALF, (1, 1, 1, 70, 90, 128, 64), rank), mask={"causal": True}, config=Config(64, 32, 4, 2))


@pytest.mark.parametrize("rank", [3, 0], ids=["factors", "matrix"])
def test_lengths_and_scale(device: str, rank: int) -> None:
    lengths = {"lengths_q": torch.tensor([45, 0, 33], dtype=torch.int32, device=device),
               "lengths_k": torch.tensor([41, 70, 0], dtype=torch.int32, device=device)}  # fmt: skip
    check(*inputs(device, HALF, (3, 2, 1, 50, 70, 32, 32), rank), mask={"causal": True}, scale=0.3, **lengths)


def test_positions_as_factors_are_the_linear_bias_of_each_head(device: str) -> None:
    """ALiBi, arXiv:2108.12409: -slope (m - n). The part that only depends on m cancels: rank 1."""
    B, H, M = 1, 4, 100
    q, k, v, *_ = inputs(device, HALF, (B, H, H, M, M, 32, 32), 1)
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)], device=device)
    position = torch.arange(M, device=device, dtype=torch.float32)
    pq = slopes[None, :, None, None].expand(1, H, M, 1).half()
    pk = position[None, None, :, None].half()
    out, _ = flashbias(q, k, v, pq, pk, causal=True, config=SMALL)
    matrix = -slopes[:, None, None] * (position[:, None] - position[None, :])
    exact, _ = references.attention(q, k, v, bias=matrix, band=band(causal=True))
    same, _ = references.attention(q, k, v, bias=matrix, band=band(causal=True), dtype=HALF)
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, HALF)


def test_without_a_bias_it_is_attention(device: str) -> None:
    q, k, v, _, pq, pk = inputs(device, HALF, (1, 2, 1, 50, 70, 32, 32), 4)
    out, lse = flashbias(q, k, v, torch.zeros_like(pq), pk, causal=True, config=SMALL)
    expected, expected_lse = attention(q, k, v, causal=True, config=SMALL)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


def test_a_matrix_of_minus_infinity_hides_keys(device: str) -> None:
    q, k, v, dout, bias = inputs(device, HALF, (1, 2, 1, 64, 96, 32, 32), 0)
    bias[..., 10:40] = -math.inf
    bias[:, :, 7] = -math.inf  # a row that sees nothing
    check(q, k, v, dout, bias, backward=False)
    out, lse = attention_with_bias(q, k, v, bias, config=SMALL)
    assert (out[:, :, 7] == 0).all() and (lse[:, :, 7] == -math.inf).all()
    grads = module.bias_backward(dout, q, k, v, bias, out, lse, Setting(band(), 32**-0.5), config=SMALL)
    assert all(torch.isfinite(g).all() for g in grads) and (grads[3][..., 10:40] == 0).all()


def test_float16_factors_beside_bfloat16_heads(device: str) -> None:
    q, k, v, dout, pq, pk = inputs(device, BRAIN, (1, 2, 1, 50, 70, 32, 32), 4)
    check(q, k, v, dout, pq.half(), pk.half(), mask={"causal": True}, backward=False)


def test_padding_the_rank_once_or_in_every_call_is_the_same(device: str) -> None:
    q, k, v, _, pq, pk = inputs(device, HALF, (1, 2, 1, 50, 70, 32, 32), 5)
    wide_q, wide_k = pad_rank(pq), pad_rank(pk)
    assert wide_q.shape[3] == 16 and pad_rank(wide_q) is wide_q and (wide_q[..., 5:] == 0).all()
    assert torch.equal(flashbias(q, k, v, wide_q, wide_k)[0], flashbias(q, k, v, pq, pk)[0])


def test_a_bad_bias_says_what_is_wrong() -> None:
    q, k, v, _, pq, pk = inputs("cpu", HALF, (2, 4, 2, 8, 16, 32, 32), 4)
    matrix = torch.zeros(1, 1, 8, 16)
    calls: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"pq: got shape \[2, 3, 8, 4\], expected \[2 or 1, 4 or 1, 8", lambda: flashbias(q, k, v, pq[:, :3], pk)),
        (ValueError, r"pk: got shape \[2, 4, 15, 4\]", lambda: flashbias(q, k, v, pq, pk[:, :, :15])),
        (ValueError, r"pk: got rank 3 in torch.float16, expected rank 4", lambda: flashbias(q, k, v, pq, pk[..., :3])),
        (TypeError, r"pq: got torch.float32", lambda: flashbias(q, k, v, pq.float(), pk)),
        (ValueError, r"pq: got rank 129.*attention_with_bias",
         lambda: flashbias(q, k, v, torch.zeros(1, 1, 8, 129).half(), pk)),
        (ValueError, r"bias: got shape \[1, 1, 8, 15\]", lambda: attention_with_bias(q, k, v, matrix[..., :15])),
        (TypeError, r"bias: got torch.float64", lambda: attention_with_bias(q, k, v, matrix.double())),
        (ValueError, r"bias: .*use .contiguous", lambda: attention_with_bias(q, k, v, torch.zeros(1, 1, 16, 8).mT)),
    ]  # fmt: skip
    for kind, message, call in calls:
        with pytest.raises(kind, match=message):
            call()
