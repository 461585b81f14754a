"""Configuration spaces as data: what a kernel can be built with, and why the rest is left out. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True, order=True)
class Config:
    """One build of a tiled kernel: query rows and keys of a tile, warps of a block, depth of the load pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def __str__(self) -> str:
        return (
            f"BLOCK_M={self.block_m},BLOCK_N={self.block_n},num_warps={self.num_warps},num_stages={self.num_stages}"
        )


def parse_config(text: str) -> Config:
    """`BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2` as a Config. Raises ValueError that names what is wrong."""
    fields: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or not value.strip().isdigit():
            raise ValueError(f"configuration {text!r}: got {part!r}, expected NAME=INTEGER")
        if name not in Config.__slots__ or name in fields:
            raise ValueError(f"configuration {text!r}: {name!r} is unknown or given twice, expected {Config.__slots__}")
        fields[name] = int(value)
    missing = [name for name in Config.__slots__ if name not in fields]
    if missing:
        raise ValueError(f"configuration {text!r}: {', '.join(missing)} missing")
    return Config(**fields)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one compute capability grants, per SM unless a field says otherwise.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; tensor memory (512 columns of
    128 lanes x 32 bit): PTX ISA, "Tensor Memory".
    """

    capability: int
    shared_bytes_per_block: int
    shared_bytes: int
    warps: int
    blocks: int
    registers: int = 65536
    registers_per_thread: int = 255
    tmem_columns: int = 0
    tmem_lanes: int = 128


KIB = 1024
LIMITS = {
    limits.capability: limits
    for limits in (
        Limits(80, 163 * KIB, 164 * KIB, 64, 32),
        Limits(86, 99 * KIB, 100 * KIB, 48, 16),
        Limits(89, 99 * KIB, 100 * KIB, 48, 24),
        Limits(90, 227 * KIB, 228 * KIB, 64, 32),
        Limits(100, 227 * KIB, 228 * KIB, 64, 32, tmem_columns=512),
        Limits(103, 227 * KIB, 228 * KIB, 64, 32, tmem_columns=512),
        Limits(120, 99 * KIB, 100 * KIB, 48, 24),
    )
}


@dataclass(frozen=True, slots=True)
class Heads:
    """The part of an attention problem that tile resources depend on: E, F and the bytes of one element."""

    e: int
    f: int
    element_bytes: int = 2

    @property
    def tile_e(self) -> int:
        return power_of_two(self.e)

    @property
    def tile_f(self) -> int:
        return power_of_two(self.f)


@dataclass(frozen=True, slots=True)
class Space:
    """Every value that a parameter may take; the candidates are their product."""

    block_m: tuple[int, ...]
    block_n: tuple[int, ...]
    num_warps: tuple[int, ...]
    num_stages: tuple[int, ...]

    def candidates(self) -> Iterator[Config]:
        for values in product(self.block_m, self.block_n, self.num_warps, self.num_stages):
            yield Config(*values)


# 2 warps only pay for 32-row tiles, 256 rows only with 8 warps; deeper pipelines than 4 no longer fit beside the tiles.
ATTENTION = Space(block_m=(32, 64, 128, 256), block_n=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4))


def power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def default_config(e: int, f: int) -> Config:
    """A build that is valid on every architecture of `LIMITS` (a start, not a tuned choice)."""
    widest = max(power_of_two(e), power_of_two(f))
    if widest <= 64:
        return Config(128, 64, 4, 2)
    return Config(128, 64, 8, 2) if widest <= 128 else Config(64, 32, 4, 2)


def shared_bytes(heads: Heads, config: Config, capability: int) -> int:
    """Dynamic shared memory of the attention kernel in bytes, without the barriers of newer architectures.

    Q stays resident where the tensor core reads operands from shared memory. Triton keeps `num_stages` copies of a K and
    a V tile where loads are asynchronous and the tensor core reads shared memory (wgmma, tcgen05), one fewer where
    fragments are loaded to registers first (mma.sync).
    """
    q = config.block_m * heads.tile_e * heads.element_bytes
    k = config.block_n * heads.tile_e * heads.element_bytes
    v = config.block_n * heads.tile_f * heads.element_bytes
    if config.num_stages == 1:
        return q + max(k, v)
    buffers = config.num_stages - (0 if 90 <= capability < 120 else 1)
    return q + buffers * (k + v)


def tmem_columns(heads: Heads, config: Config, limits: Limits) -> int:
    return 0


def registers_wanted(heads: Heads, config: Config, limits: Limits) -> int:
    return 0
