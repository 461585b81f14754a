"""Neighborhood attention against brute-force membership in float64, judged by the plain formula in its precision."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")

from einsight.kernels import references, references_gna  # noqa: E402
from einsight.kernels.catalog import KERNELS  # noqa: E402
from einsight.kernels.gna import gna, tiles_of  # noqa: E402
from einsight.kernels.gna_space import (  # noqa: E402
    box_config,
    box_configurations,
    default_box_config,
    excluded_box,
    shapes,
    work,
)
from einsight.kernels.neighborhood import neighborhood, tile_ranges, visited_tiles  # noqa: E402
from einsight.kernels.resources import Request, compile_offline  # noqa: E402
from einsight.kernels.spaces import (  # noqa: E402
    GNA,
    LIMITS,
    Config,
    Heads,
    matrix_instruction,
    shared_bytes,
    tmem_columns,
)
from einsight.kernels.table import representative  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
LSE_ERROR = 2e-5  # float32 sums of exact products: a few roundings per term, times the size of a score
LINE, PLANE = box_config((32,), (16,), 4, 2), box_config((4, 8), (4, 4), 4, 2)
CONFIG = {1: LINE, 2: PLANE, 3: box_config((4, 4, 4), (2, 4, 4), 4, 2)}

MASKS: dict[str, dict[str, Any]] = {
    "1-D": {"layout": 60, "window": 13},
    "1-D even window, stride": {"layout": 60, "window": 12, "stride": 5},
    "1-D causal": {"layout": 60, "window": 17, "causal": True},
    "1-D causal, stride": {"layout": 60, "window": 16, "stride": 7, "causal": True},
    "1-D dilated, groups of two lengths": {"layout": 61, "window": 7, "dilation": 4},
    "1-D whole line": {"layout": 60, "window": 60},
    "1-D window of one": {"layout": 60, "window": 1},
    "2-D": {"layout": (12, 10), "window": (5, 3)},
    "2-D even windows, stride": {"layout": (12, 10), "window": (6, 4), "stride": (3, 2)},
    "2-D causal along one": {"layout": (12, 10), "window": (4, 5), "causal": (True, False)},
    "2-D dilated, strided, causal": {"layout": (12, 11), "window": (4, 3), "stride": (2, 1), "dilation": (1, 3),
                                     "causal": (False, True)},
    "2-D boxes side by side": {"layout": (16, 16), "window": (8, 8), "stride": (8, 8)},
    "2-D inner tiles amid border tiles": {"layout": (16, 16), "window": (11, 11)},
    "3-D inner tiles amid border tiles": {"layout": (8, 4, 4), "window": (5, 4, 4)},
    "3-D inner tiles alone": {"layout": (4, 8, 8), "window": (4, 8, 8)},
    "3-D": {"layout": (6, 6, 5), "window": (3, 3, 3)},
    "3-D even windows, stride": {"layout": (6, 6, 5), "window": (4, 2, 4), "stride": (2, 1, 3)},
    "3-D everything": {"layout": (6, 6, 5), "window": (3, 2, 2), "stride": (2, 2, 1), "dilation": (2, 3, 2),
                       "causal": (True, False, True)},
}  # fmt: skip
EVERY = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


def inputs(device: str, dtype: Any, B: int, H: int, G: int, M: int, E: int, F: int, size: float = 1.0) -> Any:
    make = torch.Generator().manual_seed(B + H + M + E + F)
    shapes = ((B, H, M, E), (B, G, M, E), (B, G, M, F))
    return tuple((torch.randn(*shape, generator=make) * size).to(dtype).to(device) for shape in shapes)


def check(q: Any, k: Any, v: Any, mask: dict[str, Any], **rest: Any) -> Any:
    """Run into poisoned buffers and compare; returns what the kernel wrote."""
    grid = neighborhood(**mask)
    out = torch.full((*q.shape[:3], v.shape[3]), math.nan, dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:3], math.nan, dtype=torch.float32, device=q.device)
    gna(q, k, v, **mask, out=out, lse=lse, **({"config": CONFIG[grid.rank]} | rest))
    plain = {name: value for name, value in rest.items() if name == "scale"}
    exact, exact_lse = references_gna.gna(q, k, v, grid, **plain)
    same, _ = references_gna.gna(q, k, v, grid, dtype=q.dtype, **plain)
    assert references.largest_error(out, exact) <= references.allowed_error(same, exact, q.dtype)
    assert references.largest_error(lse, exact_lse) <= LSE_ERROR * (1.0 + exact_lse.abs().max().item())
    return out, lse


# -- the tables ----------------------------------------------------------------------------------------------------------


@EVERY
def test_windows_are_the_pairs_of_the_definition(mask: dict[str, Any]) -> None:
    grid = neighborhood(**mask)
    seen = references_gna.visible(grid)
    assert int(seen.sum()) == grid.pairs()
    assert bool(seen.diagonal().all())  # every query sees itself
    if not any(grid.causal):
        assert (seen.sum(1) == math.prod(grid.window)).all()  # windows are moved inside, not shortened


@EVERY
def test_ranges_hold_every_seen_key_and_inner_tiles_nothing_else(mask: dict[str, Any]) -> None:
    """Along each dimension, tile by tile, against the pairs of the one-dimensional mask."""
    grid = neighborhood(**mask)
    for d in range(grid.rank):
        line = neighborhood(*(x[d] for x in (grid.layout, grid.window, grid.stride, grid.dilation)), grid.causal[d])
        seen = references_gna.visible(line)
        for q, k in ((4, 2), (2, 4), (8, 8)):
            ranges = tile_ranges(grid, d, q, k)
            for residue in range(line.groups):
                group = seen[residue :: line.groups, residue :: line.groups]
                for tile, (begin, inner_begin, inner_end, end) in enumerate(ranges[residue]):
                    rows = group[tile * q : (tile + 1) * q]
                    some = {n // k for n in rows.any(0).nonzero().ravel().tolist()}
                    full = {t for t in some if (t + 1) * k <= len(group) and bool(rows[:, t * k : (t + 1) * k].all())}
                    assert some == set(range(begin, end)) and full == set(range(inner_begin, inner_end))
                    assert begin <= inner_begin <= inner_end <= end


@EVERY
def test_the_simulator_counts_the_tiles_that_the_kernel_visits(mask: dict[str, Any]) -> None:
    from einsight.sim.gna_tiles import count_tiles
    from einsight.sim.mask import Gna

    grid = neighborhood(**mask)
    if min(grid.window) < 2:
        pytest.skip("the simulator has no windows of one token")
    counted = Gna(grid.layout, grid.window, grid.stride, grid.dilation, grid.causal)
    config = CONFIG[grid.rank]
    found = count_tiles(counted, config.q_tile, config.kv_tile, "static")
    assert visited_tiles(grid, config.q_tile, config.kv_tile) == (found.total, found.full)


# -- the kernels ---------------------------------------------------------------------------------------------------------


@EVERY
def test_masks(device: str, mask: dict[str, Any]) -> None:
    check(*inputs(device, HALF, 1, 1, 1, neighborhood(**mask).tokens, 32, 32), mask)


@pytest.mark.parametrize("heads", [(2, 4, 2), (1, 3, 1)], ids=["batch, GQA", "MQA"])
def test_bfloat16_with_grouped_heads_batch_and_padded_widths(device: str, heads: tuple[int, int, int]) -> None:
    check(*inputs(device, BRAIN, *heads, 60, 40, 56), MASKS["1-D causal, stride"])


def test_bfloat16_in_three_dimensions(device: str) -> None:
    check(*inputs(device, BRAIN, 1, 2, 1, 180, 32, 64), MASKS["3-D even windows, stride"])


@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D"])
def test_default_config(device: str, name: str) -> None:
    check(*inputs(device, HALF, 1, 1, 1, neighborhood(**MASKS[name]).tokens, 64, 64), MASKS[name], config=None)


def test_scores_far_beyond_the_range_of_exp(device: str) -> None:
    check(*inputs(device, BRAIN, 1, 1, 1, 120, 32, 32, size=40.0), MASKS["2-D"], scale=1.0)


def test_tokens_in_between_heads(device: str) -> None:
    make = torch.Generator().manual_seed(0)
    packed = torch.randn(1, 120, 3, 2, 32, generator=make).half().to(device)  # [B, M, (q k v), H, E]
    q, k, v = (packed[:, :, i].transpose(1, 2) for i in range(3))
    assert not q.is_contiguous()
    check(q, k, v, MASKS["2-D"])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy, of the rows that do see poison
def test_tiles_without_a_visible_key_are_not_visited(device: str) -> None:
    """NaN in the KV tiles that a Q tile does not see would poison it if they were read."""
    grid = neighborhood((16, 16), (5, 5))
    q, k, v = inputs(device, HALF, 1, 1, 1, grid.tokens, 32, 32)
    clean, _ = gna(q, k, v, grid.layout, grid.window, config=PLANE)
    k[:, :, 8 * 16 :], v[:, :, 8 * 16 :] = math.nan, math.nan
    out, _ = gna(q, k, v, grid.layout, grid.window, config=PLANE)
    # Q tiles of 4 rows: the first sees rows 0 .. 5 and so two rows of KV tiles, 0 .. 7
    assert torch.equal(out[:, :, : 4 * 16], clean[:, :, : 4 * 16])


@pytest.mark.parametrize("name", ["1-D dilated, groups of two lengths", "2-D dilated, strided, causal", "3-D everything"])
def test_tiles_hold_each_token_once_and_zeros(device: str, name: str) -> None:
    grid = neighborhood(**MASKS[name])
    number = torch.arange(1, grid.tokens + 1, dtype=torch.float32, device=device).view(1, 1, -1, 1).repeat(2, 3, 1, 32)
    tile = CONFIG[grid.rank].kv_tile
    tiles = tiles_of(number, grid, tile)
    assert tiles.shape == (2, 3, grid.groups, math.prod(grid.tiles(tile)), math.prod(tile), 32)
    found = tiles[1, 2, ..., 31].cpu()
    assert torch.equal(found[found > 0].sort().values, number[0, 0, :, 0].cpu())
    first = (found[0, 0][found[0, 0] > 0] - 1).long()  # the first tile of group 0: coordinates 0, dilation, ...
    for d in reversed(range(grid.rank)):
        assert (first % grid.layout[d] % grid.dilation[d] == 0).all()
        assert (first % grid.layout[d] // grid.dilation[d] < tile[d]).all()
        first = first // grid.layout[d]


def test_empty_batch() -> None:
    q = torch.zeros(0, 2, 60, 32).half()
    assert gna(q, q, q, 60, 7, config=LINE)[0].shape == (0, 2, 60, 32)


def bad_calls() -> dict[str, tuple[type[Exception], str, Any]]:
    q = torch.zeros(1, 1, 60, 32).half()
    return {
        "tokens": (ValueError, r"q: got 60 tokens, expected 120", lambda: gna(q, q, q, (12, 10), 3)),
        "keys": (ValueError, r"k: got 59 tokens, expected 60", lambda: gna(q, q[:, :, 1:], q[:, :, 1:], 60, 3)),
        "rank": (ValueError, r"layout: got \(1, 2, 3, 10\)", lambda: gna(q, q, q, (1, 2, 3, 10), 1)),
        "entries": (ValueError, r"window: got \(3, 3\), expected one value or 1", lambda: gna(q, q, q, 60, (3, 3))),
        "window": (ValueError, r"window, dimension 1: got 7, expected 1 to 6", lambda: gna(q, q, q, (10, 6), 7)),
        "stride": (ValueError, r"stride, dimension 0: got 4, expected 1 to 3", lambda: gna(q, q, q, 60, 3, 4)),
        "dilation": (ValueError, r"dilation, dimension 0: got 9, expected 1 to 8", lambda: gna(q, q, q, 60, 7, 1, 9)),
        "tile": (ValueError, r"config: got tiles of 2 dimensions, expected 1", lambda: gna(q, q, q, 60, 7, config=PLANE)),
        "dtype": (TypeError, r"q: got torch.float32", lambda: gna(q.float(), q, q, 60, 7)),
        "power": (ValueError, r"q_tile: got \(3, 16\), expected powers of two", lambda: box_config((3, 16), (4, 4), 4, 1)),
        "small": (ValueError, r"kv_tile: got \(4, 2\) for 8 tokens", lambda: box_config((4, 8), (4, 2), 4, 1)),
        "mixed": (ValueError, r"kv_tile: got \(16,\) beside", lambda: box_config((4, 8), (16,), 4, 1)),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bad_calls()) if torch else [])
def test_a_bad_call_says_what_is_wrong(name: str) -> None:
    kind, message, call = bad_calls()[name]
    with pytest.raises(kind, match=message):
        call()


# -- builds --------------------------------------------------------------------------------------------------------------


def test_the_default_boxes_of_the_video_case_need_no_mask() -> None:
    """30 x 48 x 80, window 18 x 24 x 24, stride 16 x 8 x 8 (GNA, section 4): whole tiles only, as many pairs as seen."""
    grid = neighborhood((30, 48, 80), (18, 24, 24), (16, 8, 8))
    config = default_box_config(grid, 128, 128)
    visited, inner = visited_tiles(grid, config.q_tile, config.kv_tile)
    assert visited == inner
    assert visited * config.block_m * config.block_n == grid.pairs()


@pytest.mark.parametrize("name", ["1-D even window, stride", "2-D", "3-D"])
def test_every_box_is_in_or_has_a_reason(name: str) -> None:
    grid, heads, limits = neighborhood(**MASKS[name]), Heads(64, 64), LIMITS[90]
    valid = box_configurations(grid, heads, limits)
    assert valid and default_box_config(grid, 64, 64) in valid and len(set(valid)) == len(valid)
    among = set(valid)
    pairs = [work(grid, c.q_tile, c.kv_tile) for c in valid]
    assert pairs == sorted(pairs) and pairs[0][0] >= grid.pairs()
    for base in GNA.candidates():
        for q_tile in shapes(grid.rank, base.block_m):
            for kv_tile in shapes(grid.rank, base.block_n):
                config = box_config(q_tile, kv_tile, base.num_warps, base.num_stages)
                assert (config in among) == (not excluded_box(grid, config, heads, limits))


def test_reasons_name_their_numbers() -> None:
    video, heads, limits = neighborhood((30, 48, 80), (18, 24, 24), (16, 8, 8)), Heads(128, 128), LIMITS[90]
    for config, reason in (
        (box_config((128, 1, 1), (1, 8, 8), 8, 2), "q_tile: 128 tokens for 30 along dimension 0"),
        (box_config((2, 8, 8), (2, 8, 8), 8, 4), "294912 bytes of shared memory"),
        (box_config((2, 1, 64), (1, 1, 64), 8, 2), r"in boxes (2, 8, 8) and (1, 8, 8)"),
    ):
        assert reason in excluded_box(video, config, heads, limits)


def test_it_compiles_offline_for_three_architectures_in_several_builds() -> None:
    """The default build and two others, in the boxes that compute least; the whole set is `benchmarks/kernel_resources.py`."""
    kernel, heads = KERNELS["gna"], Heads(128, 128)
    builds = (kernel.default(128, 128), Config(64, 64, 4, 2), Config(128, 32, 8, 2))
    wanted = {(cc, config): representative(kernel, heads, config, cc) for cc in (80, 90, 100) for config in builds}
    found = {id(request): estimate for request, estimate in compile_offline(wanted.values())}
    for (capability, config), request in wanted.items():
        estimate, tcgen05 = found[id(request)], matrix_instruction(config, capability) == "tcgen05"
        assert estimate.status == "ok" and (estimate.stack_bytes or 0) <= 64, (capability, config, estimate)
        extra = (estimate.shared_bytes or 0) - shared_bytes(heads, config, capability)
        assert 0 <= extra <= (4096 if tcgen05 else 0), (capability, config)
        assert estimate.tmem_columns == tmem_columns(heads, config, capability)


def test_borders_cost_no_shared_memory_and_spill_nothing() -> None:
    order = []
    for stride in ((16, 8, 8), (1, 1, 1)):  # without and with borders
        grid = {"layout": [30, 48, 80], "window": [18, 24, 24], "stride": list(stride)}
        arguments = {"sizes": [1, 24, 24, 115200, 115200, 128, 128], "dtype": "float16", "mask": {},
                     "config": [128, 64, 8, 2], "neighborhood": grid, "tiles": [[2, 8, 8], [1, 8, 8]]}  # fmt: skip
        order.append(Request("einsight.kernels.gna", "compile_named", arguments, 90))
    found = {id(request): estimate for request, estimate in compile_offline(order)}
    inside, borders = (found[id(request)] for request in order)
    assert inside.status == borders.status == "ok" and inside.stack_bytes == borders.stack_bytes == 0
    assert inside.shared_bytes == shared_bytes(Heads(128, 128), Config(128, 64, 8, 2), 90)
    assert borders.shared_bytes is not None and borders.shared_bytes <= LIMITS[90].shared_bytes_per_block
    assert inside.loop["HGMMA"] > 0
