"""The attention problems that the GPU sweep measures and checks, as plain data, with the baselines for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from einsight.kernels.band import Band, band
from einsight.kernels.catalog import KERNELS
from einsight.kernels.resources import Request
from einsight.kernels.spaces import Config, Heads

KERNEL = KERNELS["attention"]
DEVICE = "cuda"  # a test sets "cpu" to run the whole procedure under Triton's interpreter
SHORT = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: batch, query heads, KV heads, queries, keys, E, F, and what acts on the scores."""

    name: str
    sizes: tuple[int, int, int, int, int, int, int]  # B, H, G, M, N, E, F
    dtype: str = "bfloat16"
    causal: bool = False
    window: int | None = None
    align: str = "last"
    softcap: float | None = None
    sink: bool = False

    @property
    def heads(self) -> Heads:
        return Heads(self.sizes[5], self.sizes[6])

    @property
    def band(self) -> Band:
        return band(self.causal, self.window, self.align)

    @property
    def seen_pairs(self) -> int:
        """Unmasked (query, key) pairs of one head."""
        return seen_pairs(self.band, *self.sizes[3:5])

    @property
    def flops(self) -> float:
        """Matmul FLOPs in the flash-attention convention: 2 per multiply-accumulate of unmasked pairs."""
        B, H, _, _, _, E, F = self.sizes
        return 2.0 * B * H * self.seen_pairs * (E + F)

    def workload(self) -> dict[str, Any]:
        """In the form of a workload file, so that a prediction of the same problem can be joined."""
        names = dict(zip(("b", "h", "g", "m", "n", "e", "f"), self.sizes, strict=True))
        out: dict[str, Any] = {"cascade": KERNEL.cascade, "sizes": names, "dtype": SHORT[self.dtype], "phase": "prefill"}
        mask = [*(["causal"] if self.causal else []), *([{"window": self.window}] if self.window else [])]
        out |= {"mask": mask} if mask else {}
        bias = [*([{"kind": "softcap", "cap": self.softcap}] if self.softcap else []),
                *([{"kind": "sink"}] if self.sink else [])]  # fmt: skip
        out |= {"bias": bias} if bias else {}
        out |= {"align": "first"} if self.align == "first" else {}
        return out | {"cache": "warm"}

    def request(self, config: Config, capability: int) -> Request:
        """The offline compilation of exactly what a launch on this problem needs."""
        mask = {"left": self.band.left, "right": self.band.right, "align": self.align}
        arguments = {
            "sizes": list(self.sizes), "dtype": self.dtype, "mask": mask, "softcap": self.softcap, "sink": self.sink,
            "config": [config.block_m, config.block_n, config.num_warps, config.num_stages],
        }  # fmt: skip
        return Request(KERNEL.module, KERNEL.compiler, arguments, capability)


@lru_cache
def seen_pairs(mask: Band, M: int, N: int) -> int:
    """Pairs (m, n) inside a band, row by row."""
    total = 0
    for m in range(M):
        at = mask.diagonal(m, M, N)
        low = 0 if mask.left is None else max(0, at - mask.left)
        high = N if mask.right is None else min(N, at + mask.right + 1)
        total += max(0, high - low)
    return total


# Swept over the whole space.
SWEPT = (
    Case("llama-8b-8k-causal-d128", (1, 32, 8, 8192, 8192, 128, 128), causal=True),
    Case("dense-4k-d64", (4, 16, 16, 4096, 4096, 64, 64), dtype="float16"),
    Case("causal-4k-d256", (2, 16, 8, 4096, 4096, 256, 256), causal=True),
)
# Measured once in the default configuration: every feature gets its error against float64 on the device recorded.
CHECKED = (
    Case("causal-first-key", (1, 4, 4, 1000, 1400, 64, 64), causal=True, align="first"),
    Case("causal-rows-without-keys", (1, 4, 2, 1400, 1000, 128, 128), causal=True),
    Case("window-both-sides", (1, 4, 4, 2000, 2000, 128, 128), window=300),
    Case("causal-window", (1, 8, 2, 4096, 4096, 128, 128), causal=True, window=1024),
    Case("multi-query-ragged", (3, 8, 1, 63, 200, 64, 64), dtype="float16"),
    Case("value-dimension-differs", (1, 4, 4, 1000, 1000, 192, 128), causal=True),
    Case("head-dimension-96", (1, 4, 4, 1000, 1000, 96, 96), dtype="float16", causal=True),
    Case("head-dimension-32", (1, 4, 4, 1000, 1000, 32, 32), causal=True),
    Case("softcap", (1, 8, 4, 2048, 2048, 256, 256), causal=True, softcap=50.0),
    Case("sink-window", (1, 8, 1, 2048, 2048, 64, 64), causal=True, window=128, sink=True),
    Case("one-query-long-cache", (4, 32, 8, 1, 16384, 128, 128)),
)


def tensors(case: Case) -> dict[str, Any]:
    """Inputs of a case on the GPU, the same in every run (seeded), and the sink where there is one."""
    import torch

    B, H, G, M, N, E, F = case.sizes
    make = torch.Generator(device=DEVICE).manual_seed(sum(case.sizes))
    element = getattr(torch, case.dtype)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, generator=make, device=DEVICE).to(element)

    out = {"q": normal(B, H, M, E), "k": normal(B, G, N, E), "v": normal(B, G, N, F)}
    return out | ({"sink": torch.randn(H, generator=make, device=DEVICE)} if case.sink else {})


def judge(case: Case, given: dict[str, Any]) -> tuple[Any, Any, float]:
    """(exact output in float64, exact log-sum-exp, allowed error), one head at a time so that 8k x 8k fits."""
    import torch

    from einsight.kernels import references

    B, H, G, M, _, _, F = case.sizes
    exact = torch.empty(B, H, M, F, dtype=torch.float64, device=DEVICE)
    lse = torch.empty(B, H, M, dtype=torch.float64, device=DEVICE)
    plain = torch.empty(B, H, M, F, dtype=given["q"].dtype, device=DEVICE)
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            q, k, v = given["q"][b, h][None, None], given["k"][b, g][None, None], given["v"][b, g][None, None]
            sink = given["sink"][h : h + 1] if case.sink else None
            rest = {"band": case.band, "softcap": case.softcap, "sink": sink}
            one, one_lse = references.attention(q, k, v, **rest)
            exact[b, h], lse[b, h] = one[0, 0], one_lse[0, 0]
            plain[b, h] = references.attention(q, k, v, dtype=q.dtype, **rest)[0][0, 0]
    return exact, lse, references.allowed_error(plain, exact, plain.dtype)


def baselines(case: Case, given: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """PyTorch's attention by backend, those that run this case; K and V repeated beforehand where GQA is refused."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    _, H, G, _, _, _, _ = case.sizes
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                "efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
    repeated = {name: given[name].repeat_interleave(H // G, dim=1) for name in ("k", "v")}
    found: dict[str, Callable[[], Any]] = {}
    for name, backend in backends.items():
        for k, v, gqa in ((given["k"], given["v"], H != G), (repeated["k"], repeated["v"], False)):

            def call(backend: Any = backend, k: Any = k, v: Any = v, gqa: bool = gqa) -> Any:
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(
                        given["q"], k, v, is_causal=case.causal, enable_gqa=gqa
                    )

            try:
                call()
                if DEVICE == "cuda":
                    torch.cuda.synchronize()
            except RuntimeError:  # this backend does not take these inputs
                continue
            found[f"sdpa-{name}"] = call
            break
    return found
