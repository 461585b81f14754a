"""What forward and backward attention have in common on the host: what is asked for, and one launch of a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from einsight.kernels.attention_tiles import Variant
from einsight.kernels.band import Band
from einsight.kernels.spaces import Config

LOG2_E = math.log2(math.e)
NONE, FACTORS, MATRIX = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Bias:
    """What is added to the scores, as tensors that broadcasting has already widened to every batch element and head.

    first, second   the factors of queries [B, H, M, BLOCK_R] and keys [B, H, N, BLOCK_R]; or a matrix [B, H, M, N] and
                    None. The last dimension is contiguous, others may have stride 0.
    """

    first: Tensor
    second: Tensor | None = None

    @property
    def kind(self) -> int:
        return MATRIX if self.second is None else FACTORS

    @property
    def rank(self) -> int:
        return 16 if self.second is None else self.second.shape[3]

    @property
    def named(self) -> tuple[str, tuple[tuple[str, str, float], ...]]:
        """(the kernel's name in the catalogue, the bias as `tuned` takes it)."""
        if self.second is None:
            return "attention_with_bias", (("dense_bias", "", 0.0),)
        return "flashbias", (("low_rank", "r", self.rank),)


@dataclass(frozen=True, slots=True)
class Setting:
    """What forward and backward must agree on, besides the tensors. `scale` is given, not defaulted.

    packed_rows   query rows of all sequences where they lie one behind the other: `lengths` are then their B + 1 bounds
    """

    mask: Band
    scale: float
    softcap: float | None = None
    lengths_q: Tensor | None = None
    lengths_k: Tensor | None = None
    packed_rows: int | None = None

    @property
    def log2_scales(self) -> tuple[float, float]:
        """(factor of q . k, of the cap) that make a score a power of two; 0 without a cap."""
        if self.softcap is None:
            return self.scale * LOG2_E, 0.0
        return 2.0 * self.scale / self.softcap * LOG2_E, self.softcap * LOG2_E

    def sides(self, M: int, N: int) -> tuple[int, int]:
        """The band's two sides as kernel arguments: beyond M + N keys every window is the same, and positions plus
        window stay within 32 bits."""
        return min(self.mask.left or 0, M + N), min(self.mask.right or 0, M + N)


def variant(setting: Setting, config: Config, E: int, F: int, *, bias: Bias | None = None, walked: int | None = None,
            weight_bits: int = 0, descriptors: bool = False, warp_specialize: bool = False) -> Variant:  # fmt: skip
    """walked   positions that tiles of `block_n` have to cover exactly for border tiles to be left out; None: they cannot"""
    mask = setting.mask
    return _build(
        E, F, triton.next_power_of_2(E), triton.next_power_of_2(F), bias.rank if bias else 16, config.block_m,
        config.block_n, mask.align == "last", mask.left is not None, mask.right is not None,
        setting.softcap is not None, bias.kind if bias else NONE, walked is not None and walked % config.block_n == 0,
        setting.packed_rows is not None, weight_bits, descriptors, warp_specialize,
    )  # fmt: skip


class Build(Variant, dict[str, Any]):
    """A `Variant` that is its fields as plain values too: Triton writes a build's constants as JSON for every hook that
    looks on as it compiles (profilers and torch's symmetric memory set one), and knows a dictionary but no dataclass."""

    __hash__ = Variant.__hash__  # type: ignore[assignment]  # frozen: the dictionary is filled once, in `_build`


@lru_cache(maxsize=4096, typed=True)
def _build(*values: Any) -> Build:
    """One object for each build: a launch finds its binary by comparing identities, not field by field."""
    made = Build(*map(tl.constexpr, values))
    made.update(zip(vars(made), values, strict=True))
    return made


def options(config: Config) -> dict[str, Any]:
    # Fusion said explicitly: one fused multiply-add per score is meant, and Triton's default is to change in 3.10.
    return {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch: kernel, programs, and what Triton is given, a tensor first. `keywords` are what a build fixes."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the device of the tensors, which need not be the current one: Triton takes that."""
        if self.programs:
            with torch.cuda.device_of(self.arguments[0]):
                self.kernel[(self.programs,)](*self.arguments, **self.keywords, **self.options)

    def compile(self) -> Any:
        """Compile for Triton's active driver as this launch would, with no data; returns Triton's object."""
        arguments = [a.dtype if isinstance(a, Tensor) else a for a in self.arguments]
        return self.kernel.warmup(*arguments, grid=(self.programs,), **self.keywords, **self.options)


def strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """The first three strides of each: 0, 0, 0 where there is no tensor."""
    return tuple(stride for x in tensors for stride in ((0, 0, 0) if x is None else x.stride()[:3]))


def as_sequences(x: Tensor, batch: int, longest: int) -> Tensor:
    """[T, heads, width] as [batch, heads, longest, width] with a batch stride of 0: bounds say where each one lies."""
    return x.as_strided((batch, x.shape[1], longest, x.shape[2]), (0, x.stride(1), x.stride(0), x.stride(2)))


def meta(*shape: int, kind: torch.dtype) -> Tensor:
    """A tensor without data, for `Pass.compile`."""
    return torch.empty(*shape, dtype=kind, device="meta")
