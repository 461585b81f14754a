"""Tile shapes of neighborhood attention as data: which boxes a kernel can work in, and why the rest is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from einsight.kernels.neighborhood import Neighborhood, Shape, visited_tiles
from einsight.kernels.spaces import GNA, Config, Heads, Limits, Space, default_config, excluded, power_of_two


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
        shapes = ",".join(
            f"{name}={'x'.join(map(str, tile))}" for name, tile in (("Q_TILE", self.q_tile), ("KV_TILE", self.kv_tile))
        )
        return f"{shapes},num_warps={self.num_warps},num_stages={self.num_stages}"


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
    return excluded(heads, config, limits)


def box_configurations(mask: Neighborhood, heads: Heads, limits: Limits, space: Space = GNA) -> tuple[BoxConfig, ...]:
    """The valid configurations, the one that computes least first (`work`)."""
    found = [
        chosen
        for config in space.candidates()
        if not excluded(heads, config, limits)
        for q_tile, kv_tile in product(*(_fitting(mask, n) for n in (config.block_m, config.block_n)))
        if not excluded_box(
            mask, chosen := box_config(q_tile, kv_tile, config.num_warps, config.num_stages), heads, limits
        )
    ]
    return tuple(sorted(found, key=lambda c: (work(mask, c.q_tile, c.kv_tile), c)))


@lru_cache(maxsize=1 << 16)
def work(mask: Neighborhood, q_tile: Shape, kv_tile: Shape) -> tuple[int, int]:
    """(pairs computed by one head, of those pairs in tiles that need the mask): fewer is better, in this order."""
    visited, inner = visited_tiles(mask, q_tile, kv_tile)
    each = prod(q_tile) * prod(kv_tile)
    return visited * each, (visited - inner) * each


def default_box_config(mask: Neighborhood, e: int, f: int) -> BoxConfig:
    """Block sizes, warps and stages of plain attention, in the boxes that compute least on this grid."""
    return in_best_boxes(mask, default_config(e, f))


@lru_cache(maxsize=256)
def in_best_boxes(mask: Neighborhood, config: Config) -> BoxConfig:
    """`config` with the boxes that compute least (`work`) for its block sizes."""
    boxes = product(_fitting(mask, config.block_m), _fitting(mask, config.block_n))
    q_tile, kv_tile = min(boxes, key=lambda box: work(mask, *box))
    return box_config(q_tile, kv_tile, config.num_warps, config.num_stages)


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
