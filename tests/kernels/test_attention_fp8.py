"""fp8 attention against the formula in float64 on the same rounded inputs, judged by a plain PyTorch form that rounds
where the kernel does: inputs to fp8, products summed in float32, weights to fp8 after scaling by 2^8, output to bfloat16."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references  # noqa: E402
from einsight.kernels.attention import NO_DESCALES, attention, attention_packed, check_fp8  # noqa: E402
from einsight.kernels.attention_backward import Setting, attention_backward  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.spaces import Config  # noqa: E402

E4M3, E5M2, BRAIN = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16
SMALL = Config(64, 32, 4, 2)


@pytest.fixture(autouse=True)
def needs_fp8(device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 tensor cores")


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, N: int, E: int, F: int, size: float = 1.0) -> Any:
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F))
    return tuple((torch.randn(*shape, generator=make) * size).to(dtype).to(device) for shape in shapes)


def plain(q: Any, k: Any, v: Any, mask: dict[str, Any], scale: float, softcap: float | None, sink: Any, bits: int = 8) -> Any:
    """Output of the plain form; q, k, v in fp8 (descales already in scale, but not that of v). No lengths."""
    heads = [h // (q.shape[1] // k.shape[1]) for h in range(q.shape[1])]
    score = q.float() @ k.float()[:, heads].mT * scale
    score = softcap * torch.tanh(score / softcap) if softcap else score
    seen = references.visible(band(**mask), q.shape[2], k.shape[2], q.device)
    score = score.masked_fill(~seen, -math.inf)
    top = score.amax(-1, keepdim=True)
    if sink is not None:
        top = torch.maximum(top, sink[None, :, None, None])
    top = top.masked_fill(top == -math.inf, 0.0)
    weight = torch.exp(score - top) * 2.0**bits
    total = weight.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink[None, :, None, None] - top) * 2.0**bits
    rounded = weight.to(v.dtype).float()
    return (rounded @ v.float()[:, heads] / total.masked_fill(total == 0, 1.0)).to(BRAIN)


def check(q: Any, k: Any, v: Any, *, mask: dict[str, Any] | None = None, descales: Any = (1.0, 1.0, 1.0),
          scale: float | None = None, softcap: float | None = None, sink: Any = None,
          config: Config = SMALL) -> Any:  # fmt: skip
    mask, scale = mask or {}, q.shape[3] ** -0.5 if scale is None else scale
    out = torch.full((*q.shape[:3], v.shape[3]), math.nan, dtype=BRAIN, device=q.device)
    lse = torch.full(q.shape[:3], math.nan, dtype=torch.float32, device=q.device)
    stored = tuple(torch.tensor([d], device=q.device) for d in descales)
    attention(q, k, v, **mask, scale=scale, softcap=softcap, sink=sink, descales=stored, config=config, out=out, lse=lse)
    wide = [x.double() * d for x, d in zip((q, k, v), descales, strict=True)]
    exact, exact_lse = references.attention(*wide, band=band(**mask), scale=scale, softcap=softcap, sink=sink)
    same = plain(q, k, v, mask, scale * descales[0] * descales[1], softcap, sink) * descales[2]
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, BRAIN)
    biggest = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs().max().item()
    assert references.largest_error(lse, exact_lse) <= 2e-5 * (1.0 + biggest)
    return out, lse


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 50}, {"window": (70, 5), "align": "first"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize(("M", "N"), [(63, 200), (200, 63)])
def test_masks_and_ragged_sizes(device: str, mask: dict[str, Any], M: int, N: int) -> None:
    check(*inputs(device, E4M3, 1, 2, 1, M, N, 32, 32), mask=mask)


@pytest.mark.parametrize(("E", "F", "dtype"), [(64, 128, E4M3), (96, 40, E4M3), (64, 64, E5M2)])
def test_head_dimensions_and_formats(device: str, E: int, F: int, dtype: Any) -> None:
    check(*inputs(device, dtype, 2, 4, 2, 70, 90, E, F), mask={"causal": True}, config=Config(64, 64, 4, 1))


def test_descales_say_what_a_stored_one_stands_for(device: str) -> None:
    """Inputs quantised to the whole range of e4m3, as per-tensor scaling does, come back at their own size."""
    wide = inputs(device, torch.float32, 1, 2, 1, 60, 100, 64, 64)
    descales = tuple(float(x.abs().max()) / 448 for x in wide)
    small = tuple((x / d).to(E4M3) for x, d in zip(wide, descales, strict=True))
    out, _ = check(*small, descales=descales, mask={"causal": True})
    exact, _ = references.attention(*wide, band=band(causal=True))
    assert references.largest_error(out, exact) < 0.1 * exact.abs().max().item()  # quantisation itself
    check(*small, descales=descales, softcap=2.0)


def test_sinks_and_rows_that_see_no_key(device: str) -> None:
    q, k, v = inputs(device, E4M3, 1, 3, 1, 64, 40, 32, 32)
    out, lse = check(q, k, v, mask={"causal": True})
    assert (out[:, :, :24] == 0).all() and (lse[:, :, :24] == -math.inf).all()
    sink = torch.tensor([0.5, 8.0, -math.inf], device=device)
    out, lse = check(q, k, v, mask={"causal": True}, sink=sink)
    assert torch.allclose(lse[0, :, 0], sink)


def test_scores_far_beyond_the_range_of_exp(device: str) -> None:
    check(*inputs(device, E4M3, 1, 1, 1, 64, 96, 64, 64, size=40.0), scale=1.0)


def test_weights_below_the_smallest_number_of_e4m3_still_count(device: str) -> None:
    """One key with score 0 and value 0, 255 keys with score -8 and value 1: each weighs exp(-8) = 2^-11.5, which e4m3
    rounds to 0. The scaling by 2^8 keeps them: the output is 255 exp(-8) / (1 + 255 exp(-8))."""
    q = torch.zeros(1, 1, 32, 32)
    q[..., 0] = 1.0
    k, v = torch.zeros(1, 1, 256, 32), torch.ones(1, 1, 256, 32)
    k[:, :, 1:, 0], v[:, :, 0] = -8.0, 0.0
    q, k, v = (x.to(E4M3).to(device) for x in (q, k, v))
    out, _ = attention(q, k, v, scale=1.0, config=SMALL)
    tail = 255 * math.exp(-8)
    assert out.float().mean().item() == pytest.approx(tail / (1 + tail), rel=2**-4)  # half a unit of e4m3's significand
    assert (plain(q, k, v, {}, 1.0, None, None, bits=0) == 0).all()


def test_lengths_and_packed_sequences_agree(device: str) -> None:
    q, k, v = inputs(device, E4M3, 2, 2, 1, 50, 70, 32, 32)
    lengths_q, lengths_k = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([33, 50], [70, 41]))
    descales = tuple(torch.tensor(d, device=device) for d in (0.5, 2.0, 3.0))
    out, lse = attention(q, k, v, lengths_q=lengths_q, lengths_k=lengths_k, descales=descales, causal=True, config=SMALL)
    rows, keys = ([0, 33, 83], [0, 70, 111])
    packed = [torch.cat([x[b, :, :n].transpose(0, 1).view(torch.uint8) for b, n in enumerate(used)]).view(E4M3)
              for x, used in ((q, (33, 50)), (k, (70, 41)), (v, (70, 41)))]  # fmt: skip
    bounds = (torch.tensor(x, dtype=torch.int32, device=device) for x in (rows, keys))
    got, got_lse = attention_packed(*packed, *bounds, 50, 70, descales=descales, causal=True, config=SMALL)
    assert got.dtype == BRAIN
    for b, n in enumerate((33, 50)):
        part = slice(rows[b], rows[b] + n)
        assert torch.equal(got[part].transpose(0, 1), out[b, :, :n]) and torch.equal(got_lse[:, part], lse[b, :, :n])


def test_what_fp8_cannot_do_says_so(device: str) -> None:
    q, k, v = inputs(device, E4M3, 1, 1, 1, 40, 40, 32, 32)
    with pytest.raises(TypeError, match=r"float8_e4m3fn, but sm_80 has no fp8 tensor cores \(they begin with sm_89\)"):
        check_fp8(q, NO_DESCALES, 80)
    with pytest.raises(ValueError, match=r"descales: given for torch.bfloat16"):
        attention(*(x.to(BRAIN) for x in (q, k, v)), descales=(torch.ones(1, device=device), None, None))
    with pytest.raises(ValueError, match=r"that of k is torch.float64 \[1\]"):
        attention(q, k, v, descales=(None, torch.ones(1).double().to(device), None))
    with pytest.raises(TypeError, match=r"k: got torch.float8_e5m2 .* expected torch.float8_e4m3fn"):
        attention(q, k.float().to(E5M2), v.float().to(E5M2))
    out, lse = attention(q, k, v, config=SMALL)
    with pytest.raises(TypeError, match=r"float8_e4m3fn, which has no gradients"):
        attention_backward(out, q, k, v, out, lse, Setting(band(), 1.0))
