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


@dataclass(frozen=True, slots=True, order=True)
class AttentionConfig(Config):
    """A `Config` that also says how the forward kernel of attention reads its tiles.

    descriptors       K and V by tensor descriptors (TMA) where the inputs allow it: see `attention.descriptor_refusal`
    warp_specialize   loads, products and softmax by warp groups of their own
    """

    descriptors: bool = False
    warp_specialize: bool = False

    def __str__(self) -> str:
        on = (f"{name}=1" for name in FLAGS if getattr(self, name))
        return ",".join((Config.__str__(self), *on))


FLAGS = ("descriptors", "warp_specialize")  # of an `AttentionConfig`, written 0 or 1


def parse_config(text: str) -> Config:
    """`BLOCK_M=128,BLOCK_N=64,num_warps=8,num_stages=2`, and flags as `descriptors=1`, as a Config.

    Raises ValueError that names what is wrong.
    """
    fields: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if not equals or not value.strip().isdigit():
            raise ValueError(f"configuration {text!r}: got {part!r}, expected NAME=INTEGER")
        if name not in (*Config.__slots__, *FLAGS) or name in fields:
            expected = "BLOCK_M, BLOCK_N, num_warps, num_stages, each once"
            raise ValueError(f"configuration {text!r}: {name!r} is unknown or given twice, expected {expected}")
        fields[name] = int(value)
        if name in FLAGS and fields[name] > 1:
            raise ValueError(f"configuration {text!r}: {name} is {fields[name]}, expected 0 or 1")
    missing = [name for name in Config.__slots__ if name not in fields]
    if missing:
        raise ValueError(f"configuration {text!r}: {', '.join(missing)} missing")
    sizes = [fields[name] for name in Config.__slots__]
    flags = [bool(fields.get(name)) for name in FLAGS]
    return AttentionConfig(*sizes, *flags) if any(flags) else Config(*sizes)  # type: ignore[arg-type]  # of one list


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


KIB = 1024
SHARED_PER_BLOCK_RESERVED = 1024  # what the driver keeps of every block's shared memory from sm_80 on
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
    """The part of an attention problem that tile resources depend on: E, F, the bytes of one element, a bias's rank."""

    e: int
    f: int
    element_bytes: int = 2
    rank: int = 0  # of a bias's factors; 0: there are none
    matrix: bool = False  # whether a bias is read as a matrix

    @property
    def tile_e(self) -> int:
        return power_of_two(self.e)

    @property
    def tile_f(self) -> int:
        return power_of_two(self.f)

    @property
    def tile_r(self) -> int:
        return padded_rank(self.rank) if self.rank else 0


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


RANKS = (16, 32, 64, 128)  # widths of a bias's factors in a tile

# At most 144 candidates, so that a sweep of every valid one fits in minutes.
ATTENTION = Space(block_m=(32, 64, 128, 256), block_n=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4))

# Block sizes of neighborhood attention, whose boxes `gna_space` chooses. Fewer than 64 rows fill no asynchronous
# matrix instruction; more than 128 rows or keys make boxes that reach far beyond a window.
GNA = Space(block_m=(64, 128), block_n=(32, 64, 128), num_warps=(4, 8), num_stages=(1, 2, 3))


def power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def default_config(e: int, f: int) -> Config:
    """A build that is valid on every architecture of `LIMITS` (a start, not a tuned choice)."""
    widest = max(power_of_two(e), power_of_two(f))
    if widest <= 64:
        return Config(128, 64, 4, 2)
    return Config(128, 64, 8, 2) if widest <= 128 else Config(64, 32, 4, 2)


def padded_rank(rank: int) -> int:
    """Columns of a tile that holds factors of this rank: tensor cores take 16 at least."""
    return max(RANKS[0], power_of_two(rank))


