"""Neighborhood attention on a grid of tokens against compiled flex_attention with the same mask, on tokens in their own
order and on tokens permuted so that its blocks are boxes of the grid, and against the bound of the tiles.

Ours copies keys and values into boxes in every run; the rival's tokens are permuted, and its block mask built, outside the
timing. All pairs of a video would not fit in memory: results are judged on a sample of queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from contests import SHORT, Bar, Call, Contest, Round, compiled_flex, normal, sdpa

from einsight.kernels.gna_space import BoxConfig, in_best_boxes, tile_shape
from einsight.kernels.neighborhood import Neighborhood, Shape, neighborhood, visited_tiles
from einsight.kernels.resources import Request
from einsight.kernels.spaces import LIMITS, Config, Heads, excluded

MODULE = "einsight.kernels.gna"
CONFIGS = (
    Config(128, 64, 4, 2), Config(128, 64, 8, 2), Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 3),
)  # fmt: skip
FLEX_BLOCK = 128  # flex_attention's own default along queries and keys
ROWS = 192  # queries judged: the corners of the grid and a random sample

TILE_BOUND = 0.8  # of the time that dense attention takes per tile, wanted in the case without borders


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: batch 1, so many heads, E = F."""

    name: str
    grid: Neighborhood
    heads: int
    width: int
    dtype: str = "bfloat16"
    bars: tuple[Bar, ...] = ()

    @property
    def flops(self) -> float:
        """2 per multiply-accumulate of visible pairs."""
        return 4.0 * self.heads * self.grid.pairs() * self.width

    def workload(self) -> dict[str, Any]:
        """In the form of a workload file, so that a prediction of the same problem can be joined."""
        grid, M = self.grid, self.grid.tokens
        sizes = {"b": 1, "h": self.heads, "g": self.heads, "m": M, "n": M, "e": self.width, "f": self.width}
        names = ("layout", "window", "stride", "dilation", "causal")
        mask = {"gna": {name: list(getattr(grid, name)) for name in names}}
        return {"cascade": "one_pass", "sizes": sizes, "dtype": SHORT[self.dtype], "phase": "prefill", "mask": [mask],
                "cache": "warm"}  # fmt: skip


VIDEO = neighborhood((30, 48, 80), (18, 24, 24), (16, 8, 8))  # GNA (arXiv:2504.16922), table 3: HunyuanVideo
IMAGE = neighborhood((256, 256), (80, 80))  # the same, table 4: FLUX at 4K; stride 1, so every tile box has a border


def dense_over_visited(grid: Neighborhood, config: BoxConfig) -> float:
    """Tiles of dense attention over the tiles that are visited: the bound of the gain over dense attention."""
    dense = prod(grid.tiles(config.q_tile)) * prod(grid.tiles(config.kv_tile))
    return dense / visited_tiles(grid, config.q_tile, config.kv_tile)[0]


CASES = (
    Case("gna-video-d128", VIDEO, 8, 128, bars=(
        Bar("flex", 1.2), Bar("dense", TILE_BOUND * dense_over_visited(VIDEO, in_best_boxes(VIDEO, CONFIGS[1]))),
    )),
    Case("gna-image-d128", IMAGE, 8, 128),
)  # fmt: skip


def contests() -> Iterator[Contest]:
    for case in CASES:
        yield contest(case)


def contest(case: Case) -> Contest:
    def candidates(capability: int) -> tuple[Config, ...]:
        heads = Heads(case.width, case.width)
        valid = [c for c in CONFIGS if not excluded(heads, c, LIMITS[capability])]
        return tuple(in_best_boxes(case.grid, c) for c in valid)

    def requests(config: Config, capability: int) -> tuple[Request, ...]:
        assert isinstance(config, BoxConfig)
        grid, M = case.grid, case.grid.tokens
        named = {n: getattr(grid, n) for n in ("layout", "window", "stride", "dilation", "causal")}
        arguments = {
            "sizes": [1, case.heads, case.heads, M, M, case.width, case.width], "dtype": case.dtype, "mask": {},
            "config": [config.block_m, config.block_n, config.num_warps, config.num_stages], "neighborhood": named,
            "tiles": [config.q_tile, config.kv_tile],
        }  # fmt: skip
        return (Request(MODULE, "compile_named", arguments, capability),)

    return Contest(
        case.name, "gna", case.workload(), {"flops": case.flops}, candidates, requests, lambda: _round(case), case.bars
    )


def _round(case: Case) -> Round:
    import torch

    from einsight.kernels.attention import attention
    from einsight.kernels.gna import gna, tiles_of

    grid = case.grid
    q, k, v = normal(grid.tokens, *[(1, case.heads, grid.tokens, case.width)] * 3, dtype=case.dtype)
    make = torch.Generator().manual_seed(1)
    rows = torch.randint(grid.tokens, (ROWS,), generator=make)
    rows[0], rows[-1] = 0, grid.tokens - 1
    rows = rows.to(q.device)
    exact, allowed = judge(grid, q, k, v, rows)

    def ours(config: Config) -> Call:
        return lambda: (gna(q, k, v, grid.layout, grid.window, grid.stride, grid.dilation, grid.causal,
                            config=config)[0][:, :, rows],)  # fmt: skip

    box = tile_shape(grid, FLEX_BLOCK)
    rivals = {"flex-natural": _flex(grid, q, k, v, rows, None)}
    if all(n % (t * d) == 0 for n, t, d in zip(grid.layout, box, grid.dilation, strict=True)):
        rivals["flex-permuted"] = _flex(grid, q, k, v, rows, order(grid, box).to(q.device))
    boxes = in_best_boxes(grid, CONFIGS[1]).kv_tile
    context: dict[str, Call] = {
        "copy-keys-and-values": lambda: (tiles_of(k, grid, boxes), tiles_of(v, grid, boxes)),
        "dense-ours": lambda: attention(q, k, v)[:1],
    }
    context |= {f"dense-sdpa-{backend}": call for backend in ("flash", "cudnn") if (call := _running(backend, q, k, v))}
    return Round(exact, allowed, ours, rivals, context=context)


