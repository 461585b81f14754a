"""The vectorised core: times of one workload shape (cascade, mask kind, dtypes) at arrays of sizes, on one GPU and family.

`predict` calls it with arrays of length one and adds words; `sweep` calls it with thousands of cases.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from einsight.sim.cases import Cases
from einsight.sim.columns import turned
from einsight.sim.family import Family
from einsight.sim.gpu import KernelTime, kernel_time
from einsight.sim.grid import Tiles, grid_of
from einsight.sim.hardware import Gpu
from einsight.sim.mapping import Mapping, choose_splits, choose_tile, shared_bytes, tile_lines
from einsight.sim.mask import Mask
from einsight.sim.plan import Plan, head_dim, key_bytes, mask_operations, row_bytes
from einsight.sim.schedule import ONE, ZERO, Array, Flags
from einsight.sim.tiles import touched_keys
from einsight.sim.units import format_si
from einsight.sim.work import KEY, QUERY


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times in seconds and the mapping of every case; `bounds_s` sums each resource over the kernels."""

    time_s: Array
    bounds_s: MappingType[str, Array]
    kernels: tuple[KernelTime, ...]
    cases: Cases
    notes: tuple[str, ...]


def estimate(
    plan: Plan, mask: Mask, sizes: MappingType[str, Array], warm: bool, gpu: Gpu,
    family: Family, mapping: Mapping | None = None,
) -> Estimate:  # fmt: skip
    """Times at `sizes` (upper-case names; arrays that broadcast to one shape). `mapping` fixes the tiles and splits."""
    cases, notes = build_cases(plan, mask, sizes, warm, gpu, family, mapping)
    skips = mapping.skips_masked if mapping else family.skips_masked
    by_grid = {"column": turned(cases, mask, skips)} if plan.main.grid == "column" else {}
    times = tuple(kernel_time(work, by_grid.get(work.grid, cases), gpu, family) for work in plan.works)
    names = dict.fromkeys(name for t in times for name in t.bounds_s)
    none = np.zeros(cases.block_m.shape)
    bounds = {n: sum((t.bounds_s[n] for t in times if n in t.bounds_s), none) for n in names}
    return Estimate(sum((t.time_s for t in times), none), bounds, times, cases, notes)


def build_cases(
    plan: Plan, mask: Mask, sizes: MappingType[str, Array], warm: bool, gpu: Gpu,
    family: Family, mapping: Mapping | None,
) -> tuple[Cases, tuple[str, ...]]:  # fmt: skip
    """Everything that varies, with the mapping by the family's rules where none is given; and notes about the choice."""
    names = sorted(sizes)
    given = [np.asarray(sizes[n], dtype=np.float64) for n in names]
    alike = all(a.shape == given[0].shape for a in given)
    full = dict(zip(names, given if alike else np.broadcast_arrays(*given), strict=True))
    notes: list[str] = []
    if mask.gna is not None:
        notes.append("tokens tiled in their own order, as a kernel without permutation; `einsight gna` predicts permuted tiles")
    read = plan.kv_dtype if plan.stored is None else plan.dtype  # fresh keys are read as they were computed
    family, dtype = family.for_products(gpu, plan.dtype, read)
    windowed = mask.window is not None
    pack = _packed(full, family, mapping, windowed)
    heads = np.where(pack, full["J"], 1.0)
    line = tile_lines(family, np.broadcast_to(head_dim(plan, full), heads.shape), full[QUERY] * heads, full[QUERY])
    block_m, block_n, resident = _tile_choice(plan, full, line, gpu, family, mapping, notes)
    tiles = _tiles(mask, full, block_m, block_n, heads, family, mapping)
    splits = np.ones(block_m.shape)
    if mapping is not None or family.window_splits or not windowed:
        splits = _split_choice(plan, full, tiles, block_n, resident, pack, gpu, family, mapping)
    if mapping is None and family.grows:
        resident = _grown(resident, tiles.blocks * full["B"] * full["G"] * np.where(pack, 1.0, full["J"]), splits, gpu)
    idle, visited = np.zeros(splits.shape), None
    if windowed and mapping is None and not family.window_skips:
        without = Mask(tuple(r for r in mask.restrictions if r.kind != "window"))
        visited = _tiles(without, full, block_m, block_n, heads, family, mapping)
    if windowed and mapping is None and family.window_split_by != "window":
        active = _active_parts(splits, tiles.longest, np.ceil(full[KEY] / block_n), family.window_split_by == "dealt")
        splits, idle = active, splits - active
    persistent = mapping.schedule == "persistent" if mapping else family.schedule == "persistent"
    by_tile = partial(_by_tile, line=line, family=family, mapping=mapping)
    return Cases(
        sizes=full, block_m=block_m, block_n=block_n, splits=splits, blocks_per_sm=resident,
        persistent=np.full(block_m.shape, persistent), pack=pack, warm=np.full(block_m.shape, warm), tiles=tiles,
        widths=plan.widths, dtype=dtype, touched=touched_keys(mask, full[QUERY], full[KEY]) / full[KEY],
        mask_ops=mask_operations(mask, gpu.architecture),
        shared_by=by_tile("shared_by"), operand_rows=by_tile("operand_rows"), warps=by_tile("warps"),
        idle_parts=idle, visited=visited, stored=plan.stored, windowed=full[KEY] > (mask.window or np.inf),
        groups=mapping.groups if mapping else 1.0, stages=mapping.stages if mapping else None,
    ), tuple(notes)  # fmt: skip


