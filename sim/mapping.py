"""How a cascade runs on a GPU: tiles, splits, schedule, resources."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from einsight.sim.family import Family, SplitRule
from einsight.sim.hardware import Architecture
from einsight.sim.schedule import SCHEDULES, Array

SCHEDULERS = 4  # of an SM, each with its own tensor core (CUDA C++ Programming Guide, compute capabilities 8.x to 12.x)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one block occupies, from a compiler, a table or the closed form (`source`)."""

    registers_per_thread: int
    shared_bytes: int
    warps: int
    spill_bytes: int = 0
    tmem_columns: int = 0
    source: str = "closed_form"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One fused kernel's choices.

    block_m, block_n   query rows and keys of a tile (rows of packed heads when `pack_gqa`)
    splits             number of parts that the key rank is cut into, each its own block (split-KV), then merged
    blocks_per_sm      resident blocks per SM
    schedule           "static" (launch order, in waves) or "persistent" (longest first on a fixed grid)
    pack_gqa           the query heads of one KV head share a tile's rows
    fused              False: every Einsum is its own kernel and passes its result through memory
    skips_masked       whole tiles outside the mask are not run
    warps, stages      of a block; depth of its load pipeline. None: as the family's constants have it (which say how well
                       its own blocks overlap), for a mapping that stands for a build of that family
    """

    block_m: int
    block_n: int
    splits: int = 1
    blocks_per_sm: int = 1
    schedule: str = "static"
    pack_gqa: bool = False
    fused: bool = True
    skips_masked: bool = True
    warps: int | None = None
    stages: int | None = None

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "splits", "blocks_per_sm", "warps", "stages"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"mapping: {name} is {getattr(self, name)}; expected 1 or more")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"mapping: schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}")

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def groups(self) -> float:
        """Parts of a block that can be in different steps of a tile at the same time, so that one computes weights while
        another multiplies: a group is a warp on each scheduler. A block with fewer warps leaves schedulers idle."""
        return 1.0 if self.warps is None else self.warps / SCHEDULERS


def shared_bytes(block_m: Array, block_n: Array, row_bytes: Array, key_bytes: Array, stages: int) -> Array:
    """Shared memory of a block: its resident rows (Q) and `stages` buffers of the streamed key tile (K and V).

    `row_bytes`, `key_bytes`: bytes per query row of the resident, per key of the streamed tensors. The form that a
    pipelined kernel with asynchronous copies into shared memory has; a compiler's figure replaces it where there is one.
    """
    return block_m * row_bytes + stages * block_n * key_bytes


def occupancy(arch: Architecture, shared: Array, warps: Array | int, registers_per_thread: Array | int) -> Array:
    """Blocks that fit on one SM at the same time, 0 when not even one does."""
    reserved = 1024.0  # bytes of shared memory that the driver keeps per block on compute capability 8.0 and later
    # Registers are granted in steps of 8 per thread, to a warp at a time, from one quarter of the SM.
    quarter = np.floor(arch.registers.value / 4 / (np.ceil(registers_per_thread / 8) * 8 * arch.warp_threads))
    fits = np.floor(arch.shared_bytes.value / (shared + reserved))
    fits = np.where(shared > arch.shared_bytes_per_block.value, 0.0, fits)
    limits = np.minimum(np.floor(4 * quarter / warps), np.minimum(arch.blocks.value, arch.warps.value // warps))
    blocks: Array = np.minimum(fits, limits)
    return blocks


def choose_tile(
    family: Family, arch: Architecture, line: NDArray[np.int64], head_dim: Array, row_bytes: Array, key_bytes: Array
) -> tuple[Array, Array, Array]:
    """(block_m, block_n, blocks per SM) by the line of the family's table, halved until one block fits shared memory."""
    block_m, block_n, buffered = _table_tile(family, line)
    key_bytes = key_bytes * buffered
    warps = np.array([t.warps or family.warps for t in family.tiles], dtype=np.float64)[line]
    registers = np.array([t.registers or family.registers_per_thread for t in family.tiles], dtype=np.float64)[line]
    last = 4.0 * head_dim * np.array([t.partials for t in family.tiles], dtype=np.float64)[line]
    block_n = _filled(family, arch, line, block_m * row_bytes, block_n, key_bytes)
    if any(t.blocks > 1 for t in family.tiles):
        wanted, least = (np.array([getattr(t, n) for t in family.tiles])[line] for n in ("blocks", "least_n"))
        for _ in range(int(np.log2(max(t.block_n for t in family.tiles)))):
            many = _fits(family.stages, arch, block_m, block_n, row_bytes, key_bytes, warps, registers, last) < wanted
            block_n = np.where(many & (block_n > least), block_n / 2, block_n)
    fits = _fits(family.stages, arch, block_m, block_n, row_bytes, key_bytes, warps, registers, last)
    while np.any(fits < 1) and np.any((fits < 1) & (block_n > 16) | (fits < 1) & (block_m > 16)):
        narrow = (fits < 1) & (block_n > 32)
        block_n = np.where(narrow, np.maximum(16.0, np.floor(block_n / 32) * 16), block_n)
        block_m = np.where((fits < 1) & ~narrow & (block_m > 16), block_m / 2, block_m)
        block_n = np.where((fits < 1) & ~narrow & (block_m <= 16), 16.0, block_n)
        fits = _fits(family.stages, arch, block_m, block_n, row_bytes, key_bytes, warps, registers, last)
    return block_m, block_n, np.maximum(fits, 1.0)


