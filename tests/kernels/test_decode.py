"""Decoding by pieces against the plain formula in float64, both schedules; the merge must not show where pieces end."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.decode import decode  # noqa: E402
from einsight.kernels.decode_space import (  # noqa: E402
    DECODE,
    decode_blocks_per_sm,
    decode_configurations,
    decode_excluded,
    default_decode_config,
)
from einsight.kernels.resources import Request, compile_offline  # noqa: E402
from einsight.kernels.spaces import LIMITS, Config, Heads  # noqa: E402

SMALL = Config(16, 32, 2, 2)
HALF, BRAIN = torch.float16, torch.bfloat16
LSE_ERROR = 2e-5  # scores are float32 sums of exact products
SCHEDULES: dict[str, dict[str, Any]] = {
    "stream of 5": {"schedule": "stream", "programs": 5},
    "stream by default": {},
    "3 splits": {"schedule": "split", "splits": 3},
    "one piece": {"schedule": "split", "splits": 1},
}


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, N: int, E: int, F: int, size: float = 1.0) -> Any:
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F))
    return tuple((torch.randn(*shape, generator=make) * size).to(dtype).to(device) for shape in shapes)


def check(q: Any, k: Any, v: Any, *, how: dict[str, Any], mask: dict[str, Any] | None = None, **rest: Any) -> Any:
    """Run into poisoned buffers and compare; returns what the kernel wrote."""
    mask = mask or {}
    shape = (*q.shape[:3], v.shape[3])
    out = torch.full(shape, math.nan, dtype=q.dtype, device=q.device)
    lse = torch.full(shape[:3], math.nan, dtype=torch.float32, device=q.device)
    decode(q, k, v, **({"config": SMALL} | how), out=out, lse=lse, **mask, **rest)
    exact, exact_lse = references.attention(q, k, v, band=band(**mask), **rest)
    same, _ = references.attention(q, k, v, band=band(**mask), dtype=q.dtype, **rest)
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, q.dtype)
    biggest = exact_lse.masked_fill(exact_lse.isinf(), 0.0).abs().max().item()
    assert references.largest_error(lse, exact_lse) <= LSE_ERROR * (1.0 + biggest)
    return out, lse


@pytest.mark.parametrize("how", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("N", [63, 200])
def test_one_query_over_ragged_caches(device: str, how: dict[str, Any], dtype: Any, N: int) -> None:
    check(*inputs(device, dtype, 2, 6, 2, 1, N, 32, 32), how=how)


@pytest.mark.parametrize("how", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("mask", [{"causal": True}, {"causal": True, "window": 50}, {"window": (70, 0)}], ids=str)
def test_several_queries_see_the_keys_before_them(device: str, how: dict[str, Any], mask: dict[str, Any]) -> None:
    check(*inputs(device, HALF, 1, 4, 2, 5, 170, 32, 32), how=how, mask=mask)


@pytest.mark.parametrize("how", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_lengths_of_each_batch_element(device: str, how: dict[str, Any]) -> None:
    q, k, v = inputs(device, HALF, 4, 4, 2, 2, 200, 32, 32)
    lengths = torch.tensor([130, 0, 1, 200], dtype=torch.int32, device=device)
    for b, used in enumerate(lengths.tolist()):
        k[b, :, used:], v[b, :, used:] = math.nan, math.nan  # padding must not be read
    out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:3], math.nan, device=device)
    decode(q, k, v, causal=True, lengths_k=lengths, config=SMALL, out=out, lse=lse, **how)
    assert (out[1] == 0).all() and (lse[1] == -math.inf).all()
    assert (out[2, :, 0] == 0).all()  # the first of two queries stands before the only key
    for b in (0, 2, 3):
        used = int(lengths[b])
        alone = [q[b : b + 1], k[b : b + 1, :, :used], v[b : b + 1, :, :used]]
        exact, _ = references.attention(*alone, band=band(causal=True))
        same, _ = references.attention(*alone, band=band(causal=True), dtype=HALF)
        assert references.largest_error(out[b : b + 1], exact) <= references.allowed_error(same, exact, HALF)


@pytest.mark.parametrize("programs", [1, 2, 3, 7, 11, 12, 100])
def test_equal_shares_end_anywhere(device: str, programs: int) -> None:
    """12 tiles: 2 batch elements x 2 KV heads x 3; shares end inside units, at their ends, and there are no more than 12."""
    check(*inputs(device, HALF, 2, 2, 2, 1, 96, 32, 32), how={"programs": programs})


def test_more_packed_rows_than_a_tile_holds(device: str) -> None:
    for how in SCHEDULES.values():
        check(*inputs(device, HALF, 1, 12, 2, 4, 70, 32, 32), how=how, mask={"causal": True})  # 24 rows, tiles of 16


@pytest.mark.parametrize(("E", "F"), [(40, 56), (64, 128), (192, 128)])
def test_head_dimensions_and_default_config(device: str, E: int, F: int) -> None:
    check(*inputs(device, BRAIN, 1, 4, 1, 1, 100, E, F), how={"config": None})


def test_extreme_scores_and_softcap(device: str) -> None:
    q, k, v = inputs(device, BRAIN, 1, 2, 1, 1, 160, 64, 64, size=40.0)
    check(q, k, v, how={"programs": 3}, scale=1.0)
    check(*inputs(device, HALF, 1, 2, 1, 1, 160, 64, 64, size=3.0), how={"programs": 3}, softcap=5.0)


def test_heads_inside_the_sequence(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    cache = torch.randn(2, 90, 2, 2, 32, generator=make).half().to(device)  # [B, N, (k v), G, E]
    k, v = (cache[:, :, i].transpose(1, 2) for i in range(2))
    q = torch.randn(2, 1, 4, 32, generator=make).half().to(device).transpose(1, 2)
    assert not k.is_contiguous()
    for how in SCHEDULES.values():
        check(q, k, v, how=how)


def test_no_keys_and_no_queries(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 1, 1, 0, 32, 32)
    for how in ("stream", "split"):
        out, lse = decode(q, k, v, schedule=how, config=SMALL)
        assert (out == 0).all() and (lse == -math.inf).all()
        assert decode(q[:, :, :0], k, v, schedule=how)[0].shape == (1, 2, 0, 32)


def test_a_bad_call_says_what_is_wrong() -> None:
    q, k, v = inputs("cpu", HALF, 1, 4, 2, 1, 16, 32, 32)
    for message, arguments in (
        (r"schedule: got 'lean', expected one of 'stream', 'split'", {"schedule": "lean"}),
        (r"splits: got 2 with schedule 'stream'", {"splits": 2}),
        (r"programs: got 0 with schedule 'stream', expected 1 or more", {"programs": 0}),
        (r"lengths_k: got torch.int64", {"lengths_k": torch.ones(1).long()}),
    ):
        with pytest.raises(ValueError, match=message):
            decode(q, k, v, **arguments)


@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_every_candidate_is_in_or_has_a_reason(capability: int, width: int) -> None:
    heads, limits = Heads(width, width), LIMITS[capability]
    valid = decode_configurations(heads, limits)
    assert len(valid) >= 8
    assert all(decode_excluded(heads, c, limits) for c in DECODE.candidates() if c not in valid)
    for rows in (1, 8, 30, 200):
        assert default_decode_config(width, width, rows) in decode_configurations(heads, limits, rows)
    assert all(decode_blocks_per_sm(heads, c, limits) >= 1 for c in valid)


def test_reasons_name_their_numbers() -> None:
    heads, limits = Heads(128, 128), LIMITS[90]
    # Compiled loops at head dimension 128 (sm_80): 16 x 32 with 8 warps has 12 tensor-core instructions, 8 would do.
    assert decode_excluded(heads, Config(16, 32, 8, 2), limits).startswith("8 warps of 8 columns on 32")
    assert decode_excluded(Heads(32, 32), Config(32, 64, 4, 2), limits).startswith("4 warps of 16 rows on 32")
    assert not decode_excluded(heads, Config(16, 64, 8, 2), limits)
    assert "half of the tile is idle" in decode_excluded(heads, Config(64, 64, 4, 2), limits, rows=8)
    assert "bytes of shared memory" in decode_excluded(Heads(256, 256), Config(16, 128, 8, 3), LIMITS[80])


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed (extra `gpu`)")
def test_it_compiles_without_a_gpu_for_three_architectures() -> None:
    def request(capability: int, **rest: Any) -> Request:
        arguments = {"sizes": [1, 32, 8, 1, 131072, 128, 128], "dtype": "bfloat16", "mask": {},
                     "config": [16, 64, 4, 2], **rest}  # fmt: skip
        return Request("einsight.kernels.decode", "compile_named", arguments, capability, disassemble=False)

    order = [request(cc) for cc in (80, 90, 100)] + [request(90, schedule="split"), request(90, merge=True, lengths=True)]
    for asked, estimate in compile_offline(order):
        assert estimate.status == "ok" and estimate.stack_bytes == 0, (asked, estimate)
