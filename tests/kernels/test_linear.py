"""Chunked linear attention against the recurrence in float64, judged by the error of the product form in its precision."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels.linear import linear_attention  # noqa: E402
from einsight.kernels.linear_space import (  # noqa: E402
    LINEAR,
    default_linear_config,
    linear_configurations,
    linear_excluded,
)
from einsight.kernels.references import allowed_error, largest_error  # noqa: E402
from einsight.kernels.references_linear import linear_attention as recurrence  # noqa: E402
from einsight.kernels.references_linear import plain_linear_attention as plain  # noqa: E402
from einsight.kernels.resources import Request, compile_offline  # noqa: E402
from einsight.kernels.spaces import LIMITS, Config, Heads  # noqa: E402

# Under the interpreter an overflow means that something beyond the tensors was read, or a decay was inverted.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

SMALL = Config(32, 32, 4, 1)
HALF, BRAIN = torch.float16, torch.bfloat16


def inputs(device: str, dtype: Any, B: int, H: int, G: int, N: int, E: int, F: int) -> Any:
    make = torch.Generator().manual_seed(B + H + N + E + F)
    shapes = ((B, H, N, E), (B, G, N, E), (B, G, N, F))
    return tuple(torch.randn(*shape, generator=make).to(dtype).to(device) for shape in shapes)


def decays(device: str, kind: str, k: Any, H: int, strength: float = 1.0) -> dict[str, Any]:
    """Lightning's slopes, GLA's sigmoid gates, or nothing."""
    if kind == "none":
        return {}
    if kind == "decay":
        return {"log_decay": -strength * torch.tensor([2.0 ** (-8 * h / H) for h in range(H)], device=device)}
    make = torch.Generator().manual_seed(7)
    gates = torch.nn.functional.logsigmoid(torch.randn(*k.shape, generator=make)) * strength
    return {"log_gates": gates.to(device)}


def check(q: Any, k: Any, v: Any, *, config: Config | None = SMALL, **rest: Any) -> Any:
    """Run into a poisoned buffer and compare output and state; returns what the kernel wrote."""
    out = torch.full((*q.shape[:3], v.shape[3]), math.nan, dtype=q.dtype, device=q.device)
    _, last = linear_attention(q, k, v, config=config, out=out, **rest)
    exact, exact_last = recurrence(q, k, v, **rest)
    same, same_last = plain(q, k, v, dtype=q.dtype, **rest)
    assert largest_error(out, exact) <= allowed_error(same, exact, q.dtype)
    assert largest_error(last, exact_last) <= allowed_error(same_last, exact_last, q.dtype)
    return out, last


KINDS = ("none", "decay", "gates")


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [20, 63, 128])
def test_ragged_lengths(device: str, dtype: Any, kind: str, N: int) -> None:
    q, k, v = inputs(device, dtype, 1, 2, 1, N, 32, 32)
    check(q, k, v, **decays(device, kind, k, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_positions_in_chunks_of_64(device: str, kind: str) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 2, 200, 32, 40)
    check(q, k, v, config=Config(64, 32, 4, 1), scale=32**-0.5, **decays(device, kind, k, 2, 0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_calls_carries_its_state(device: str, kind: str) -> None:
    q, k, v = inputs(device, HALF, 1, 4, 2, 100, 32, 32)
    how = decays(device, kind, k, 4, 0.2)
    _, last = check(q, k, v, **how)
    parts = []
    state = None
    for part in (slice(0, 37), slice(37, 100)):
        cut = how if kind != "gates" else {"log_gates": how["log_gates"][:, :, part]}
        out, state = check(q[:, :, part], k[:, :, part], v[:, :, part], state=state, **cut)
        parts.append(out)
    exact, exact_last = recurrence(q, k, v, **how)
    same, same_last = plain(q, k, v, dtype=HALF, **how)
    assert largest_error(torch.cat(parts, 2), exact) <= allowed_error(same, exact, HALF)
    assert largest_error(state, exact_last) <= allowed_error(same_last, exact_last, HALF)
    assert largest_error(last, exact_last) <= allowed_error(same_last, exact_last, HALF)


@pytest.mark.parametrize("strength", [30.0, 1e4])
@pytest.mark.parametrize("kind", ["decay", "gates"])
def test_gates_that_close_do_not_overflow(device: str, kind: str, strength: float) -> None:
    """Cumulative decays of e^-1000 and beyond: their inverse is no number, and a closed gate forgets all that was before."""
    q, k, v = inputs(device, HALF, 1, 1, 1, 96, 32, 32)
    check(q, k, v, **decays(device, kind, k, 1, strength))


def test_one_closed_gate_forgets_and_the_rest_keeps(device: str) -> None:
    """Log gates of 0 except one of -1e5: sums that subtract it again would lose the digits of all others."""
    q, k, v = inputs(device, HALF, 1, 1, 1, 90, 32, 32)
    gates = torch.zeros(1, 1, 90, 32, device=device) - 0.01
    gates[:, :, 40] = -1e5
    out, _ = linear_attention(q, k, v, log_gates=gates, config=SMALL)
    after, _ = linear_attention(q[:, :, 40:], k[:, :, 40:], v[:, :, 40:], log_gates=gates[:, :, 40:], config=SMALL)
    exact, _ = recurrence(q, k, v, log_gates=gates)
    largest = exact.abs().max().item()
    assert (out[:, :, 40:] - after).abs().max().item() <= 4 * 2**-11 * largest
    assert largest_error(out, exact) <= 8 * 2**-11 * largest


def test_gates_alike_are_a_decay(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 2, 70, 32, 32)
    decay = torch.tensor([-0.1, -0.02], device=device)
    gates = (decay[None, :, None, None] + torch.zeros(1, 2, 70, 32, device=device)).contiguous()
    exact, _ = recurrence(q, k, v, log_decay=decay)
    same, _ = plain(q, k, v, log_decay=decay, dtype=HALF)
    for how in ({"log_decay": decay}, {"log_gates": gates}):
        out, _ = linear_attention(q, k, v, config=SMALL, **how)
        assert largest_error(out, exact) <= allowed_error(same, exact, HALF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("E", "F"), [(40, 72), (128, 64)])
def test_head_dimensions_and_default_config(device: str, kind: str, E: int, F: int) -> None:
    q, k, v = inputs(device, BRAIN, 1, 1, 1, 70, E, F)
    check(q, k, v, config=None, **decays(device, kind, k, 1))


def test_heads_inside_the_sequence(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 50, 4, 2, 32, generator=make).half().to(device)  # [B, N, (q k v gates), H, E]
    q, k, v, gates = (packed[:, :, i].transpose(1, 2) for i in range(4))
    assert not q.is_contiguous()
    check(q, k, v, log_gates=torch.nn.functional.logsigmoid(gates))
    check(q, k, v, log_decay=torch.tensor([-0.5, -0.1], device=device))


def test_no_positions_leave_the_state(device: str) -> None:
    q, k, v = inputs(device, HALF, 1, 2, 1, 0, 32, 32)
    state = torch.randn(1, 2, 32, 32).to(device)
    for kind in KINDS:
        out, last = linear_attention(q, k, v, state=state, config=SMALL, **decays(device, kind, k, 2))
        assert out.shape == (1, 2, 0, 32) and torch.equal(last, state)


def test_a_bad_call_says_what_is_wrong() -> None:
    q, k, v = inputs("cpu", HALF, 1, 4, 2, 8, 32, 32)
    decay, gates = torch.zeros(4), torch.zeros(1, 2, 8, 32)
    for message, arguments in (
        (r"log_decay: got torch.float32 \[3\] .* expected torch.float32 \[4\]", {"log_decay": decay[:3]}),
        (r"log_gates: got torch.float32 \[1, 2, 7, 32\]", {"log_gates": gates[:, :, :7]}),
        (r"log_gates: got both", {"log_gates": gates, "log_decay": decay}),
        (r"state: got torch.float16", {"state": torch.zeros(1, 4, 32, 32).half()}),
        (r"out: got torch.float16 \[1\]", {"out": torch.zeros(1).half()}),
    ):
        with pytest.raises(ValueError, match=message):
            linear_attention(q, k, v, **arguments)
    with pytest.raises(ValueError, match="k: got 7 positions, expected 8"):
        linear_attention(q, k[:, :, :7], v[:, :, :7])


@pytest.mark.parametrize("capability", LIMITS)
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_every_candidate_is_in_or_has_a_reason(capability: int, width: int) -> None:
    heads, limits = Heads(width, width), LIMITS[capability]
    valid = linear_configurations(heads, limits)
    assert len(valid) >= 8 and default_linear_config(width, width) in valid
    assert all(linear_excluded(heads, c, limits) for c in LINEAR.candidates() if c not in valid)


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed (extra `gpu`)")
def test_it_compiles_without_a_gpu_for_three_architectures() -> None:
    def request(capability: int, width: int = 128, **rest: Any) -> Request:
        config = default_linear_config(width, width)
        plain_config = [config.block_m, config.block_n, config.num_warps, config.num_stages]
        arguments = {"sizes": [1, 8, 8, 4096, 4096, width, width], "dtype": "bfloat16", "mask": {}, "config": plain_config,
                     **rest}  # fmt: skip
        return Request("einsight.kernels.linear", "compile_named", arguments, capability, disassemble=False)

    order = [request(cc, kind=kind) for cc in (80, 90, 100) for kind in ("decay", "gates")]
    order += [request(80, 64, kind="gates"), request(90, kind="gates", scores=True)]
    for asked, estimate in compile_offline(order):
        assert estimate.status == "ok" and estimate.spill_bytes == 0, (asked, estimate)
