"""The operators without a backward: schema, shapes, compiled as one node, and a plain refusal to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import decode, linear, ops_forward, sigmoid  # noqa: E402
from einsight.kernels.spaces import Config  # noqa: E402

SMALL, FEW = Config(32, 32, 2, 1), Config(16, 32, 2, 1)


def inputs(device: str, queries: int = 40) -> list[Any]:
    make = torch.Generator().manual_seed(0)
    shapes = ((2, 4, queries, 32), (2, 2, 40, 32), (2, 2, 40, 48))
    return [torch.randn(*shape, generator=make).half().to(device) for shape in shapes]


def split(q: Any, k: Any, v: Any, of: Any) -> Any:
    lengths = torch.full((2,), 33, dtype=torch.int32, device=q.device)
    return of.decode(q, k, v, schedule="split", splits=2, window=(20, 0), softcap=5.0, lengths_k=lengths, config=FEW)


def stream(q: Any, k: Any, v: Any, of: Any) -> Any:
    return of.decode(q, k, v, config=FEW)


def weighted(q: Any, k: Any, v: Any, of: Any) -> Any:
    return of.sigmoid_attention(q, k, v, bias=-2.0, causal=True, config=SMALL)


def decayed(q: Any, k: Any, v: Any, of: Any) -> Any:
    rates = torch.tensor([-0.1, -0.2, -0.4, 0.0], device=q.device)
    first = torch.ones(2, 4, 32, 48, device=q.device)
    return of.linear_attention(q, k, v, log_decay=rates, state=first, config=SMALL)


def gated(q: Any, k: Any, v: Any, of: Any) -> Any:
    return of.linear_attention(q, k, v, log_gates=-k.abs(), scale=0.5, config=SMALL)


CALLS = ((split, decode, 1), (stream, decode, 1), (weighted, sigmoid, 40), (decayed, linear, 40), (gated, linear, 40))
every_call = pytest.mark.parametrize(("call", "bare", "queries"), CALLS, ids=lambda x: getattr(x, "__name__", ""))


@every_call
def test_compiled_as_one_node(call: Callable[..., Any], bare: Any, queries: int, device: str) -> None:
    given = inputs(device, queries)
    backend = "aot_eager" if device == "cpu" else "inductor"  # inductor on a CPU needs a C++ compiler
    compiled = torch.compile(lambda *x: call(*x, ops_forward), fullgraph=True, backend=backend)
    got, expected = compiled(*given), call(*given, bare)
    pairs = [(got, expected)] if isinstance(expected, torch.Tensor) else list(zip(got, expected, strict=True))
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def test_schema_and_fake(device: str) -> None:
    """What the compiler is told of shapes, types and side effects is what the kernels do."""
    q, k, v = inputs(device)
    few, how = inputs(device, 2)[0], ("test_schema", "test_faketensor")
    lengths = torch.full((2,), 33, dtype=torch.int32, device=device)
    rates = torch.full((4,), -0.1, device=device)
    calls = {
        torch.ops.einsight.decode: (few, k, v, lengths, "stream", 3, None, 20, 0, 0.2, None, [16, 32, 2, 1]),
        torch.ops.einsight.sigmoid_attention: (q, k, v, lengths, None, -1.0, None, 0, "last", 0.2, [32, 32, 2, 1]),
        torch.ops.einsight.linear_attention: (q, k, v, rates, None, 1.0, None, [32, 32, 2, 1]),
    }
    for operator, arguments in calls.items():
        assert torch.library.opcheck(operator.default, arguments, test_utils=how) == dict.fromkeys(how, "SUCCESS")


@every_call
def test_a_gradient_is_refused(call: Callable[..., Any], bare: Any, queries: int, device: str) -> None:
    q, k, v = inputs(device, queries)
    out = call(q.requires_grad_(), k, v, ops_forward)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()


def test_defaults_are_those_of_the_kernels(device: str) -> None:
    q, k, v = inputs(device)
    assert torch.equal(ops_forward.sigmoid_attention(q, k, v), sigmoid.sigmoid_attention(q, k, v))
    with pytest.raises(ValueError, match="schedule"):
        ops_forward.decode(q, k, v, schedule="best")
