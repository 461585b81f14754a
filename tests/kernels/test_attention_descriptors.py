"""K and V through tensor descriptors: the same numbers as through pointers, and pointers where no descriptor can be."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import attention as module  # noqa: E402
from einsight.kernels.attention import attention, attention_packed, descriptor_refusal  # noqa: E402
from einsight.kernels.attention_launch import Setting  # noqa: E402
from einsight.kernels.attention_space import AttentionConfig, attention_config, fp8_refusal, path_refusal  # noqa: E402
from einsight.kernels.band import Band  # noqa: E402
from einsight.kernels.flashbias import flashbias  # noqa: E402
from einsight.kernels.resources import Estimate, Request, compile_offline  # noqa: E402
from einsight.kernels.spaces import Config, Heads, shared_bytes, tmem_columns  # noqa: E402

BARRIERS = 1024  # and alignment, of tiles that descriptors read
HALF, FP8 = torch.float16, torch.float8_e4m3fn
POINTERS, DESCRIPTORS = Config(64, 32, 4, 2), AttentionConfig(64, 32, 4, 2, descriptors=True)


def inputs(device: str, B: int, H: int, G: int, M: int, N: int, E: int, F: int, dtype: Any = HALF) -> Any:
    make = torch.Generator().manual_seed(B + H + M + N + E + F)
    return tuple(torch.randn(*s, generator=make).to(dtype).to(device) for s in ((B, H, M, E), (B, G, N, E), (B, G, N, F)))


@pytest.fixture()
def described(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tensors that a launch made descriptors of."""
    made: list[Any] = []
    original = module._descriptor
    monkeypatch.setattr(module, "_descriptor", lambda x, rows: made.append(x) or original(x, rows))
    return made


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 50}], ids=str)
@pytest.mark.parametrize(
    ("M", "N", "E", "F", "dtype"), [(63, 200, 64, 32, HALF), (200, 63, 40, 96, HALF), (70, 90, 64, 64, FP8)]
)
def test_the_same_bits_as_through_pointers(device: str, described: list[Any], mask: dict[str, Any], M: int, N: int, E: int,
                                           F: int, dtype: Any) -> None:  # fmt: skip
    if dtype == FP8 and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 tensor cores")
    q, k, v = inputs(device, 2, 4, 2, M, N, E, F, dtype)
    expected = attention(q, k, v, config=POINTERS, **mask)
    assert not described
    got = attention(q, k, v, config=DESCRIPTORS, **mask)
    if device == "cpu" or torch.cuda.get_device_capability() >= (9, 0):
        assert len(described) == 2
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_heads_inside_the_sequence_and_a_bias(device: str, described: list[Any]) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(2, 80, 3, 4, 32, generator=make).half().to(device)  # [B, N, (q k v), H, E]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    pq, pk = (torch.randn(1, 4, 80, 8, generator=make).half().to(device) for _ in range(2))
    expected = flashbias(q, k, v, pq, pk, causal=True, config=POINTERS)
    got = flashbias(q, k, v, pq, pk, causal=True, config=DESCRIPTORS)
    assert torch.equal(got[0], expected[0]) and (len(described) == 2 or device == "cuda")


def test_what_a_descriptor_cannot_read_goes_through_pointers(device: str, described: list[Any]) -> None:
    q, k, v = inputs(device, 1, 2, 2, 40, 65, 36, 32)  # rows of 72 bytes
    lengths = torch.tensor([50], dtype=torch.int32, device=device)
    nothing = torch.zeros(1, 2, 0, 32, device=device, dtype=HALF)
    wide = torch.zeros(1, 2, 70, 33, device=device, dtype=HALF)[:, :, :65, 1:]  # begins at 2 bytes
    plain, other = Setting(Band(), 1.0), torch.zeros(1, 2, 65, 32, device=device, dtype=HALF)
    shared = other[:, :1].expand(-1, 2, -1, -1)
    reasons = {
        "k has strides": (k, v, plain), "k does not begin": (wide, v, plain), "v is empty": (other, nothing, plain),
        "v has strides": (other, shared, plain), "lengths_k": (other, v, Setting(Band(), 1.0, lengths_k=lengths)),
        "packed": (other, v, Setting(Band(), 1.0, packed_rows=65)),
    }  # fmt: skip
    for reason, given in reasons.items():
        assert descriptor_refusal(*given).startswith(reason), reason
    assert descriptor_refusal(other, v, plain) == ""
    for lengths_k in (None, lengths):
        got = attention(q, k, v, config=DESCRIPTORS, lengths_k=lengths_k)[0]
        assert torch.equal(got, attention(q, k, v, config=POINTERS, lengths_k=lengths_k)[0])
    bounds = torch.tensor([0, 30, 65], dtype=torch.int32, device=device)
    rows = [x[0].transpose(0, 1).contiguous() for x in (other, other, v)]
    got, expected = (attention_packed(*rows, bounds, bounds, 35, 35, config=c)[0] for c in (DESCRIPTORS, POINTERS))
    assert torch.equal(got, expected) and not described


