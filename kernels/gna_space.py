"""Tile shapes of neighborhood attention as data: which boxes a kernel can work in, and why the rest is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from einsight.kernels.neighborhood import Neighborhood, Shape, visited_tiles
from einsight.kernels.spaces import GNA, Config, Heads, Limits, Space, default_config, excluded, power_of_two

# What a tile with a mask costs, over one without, at most: 1.43 to 1.66 between strided and unstrided windows of the same
# size in NATTEN's published H100 profiles (1-D, 2-D and 3-D).
MASKED_COST = 1.66

SMALL = Config(64, 32, 4, 2)  # for grids of so few tokens that the usual tiles would be mostly padding


@dataclass(frozen=True, slots=True, order=True)
class BoxConfig(Config):
    """A build whose tiles are boxes of a grid: block_m and block_n are the tokens of the Q and of the KV box."""

    q_tile: Shape
    kv_tile: Shape

    def __post_init__(self) -> None:
        for name, tile, block in (("q_tile", self.q_tile, self.block_m), ("kv_tile", self.kv_tile, self.block_n)):
            if any(size < 1 or size & (size - 1) for size in tile):
                raise ValueError(f"{name}: got {tile}, expected powers of two")
            if prod(tile) != block or block < 16:
                raise ValueError(f"{name}: got {tile} for {block} tokens, expected their product and 16 or more")
        if len(self.q_tile) != len(self.kv_tile):
            raise ValueError(f"kv_tile: got {self.kv_tile} beside q_tile {self.q_tile}, expected as many dimensions")

    def __str__(self) -> str:
        boxes = ",".join(
            f"{name}={'x'.join(map(str, tile))}" for name, tile in (("Q_TILE", self.q_tile), ("KV_TILE", self.kv_tile))
        )
        return f"{boxes},num_warps={self.num_warps},num_stages={self.num_stages}"


def box_config(q_tile: Shape, kv_tile: Shape, num_warps: int, num_stages: int) -> BoxConfig:
    return BoxConfig(prod(q_tile), prod(kv_tile), num_warps, num_stages, tuple(q_tile), tuple(kv_tile))


def shapes(rank: int, block: int) -> Iterator[Shape]:
    """The boxes of `block` tokens with powers of two along each of `rank` dimensions."""
    sizes = [1 << k for k in range(block.bit_length())]
    yield from (shape for shape in product(sizes, repeat=rank) if prod(shape) == block)


def excluded_box(mask: Neighborhood, config: BoxConfig, heads: Heads, limits: Limits) -> str:
    """Why `config` is left out for this grid, these head dimensions and limits; "" when it is in."""
    for name, tile in (("q_tile", config.q_tile), ("kv_tile", config.kv_tile)):
        if why := _too_long(mask, tile):
            return f"{name}: {why}"
    if why := excluded(heads, config, limits):
        return why
    best = _best_boxes(mask, config.block_m, config.block_n)
    least, pairs = work(mask, *best)[0], work(mask, config.q_tile, config.kv_tile)[0]
    if pairs > MASKED_COST * least:
        return (
            f"{pairs} pairs, {least} in boxes {best[0]} and {best[1]}: slower even if all of those were masked "
            "and none of these"
        )
    return ""


def box_configurations(mask: Neighborhood, heads: Heads, limits: Limits, space: Space = GNA) -> tuple[BoxConfig, ...]:
    """The valid configurations, the one that computes least first (`work`)."""
    found = [
        config
        for base in space.candidates()
        if not excluded(heads, base, limits)
        for config in _in_boxes(mask, base)
        if not excluded_box(mask, config, heads, limits)
    ]
    return tuple(sorted(found, key=lambda c: (work(mask, c.q_tile, c.kv_tile), c)))


def _in_boxes(mask: Neighborhood, base: Config) -> Iterator[BoxConfig]:
    for q_tile, kv_tile in product(_fitting(mask, base.block_m), _fitting(mask, base.block_n)):
        yield box_config(q_tile, kv_tile, base.num_warps, base.num_stages)


@lru_cache(maxsize=1 << 16)
def work(mask: Neighborhood, q_tile: Shape, kv_tile: Shape) -> tuple[int, int]:
    """(pairs computed by one head, of those pairs in tiles that need the mask): fewer is better, in this order."""
    visited, inner = visited_tiles(mask, q_tile, kv_tile)
    each = prod(q_tile) * prod(kv_tile)
    return visited * each, (visited - inner) * each


def default_box_config(mask: Neighborhood, e: int, f: int) -> BoxConfig:
    """Block sizes, warps and stages of plain attention, in the boxes that compute least on this grid."""
    base = default_config(e, f)
    fits = all(any(not _too_long(mask, s) for s in shapes(mask.rank, n)) for n in (base.block_m, base.block_n))
    return in_best_boxes(mask, base if fits else SMALL)


def in_best_boxes(mask: Neighborhood, config: Config) -> BoxConfig:
    """`config` in the boxes that compute least (`work`) for its block sizes."""
    return box_config(*_best_boxes(mask, config.block_m, config.block_n), config.num_warps, config.num_stages)


@lru_cache(maxsize=256)
def _best_boxes(mask: Neighborhood, block_m: int, block_n: int) -> tuple[Shape, Shape]:
    return min(product(_fitting(mask, block_m), _fitting(mask, block_n)), key=lambda boxes: work(mask, *boxes))


def tile_shape(mask: Neighborhood, block: int) -> Shape:
    """The box of `block` tokens that, as Q and as KV tile, computes least."""
    return min(_fitting(mask, block), key=lambda shape: work(mask, shape, shape))


def _fitting(mask: Neighborhood, block: int) -> list[Shape]:
    """Boxes that are not mostly padding; all of them where the grid is smaller than any."""
    every = list(shapes(mask.rank, block))
    return [shape for shape in every if not _too_long(mask, shape)] or every


def _too_long(mask: Neighborhood, tile: Shape) -> str:
    for d, size in enumerate(tile):
        if size > power_of_two(mask.longest(d)):
            return f"{size} tokens for {mask.longest(d)} along dimension {d}: at least half of the tile is padding"
    return ""
