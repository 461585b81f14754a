"""Fused attention, forward and backward, against PyTorch's backends and compiled flex_attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from contests import Bar, Call, Contest, Round, compiled_flex, names_of_config, normal, sdpa
from sweep_cases import Case

from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config, configurations

KERNEL = KERNELS["attention"]
BACKWARD = "einsight.kernels.attention_backward"
FORWARD_CONFIGS = (
    Config(128, 64, 4, 2), Config(128, 64, 4, 3), Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(128, 128, 8, 2),
    Config(128, 128, 8, 3), Config(64, 64, 4, 3), Config(64, 128, 4, 2),
)  # fmt: skip
BACKWARD_CONFIGS = (
    Config(64, 32, 4, 2), Config(64, 64, 4, 2), Config(64, 64, 8, 2), Config(128, 32, 8, 2), Config(128, 64, 8, 2),
)  # fmt: skip

FORWARD = (
    (Case("causal-8k-d128", (1, 32, 8, 8192, 8192, 128, 128), causal=True), (Bar("sdpa", 0.75),)),
    (Case("causal-8k-d64", (1, 32, 32, 8192, 8192, 64, 64), causal=True), ()),
    (Case("dense-4k-d128", (4, 16, 16, 4096, 4096, 128, 128)), ()),
    (Case("window-1k-of-16k-d128", (1, 16, 16, 16384, 16384, 128, 128), causal=True, window=1024), ()),
)
GRADIENTS = (Case("backward-causal-8k-d128", (1, 16, 16, 8192, 8192, 128, 128), causal=True),)


def contests() -> Iterator[Contest]:
    for case, bars in FORWARD:
        yield forward(case, bars)
    for case in GRADIENTS:
        yield backward(case)


def forward(case: Case, bars: tuple[Bar, ...] = ()) -> Contest:
    def candidates(capability: int) -> tuple[Config, ...]:
        valid = configurations(case.heads, LIMITS[capability], rows=case.sizes[3])
        return tuple(c for c in FORWARD_CONFIGS if c in valid)

    return Contest(
        case.name, KERNEL.name, case.workload(), {"flops": case.flops}, candidates,
        lambda config, capability: (case.request(config, capability),), lambda: _forward_round(case), bars,
    )  # fmt: skip


def backward(case: Case) -> Contest:
    mask = {"left": case.band.left, "right": case.band.right, "align": case.align}

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        known = {"sizes": list(case.sizes), "dtype": case.dtype, "mask": mask, "config": names_of_config(config)}
        return tuple(Request(BACKWARD, "compile_named", {"which": w} | known, capability) for w in ("queries", "keys"))

    return Contest(
        case.name, "attention_backward", case.workload() | {"phase": "backward"}, {"flops": 2.5 * case.flops},
        lambda capability: BACKWARD_CONFIGS, requests, lambda: _backward_round(case),
    )  # fmt: skip


def inputs(case: Case, gradient: bool = False) -> list[Any]:
    B, H, G, M, N, E, F = case.sizes
    shapes = ((B, H, M, E), (B, G, N, E), (B, G, N, F), *(((B, H, M, F),) if gradient else ()))
    return normal(sum(case.sizes), *shapes, dtype=case.dtype)


def judge(case: Case, q: Any, k: Any, v: Any, dout: Any = None, bias: Any = None) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """(exact results, allowed errors) by the plain formula, a KV head at a time; gradients where dout is given.

    bias   callable (b, h, dtype) -> [M, N], what is added to the scores
    """
    import torch

    from einsight.kernels import references

    results: list[list[Any]] = []
    for dtype in (torch.float64, q.dtype):
        shapes = [(*q.shape[:3], v.shape[3])] if dout is None else [x.shape for x in (q, k, v)]
        wide = [torch.zeros(*shape, dtype=dtype, device=q.device) for shape in shapes]
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                g = h // (q.shape[1] // k.shape[1])
                one = (q[b, h], k[b, g], v[b, g])
                leaves = [x[None, None].detach().to(dtype).requires_grad_(dout is not None) for x in one]
                added = None if bias is None else bias(b, h, dtype)
                out, _ = references.attention(*leaves, band=case.band, bias=added, dtype=dtype)
                if dout is None:
                    wide[0][b, h] = out[0, 0]
                    continue
                grads = torch.autograd.grad((out[0, 0] * dout[b, h].to(dtype)).sum(), leaves)
                for target, grad, head in zip(wide, grads, (h, g, g), strict=True):
                    target[b, head] += grad[0, 0]
        results.append(wide)
    exact, plain = results
    allowed = tuple(references.allowed_error(p, e, q.dtype) for p, e in zip(plain, exact, strict=True))
    return tuple(exact), allowed


def _forward_round(case: Case) -> Round:
    from einsight.kernels.attention import attention

    q, k, v = inputs(case)
    exact, allowed = judge(case, q, k, v)

    def ours(config: Config) -> Call:
        return lambda: attention(q, k, v, causal=case.causal, window=case.window, align=case.align, config=config)[:1]

    rivals: dict[str, Call] = {"flex": flex(case, q, k, v)}
    if case.window is None:
        rivals |= {f"sdpa-{b}": _lazy_sdpa(b, q, k, v, case.causal) for b in ("flash", "cudnn", "efficient")}
    return Round(exact, allowed, ours, rivals)


def _lazy_sdpa(backend: str, q: Any, k: Any, v: Any, causal: bool) -> Call:
    """Made on the first call: a backend that refuses raises there."""
    made: list[Call] = []

    def call() -> tuple[Any, ...]:
        if not made:
            made.append(sdpa(backend, q, k, v, is_causal=causal))
        return made[0]()

    return call


def flex(case: Case, q: Any, k: Any, v: Any, score_mod: Any = None) -> Call:
    """Compiled flex_attention with the case's mask as a block mask, which is built here, outside the timing."""
    from torch.nn.attention.flex_attention import create_block_mask

    H, G, M, N = case.sizes[1:5]
    mask, shift = case.band, N - M if case.align == "last" else 0

    def seen(_b: Any, _h: Any, m: Any, n: Any) -> Any:
        inside = n >= 0
        if mask.left is not None:
            inside = inside & (n >= m + shift - mask.left)
        if mask.right is not None:
            inside = inside & (n <= m + shift + mask.right)
        return inside

    blocks = None if mask.dense else create_block_mask(seen, None, None, M, N, device=q.device.type)
    call = compiled_flex(block_mask=blocks, enable_gqa=H != G, score_mod=score_mod)
    return lambda: (call(q, k, v),)


def _backward_round(case: Case) -> Round:
    import torch

    from einsight.kernels.attention import attention
    from einsight.kernels.attention_backward import Setting, attention_backward

    q, k, v, dout = inputs(case, gradient=True)
    exact, allowed = judge(case, q, k, v, dout)
    out, lse = attention(q, k, v, causal=case.causal, window=case.window, align=case.align)
    setting = Setting(case.band, case.sizes[5] ** -0.5)

    def ours(config: Config) -> Call:
        return lambda: attention_backward(dout, q, k, v, out, lse, setting, config=config)[:3]

    def rival(backend: str) -> Call:
        kept: list[Any] = []

        def call() -> tuple[Any, ...]:
            if not kept:
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                kept.extend((sdpa(backend, *leaves, is_causal=case.causal)()[0], leaves))
            return torch.autograd.grad(kept[0], kept[1], dout, retain_graph=True)

        return call

    return Round(exact, allowed, ours, {f"sdpa-{b}": rival(b) for b in ("flash", "cudnn", "efficient")})
