"""What sparsity can buy at most: bounds on the speedup of neighborhood attention over dense self attention.

    flop     N^2 / visible pairs: no tile is ever larger than what it holds
    worst    dense KV tiles / KV tiles of the Q tile that visits the most: the figure of the GNA paper (arXiv 2504.16922)
    average  the same with the mean over Q tiles: what a full GPU sees, since other blocks fill the SMs meanwhile
    padded   the average with what padding to whole tiles adds to the queries

"Fully block-sparse": every visited KV tile is visible as a whole, so no score needs the mask. By definition here
(`block_sparsity`); NATTEN's dispatch uses a conservative rule per dimension (`natten_rule`), which also misses cases.
"""

from __future__ import annotations

from dataclasses import dataclass

from einsight.sim.gna_ranges import Group, groups_of, pairs
from einsight.sim.gna_tiles import GnaTiles, Shape, axis_tiles, count_tiles
from einsight.sim.mask import Gna


@dataclass(frozen=True, slots=True)
class Bounds:
    """Speedups over dense self attention; see the module."""

    flop: float
    worst: float
    average: float
    padded: float


@dataclass(frozen=True, slots=True)
class BlockSparsity:
    """Whether no score of a visited tile is masked, and if not why, dimension by dimension."""

    fully: bool
    reason: str


def bounds(gna: Gna, tiles: GnaTiles) -> Bounds:
    """The bounds of a mask with the tiles that `count_tiles` found for it."""
    average = tiles.q_tiles * tiles.dense / tiles.total
    return Bounds(
        flop=gna.tokens**2 / pairs(gna), worst=tiles.dense / tiles.most, average=average,
        padded=average / tiles.q_padding,
    )  # fmt: skip


def end_to_end(speedup: float, share: float, dense_steps: int = 0, steps: int = 1) -> float:
    """Speedup of a whole model run: attention is `share` of its time, and `dense_steps` of its `steps` stay dense."""
    if not 0 <= share <= 1:
        raise ValueError(f"attention share is {share}; expected 0 to 1")
    if not 0 <= dense_steps <= steps or steps < 1:
        raise ValueError(f"{dense_steps} dense steps of {steps}; expected 0 to the number of steps")
    sparse = share * (1 - dense_steps / steps)
    return 1 / (1 - sparse + sparse / speedup)


def block_sparsity(gna: Gna, q_tile: Shape, kv_tile: Shape, tiling: str = "static") -> BlockSparsity:
    """By definition: are all keys of all visited tiles visible to all queries of their tile?

    Keys that padding adds do not count: they need a bounds check, not the mask.
    """
    if len(q_tile) < len(gna.layout):
        tiles = count_tiles(gna, q_tile, kv_tile, tiling)
        cut = tiles.total - tiles.uncut
        if not cut:
            return BlockSparsity(True, "")
        grid = "x".join(map(str, gna.layout))
        return BlockSparsity(False, f"1-D tiles of the flattened {grid} grid: {cut} of {tiles.total} visited tiles are cut")
    axes = [axis_tiles(gna, d, q_tile[d], kv_tile[d], tiling) for d in range(len(gna.layout))]
    reasons = [
        f"dimension {d}: {axis.total - axis.uncut} of {axis.total} visited tiles are cut"
        f" ({why_cut(gna, d, q_tile[d], kv_tile[d], tiling)})"
        for d, axis in enumerate(axes)
        if axis.uncut < axis.total
    ]
    return BlockSparsity(not reasons, "; ".join(reasons))


def why_cut(gna: Gna, d: int, q_tile: int, kv_tile: int, tiling: str) -> str:
    """The first of the conditions that a dimension breaks; in coordinates inside a dilation group."""
    window, stride = gna.window[d], gna.stride[d]
    if gna.causal[d]:
        return "causal: the diagonal cuts tiles"
    if stride % q_tile:
        return f"stride {stride} is no multiple of the Q tile's {q_tile}, so its queries see different windows"
    if window % kv_tile:
        return f"window {window} is no multiple of the KV tile's {kv_tile}"
    if tiling == "static" and (window // 2 - stride // 2) % kv_tile:
        offset = (window // 2 - stride // 2) % kv_tile
        return (
            f"windows start {offset} keys after a KV tile's first:"
            f" half the window less half the stride is no multiple of {kv_tile}"
        )
    last = [group.length - window for group, _ in groups_of(gna, d) if (group.length - window) % kv_tile]
    if last:
        return f"the window at the far border starts at {last[0]}, inside a KV tile of {kv_tile}"
    return f"stride {stride} is no multiple of the KV tile's {kv_tile}, so that windows start inside its tiles"


def natten_rule(gna: Gna, q_tile: Shape, kv_tile: Shape) -> bool:
    """NATTEN's own test for static KV tiling, on which its kernels choose whether to mask at all.

    Per dimension and dilation group, none causal: the window is the whole group, or stride and window are multiples of
    the tiles and the windows start at multiples of the KV tile. As in the library's `is_fully_block_sparse`.
    """
    if any(gna.causal) or len(q_tile) < len(gna.layout):
        return False
    for d, (q, k) in enumerate(zip(q_tile, kv_tile, strict=True)):
        if not all(_natten_group_rule(group, q, k) for group, _ in groups_of(gna, d)):
            return False
    return True


def _natten_group_rule(group: Group, q_tile: int, kv_tile: int) -> bool:
    length, window, stride = group.length, group.window, group.stride
    if length == window:
        return True
    last = min(length // stride * stride + stride // 2, length - 1)
    last_start = min(max(last - window // 2, 0), length - window)
    aligned = (window // 2 - stride // 2) % kv_tile == 0
    two = length % kv_tile == 0 and -(-length // stride) == 2 and stride + stride // 2 >= length - window
    whole = stride % q_tile == 0 and window % kv_tile == 0
    return whole and (length % stride == 0 or last_start % kv_tile == 0) and (aligned or two)