def _tile_choice(
    plan: Plan, sizes: MappingType[str, Array], line: NDArray[np.int64], gpu: Gpu, family: Family, mapping: Mapping | None,
    notes: list[str],
) -> tuple[Array, Array, Array]:  # fmt: skip
    shape = sizes[QUERY].shape
    if mapping is not None:
        return tuple(np.full(shape, float(x)) for x in (mapping.block_m, mapping.block_n, mapping.blocks_per_sm))  # type: ignore[return-value]
    dims, rows, keys = (np.broadcast_to(f(plan, sizes), shape) for f in (head_dim, row_bytes, key_bytes))
    chosen = choose_tile(family, gpu.architecture, line, dims, rows, keys)
    wide = dims > family.tiles[-1].head_dim
    if np.any(wide):
        notes.append(
            f"head dimension {int(dims.max())} is beyond {family.name}'s tile table (up to {family.tiles[-1].head_dim}): "
            "its widest row, shrunk until a block fits into shared memory"
        )
        need = shared_bytes(chosen[0], chosen[1], rows, keys, family.stages).max()
        if need > gpu.architecture.shared_bytes_per_block.value:
            notes[-1] += (
                f". Not even that fits: it needs {format_si(float(need), 'B')}, a block on {gpu.architecture.name} has "
                f"{gpu.architecture.shared_bytes_per_block.text}. A kernel that walks the features would cost more"
            )
    return chosen


def _by_tile(name: str, line: NDArray[np.int64], family: Family, mapping: Mapping | None) -> Array | None:
    """An attribute of each case's line of the tile table, the family's where a line does not say; None where no line
    does, or a mapping is given."""
    said = [getattr(t, name) for t in family.tiles]
    if mapping is not None or all(value in (None, 1) for value in said):
        return None
    return np.array([value or getattr(family, name) for value in said], dtype=np.float64)[line]


def _grown(resident: Array, blocks: Array, splits: Array, gpu: Gpu) -> Array:
    """Blocks per SM where blocks grow: one in a split run, half as many where all of the grid would fit at once."""
    halved = np.where(blocks <= resident * gpu.sms.value, np.maximum(np.floor(resident / 2.0), 1.0), resident)
    return np.where(splits > 1.0, 1.0, halved)


