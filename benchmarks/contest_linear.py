"""Chunked linear attention, with a decay per head and with gates per position, against the chunked form in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from contests import SHORT, Bar, Call, Contest, Round, names_of_config, normal

from einsight.kernels.catalog import KERNELS
from einsight.kernels.linear_space import linear_configurations
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config, Heads

MODULE = "einsight.kernels.linear"
CONFIGS = (
    Config(32, 32, 4, 1), Config(64, 32, 8, 1), Config(32, 64, 8, 1), Config(64, 64, 8, 1), Config(64, 32, 4, 1),
)  # fmt: skip
CHUNK = 64  # of the PyTorch form
CATALOGUED = {"decay": "lightning", "gates": "gla"}


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: H heads for queries, keys and values alike; kind "decay" or "gates"."""

    name: str
    kind: str
    sizes: tuple[int, int, int, int, int]  # B, H, N, E, F
    dtype: str = "bfloat16"

    @property
    def flops(self) -> float:
        """Of the recurrence: state update and read, a multiply-accumulate per element each; the same for every chunk size."""
        B, H, N, E, F = self.sizes
        return 4.0 * B * H * N * E * F


CASES = (
    Case("lightning-8k-d128", "decay", (2, 16, 8192, 128, 128)),
    Case("gla-8k-d128", "gates", (2, 16, 8192, 128, 128)),
)


def contests() -> Iterator[Contest]:
    for case in CASES:
        yield contest(case)


def contest(case: Case, bars: tuple[Bar, ...] = ()) -> Contest:
    B, H, N, E, F = case.sizes

    def candidates(capability: int) -> tuple[Config, ...]:
        valid = linear_configurations(Heads(E, F), LIMITS[capability], rows=N)
        return tuple(c for c in CONFIGS if c in valid)

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        known = {"sizes": [B, H, H, N, N, E, F], "dtype": case.dtype, "mask": {}, "config": names_of_config(config),
                 "kind": case.kind}  # fmt: skip
        parts = (False, True) if case.kind == "gates" else (False,)
        return tuple(Request(MODULE, "compile_named", known | {"scores": part}, capability) for part in parts)

    kernel = KERNELS[CATALOGUED[case.kind]]
    workload = {"cascade": kernel.cascade, "sizes": {"b": B, "h": H, "g": H, "m": N, "n": N, "e": E, "f": F},
                "dtype": SHORT[case.dtype], "phase": "prefill", "cache": "warm"}  # fmt: skip
    return Contest(case.name, kernel.name, workload, {"flops": case.flops}, candidates, requests, lambda: _round(case), bars)


def chunked(q: Any, k: Any, v: Any, log_gates: Any, chunk: int = CHUNK) -> Any:
    """Chunks at once, the state carried between them; log_gates [B, H, N, E or 1] float32. Divides by cumulative decays, so
    gates must not close within a chunk."""
    import torch

    N = q.shape[2]
    q, k, v, log_gates = (x.unflatten(2, (N // chunk, chunk)) for x in (q, k, v, log_gates))
    total = log_gates.cumsum(3)
    q_in = (q * total.exp()).to(q.dtype)
    k_out = (k * (total[..., -1:, :] - total).exp()).to(k.dtype)
    score = (q_in @ (k * (-total).exp()).to(k.dtype).mT).tril()
    added = (k_out.mT @ v).float()
    kept = total[..., -1, :, None].exp()
    state, before = torch.zeros_like(added[:, :, 0]), []
    for n in range(N // chunk):
        before.append(state)
        state = kept[:, :, n] * state + added[:, :, n]
    return (score @ v + q_in @ torch.stack(before, 2).to(q.dtype)).flatten(2, 3)


def _round(case: Case) -> Round:
    import torch

    from einsight.kernels import references
    from einsight.kernels.linear import linear_attention
    from einsight.kernels.references_linear import linear_attention as recurrence

    B, H, N, E, F = case.sizes
    q, k, v, raw = normal(N, (B, H, N, E), (B, H, N, E), (B, H, N, F), (B, H, N, E), dtype=case.dtype)
    if case.kind == "gates":  # sigmoid to the power 1/16, as GLA has it
        gates = torch.nn.functional.logsigmoid(raw.float()) / 16
        how = {"log_gates": gates}
    else:
        slopes = -torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)], device=q.device)
        gates = slopes[None, :, None, None].expand(B, H, N, 1)
        how = {"log_decay": slopes}
    exact, _ = recurrence(q, k, v, **how)
    chunk = min(CHUNK, N)
    allowed = references.allowed_error(chunked(q, k, v, gates, chunk), exact, q.dtype)
    compiled = torch.compile(chunked, dynamic=False) if q.is_cuda else chunked

    def ours(config: Config) -> Call:
        return lambda: linear_attention(q, k, v, config=config, **how)[:1]

    rivals: dict[str, Call] = {
        "chunked": lambda: (chunked(q, k, v, gates, chunk),),
        "chunked-compiled": lambda: (compiled(q, k, v, gates, chunk),),
    }
    return Round((exact,), (allowed,), ours, rivals)
