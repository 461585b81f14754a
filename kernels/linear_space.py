"""The configurations of chunked linear attention: which there are, and why the rest is left out. Needs no torch."""

from __future__ import annotations

from einsight.kernels.spaces import Config, Heads, Limits, Space, flag_refusal, power_of_two

# block_m positions of a chunk, block_n value columns of a program (the state is cut along them for more programs).
LINEAR = Space(block_m=(16, 32, 64, 128), block_n=(32, 64, 128), num_warps=(2, 4, 8), num_stages=(1, 2, 3))


def default_linear_config(e: int, f: int) -> Config:
    """A build that is valid on every architecture. Of those compiled, one that does not spill with either kind of decay."""
    widest = power_of_two(e)
    return Config(64 if widest <= 64 else 32, 32, 4 if widest <= 128 else 8, 1)


def linear_excluded(heads: Heads, config: Config, limits: Limits, rows: int | None = None) -> str:
    """Why `config` is left out for these head dimensions and limits; "" when it is in.

    rows   positions N of the problem, where known
    """
    if why := flag_refusal(config):
        return why
    if config.block_n > max(32, heads.tile_f):
        return f"{config.block_n} value columns for a value dimension of {heads.f}: part of the block is idle"
    products = min(config.block_m, heads.tile_e) * config.block_n  # of the smaller of output tile and state, 16 x 8 each
    if products < 16 * 8 * config.num_warps:
        return f"{config.num_warps} warps on {products // 128} instructions of 16 x 8: warps would repeat each other's work"
    threads = 32 * config.num_warps
    held = (config.block_m * (config.block_m + config.block_n) + heads.tile_e * config.block_n) // threads
    if held > limits.registers_per_thread:
        return f"scores, output and state alone take {held} registers a thread, {limits.registers_per_thread} exist"
    shared = least_shared_bytes(heads, config)
    if shared > limits.shared_bytes_per_block:
        return f"at least {shared} bytes of shared memory, a block may have {limits.shared_bytes_per_block}"
    if rows is not None and config.block_m > max(16, power_of_two(max(1, rows))):
        return f"chunks of {config.block_m} for {rows} positions: at least half of the chunk is idle"
    return ""


def least_shared_bytes(heads: Heads, config: Config) -> int:
    """Shared memory that a build has at the least: queries of a chunk, and in a pipeline the queries, keys and values of
    every stage after the first. (More where operands or gates pass through it; a compiler knows how much.)"""
    chunk = config.block_m * (2 * heads.tile_e + config.block_n) * heads.element_bytes
    return config.block_m * heads.tile_e * heads.element_bytes + (config.num_stages - 1) * chunk


def linear_configurations(heads: Heads, limits: Limits, rows: int | None = None) -> tuple[Config, ...]:
    """The valid configurations, in the order of the space."""
    return tuple(config for config in LINEAR.candidates() if not linear_excluded(heads, config, limits, rows))