def _running(backend: str, q: Any, k: Any, v: Any) -> Call | None:
    """Dense attention by a backend, None where it refuses."""
    try:
        call = sdpa(backend, q, k, v)
        call()
    except RuntimeError:
        return None
    return call


def judge(grid: Neighborhood, q: Any, k: Any, v: Any, rows: Any) -> tuple[tuple[Any, ...], tuple[float, ...]]:
    """(exact results, allowed errors) of the queries `rows`, head by head."""
    import torch

    from einsight.kernels import references, references_gna

    exact, plain = (
        torch.cat([references_gna.gna(q[:, h:h + 1], k[:, h:h + 1], v[:, h:h + 1], grid, rows=rows, dtype=dtype)[0]
                   for h in range(q.shape[1])], 1)
        for dtype in (torch.float64, q.dtype)
    )  # fmt: skip
    return (exact,), (references.allowed_error(plain, exact, q.dtype),)


# -- flex_attention ------------------------------------------------------------------------------------------------------


def order(grid: Neighborhood, box: Shape) -> Any:
    """The token at each place when tokens are sorted by dilation group, then box, then place in the box.

    The box times the dilation must divide the grid.
    """
    import torch

    split = [part for n, t, d in zip(grid.layout, box, grid.dilation, strict=True) for part in (n // (t * d), t, d)]
    tokens = torch.arange(grid.tokens).reshape(split)
    axes = range(grid.rank)
    return tokens.permute(*(3 * a + 2 for a in axes), *(3 * a for a in axes), *(3 * a + 1 for a in axes)).reshape(-1)


def _flex(grid: Neighborhood, q: Any, k: Any, v: Any, rows: Any, tokens: Any) -> Call:
    """Compiled flex_attention; `tokens`: the token at each place, None for their own order. Made on the first call."""
    made: list[Callable[[], tuple[Any, ...]]] = []

    def call() -> tuple[Any, ...]:
        if not made:
            flex = compiled_flex(block_mask=block_mask(grid, tokens, q.device))
            if tokens is None:
                made.append(lambda: (flex(q, k, v)[:, :, rows],))
            else:
                moved, places = [x[:, :, tokens] for x in (q, k, v)], tokens.argsort()[rows]
                made.append(lambda: (flex(*moved)[:, :, places],))
        return made[0]()

    return call


def block_mask(grid: Neighborhood, tokens: Any, device: Any) -> Any:
    """flex_attention's block mask, a row of blocks at a time: the whole mask of a video would not fit in memory."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-grid.tokens // FLEX_BLOCK)
    seen = mask_function(grid, tokens)
    keys = torch.arange(grid.tokens, device=device)[None, :]
    some, every = (torch.zeros(count, count, dtype=torch.bool, device=device) for _ in range(2))
    for i in range(count):
        queries = torch.arange(i * FLEX_BLOCK, min((i + 1) * FLEX_BLOCK, grid.tokens), device=device)[:, None]
        pairs = seen(0, 0, queries, keys)
        sums = torch.nn.functional.pad(pairs.sum(0), (0, count * FLEX_BLOCK - grid.tokens)).view(count, FLEX_BLOCK).sum(1)
        some[i], every[i] = sums > 0, sums == FLEX_BLOCK * FLEX_BLOCK
    lists = [part for kept in (some & ~every, every) for part in _listed(kept)]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=FLEX_BLOCK, mask_mod=seen, seq_lengths=(grid.tokens, grid.tokens))


def _listed(kept: Any) -> tuple[Any, Any]:
    """(number of kept blocks per row, their columns first), with batch and head dimensions of 1."""
    import torch

    numbers = kept.sum(1, dtype=torch.int32)
    columns = kept.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return numbers[None, None], columns[None, None]


def mask_function(grid: Neighborhood, tokens: Any) -> Callable[..., Any]:
    """flex_attention's `mask_mod` of a neighborhood; `tokens` as in `_flex`."""
    import torch

    def along(d: int, x: Any, y: Any) -> Any:
        length, window, stride, dilation = grid.layout[d], grid.window[d], grid.stride[d], grid.dilation[d]
        i, j = x // dilation, y // dilation
        group = (length - x % dilation - 1) // dilation + 1
        ahead = stride - 1 if grid.causal[d] else stride // 2
        leader = torch.minimum(i // stride * stride + ahead, group - 1)
        if grid.causal[d]:
            start, end = torch.clamp(leader - window + 1, min=0), i + 1
        else:
            start = torch.clamp(torch.minimum(leader - window // 2, group - window), min=0)
            end = start + window
        return (x % dilation == y % dilation) & (j >= start) & (j < end)

    def seen(_b: Any, _h: Any, m: Any, n: Any) -> Any:
        x, y = (m, n) if tokens is None else (tokens[m], tokens[n])
        inside = along(grid.rank - 1, x % grid.layout[-1], y % grid.layout[-1])
        for d in reversed(range(grid.rank - 1)):
            x, y = x // grid.layout[d + 1], y // grid.layout[d + 1]
            inside = inside & along(d, x % grid.layout[d], y % grid.layout[d])
        return inside

    return seen
