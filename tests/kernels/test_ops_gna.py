"""The operator of neighborhood attention: schema, shapes, compiled as one node, and a plain refusal to differentiate."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels.gna import gna as bare  # noqa: E402
from einsight.kernels.gna_space import box_config  # noqa: E402
from einsight.kernels.ops_gna import gna  # noqa: E402

GRID, WINDOW, CAUSAL, BUILD = (6, 10), (3, 4), (True, False), box_config((4, 8), (4, 4), 4, 1)


def inputs(device: str) -> list[Any]:
    make = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, 60, 32, generator=make).half().to(device) for heads in (2, 1, 1)]


def test_compiled_as_one_node(device: str) -> None:
    q, k, v = inputs(device)
    backend = "aot_eager" if device == "cpu" else "inductor"  # inductor on a CPU needs a C++ compiler
    compiled = torch.compile(lambda *x: gna(*x, GRID, WINDOW, causal=CAUSAL, config=BUILD), fullgraph=True, backend=backend)
    expected = bare(q, k, v, GRID, WINDOW, causal=CAUSAL, config=BUILD)
    assert all(torch.equal(x, y) for x, y in zip(compiled(q, k, v), expected, strict=True))


def test_schema_and_fake(device: str) -> None:
    arguments = (*inputs(device), GRID, WINDOW, (1, 2), (2, 1), CAUSAL, 0.2, [4, 8, 4, 4, 4, 1])
    how = ("test_schema", "test_faketensor")
    found = torch.library.opcheck(torch.ops.einsight.gna.default, arguments, test_utils=how)
    assert found == dict.fromkeys(how, "SUCCESS")


def test_a_gradient_is_refused(device: str) -> None:
    q, k, v = inputs(device)
    out, _ = gna(q.requires_grad_(), k, v, GRID, WINDOW, config=BUILD)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        out.sum().backward()
