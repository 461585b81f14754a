"""The configurations of the decode kernel: which there are, and why the rest is left out. Needs no torch."""

from __future__ import annotations

from einsight.kernels.spaces import (
    SHARED_PER_BLOCK_RESERVED,
    Config,
    Heads,
    Limits,
    Space,
    excluded,
    flag_refusal,
    power_of_two,
    shared_bytes,
    too_large,
)

# block_m holds the query heads of one KV head times the queries: 16 is what a tensor core takes at least.
DECODE = Space(block_m=(16, 32, 64), block_n=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3, 4))
COLUMNS_PER_WARP = 8  # of an mma.m16n8 instruction: with fewer for each warp, warps repeat each other's work


def default_decode_config(e: int, f: int, rows: int = 1) -> Config:
    """A build that is valid on every architecture (a start, not a tuned choice): few rows, deep pipeline."""
    widest = max(power_of_two(e), power_of_two(f))
    block_m = min(64, max(16, power_of_two(max(1, rows))))
    warps = 2 if power_of_two(f) <= block_m < 64 else 4
    if widest <= 128:
        return Config(block_m, 64, warps, 3 if widest <= 64 else 2)
    return Config(block_m, 32, warps, 2)


def decode_excluded(heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str:
    """Why `config` is left out for these head dimensions and limits; "" when it is in.

    rows   packed rows of a KV head (query heads of it times queries), where known
    """
    if why := flag_refusal(config):
        return why
    if rows is not None and config.block_m > max(16, power_of_two(max(1, rows))):
        return f"{config.block_m} rows for {rows} packed queries: at least half of the tile is idle"
    if config.block_m >= 64 and limits.capability // 10 in (9, 10, 11):
        return excluded(heads, config, limits)  # the asynchronous instructions: the rules of the attention kernel
    if why := _repeated_work(heads, config):
        return why
    return too_large(heads, config, limits)


def _repeated_work(heads: Heads, config: Config) -> str:
    """Triton lays the warps of mma.sync along the rows of both products, or along their columns where the output tile has
    fewer rows than columns. (Seen in compiled loops: the instructions per warp double where a rule below is broken.)"""
    warps = config.num_warps
    if config.block_m >= heads.tile_f:
        few = config.block_m < 16 * warps
        return f"{warps} warps of 16 rows on {config.block_m} rows: warps would repeat each other's work" if few else ""
    columns = min(config.block_n, heads.tile_f)
    few = columns < COLUMNS_PER_WARP * warps
    return f"{warps} warps of {COLUMNS_PER_WARP} columns on {columns}: warps would repeat each other's work" if few else ""


def decode_blocks_per_sm(heads: Heads, config: Config, limits: Limits) -> int:
    """Blocks that an SM holds at once by shared memory, warps and (at the most a thread can have) registers."""
    by_shared = limits.shared_bytes // (shared_bytes(heads, config, limits.capability) + SHARED_PER_BLOCK_RESERVED)
    by_registers = limits.registers // (256 * 32 * config.num_warps)
    return max(1, min(by_shared, by_registers, limits.warps // config.num_warps, limits.blocks))


def decode_configurations(heads: Heads, limits: Limits, rows: int | None = None) -> tuple[Config, ...]:
    """The valid configurations, in the order of the space."""
    return tuple(config for config in DECODE.candidates() if not decode_excluded(heads, config, limits, rows))
