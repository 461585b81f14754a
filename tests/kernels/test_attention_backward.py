"""Gradients of the fused kernel against autograd of the plain formula in float64, judged by plain autograd's own error."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references  # noqa: E402
from einsight.kernels.attention import attention, attention_packed  # noqa: E402
from einsight.kernels.attention_backward import Setting, attention_backward, attention_packed_backward  # noqa: E402
from einsight.kernels.attention_space import BACKWARD, backward_configs  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.resources import Request, compile_offline  # noqa: E402
from einsight.kernels.spaces import LIMITS, Config  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
SMALL = Config(32, 32, 4, 1)


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, N: int, E: int, F: int) -> Any:
    """q, k, v and the gradient of the output."""
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F), (B, H, M, F))
    return tuple(torch.randn(*shape, generator=make).to(dtype).to(device) for shape in shapes)


def autograd(q: Any, k: Any, v: Any, dout: Any, dtype: Any, dlse: Any = None, sink: Any = None, **rest: Any) -> Any:
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v, *(() if sink is None else (sink,)))]
    more = {"sink": leaves[3]} if sink is not None else {}
    out, lse = references.attention(*leaves[:3], dtype=dtype, **rest, **more)
    loss = (out * dout.to(dtype)).sum()
    if dlse is not None:
        loss = loss + (lse * dlse.to(dtype)).sum()
    return torch.autograd.grad(loss, leaves)


def check(q: Any, k: Any, v: Any, dout: Any, *, mask: dict[str, Any] | None = None, config: Config | None = SMALL,
          dlse: Any = None, sink: Any = None, **rest: Any) -> Any:  # fmt: skip
    mask = mask or {}
    out, lse = attention(q, k, v, **mask, config=SMALL, sink=sink, **rest)
    scale = rest.pop("scale", q.shape[3] ** -0.5)
    setting = Setting(band(**mask), scale, **rest)
    got = attention_backward(dout, q, k, v, out, lse, setting, dlse=dlse, sink=sink, config=config)
    told = {"band": band(**mask), "scale": scale, "dlse": dlse, "sink": sink, **rest}
    exact = autograd(q, k, v, dout, torch.float64, **told)
    plain = autograd(q, k, v, dout, q.dtype, **told)
    for name, ours, judge, same in zip(("dq", "dk", "dv", "dsink"), got, exact, plain, strict=False):
        allowed = references.allowed_error(same, judge, q.dtype)
        assert references.largest_error(ours, judge) <= allowed, name
    return got


MASKS: dict[str, dict[str, Any]] = {
    "dense": {},
    "causal last key": {"causal": True},
    "causal first key": {"causal": True, "align": "first"},
    "causal window": {"causal": True, "window": 50},
    "window both sides": {"window": 40},
    "lopsided window": {"window": (70, 5), "align": "first"},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(("M", "N", "dtype"), [(63, 200, HALF), (200, 63, BRAIN), (128, 128, BRAIN)])
def test_masks_and_ragged_sizes(device: str, dtype: Any, mask: dict[str, Any], M: int, N: int) -> None:
    check(*inputs(device, dtype, 1, 2, 1, M, N, 32, 32), mask=mask)


@pytest.mark.parametrize("heads", [(6, 2), (4, 1)], ids=["GQA", "MQA"])
def test_a_kv_head_gathers_from_every_query_head_that_reads_it(device: str, heads: tuple[int, int]) -> None:
    check(*inputs(device, HALF, 2, *heads, 70, 40, 32, 32), mask={"causal": True})


@pytest.mark.parametrize(("E", "F"), [(40, 56), (64, 128), (192, 128), (256, 256)])
def test_head_dimensions_in_the_default_build(device: str, E: int, F: int) -> None:
    check(*inputs(device, HALF, 1, 1, 1, 70, 90, E, F), mask={"causal": True}, config=None)


@pytest.mark.parametrize("config", [Config(64, 32, 4, 2), Config(32, 64, 4, 1), Config(128, 64, 8, 2)], ids=str)
def test_every_tile_shape_computes_the_same(device: str, config: Config) -> None:
    check(*inputs(device, HALF, 1, 1, 1, 150, 170, 64, 64), config=config, mask={"causal": True, "window": 77})


def test_softcap_bends_the_gradient(device: str) -> None:
    check(*inputs(device, HALF, 1, 2, 2, 63, 100, 64, 64), softcap=2.0, mask={"causal": True})


def test_the_gradient_of_the_log_sum_exp(device: str) -> None:
    q, k, v, dout = inputs(device, HALF, 2, 2, 1, 50, 70, 32, 32)
    dlse = torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(1)).to(device)
    check(q, k, v, dout, dlse=dlse, mask={"causal": True})
    _, _, dv, _ = check(q, k, v, torch.zeros_like(dout), dlse=dlse)
    assert (dv == 0).all()  # the log-sum-exp does not depend on the values


def test_sinks(device: str) -> None:
    q, k, v, dout = inputs(device, HALF, 2, 3, 1, 50, 64, 32, 32)
    sink = torch.tensor([0.5, 8.0, -math.inf], device=device)
    dlse = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(1)).to(device)
    *_, dsink = check(q, k, v, dout, sink=sink, dlse=dlse, mask={"causal": True, "window": 20})
    assert dsink[2] == 0.0


@pytest.mark.parametrize("mask", [{}, {"causal": True}], ids=str)
def test_lengths_of_each_batch_element(device: str, mask: dict[str, Any]) -> None:
    q, k, v, dout = inputs(device, HALF, 3, 2, 1, 70, 90, 32, 32)
    lengths_q = torch.tensor([45, 0, 33], dtype=torch.int32, device=device)
    lengths_k = torch.tensor([41, 90, 0], dtype=torch.int32, device=device)
    k[0, :, 41:], v[0, :, 41:] = 1e4, 1e4  # padding is never used
    dq, dk, dv, _ = check(q, k, v, dout, mask=mask, lengths_q=lengths_q, lengths_k=lengths_k)
    assert (dq[0, :, 45:] == 0).all() and (dk[0, :, 41:] == 0).all() and (dv[1:] == 0).all()


def test_rows_that_see_no_key_give_no_gradient(device: str) -> None:
    dq, *_ = check(*inputs(device, HALF, 1, 2, 2, 100, 40, 32, 32), mask={"causal": True})
    assert (dq[:, :, :60] == 0).all()


def test_scores_far_beyond_the_range_of_exp(device: str) -> None:
    """One key takes all the weight, so that dS is a difference of equal float32 sums: their rounding, times a key, stays."""
    q, k, v, dout = inputs(device, BRAIN, 1, 1, 1, 64, 96, 64, 64)
    q, k = q * 40, k * 40
    out, lse = attention(q, k, v, scale=1.0, config=SMALL)
    dq, dk, dv, _ = attention_backward(dout, q, k, v, out, lse, Setting(band(), 1.0), config=SMALL)
    exact = autograd(q, k, v, dout, torch.float64, scale=1.0)
    rounding = 2.0**-22 * (dout.double() @ v.double().mT).abs().max().item()
    assert references.largest_error(dq, exact[0]) <= rounding * k.abs().max().item()
    assert references.largest_error(dk, exact[1]) <= rounding * q.abs().sum(2).max().item()
    assert references.largest_error(dv, exact[2]) <= 2**-7 * exact[2].abs().max().item()


def test_tiles_outside_the_mask_are_not_visited(device: str) -> None:
    """NaN keys that no query sees, NaN queries that see no key: visiting their tiles would poison what they touch."""
    q, k, v, dout = inputs(device, HALF, 1, 1, 1, 64, 256, 32, 32)
    setting = Setting(band(causal=True, align="first"), 1.0)
    k[:, :, 64:], v[:, :, 64:] = math.nan, math.nan
    out, lse = attention(q, k, v, causal=True, align="first", scale=1.0, config=SMALL)
    dq, dk, _, _ = attention_backward(dout, q, k, v, out, lse, setting, config=SMALL)
    assert torch.isfinite(dq).all() and (dk[:, :, 64:] == 0).all()


def test_strides_and_repeatability(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 80, 3, 6, 32, generator=make).half().to(device)
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    dout = torch.randn(2, 80, 6, 32, generator=make).half().to(device).transpose(1, 2)
    first = check(q, k, v, dout, mask={"causal": True})
    again = check(q, k, v, dout, mask={"causal": True})
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


def test_no_keys_and_no_queries(device: str) -> None:
    for M, N in ((40, 0), (0, 40)):
        q, k, v, dout = inputs(device, HALF, 1, 1, 1, M, N, 32, 32)
        out, lse = attention(q, k, v)
        dq, dk, dv, _ = attention_backward(dout, q, k, v, out, lse, Setting(band(), 1.0))
        assert all((g == 0).all() for g in (dq, dk, dv)) and dk.shape == k.shape


@pytest.mark.parametrize(("mask", "dtype"), [({"causal": True}, BRAIN), ({"window": (150, 30)}, HALF)], ids=str)
def test_packed_sequences_against_each_alone(device: str, mask: dict[str, Any], dtype: Any) -> None:
    """Lengths 63, 0, 200 and 1000 of queries beside 200, 63, 63 and 1000 of keys, judged sequence by sequence."""
    make = torch.Generator().manual_seed(0)
    rows, keys = [0, 63, 63, 263, 1263], [0, 200, 263, 326, 1326]
    T, S, H, G = rows[-1], keys[-1], 2, 1
    q, k, v, dout = (torch.randn(*s, generator=make).to(dtype).to(device)
                     for s in ((T, H, 32), (S, G, 32), (S, G, 40), (T, H, 40)))  # fmt: skip
    dlse = torch.randn(H, T, generator=make).to(device)
    sink = torch.tensor([0.5, 3.0], device=device)
    bounds = tuple(torch.tensor(b, dtype=torch.int32, device=device) for b in (rows, keys))
    large = Config(128, 128, 8, 2)
    out, lse = attention_packed(q, k, v, *bounds, 1000, 1000, sink=sink, config=large, **mask)
    setting = Setting(band(**mask), 32**-0.5, None, *bounds, T)
    dq, dk, dv, dsink = attention_packed_backward(
        dout, q, k, v, out, lse, 1000, 1000, setting, dlse=dlse, sink=sink, config=large
    )
    total = torch.zeros(2, 2, dtype=torch.float64)  # the sink's gradient, exact and plain
    for b in range(4):
        part, of_keys = slice(rows[b], rows[b + 1]), slice(keys[b], keys[b + 1])
        if part.stop == part.start:
            continue
        one = [x[at].transpose(0, 1)[None] for x, at in ((q, part), (k, of_keys), (v, of_keys), (dout, part))]
        told = {"band": band(**mask), "dlse": dlse[None, :, part], "sink": sink}
        exact, plain = (autograd(*one, kind, **told) for kind in (torch.float64, dtype))
        total += torch.stack([exact[3].double().cpu(), plain[3].double().cpu()])
        got = (dq[part], dk[of_keys], dv[of_keys])
        for name, ours, judge, same in zip(("dq", "dk", "dv"), got, exact, plain, strict=False):
            allowed = references.allowed_error(same[0], judge[0], dtype)
            assert references.largest_error(ours.transpose(0, 1), judge[0]) <= allowed, (b, name)
    assert references.largest_error(dsink.cpu(), total[0]) <= references.allowed_error(total[1], total[0], dtype)
    assert (dk[200:263] == 0).all() and (dv[200:263] == 0).all()  # the keys of the sequence without queries


def test_positions_outside_every_packed_sequence_have_zero_gradients(device: str) -> None:
    """A batch padded to a fixed number of positions, as a captured graph needs it."""
    make = torch.Generator().manual_seed(0)
    q, k, v, dout = (torch.randn(90, 1, 32, generator=make).half().to(device) for _ in range(4))
    k[70:], v[70:] = math.nan, math.nan
    bounds = torch.tensor([0, 40, 70], dtype=torch.int32, device=device)
    out, lse = attention_packed(q, k, v, bounds, bounds, 40, 40, config=SMALL)
    assert (out[70:] == 0).all() and (lse[:, 70:] == -math.inf).all()
    setting = Setting(band(), 32**-0.5, None, bounds, bounds, 90)
    for grad in attention_packed_backward(dout, q, k, v, out, lse, 40, 40, setting, config=SMALL)[:3]:
        assert (grad[70:] == 0).all() and torch.isfinite(grad).all() and (grad[:70] != 0).any()


def test_packed_gradients_are_checked() -> None:
    q = torch.zeros(8, 2, 32).half()
    bounds = torch.tensor([0, 8])
    with pytest.raises(ValueError, match=r"bounds_q: got torch.int64"):
        attention_packed_backward(q, q, q, q, q, torch.zeros(2, 8), 8, 8, Setting(band(), 1.0, None, bounds, bounds, 8))
    with pytest.raises(ValueError, match=r"setting: 9 packed rows, expected 8"):
        attention_packed_backward(q, q, q, q, q, torch.zeros(2, 8), 8, 8, Setting(band(), 1.0, None, bounds, bounds, 9))


def test_default_builds_are_chosen_by_head_dimension_and_architecture() -> None:
    assert backward_configs(40, 64, 90) is BACKWARD[9][64] and backward_configs(192, 128, 100) is BACKWARD[10][256]
    assert backward_configs(128, 96, 120) is backward_configs(128, 96, 89) is BACKWARD[8][128]
    assert backward_configs(32, 32) is backward_configs(32, 32, 90)


def test_default_builds_do_not_spill() -> None:
    """As they are compiled; what is allowed is what `attention_space` says. (The builds of dQ are far from it up to 128.)"""
    allowed = {("keys", 128, 90): 160} | {("keys", 256, capability): 192 for capability in (80, 90, 100)}
    wanted: dict[tuple[str, int, int], Request] = {}
    for capability in (80, 90, 100):
        for width, (H, G) in ((64, (8, 2)), (128, (8, 2)), (256, (2, 1))):
            for which, config in zip(("queries", "keys"), backward_configs(width, width, capability), strict=True):
                if which == "queries" and width < 256:
                    continue
                build = [config.block_m, config.block_n, config.num_warps, config.num_stages]
                arguments = {"which": which, "sizes": [1, H, G, 4096, 4096, width, width], "dtype": "bfloat16",
                             "mask": {"right": 0}, "config": build}  # fmt: skip
                wanted[which, width, capability] = Request("einsight.kernels.attention_backward", "compile_named", arguments,
                                                           capability)  # fmt: skip
    found = {id(r): e for r, e in compile_offline(wanted.values())}
    for name, request in wanted.items():
        estimate = found[id(request)]
        assert estimate.status == "ok", (name, estimate.reason)
        assert estimate.spill_bytes <= allowed.get(name, 0), (name, estimate.spill_bytes)
        assert sum(estimate.loop.get(op, 0) for op in ("LDL", "STL")) == 0, name
        if name[2] == 80:  # as on sm_89 and sm_120, which have less shared memory
            assert estimate.shared_bytes <= LIMITS[120].shared_bytes_per_block, name