def _packed(sizes: MappingType[str, Array], family: Family, mapping: Mapping | None, windowed: bool) -> Flags:
    if mapping is not None:
        return np.full(sizes[QUERY].shape, mapping.pack_gqa)
    if windowed and not family.window_packs:
        return np.zeros(sizes[QUERY].shape, dtype=bool)
    if family.pack_gqa == "decode":
        return np.asarray(sizes[QUERY] <= 1.0)
    return np.full(sizes[QUERY].shape, family.pack_gqa == "always")


def _tiles(
    mask: Mask, sizes: MappingType[str, Array], block_m: Array, block_n: Array, heads: Array, family: Family,
    mapping: Mapping | None,
) -> Tiles:  # fmt: skip
    skips = mapping.skips_masked if mapping else family.skips_masked
    found = grid_of(mask if skips else Mask(), sizes[QUERY], sizes[KEY], block_m, block_n, heads)
    if mask.gna is not None or mask.blocks is not None:
        return found if skips else replace(found, masked=found.total, longest_masked=found.longest)
    steps = masking_steps(mask, block_m / heads, block_n)
    return replace(
        found, masked=np.minimum(found.total, found.blocks * steps), longest_masked=np.minimum(found.longest, steps),
        shortest_masked=np.minimum(found.shortest, steps),
    )  # fmt: skip


def masking_steps(mask: Mask, rows: Array, block_n: Array) -> Array:
    """Tiles at the end of a block's run that take the masked code path, whatever the sizes, as kernels are written: the
    last one for the end of the keys and, under causality, those that the diagonal of `rows` queries can cut."""
    return ONE + (np.ceil(rows / block_n) if mask.causal else ZERO)


def _active_parts(parts: Array, seen: Array, whole: Array, dealt: bool) -> Array:
    """Parts that have keys inside a window, of so many that the whole cache was cut into: those that the window lies in, or,
    where its tiles are dealt to all parts in turn, one for each tile."""
    cut = np.minimum(parts, seen) if dealt else np.ceil(parts * np.minimum(seen / np.maximum(whole, 1.0), 1.0))
    return cut.clip(1.0)


def _split_choice(
    plan: Plan, sizes: MappingType[str, Array], tiles: Tiles, block_n: Array, resident: Array, pack: Flags, gpu: Gpu,
    family: Family, mapping: Mapping | None,
) -> Array:  # fmt: skip
    if mapping is not None:
        return np.full(block_n.shape, float(mapping.splits))
    if not plan.splittable:
        return np.ones(block_n.shape)
    replicas = sizes["B"] * sizes["G"] * np.where(pack, 1.0, sizes["J"])
    blocks = np.maximum(tiles.blocks * replicas, 1.0)
    longest = tiles.longest if family.window_split_by == "window" else np.ceil(sizes[KEY] / block_n)
    keys = np.minimum(longest * block_n, sizes[KEY])
    wide = head_dim(plan, sizes)

    def parts(phase: str) -> Array:
        rule = family.split[phase]
        chosen = choose_splits(rule, blocks, sizes["B"], longest, keys, gpu.sms.value, resident, wide)
        return np.where((pack & (sizes["J"] > 1.0)) | (not rule.packed_only), chosen, 1.0)

    single = sizes[QUERY] <= 1.0  # a prefill of one token takes the decode path
    if single.all() or not single.any():
        return parts("decode" if single.all() else "prefill")
    return np.where(single, parts("decode"), parts("prefill"))


def mapping_of(cases: Cases, index: int, family: Family, fused: bool) -> Mapping:
    """The mapping of one case, as a value."""
    return Mapping(
        block_m=int(cases.block_m[index]), block_n=int(cases.block_n[index]), splits=int(cases.splits[index]),
        blocks_per_sm=int(cases.blocks_per_sm[index]),
        schedule="persistent" if cases.persistent[index] else "static", pack_gqa=bool(cases.pack[index]),
        fused=fused, skips_masked=family.skips_masked,
    )  # fmt: skip