def matrix_instruction(config: Config, capability: int) -> str:
    """The tensor-core instruction that Triton picks: the asynchronous ones need 64 rows and whole groups of 4 warps."""
    if config.block_m >= 64 and config.num_warps % 4 == 0:
        if capability // 10 == 9:
            return "wgmma"
        if capability // 10 in (10, 11):
            return "tcgen05"
    return "mma.sync"


def shared_bytes(heads: Heads, config: Config, capability: int) -> int:
    """Shared memory of one block of the attention kernel, in bytes (tcgen05 adds up to 4 KiB of barriers and scratch).

    At one stage it is an upper bound where E is wider than F, as K then passes in parts, and beside a bias's matrix.

    The Q tile and the pipeline's K and V tiles: `num_stages` pairs where the tensor core reads shared memory (wgmma,
    tcgen05), one pair fewer where it reads registers (mma.sync), and for one stage the larger of K and V in turn.
    With mma.sync and fewer rows than columns of the output tile, Triton lays the warps of the second product along its
    columns, so every warp needs all of P: that tile then passes through shared memory too. So does a tile of a bias's
    matrix, from the layout in which it is loaded to that of the scores (in the place of P where P has one). At the end
    the output passes through all of it. Tensor descriptors add up to 1 KiB of barriers and alignment, warp groups of their
    own up to 4 KiB.
    """
    form = _fp8_pipeline_bytes if heads.element_bytes == 1 else _pipeline_bytes
    pipeline = form(heads, config, capability)
    return pipeline if matrix_instruction(config, capability) == "tcgen05" else max(pipeline, _output_bytes(heads, config))


