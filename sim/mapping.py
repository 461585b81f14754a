"""How a cascade runs on a GPU: tiles, splits, schedule, resources. An illegal mapping is an answer with a reason."""

from __future__ import annotations

from dataclasses import dataclass


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

    block_m, block_n   query rows and keys of a tile (rows of G packed heads when `pack_gqa`)
    splits             number of parts that the key rank is cut into, each its own block (split-KV), then merged
    blocks_per_sm      resident blocks per SM
    schedule           "static" (launch order, in waves) or "persistent" (longest first on a fixed grid)
    pack_gqa           the query heads of one KV head share a tile's rows
    fused              False: every Einsum is its own kernel and passes its result through memory
    skips_masked       whole tiles outside the mask are not run
    """

    block_m: int
    block_n: int
    splits: int = 1
    blocks_per_sm: int = 1
    schedule: str = "static"
    pack_gqa: bool = False
    fused: bool = True
    skips_masked: bool = True
