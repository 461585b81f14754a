"""The kernels as PyTorch operators: schema, shapes without data, autograd, torch.compile."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import ops, references  # noqa: E402
from einsight.kernels.attention_space import AttentionConfig  # noqa: E402
from einsight.kernels.band import band  # noqa: E402
from einsight.kernels.spaces import Config  # noqa: E402

HALF = torch.float16
SMALL = {"config": Config(32, 32, 4, 1), "backward_config": Config(32, 32, 4, 1)}
B, H, G, M, N, E, F = 2, 4, 2, 40, 70, 32, 32
EXTRAS = {"attention": (), "flashbias": ((1, H, M, 4), (1, H, N, 4)), "attention_with_bias": ((B, 1, M, N),)}


def inputs(device: str, name: str) -> list[Any]:
    make = torch.Generator().manual_seed(0)
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F), *EXTRAS[name])
    return [torch.randn(*s, generator=make).to(HALF).to(device).requires_grad_() for s in shapes]


def loss_of(function: Any, given: list[Any], **rest: Any) -> Any:
    """A loss that depends on both results, unevenly."""
    out, lse = function(*given, **rest)
    weight = torch.linspace(-1.0, 1.0, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape)
    return (out.double() * weight).sum() + lse.double().sin().sum()


def plain(q: Any, k: Any, v: Any, *bias: Any, dtype: Any) -> Any:
    matrix = bias[0] @ bias[1].mT if len(bias) == 2 else (bias[0] if bias else None)
    return references.attention(q, k, v, bias=matrix, band=band(causal=True), dtype=dtype)


@pytest.mark.parametrize("name", EXTRAS)
def test_autograd_through_both_results(device: str, name: str) -> None:
    given = inputs(device, name)
    got = torch.autograd.grad(loss_of(getattr(ops, name), given, causal=True, **SMALL), given)
    judged = []
    for dtype in (torch.float64, HALF):
        leaves = [x.detach().to(dtype).requires_grad_() for x in given]
        judged.append(torch.autograd.grad(loss_of(plain, leaves, dtype=dtype), leaves))
    for i, (ours, exact, same) in enumerate(zip(got, *judged, strict=True)):
        assert ours.shape == exact.shape
        assert references.largest_error(ours, exact) <= references.allowed_error(same, exact, HALF), i


@pytest.mark.parametrize("name", EXTRAS)
def test_torch_compile_sees_one_operator_and_changes_nothing(device: str, name: str) -> None:
    given = inputs(device, name)
    eager = torch.autograd.grad(loss_of(getattr(ops, name), given, causal=True, window=20, **SMALL), given)
    backend = "aot_eager" if device == "cpu" else "inductor"  # inductor on a CPU needs a C++ compiler

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(*tensors: Any) -> Any:
        return loss_of(getattr(ops, name), list(tensors), causal=True, window=20, **SMALL)

    for ours, other in zip(torch.autograd.grad(compiled(*given), given), eager, strict=True):
        assert references.largest_error(ours, other) <= 1e-3 * other.abs().max().item()


@pytest.mark.parametrize("name", EXTRAS)
def test_schema_fake_and_autograd_registration(device: str, name: str) -> None:
    given, config = inputs(device, name), [32, 32, 4, 1]
    extras = (None,) * 5 if name == "attention" else ()  # sink, descales, softcap
    operator = getattr(torch.ops.einsight, name).default
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*given, *extras, None, None, 10, 0, "last", 0.2, config, config)
    assert torch.library.opcheck(operator, arguments, test_utils=checks) == dict.fromkeys(checks, "SUCCESS")


def test_shapes_are_known_without_data() -> None:
    with torch.device("meta"):
        q, k, v = torch.empty(B, H, M, E), torch.empty(B, G, N, E), torch.empty(B, G, N, 64)
    out, lse = ops.attention(q, k, v)
    assert out.shape == (B, H, M, 64) and lse.shape == (B, H, M) and lse.dtype == torch.float32


def test_the_sink_and_the_bias_are_trained_only_where_wanted(device: str) -> None:
    q, k, v, bias = inputs(device, "attention_with_bias")
    bias.requires_grad_(False)
    loss_of(ops.attention_with_bias, [q, k, v, bias], **SMALL).backward()
    assert bias.grad is None and q.grad.isfinite().all()
    sink = torch.zeros(H, device=device, requires_grad=True)
    ops.attention(q, k, v, sink=sink, **SMALL)[0].sum().backward()  # an expanded gradient: stride 0
    assert sink.grad.shape == (H,) and sink.grad.abs().sum() > 0


def packed_inputs(device: str) -> Any:
    """Lengths 63, 0, 40 of queries beside 30, 20, 70 of keys; q, k, v and the positional arguments."""
    make = torch.Generator().manual_seed(1)
    shapes = ((103, H, E), (120, G, E), (120, G, F))
    given = [torch.randn(*s, generator=make).to(HALF).to(device).requires_grad_() for s in shapes]
    bounds = [torch.tensor(b, dtype=torch.int32, device=device) for b in ([0, 63, 63, 103], [0, 30, 50, 120])]
    return given, (*bounds, 63, 70)


def test_packed_sequences_have_the_gradients_of_each_alone(device: str) -> None:
    given, rest = packed_inputs(device)
    sink = torch.zeros(H, device=device, requires_grad=True)
    out, lse = ops.attention_packed(*given, *rest, sink=sink, causal=True, **SMALL)
    weight = torch.linspace(-1.0, 1.0, out.numel(), device=device).reshape(out.shape)
    got = torch.autograd.grad((out * weight).sum() + lse.sin().sum(), (*given, sink))
    loss = 0.0
    for b in range(3):
        rows, keys = (slice(int(x[b]), int(x[b + 1])) for x in rest[:2])
        if rows.stop > rows.start:
            one = [x[part].transpose(0, 1)[None] for x, part in zip(given, (rows, keys, keys), strict=True)]
            alone, alone_lse = ops.attention(*one, sink=sink, causal=True, **SMALL)
            assert torch.equal(alone[0].transpose(0, 1), out[rows]) and torch.equal(alone_lse[0], lse[:, rows])
            loss = loss + (alone[0].transpose(0, 1) * weight[rows]).sum() + alone_lse.sin().sum()
    expected = torch.autograd.grad(loss, (*given, sink))
    for ours, other in zip(got, expected, strict=True):
        assert references.largest_error(ours, other) <= 1e-3 * other.abs().max().item()
    assert (got[1][30:50] == 0).all()  # the keys of the sequence without queries


def test_packed_sequences_compile_to_one_operator(device: str) -> None:
    given, rest = packed_inputs(device)

    @torch.compile(fullgraph=True, backend="aot_eager" if device == "cpu" else "inductor")
    def compiled(*tensors: Any) -> Any:
        out, lse = ops.attention_packed(*tensors, *rest, window=20, **SMALL)
        return out.float().sum() + lse.masked_fill(lse.isinf(), 0.0).sum()

    eager, lse = ops.attention_packed(*given, *rest, window=20, **SMALL)
    expected = torch.autograd.grad(eager.float().sum() + lse.masked_fill(lse.isinf(), 0.0).sum(), given)
    for ours, other in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        assert references.largest_error(ours, other) <= 1e-3 * other.abs().max().item()
    operator, plain = torch.ops.einsight.attention_packed.default, [32, 32, 4, 1]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    bounds, longest = rest[:2], rest[2:]
    given = (*given, *[None] * 5, *longest, *bounds, 10, 0, "last", 0.2, plain, plain)
    torch.library.opcheck(operator, given, test_utils=checks)


def test_packed_sequences_take_no_lengths_beside_their_bounds(device: str) -> None:
    given, rest = packed_inputs(device)
    with pytest.raises(ValueError, match="lengths_k: got lengths beside bounds_q and bounds_k"):
        ops.attention_packed(*given, *rest, lengths_k=rest[1])
    nothing = torch.zeros(0, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"bounds_q: got torch.int32 \[0\]"):
        ops.attention_packed(*given, nothing, nothing, *rest[2:])


def test_fp8_goes_through_the_operator_and_has_no_gradient(device: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 tensor cores")
    q, k, v = (x.detach().to(torch.float8_e4m3fn) for x in inputs(device, "attention"))
    two = torch.full((1,), 2.0, device=device)
    out, _ = ops.attention(q, k, v, descales=(None, None, two), **SMALL)
    once, _ = ops.attention(q, k, v, **SMALL)
    assert out.dtype == torch.bfloat16 and torch.equal(out, 2 * once)
    with torch.device("meta"):
        assert ops.attention(*(torch.empty(1, 2, 40, 32, dtype=torch.float8_e5m2),) * 3)[0].dtype == torch.bfloat16


def test_builds_with_flags_go_through_the_operator(device: str) -> None:
    given = inputs(device, "attention")
    with_flags, _ = ops.attention(*given, config=AttentionConfig(32, 32, 4, 1, descriptors=True))
    assert torch.equal(with_flags, ops.attention(*given, **SMALL)[0])


def test_errors_come_through(device: str) -> None:
    q, k, v = inputs(device, "attention")
    with pytest.raises(ValueError, match=r"3 query heads"):
        ops.attention(q[:, :3], k, v)
    with pytest.raises(ValueError, match=r"align: got 'middle'"):
        ops.attention(q, k, v, align="middle")
