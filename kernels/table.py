"""The shipped table of compiled resources: what `resources.compile_offline` found, for where triton is not installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from einsight.kernels.catalog import Kernel
from einsight.kernels.resources import Estimate, Request, source_hash
from einsight.kernels.spaces import Config, Heads

FILE = Path(__file__).with_name("resource_table.json")  # made by benchmarks/kernel_resources.py
FORMAT = 1
# What a build is compiled for when only head dimensions are known: causal, grouped heads, whole tiles. Resources hardly
# depend on it: other sizes change constants, other masks the border loop.
BATCH, HEADS, KV_HEADS, LENGTH = 1, 8, 2, 4096
ELEMENT = {2: "bfloat16", 1: "float8_e4m3fn"}  # by bytes
KEPT = ("status", "reason", "registers", "spill_bytes", "stack_bytes", "shared_bytes", "tmem_columns", "warps",
        "blocks_per_sm", "loop", "triton")  # fmt: skip


class TableError(ValueError):
    """A table file that cannot be read; says which and what was expected."""


def representative(kernel: Kernel, heads: Heads, config: Config, capability: int) -> Request:
    """The offline compilation that stands for a build of `kernel` at these head dimensions."""
    arguments: dict[str, Any] = {
        "sizes": [BATCH, HEADS, KV_HEADS, LENGTH, LENGTH, heads.e, heads.f],
        "dtype": ELEMENT[heads.element_bytes],
        "mask": {"right": 0},
        "config": [config.block_m, config.block_n, config.num_warps, config.num_stages],
        **kernel.compile_options,
    }
    arguments |= {name: True for name in kernel.flags if getattr(config, name, False)}
    if kernel.rank:
        arguments["rank"] = heads.rank or kernel.rank
    return Request(kernel.module, kernel.compiler, arguments, capability)


def name_of(kernel: Kernel, heads: Heads, config: Config, capability: int) -> str:
    """How an entry is called in the file."""
    width = f"E={heads.e},F={heads.f}" + (f",R={heads.tile_r}" if heads.rank else "")
    return f"{kernel.name} sm_{capability} {width},bytes={heads.element_bytes} {config}"


def lookup(kernel: Kernel, heads: Heads, config: Config, capability: int, file: Path = FILE) -> Estimate | None:
    """The entry of exactly this build, its source "table"; None where there is none.

    An entry made from an earlier text of the kernel says so in its reason. Raises TableError for an unreadable file.
    """
    table = load(file)
    found = table["builds"].get(name_of(kernel, heads, config, capability))
    if found is None:
        return None
    known = {f.name for f in fields(Estimate)}
    estimate = Estimate(**{n: v for n, v in found.items() if n in known}, source="table")
    if table["source_hashes"].get(kernel.name) == source_hash(kernel.module):
        return estimate
    stale = "compiled from an earlier text of the kernel"
    return replace(estimate, reason=f"{estimate.reason}; {stale}" if estimate.reason else stale)


@cache
def load(file: Path = FILE) -> Mapping[str, Any]:
    """{"builds": {name: fields of an Estimate}, "source_hashes": {kernel: hash}}; empty where there is no file."""
    if not file.exists():
        return {"builds": {}, "source_hashes": {}}
    try:
        raw: Mapping[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise TableError(f"{file}: {error}, expected JSON") from error
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        raise TableError(f"{file}: expected a resource table of format {FORMAT}")
    return raw


def save(builds: Mapping[str, Estimate], source_hashes: Mapping[str, str], file: Path = FILE) -> None:
    """Write the table, one build per line so that a change shows as such."""
    lines = [
        f"    {json.dumps(name)}: {json.dumps({k: v for k, v in estimate.as_json().items() if k in KEPT})}"
        for name, estimate in sorted(builds.items())
    ]
    head = {"format": FORMAT, "source_hashes": dict(sorted(source_hashes.items()))}
    text = json.dumps(head, indent=2)[:-2] + ',\n  "builds": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    file.write_text(text)
    load.cache_clear()