def _table_tile(family: Family, line: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Block shapes by the family's table, and the share of a key tile that a buffer holds, for every case."""
    return (
        np.array([t.block_m for t in family.tiles], dtype=np.float64)[line],
        np.array([t.block_n for t in family.tiles], dtype=np.float64)[line],
        np.array([(t.buffered or t.block_n) / t.block_n for t in family.tiles])[line],
    )


def _filled(
    family: Family, arch: Architecture, line: NDArray[np.int64], rows: Array, most: Array, key_bytes: Array
) -> Array:
    """Keys of a tile that doubles from a step on with the shared memory: of half an SM where two blocks of one step fit,
    else of all. `rows`: bytes that the query rows take; `most` keys at most. Tiles without a step stay."""
    step = np.array([t.step or 0 for t in family.tiles], dtype=np.float64)[line]
    if not step.any():
        return most
    one = rows + step * key_bytes
    share = np.where(2.0 * one <= arch.shared_bytes.value, arch.shared_bytes.value / 2.0, arch.shared_bytes_per_block.value)
    steps = 2.0 ** np.floor(np.log2(np.floor((share - rows) / np.maximum(step * key_bytes, 1.0)).clip(1.0)))
    return np.where(step > 0.0, np.minimum(steps * step, most), most)


def tile_lines(family: Family, head_dim: Array, query_rows: Array, queries: Array) -> NDArray[np.int64]:
    """The line of the tile table that covers each case: the first that does, else the last.

    `query_rows`: of one head, or of all query heads that share a block's rows; `queries`: positions of one head.
    """
    line = np.full(np.broadcast(head_dim, query_rows).shape, len(family.tiles) - 1)
    for k, tile in reversed(list(enumerate(family.tiles))):
        here = head_dim <= tile.head_dim
        if tile.rows is not None:
            here = here & (query_rows <= tile.rows)
        if tile.queries is not None:
            here = here & (queries <= tile.queries)
        line = np.where(here, k, line)
    return line


def _fits(
    stages: int, arch: Architecture, m: Array, n: Array, row_bytes: Array, key_bytes: Array, warps: Array, registers: Array,
    last: Array,
) -> Array:  # fmt: skip
    """Blocks per SM; `last`: bytes per query row that lie in the same shared memory at the block's end."""
    shared = np.maximum(shared_bytes(m, n, row_bytes, key_bytes, stages), m * last)
    return occupancy(arch, shared, warps, registers)


def choose_splits(
    rule: SplitRule, blocks: Array, sequences: Array, tiles: Array, keys: Array, sms: float, resident: Array,
    head_dim: Array | float = 1.0,
) -> Array:  # fmt: skip
    """Parts of the key rank by a family's rule.

    `blocks`: the grid without splitting, of `sequences` sequences; `tiles`: key tiles of the longest block; `keys`: keys
    it covers; `sms` SMs with `resident` blocks on each.
    """
    slots = sms * resident
    if rule.rule == "none":
        return np.ones_like(blocks)
    if rule.rule == "fill":
        most = np.maximum(1.0, np.ceil(keys / rule.min_keys))
        if rule.min_elements:
            most = np.minimum(most, np.maximum(1.0, np.ceil(keys * head_dim / rule.min_elements)))
        if rule.root:
            most = np.maximum(1.0, np.minimum(most, np.round(np.sqrt(rule.root * most))))
        wanted = rule.waves * (slots if rule.fills == "slots" else sms) / blocks
        wanted = np.ceil(wanted) if rule.rounds == "up" else np.floor(wanted)
        return np.clip(wanted, 1.0, most if rule.min_keys > 1 else np.minimum(most, np.maximum(tiles, 1.0)))
    if rule.rule == "logarithmic":
        wanted = sms * np.maximum(np.log2(np.maximum(keys, 1.0) / rule.min_keys), 1.0)
        return np.clip(np.ceil(wanted / blocks), 1.0, np.minimum(rule.most, np.maximum(tiles, 1.0)))
    if rule.rule == "fixed":
        return np.where(blocks <= rule.blocks_up_to, np.clip(tiles, 1.0, rule.most), 1.0)
    if rule.rule == "efficiency":
        return _efficient_splits(blocks, tiles, np.full_like(blocks, rule.waves * sms), rule.min_tiles)
    bound = _efficient_splits(blocks / sequences, tiles, np.full_like(blocks, sms), rule.min_tiles)
    per_part = np.ceil(1.1 * blocks * tiles / sms)
    parts = np.minimum(bound, np.ceil(tiles / np.maximum(per_part, 1.0)))
    return np.ceil(tiles / np.maximum(np.ceil(tiles / np.maximum(parts, 1.0)), 1.0)).clip(1.0)


def _efficient_splits(blocks: Array, tiles: Array, slots: Array, min_tiles: int) -> Array:
    """FlashAttention's heuristic: the smallest split that fills its waves at least 85 % as well as the best one."""
    most = int(min(128, max(1.0, float(np.max(tiles, initial=1.0)))))
    s = np.arange(1, most + 1, dtype=np.float64)
    waves = blocks[..., None] * s / slots[..., None]
    whole = np.ceil(tiles[..., None] / s)
    before = np.ceil(tiles[..., None] / np.maximum(s - 1.0, 1.0))
    useful = (s == 1.0) | ((s <= np.maximum(tiles[..., None], 1.0)) & (whole != before))
    efficiency = np.where(useful, waves / np.ceil(waves), 0.0)
    good = efficiency >= 0.85 * efficiency.max(axis=-1, keepdims=True)
    chosen = s[np.argmax(good, axis=-1)]
    return np.where((blocks >= 0.8 * slots) | (tiles < min_tiles), 1.0, chosen)
