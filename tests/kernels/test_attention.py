"""The fused kernel against the plain formula in float64, judged by the plain formula's own error in its precision."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references  # noqa: E402
from einsight.kernels.attention import attention, attention_packed  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.spaces import Config  # noqa: E402

SMALL = Config(32, 32, 4, 2)
HALF, BRAIN = torch.float16, torch.bfloat16
# Scores are float32 sums of exact products: a few roundings per term, times the size of a score.
LSE_ERROR = 2e-5


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, N: int, E: int, F: int, size: float = 1.0) -> Any:
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F))
    return tuple((torch.randn(*shape, generator=make) * size).to(dtype).to(device) for shape in shapes)


def check(q: Any, k: Any, v: Any, *, config: Config = SMALL, mask: dict[str, Any] | None = None, **rest: Any) -> Any:
    """Run into poisoned buffers and compare; returns what the kernel wrote."""
    mask = mask or {}
    shape = (*q.shape[:3], v.shape[3])
    out = torch.full(shape, math.nan, dtype=q.dtype, device=q.device)
    lse = torch.full(shape[:3], math.nan, dtype=torch.float32, device=q.device)
    attention(q, k, v, config=config, out=out, lse=lse, **mask, **rest)
    plain = {name: value for name, value in rest.items() if name != "config"}
    exact, exact_lse = references.attention(q, k, v, band=band(**mask), **plain)
    same, _ = references.attention(q, k, v, band=band(**mask), dtype=q.dtype, **plain)
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, q.dtype)
    biggest = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs().max().item() if exact_lse.numel() else 0.0
    assert references.largest_error(lse, exact_lse) <= LSE_ERROR * (1.0 + biggest)
    return out, lse


MASKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "causal last key": {"causal": True},
    "causal first key": {"causal": True, "align": "first"},
    "window both sides": {"window": 40},
    "causal window": {"causal": True, "window": 50},
    "window of one": {"causal": True, "window": 1},
    "lopsided window": {"window": (70, 5), "align": "first"},
}


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("M", "N"), [(63, 200), (200, 63), (128, 128)])
def test_masks_and_ragged_sizes(device: str, dtype: Any, mask: dict[str, Any], M: int, N: int) -> None:
    check(*inputs(device, dtype, 1, 2, 1, M, N, 32, 32), mask=mask, config=Config(64, 32, 4, 2))


def test_a_window_wider_than_32_bits_is_no_window(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 1, 1, 40, 70, 32, 32)
    wide, _ = attention(q, k, v, causal=True, window=2**40, config=SMALL)
    assert torch.equal(wide, attention(q, k, v, causal=True, config=SMALL)[0])


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
def test_each_query_head_reads_its_own_kv_head(device: str, heads: tuple[int, int]) -> None:
    check(*inputs(device, HALF, 2, *heads, 70, 40, 32, 32), mask={"causal": True})


@pytest.mark.parametrize(("E", "F"), [(32, 32), (40, 56), (64, 128), (96, 96), (192, 128), (256, 256)])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_head_dimensions(device: str, dtype: Any, E: int, F: int) -> None:
    check(*inputs(device, dtype, 1, 1, 1, 40, 72, E, F), mask={"causal": True})


def test_default_config_of_every_head_dimension(device: str) -> None:
    for width in (32, 80, 128, 256):
        q, k, v = inputs(device, HALF, 1, 1, 1, 130, 70, width, width)
        out, _ = attention(q, k, v)
        exact, _ = references.attention(q, k, v)
        same, _ = references.attention(q, k, v, dtype=HALF)
        assert references.largest_error(out, exact) <= references.allowed_error(same, exact, HALF)


@pytest.mark.parametrize("cap", [1.0, 30.0])
def test_softcap_bounds_the_scores(device: str, cap: float) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 2, 63, 100, 64, 64, size=3.0)
    _, lse = check(q, k, v, softcap=cap, mask={"causal": True})
    assert lse.max().item() <= cap + math.log(100) + 1e-3


def test_sink_takes_weight_without_a_value(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 3, 1, 50, 64, 32, 32)
    sink = torch.tensor([0.5, 8.0, -math.inf], device=device)
    out, lse = check(q, k, v, sink=sink, mask={"causal": True, "window": 20})
    without, lse_without = attention(q, k, v, config=SMALL, causal=True, window=20)
    assert torch.equal(out[:, 2], without[:, 2]) and torch.equal(lse[:, 2], lse_without[:, 2])
    assert (lse[:, :2] > lse_without[:, :2]).all()


def test_sink_alone_when_no_key_is_seen(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 2, 64, 32, 32, 32)
    sink = torch.tensor([1.25, -2.0], device=device)
    out, lse = check(q, k, v, sink=sink, mask={"causal": True})
    assert (out[:, :, :32] == 0).all()
    assert torch.allclose(lse[0, :, 0].cpu(), sink.cpu())


def test_rows_that_see_no_key_give_zero_and_minus_infinity(device: str) -> None:
    M, N = 100, 40  # aligned to the last key, queries 0 .. M - N - 1 come before the first key
    out, lse = check(*inputs(device, HALF, 1, 2, 2, M, N, 32, 32), mask={"causal": True})
    assert (out[:, :, : M - N] == 0).all() and (lse[:, :, : M - N] == -math.inf).all()
    assert torch.isfinite(lse[:, :, M - N :]).all()


def test_no_keys_at_all(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 1, 1, 40, 0, 32, 32)
    out, lse = attention(q, k, v, config=SMALL)
    assert (out == 0).all() and (lse == -math.inf).all()
    assert attention(q[:, :, :0], k, v)[0].shape == (1, 1, 0, 32)


def test_scores_far_beyond_the_range_of_exp(device: str) -> None:
    """Scores of +-1e4: exp overflows without the running maximum, and one key takes all the weight."""
    check(*inputs(device, BRAIN, 1, 1, 1, 64, 96, 64, 64, size=40.0), scale=1.0)


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 24}], ids=str)
def test_lengths_of_each_batch_element(device: str, mask: dict[str, Any]) -> None:
    q, k, v = inputs(device, HALF, 3, 2, 1, 70, 90, 32, 32)
    lengths_q = torch.tensor([45, 0, 33], dtype=torch.int32, device=device)
    lengths_k = torch.tensor([41, 90, 0], dtype=torch.int32, device=device)
    check(q, k, v, mask=mask, lengths_q=lengths_q, lengths_k=lengths_k)
    check(q, k, v, mask=mask, lengths_k=lengths_k)


def test_padding_beyond_the_lengths_is_never_read(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 1, 1, 40, 96, 32, 32)
    clean, _ = attention(q, k[:, :, :40], v[:, :, :40], config=SMALL)
    k[:, :, 40:], v[:, :, 40:] = math.nan, math.nan
    out, _ = attention(q, k, v, config=SMALL, lengths_k=torch.tensor([40], dtype=torch.int32, device=device))
    assert torch.equal(out, clean)


def test_tiles_outside_the_mask_are_not_visited(device: str) -> None:
    """NaN keys and values in tiles that no row of a block sees would poison the block if they were read."""
    q, k, v = inputs(device, HALF, 1, 1, 1, 64, 256, 32, 32)
    k[:, :, 64:], v[:, :, 64:] = math.nan, math.nan
    assert torch.isfinite(attention(q, k, v, config=SMALL, causal=True, align="first")[0]).all()
    q, k, v = inputs(device, HALF, 1, 1, 1, 32, 256, 32, 32)
    k[:, :, :192], v[:, :, :192] = math.nan, math.nan  # rows stand at keys 224 .. 255 and look back 31
    assert torch.isfinite(attention(q, k, v, config=SMALL, causal=True, window=32)[0]).all()


def test_heads_inside_the_sequence_and_slices(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 80, 3, 6, 32, generator=make).half().to(device)  # [B, N, (q k v), H, E]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    assert not q.is_contiguous()
    out, _ = check(q[:, :, ::2], k[:, :, 1:64], v[:, :, 1:64], mask={"causal": True})
    contiguous, _ = attention(
        q[:, :, ::2].contiguous(), k[:, :, 1:64].contiguous(), v[:, :, 1:64].contiguous(), causal=True, config=SMALL
    )
    assert torch.equal(out, contiguous)


@pytest.mark.parametrize("config", [Config(32, 64, 2, 1), Config(64, 32, 4, 3), Config(128, 128, 8, 2)], ids=str)
def test_every_tile_shape_computes_the_same(device: str, config: Config) -> None:
    check(*inputs(device, HALF, 1, 1, 1, 150, 170, 64, 64), config=config, mask={"causal": True, "window": 77})


@pytest.mark.parametrize("mask", [{}, {"causal": True, "window": 24}], ids=str)
def test_packed_sequences_are_each_computed_alone(device: str, mask: dict[str, Any]) -> None:
    """Lengths 45, 0, 33 and 1 of queries beside 41, 10, 70 and 0 of keys; the longest stated too long does no harm."""
    make = torch.Generator().manual_seed(0)
    starts = ([0, 45, 45, 78, 79], [0, 41, 51, 121, 121])
    bounds_q, bounds_k = (torch.tensor(b, dtype=torch.int32, device=device) for b in starts)
    q, k, v = (torch.randn(*s, generator=make).half().to(device) for s in ((79, 4, 32), (121, 2, 32), (121, 2, 40)))
    out, lse = attention_packed(q, k, v, bounds_q, bounds_k, 1000, 70, config=SMALL, **mask)
    assert out.shape == (79, 4, 40) and lse.shape == (4, 79)
    for b in range(4):
        rows, keys = (slice(int(x[b]), int(x[b + 1])) for x in (bounds_q, bounds_k))
        one = (x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys]))
        alone, alone_lse = attention(*one, config=SMALL, **mask)
        assert torch.equal(out[rows].transpose(0, 1)[None], alone) and torch.equal(lse[:, rows][None], alone_lse)


def test_packed_calls_are_checked() -> None:
    q, bounds = torch.zeros(8, 2, 32).half(), torch.tensor([0, 8])
    with pytest.raises(ValueError, match=r"bounds_q: got torch.int64 \[2\]"):
        attention_packed(q, q, q, bounds, bounds, 8, 8)
    with pytest.raises(ValueError, match=r"q: got shape \[1, 8, 2, 32\], expected three"):
        attention_packed(q[None], q, q, bounds.int(), bounds.int(), 8, 8)


def bad_calls() -> dict[str, tuple[type[Exception], str, Any]]:
    q, k, v = inputs("cpu", HALF, 2, 4, 2, 8, 16, 32, 32)
    return {
        "rank": (ValueError, r"q: got shape \[4, 8, 32\], expected four dimensions", lambda: attention(q[0], k, v)),
        "dtype": (TypeError, r"q: got torch.float32, expected torch.float16", lambda: attention(q.float(), k, v)),
        "mixed": (TypeError, r"k: got torch.bfloat16 .* expected torch.float16", lambda: attention(q, k.bfloat16(), v)),
        "stride": (ValueError, r"v: .*use .contiguous", lambda: attention(q, k, v.transpose(2, 3).repeat(1, 1, 1, 2)
                                                                          .transpose(2, 3))),
        "narrow": (ValueError, r"head dimension 16, expected 32 to 256",
                   lambda: attention(q[..., :16].contiguous(), k, v)),
        "batch": (ValueError, r"k: got shape \[1, 2, 16, 32\]", lambda: attention(q, k[:1], v)),
        "keys": (ValueError, r"v: got shape \[2, 2, 15, 32\]", lambda: attention(q, k, v[:, :, :15])),
        "heads": (ValueError, r"2 KV heads for 3 query heads", lambda: attention(q[:, :3], k, v)),
        "scale": (ValueError, r"scale: got -1", lambda: attention(q, k, v, scale=-1.0)),
        "cap": (ValueError, r"softcap: got 0", lambda: attention(q, k, v, softcap=0.0)),
        "sink": (ValueError, r"sink: got \[3\].*\[4\]", lambda: attention(q, k, v, sink=torch.zeros(3))),
        "lengths": (ValueError, r"lengths_k: got torch.int64",
                    lambda: attention(q, k, v, lengths_k=torch.ones(2).long())),
        "window": (ValueError, r"window: got 0", lambda: attention(q, k, v, window=0)),
        "both": (ValueError, r"window: got \(3, 1\) with causal",
                 lambda: attention(q, k, v, causal=True, window=(3, 1))),
        "align": (ValueError, r"align: got 'middle'", lambda: attention(q, k, v, align="middle")),
        "out": (ValueError, r"out: got torch.float16 \[1\]", lambda: attention(q, k, v, out=torch.zeros(1).half())),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bad_calls()) if torch else [])
def test_a_bad_call_says_what_is_wrong(name: str) -> None:
    kind, message, call = bad_calls()[name]
    with pytest.raises(kind, match=message):
        call()
