"""What varies from case to case when a kernel is predicted for many sizes at once, and the sizes of its tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from einsight.sim.family import Family
from einsight.sim.grid import Tiles
from einsight.sim.schedule import ONE, Array, Flags
from einsight.sim.traffic import OUTER
from einsight.sim.work import KEY, QUERY


@dataclass(frozen=True, slots=True)
class Cases:
    """What varies from case to case; every array has one entry per case.

    sizes      B, G, J, M, N and the feature ranks
    tiles      what the mask leaves to run, per replica of the grid
    widths     bytes per element of every input, output and intermediate
    touched    share of the keys that some query needs
    mask_ops   fp32-pipe operations per score of a masked tile
    windowed   whether a sliding window cuts any key off
    warps      of a block, where not the family's
    visited    tiles that a block walks and tests against a sliding window, where it does not leave them out; per replica
    idle_parts parts of a split run, per block, that lie before the window and end at once
    operand_rows  query rows that one reading of a key tile from shared memory serves, where not the family's
    shared_by  blocks of a cluster that load each key tile from L2 together
    groups, stages   of a given mapping (`Mapping`): how a block fills its own gaps
    stored     bytes per element of the cache that new keys are written to, where that is not what the kernel reads
    """

    sizes: Mapping[str, Array]
    block_m: Array
    block_n: Array
    splits: Array
    blocks_per_sm: Array
    persistent: Flags
    pack: Flags
    warm: Flags
    tiles: Tiles
    widths: Mapping[str, float]
    dtype: str
    touched: Array
    mask_ops: float
    operand_rows: Array | None = None
    shared_by: Array | None = None
    windowed: Flags | bool = False
    idle_parts: Array | float = 0.0
    visited: Tiles | None = None
    warps: Array | None = None
    stored: float | None = None
    groups: float = 1.0
    stages: int | None = None


MMA_GRANULE = 16
"""Contracted and feature ranks are padded to multiples of 16: the K of every 16-bit tensor-core instruction."""


def tile_sizes(cases: Cases, family: Family) -> dict[str, Array]:
    """Sizes at which a formula gives the work of one tile of one head: M = rows, N = block_n, one chunk of each.

    A short problem fills its block only up to the last group of `row_granule` rows that holds a query, and its key tile up to
    the last `MMA_GRANULE` that holds a key where the family multiplies no more.
    """
    keys = cases.block_n
    if family.multiplies == "held":
        keys = np.minimum(keys, np.maximum(1.0, np.ceil(cases.sizes[KEY] / MMA_GRANULE)) * MMA_GRANULE)
    rows = np.minimum(cases.block_m, np.ceil(held_rows(cases) / family.row_granule) * family.row_granule)
    at = dict(cases.sizes)
    at |= dict.fromkeys(OUTER, ONE)
    at |= {QUERY: rows, KEY: keys}
    for rank, tile in ((QUERY, rows), (KEY, keys)):
        at |= {f"{rank}0": tile, f"{rank}1": ONE}
    return at


def fetched_sizes(at: Mapping[str, Array], cases: Cases) -> dict[str, Array]:
    """The sizes `at` of a tile less the keys past the last one, which no kernel fetches: they are filled with zeros."""
    keys = np.minimum(at[KEY], cases.sizes[KEY])
    return {**at, KEY: keys, f"{KEY}0": keys}


def held_rows(cases: Cases) -> Array:
    """Query rows that there are for the blocks of one head, or of one KV head where its query heads are packed."""
    return cases.sizes[QUERY] * np.where(cases.pack, cases.sizes["J"], 1.0)


def whole_sizes(cases: Cases) -> dict[str, Array]:
    """Sizes of the whole problem, chunked ranks included (chunks of the mapping's tile)."""
    at = dict(cases.sizes)
    for rank, tile in ((QUERY, cases.block_m), (KEY, cases.block_n)):
        at |= {f"{rank}0": tile, f"{rank}1": np.ceil(cases.sizes[rank] / tile)}
    return at


def tile_ones(cases: Cases) -> dict[str, Array]:
    """The sizes of one head and one step: every outer and position rank 1, features as they are."""
    ranks = (*OUTER, QUERY, KEY, f"{QUERY}0", f"{QUERY}1", f"{KEY}0", f"{KEY}1")
    return {**cases.sizes, **dict.fromkeys(ranks, ONE)}


def one_step(sizes: Mapping[str, Array]) -> dict[str, Array]:
    """The sizes with the chunked key rank at one chunk: of an iterative tensor only the current step is held."""
    return {**sizes, f"{KEY}1": ONE, f"{KEY}0": sizes[KEY]}