def _output_bytes(heads: Heads, config: Config) -> int:
    """The 16-bit output on its way from the tensor core's layout to rows, 8 values a thread, in as few passes as rows that a
    thread holds in both layouts allow. (tcgen05: tensor memory is read as rows.)"""
    at_once = 256 * config.num_warps // heads.tile_f  # rows that all threads store together
    passes = (2 if at_once <= 8 else 1) * max(1, config.block_m // max(16 * config.num_warps, at_once))
    return config.block_m * heads.tile_f * 2 // passes


def _fp8_pipeline_bytes(heads: Heads, config: Config, capability: int) -> int:
    """fp8, which no bias goes with. Seen with Triton 3.7.1: for wgmma V is transposed, and of what pointers load only one
    tile of it is there; weights are an operand in shared memory for tcgen05; architectures with either have no mma.sync of fp8,
    whose operands are widened to 16 bits, and Q and the weights pass through shared memory as such."""
    q, p = config.block_m * heads.tile_e, config.block_m * config.block_n
    k, v = config.block_n * heads.tile_e, config.block_n * heads.tile_f
    instruction, stages = matrix_instruction(config, capability), config.num_stages
    if instruction == "tcgen05":
        return q + p + (max(k, v) if stages == 1 else stages * (k + v))
    if instruction == "wgmma":
        tiles_of_v = stages if getattr(config, "descriptors", False) else 1
        return q + (max(k, v) if stages == 1 else stages * k + tiles_of_v * v)
    widened = 2 if capability // 10 in (9, 10, 11) else 1
    passing = widened * p if config.block_m < heads.tile_f else 0
    if stages == 1:
        return widened * q + max(k, v if widened > 1 else v + passing)
    return widened * q + (stages - 1) * (k + v) + passing


def _pipeline_bytes(heads: Heads, config: Config, capability: int) -> int:
    """Of the loop over the keys, as `shared_bytes` describes it."""
    size = heads.element_bytes
    q = config.block_m * (heads.tile_e + heads.tile_r) * size
    k, factor, v = (config.block_n * width * size for width in (heads.tile_e, heads.tile_r, heads.tile_f))
    instruction = matrix_instruction(config, capability)
    registers_feed = instruction == "mma.sync"
    score = config.block_m * config.block_n * size
    p = score if registers_feed and config.block_m < heads.tile_f else 0
    matrix = score if heads.matrix else 0
    if config.num_stages == 1:
        return q + (max(k, factor, v + p, matrix) if registers_feed else max(k + factor, v) + matrix)
    if heads.matrix:  # with tcgen05 its loads are part of the pipeline
        p = score * (max(1, config.num_stages - 1) if instruction == "tcgen05" else 1)
    return q + (config.num_stages - registers_feed) * (k + factor + v) + p


def tmem_columns(heads: Heads, config: Config, capability: int) -> int:
    """Columns of tensor memory (tcgen05 only; 128 lanes x 32 bit each): scores, output, the 16-bit weights (those of fp8 lie
    in shared memory), and the product of a bias's factors before it is scaled.

    A tile of 64 rows uses half the lanes: weights share the half of the output, scores lie in the other. What fits is
    granted in powers of two; beyond the 512 that exist the sum itself is returned.
    """
    if matrix_instruction(config, capability) != "tcgen05":
        return 0
    weights = 0 if heads.element_bytes == 1 else config.block_n * heads.element_bytes // 4
    scores = config.block_n * (2 if heads.tile_r else 1)
    if config.block_m == 64:
        wanted = max(scores, heads.tile_f + weights)
    else:
        wanted = config.block_m // 128 * (scores + heads.tile_f + weights)
    return power_of_two(wanted) if wanted <= 512 else wanted


def accumulators_per_thread(heads: Heads, config: Config) -> int:
    """fp32 registers that scores and output take in every thread, before anything else does."""
    return config.block_m * (config.block_n + heads.tile_f) // (32 * config.num_warps)


def excluded(heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str:
    """Why `config` is left out of the space for these head dimensions and limits; "" when it is in.

    rows   query rows M of the problem, where known: a tile twice as tall as M only adds idle rows
    """
    return flag_refusal(config) or tile_refusal(heads, config, limits, rows)


def tile_refusal(heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str:
    """`excluded` by the tile sizes, whatever flags `config` has."""
    instruction = matrix_instruction(config, limits.capability)
    if config.block_m >= 64 and config.num_warps < 4 and limits.capability // 10 in (9, 10, 11):
        return f"{config.num_warps} warps are no whole group of 4: the tile falls back to mma.sync"
    if instruction != "tcgen05" and config.block_m < 16 * config.num_warps:
        return f"{config.num_warps} warps of 16 rows on {config.block_m} rows: warps would repeat each other's work"
    if why := too_large(heads, config, limits):
        return why
    columns = tmem_columns(heads, config, limits.capability)
    if columns > limits.tmem_columns:
        return f"{columns} columns of tensor memory, an SM has {limits.tmem_columns} (the compiler emits a trap)"
    if rows is not None and config.block_m > max(32, power_of_two(max(1, rows))):
        return f"{config.block_m} rows for {rows} queries: at least half of the tile is idle"
    return ""


def too_large(heads: Heads, config: Config, limits: Limits) -> str:
    """Why a block of `config` has not enough registers or shared memory, "" where it has."""
    accumulators = accumulators_per_thread(heads, config)
    if accumulators > limits.registers_per_thread:
        return (
            f"scores and output alone take {accumulators} registers a thread, {limits.registers_per_thread} exist "
            "(the assembler gives up instead of spilling a few)"
        )
    shared = shared_bytes(heads, config, limits.capability)
    if shared > limits.shared_bytes_per_block:
        return f"{shared} bytes of shared memory, a block may have {limits.shared_bytes_per_block}"
    return ""


def flag_refusal(config: Config) -> str:
    """Why a kernel that is built in one way only refuses `config`: a flag is set; "" where none is."""
    on = [name for name in FLAGS if getattr(config, name, False)]
    return f"{' and '.join(on)}: of the kernels only attention is built both ways" if on else ""


def configurations(
    heads: Heads, limits: Limits, rows: int | None = None, space: Space = ATTENTION
) -> tuple[Config, ...]:
    """The valid configurations, in the order of the space."""
    return tuple(config for config in space.candidates() if not excluded(heads, config, limits, rows))