def test_padding_is_not_read_where_lengths_end_inside_the_tensor(device: str) -> None:
    q, k, v = inputs(device, 1, 1, 1, 40, 96, 32, 32)
    k[:, :, 40:], v[:, :, 40:] = math.nan, math.nan
    lengths = torch.tensor([40], dtype=torch.int32, device=device)
    assert torch.isfinite(attention(q, k, v, config=DESCRIPTORS, lengths_k=lengths)[0]).all()


def test_architectures_without_a_path_say_why() -> None:
    both = AttentionConfig(128, 64, 4, 2, True, True)
    assert "sm_80 has no unit" in path_refusal(both, 80) and "sm_89 has no fp8" not in fp8_refusal(89)
    assert path_refusal(DESCRIPTORS, 90) == "" and "sm_90 aborts" in path_refusal(both, 90)
    assert path_refusal(both, 100) == "" and "sm_120" in path_refusal(both, 120)
    assert "sm_80 has no fp8 tensor cores" in fp8_refusal(80)
    assert attention_config(POINTERS) == AttentionConfig(64, 32, 4, 2) and attention_config(both) is both
    assert path_refusal(POINTERS, 80) == ""


def built(capability: int, dtype: str = "bfloat16", **flags: Any) -> Request:
    arguments = {"sizes": [1, 8, 2, 4096, 4096, 64, 64], "dtype": dtype, "mask": {"right": 0}, "config": [128, 64, 4, 2]}
    return Request(module.__name__, "compile_named", arguments | flags, capability)


def closed_form_holds(estimate: Estimate, heads: Heads, capability: int, more: int) -> bool:
    """Shared memory is the closed form and at most `more`, or on tcgen05 its scratch of 4 KiB; tensor memory exactly."""
    config = Config(128, 64, 4, 2)
    extra = estimate.shared_bytes - shared_bytes(heads, config, capability)
    columns = tmem_columns(heads, config, capability)
    return 0 <= extra <= (4096 if capability == 100 else more) and estimate.tmem_columns == columns


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed (extra `gpu`)")
def test_every_path_compiles_for_its_architectures() -> None:
    """fp8 on every architecture that has it; descriptors where a unit reads them; warp groups of their own on sm_100."""
    fp8 = {cc: built(cc, "float8_e4m3fn") for cc in (80, 89, 90, 100, 120)}
    tiles = {cc: built(cc, descriptors=True) for cc in (90, 100)}
    groups = {cc: built(cc, descriptors=True, warp_specialize=True) for cc in (90, 100)}
    requests = [*fp8.values(), *tiles.values(), *groups.values()]
    found: dict[int, Estimate] = {id(r): e for r, e in compile_offline(requests)}
    refused = found[id(fp8.pop(80))]
    assert refused.status == "compile_failed" and "sm_80 has no fp8 tensor cores" in refused.reason
    for cc, request in fp8.items():
        estimate = found[id(request)]
        assert estimate.status == "ok" and estimate.stack_bytes == 0, (cc, estimate)
        assert any(estimate.loop.get(name, 0) > 0 for name in ("QMMA", "QGMMA", "UTCQMMA")), (cc, estimate)
        assert closed_form_holds(estimate, Heads(64, 64, 1), cc, 0)
    # The rescaled output and each tile's product, summed apart on sm_90, are joined by a fused multiply-add.
    assert found[id(fp8[90])].loop["FFMA"] >= 128 * 64 // 128
    for cc, request in tiles.items():
        assert found[id(request)].status == "ok" and found[id(request)].loop["UTMALDG"] == 2, cc
        assert closed_form_holds(found[id(request)], Heads(64, 64), cc, BARRIERS)
    assert found[id(groups[100])].status == "ok" and found[id(groups[100])].warps == 12
    assert closed_form_holds(found[id(groups[100])], Heads(64, 64), 100, BARRIERS)
    assert "sm_90 aborts" in found[id(groups[90])].reason
