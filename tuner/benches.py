"""The bench of every kernel of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from einsight.kernels.band import Band
from einsight.kernels.gna_space import BoxConfig
from einsight.kernels.neighborhood import Neighborhood, neighborhood
from einsight.kernels.resources import Request
from einsight.kernels.spaces import Config
from einsight.tuner.measure import environment
from einsight.tuner.measure_kernel import KernelBench, UnsupportedWorkload, listed

ROWS_JUDGED = 192  # queries of a grid: all pairs of a video would not fit in memory
CHUNK = 64  # positions of the reference's product form
FACTOR_SPREAD = 0.25  # of a random factor's elements, so that the bias is about as large as the scores


class AttentionBench(KernelBench):
    name = "attention"
    carries = ("softcap", "sink")

    @classmethod
    def build_options(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        told = cls.launch_of(workload)
        return {"softcap": told["softcap"], "sink": told["sink"]}

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        sink = self.normal(self.sizes[1], dtype=self.torch.float32) if told["sink"] else None
        return told | {"sink": sink}

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.attention import attention

        return lambda: attention(self.q, self.k, self.v, **self.options, config=config, out=self.out, lse=self.lse)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        sink = self.options["sink"]
        out, lse = self.references.attention(
            q, k, v, band=self.band, softcap=self.options["softcap"], sink=None if sink is None else sink[h : h + 1],
            dtype=dtype,
        )  # fmt: skip
        return out[0, 0], lse[0, 0]


class FactorBench(KernelBench):
    """Attention with a bias as low-rank factors, one pair per query head."""

    name = "flashbias"

    @classmethod
    def build_options(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        return {"rank": rank_of(workload)}

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        from einsight.kernels.flashbias import pad_rank

        B, H, _, M, N, _, _ = self.sizes
        rank = rank_of(self.workload)
        return told | {name: pad_rank(FACTOR_SPREAD * self.normal(B, H, n, rank)) for name, n in (("pq", M), ("pk", N))}

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.flashbias import flashbias

        return lambda: flashbias(self.q, self.k, self.v, **self.options, config=config, out=self.out, lse=self.lse)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        bias = self.options["pq"][b, h].to(dtype) @ self.options["pk"][b, h].to(dtype).mT
        out, lse = self.references.attention(q, k, v, band=self.band, bias=bias, dtype=dtype)
        return out[0, 0], lse[0, 0]


class MatrixBench(KernelBench):
    """Attention with a bias read as a matrix, one per query head and shared by the batch (the fragment's ranks)."""

    name = "attention_with_bias"

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        _, H, _, M, N, _, _ = self.sizes
        return told | {"bias": self.normal(1, H, M, N)}

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.flashbias import attention_with_bias

        return lambda: attention_with_bias(self.q, self.k, self.v, **self.options, config=config, out=self.out, lse=self.lse)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        out, lse = self.references.attention(q, k, v, band=self.band, bias=self.options["bias"][0, h], dtype=dtype)
        return out[0, 0], lse[0, 0]


class SigmoidBench(KernelBench):
    name = "sigmoid"
    gives_lse = False

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.sigmoid import sigmoid_attention

        return lambda: sigmoid_attention(self.q, self.k, self.v, **self.options, config=config, out=self.out)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        return self.references.sigmoid_attention(q, k, v, band=self.band, dtype=dtype)[0, 0], None


class DecodeBench(KernelBench):
    """Few queries over a long cache, by the schedule that the kernel takes by default."""

    name = "decode"
    carries = ("softcap",)

    @classmethod
    def requests(cls, workload: Mapping[str, Any], config: Config, capability: int) -> tuple[Request, ...]:
        pieces, *_ = super().requests(workload, config, capability)
        return pieces, replace(pieces, arguments={**pieces.arguments, "merge": True})

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.decode import decode

        return lambda: decode(self.q, self.k, self.v, **self.options, config=config, out=self.out, lse=self.lse)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        rest = {"band": self.band, "softcap": self.options["softcap"], "dtype": dtype}
        out, lse = self.references.attention(q, k, v, **rest)
        return out[0, 0], lse[0, 0]


class GridBench(KernelBench):
    """Neighborhood attention on a grid of tokens; the copies of keys and values into boxes are part of the time."""

    name = "gna"

    @classmethod
    def launch_of(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        masks = listed(workload.get("mask"))
        if len(masks) != 1 or not isinstance(masks[0], Mapping) or set(masks[0]) != {"gna"}:
            raise UnsupportedWorkload(f"mask {masks}: kernel {cls.name} runs one neighborhood, {{gna: ...}}")
        if workload.get("bias"):
            raise UnsupportedWorkload(f"bias {workload['bias']}: kernel {cls.name} runs no bias")
        grid = grid_of(masks[0]["gna"])
        return {name: getattr(grid, name) for name in ("layout", "window", "stride", "dilation", "causal")}

    @classmethod
    def requests(cls, workload: Mapping[str, Any], config: Config, capability: int) -> tuple[Request, ...]:
        assert isinstance(config, BoxConfig)
        one, told = cls.of_catalog(), cls.launch_of(workload)
        arguments = cls.compiled(workload, config) | {
            "mask": {}, "neighborhood": {name: list(values) for name, values in told.items()},
            "tiles": [list(config.q_tile), list(config.kv_tile)],
        }  # fmt: skip
        return (Request(one.module, one.compiler, arguments, capability, disassemble=False),)

    def band_of(self, told: Mapping[str, Any]) -> Band:
        return Band()  # the grid says which keys are seen

    @cached_property
    def grid(self) -> Neighborhood:
        return grid_of(self.options)

    def judged_rows(self) -> Any:
        rows = self.torch.randint(self.grid.tokens, (ROWS_JUDGED,), generator=self._make, device=self.q.device)
        rows[0], rows[-1] = 0, self.grid.tokens - 1
        return rows

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.gna import gna

        assert isinstance(config, BoxConfig)
        return lambda: gna(self.q, self.k, self.v, **self.options, config=config, out=self.out, lse=self.lse)

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        from einsight.kernels import references_gna

        out, lse = references_gna.gna(q, k, v, self.grid, rows=self.rows, dtype=dtype)
        return out[0, 0], lse[0, 0]


class LinearBench(KernelBench):
    """Causal linear attention with a decay of each head."""

    name = "lightning"
    kind = "decay"
    gives_lse = False

    @classmethod
    def launch_of(cls, workload: Mapping[str, Any]) -> dict[str, Any]:
        if [mask for mask in listed(workload.get("mask")) if mask != "causal"] or workload.get("bias"):
            raise UnsupportedWorkload(f"mask or bias: kernel {cls.name} is causal by itself and runs no other mask, no bias")
        return {}

    @classmethod
    def requests(cls, workload: Mapping[str, Any], config: Config, capability: int) -> tuple[Request, ...]:
        one = cls.of_catalog()
        arguments = cls.compiled(workload, config) | {"mask": {}, "kind": cls.kind}
        return (Request(one.module, one.compiler, arguments, capability, disassemble=False),)

    def band_of(self, told: Mapping[str, Any]) -> Band:
        return Band()  # the recurrence itself looks back only

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        heads = self.sizes[1]  # slopes as Lightning Attention has them: a geometric series over the heads
        slopes = [-(2.0 ** (-8.0 * (h + 1) / heads)) for h in range(heads)]
        return {"log_decay": self.torch.tensor(slopes, device=self.q.device)}

    def call(self, config: Config) -> Callable[[], object]:
        from einsight.kernels.linear import linear_attention

        return lambda: linear_attention(self.q, self.k, self.v, **self.options, config=config, out=self.out)

    def decay_of(self, b: int, h: int) -> dict[str, Any]:
        """The decays of one head, as the reference takes them."""
        return {"log_decay": self.options["log_decay"][h : h + 1]}

    def exact(self, q: Any, k: Any, v: Any, b: int, h: int, dtype: Any) -> tuple[Any, Any]:
        """The recurrence in float64; in a precision of 16 bits the product form, a chunk at a time with the state carried."""
        from einsight.kernels import references_linear

        decay = self.decay_of(b, h)
        if dtype == self.torch.float64:
            return references_linear.linear_attention(q, k, v, **decay, dtype=dtype)[0][0, 0], None
        parts, state = [], None
        for begin in range(0, q.shape[2], CHUNK):
            part = slice(begin, begin + CHUNK)
            gates = {name: x[:, :, part] if x.dim() == 4 else x for name, x in decay.items()}
            given = (x[:, :, part] for x in (q, k, v))
            out, state = references_linear.plain_linear_attention(*given, **gates, state=state, dtype=dtype)
            parts.append(out)
        return self.torch.cat(parts, 2)[0, 0], None


class GatedBench(LinearBench):
    """Causal linear attention with gates per position."""

    name = "gla"
    kind = "gates"

    @classmethod
    def requests(cls, workload: Mapping[str, Any], config: Config, capability: int) -> tuple[Request, ...]:
        (chunks,) = super().requests(workload, config, capability)
        return chunks, replace(chunks, arguments={**chunks.arguments, "scores": True})

    def tensors(self, told: dict[str, Any]) -> dict[str, Any]:
        B, _, G, _, N, E, _ = self.sizes  # sigmoid to the power 1/16, as GLA has it
        raw = self.normal(B, G, N, E, dtype=self.torch.float32)
        return {"log_gates": self.torch.nn.functional.logsigmoid(raw) / 16}

    def decay_of(self, b: int, h: int) -> dict[str, Any]:
        return {"log_gates": self.options["log_gates"][b, h // (self.sizes[1] // self.sizes[2])][None, None]}


def rank_of(workload: Mapping[str, Any]) -> int:
    """Of the factors of a low-rank bias."""
    return max((int(bias["r"]) for bias in listed(workload.get("bias")) if bias["kind"] == "low_rank"), default=0)


def grid_of(told: Mapping[str, Any]) -> Neighborhood:
    return neighborhood(**{name: tuple(values) for name, values in told.items()})


BENCHES: Mapping[str, type[KernelBench]] = {
    made.name: made for made in (
        AttentionBench, FactorBench, MatrixBench, SigmoidBench, DecodeBench, GridBench, LinearBench, GatedBench
    )
}  # fmt: skip
"""By the kernel's name in the catalogue."""
FACTORY = "einsight.tuner.benches:bench"


def bench(kernel: str, workload: Mapping[str, Any]) -> KernelBench:
    """What a worker calls. Raises NoGpuError or UnsupportedWorkload before anything is measured."""
    environment()
    return BENCHES[kernel](workload)
