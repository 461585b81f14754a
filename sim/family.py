"""Kernel families: how a kind of kernel runs a cascade on a kind of target. Files `families/NAME.yaml`, data only.

A constant belongs to the family (and, once fitted, to the architecture), never to a device; each names what it means
and where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from einsight.sim import strict_yaml
from einsight.sim.hardware import DTYPES, INSTRUCTIONS, KINDS, Gpu, Quantity
from einsight.sim.schedule import SCHEDULES
from einsight.sim.strict_yaml import Item, SpecError, did_you_mean

CONSTANTS: Mapping[str, tuple[str, str]] = {
    "launch_s": ("s", "launch, first bytes and whatever the framework adds to every call"),
    "combine_s": ("s", "launch of the kernel that merges the parts of a split run"),
    "mma_efficiency": ("", "share of the tensor cores' issue slots that dependent products can fill"),
    "unhidden": ("", "share of the smaller resources' cycles that the largest does not hide"),
    "unhidden_memory": ("", "share of the smaller of compute and memory time that the larger does not hide"),
    "vector_per_score": ("op", "fp32-pipe operations per score that the cascade does not contain (conversions)"),
    "block_cycles": ("cycle", "prologue and epilogue of a block"),
    "hbm_fraction": ("", "streaming bandwidth over the datasheet's"),
    "interval": ("", "half width of the 90 % interval, relative, on this family's own ground"),
}
"""Name -> (unit, meaning) of every constant a fused GPU family must give."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Block shape for head dimensions up to `head_dim`."""

    head_dim: int
    block_m: int
    block_n: int


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a family cuts the key rank when the grid is too small.

    none        never
    efficiency  below 80 % of a wave and above `min_tiles` key tiles: the smallest split whose waves are at least 85 %
                as full as the best split's (FlashAttention's heuristic)
    fill        as many parts as free slots, none shorter than `min_keys`
    """

    rule: str
    min_tiles: int = 1
    min_keys: int = 1


@dataclass(frozen=True, slots=True)
class Family:
    """A kernel family. `constants` in SI units; `operand_rows`: rows that one shared-memory read of K or V serves."""

    name: str
    title: str
    source: str
    instructions: tuple[str, ...]
    dtypes: tuple[str, ...]
    fuses: bool
    tiles: tuple[Tile, ...]
    warps: int
    stages: int
    registers_per_thread: int
    operand_rows: int
    schedule: str
    pack_gqa: str  # always | decode | never
    skips_masked: bool
    split: SplitRule
    constants: Mapping[str, Quantity]

    def constant(self, name: str) -> float:
        return self.constants[name].value

    def tile(self, head_dim: int) -> Tile:
        """The block for a head dimension: the first row that covers it, else the last."""
        return next((t for t in self.tiles if head_dim <= t.head_dim), self.tiles[-1])

    def why_unusable(self, gpu: Gpu, dtype: str) -> str | None:
        """The reason why this family cannot run on the GPU with this operand type, or None."""
        if gpu.architecture.instructions not in self.instructions:
            return (
                f"family {self.name} needs {' or '.join(self.instructions)} instructions; "
                f"{gpu.name} has {gpu.architecture.instructions}"
            )
        if dtype not in self.dtypes:
            return f"family {self.name} covers {', '.join(self.dtypes)}; the operands are {dtype}"
        if dtype not in gpu.tensor_flops_per_cycle:
            return f"{gpu.name} has no tensor-core rate for {dtype}; it has {', '.join(gpu.tensor_flops_per_cycle)}"
        return None


def names() -> tuple[str, ...]:
    """Every shipped family."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml")))


def _folder() -> Path:
    return Path(str(files("einsight.sim"))) / "families"


@lru_cache(maxsize=64)
def load_family(name: str) -> Family:
    """The shipped family of that name, or the one in a file. Raises SpecError with file, line and place."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if path.parent == _folder() and name not in names():
        raise SpecError("--target", 0, "family", f'"{name}"', f"one of: {', '.join(names())}", did_you_mean(name, names()))
    return _family(strict_yaml.load(path))


_KEYS = (
    "name", "title", "source", "instructions", "dtypes", "fuses", "tiles", "warps", "stages", "registers_per_thread",
    "operand_rows", "schedule", "pack_gqa", "skips_masked", "split", "constants",
)  # fmt: skip


def _family(root: Item) -> Family:
    t = root.table(required=_KEYS)
    return Family(
        name=t["name"].text(),
        title=t["title"].text(),
        source=t["source"].text(),
        instructions=tuple(i.choice(INSTRUCTIONS) for i in t["instructions"].items()),
        dtypes=tuple(i.choice(DTYPES) for i in t["dtypes"].items()),
        fuses=t["fuses"].boolean(),
        tiles=tuple(_tile(i) for i in t["tiles"].items()),
        warps=t["warps"].integer(1),
        stages=t["stages"].integer(1),
        registers_per_thread=t["registers_per_thread"].integer(1),
        operand_rows=t["operand_rows"].integer(1),
        schedule=t["schedule"].choice(SCHEDULES),
        pack_gqa=t["pack_gqa"].choice(("always", "decode", "never")),
        skips_masked=t["skips_masked"].boolean(),
        split=_split(t["split"]),
        constants=_constants(t["constants"]),
    )


def _tile(item: Item) -> Tile:
    t = item.table(required=("head_dim", "block_m", "block_n"))
    return Tile(t["head_dim"].integer(1), t["block_m"].integer(1), t["block_n"].integer(1))


def _split(item: Item) -> SplitRule:
    t = item.table(required=("rule",), optional=("min_tiles", "min_keys"))
    rule = t["rule"].choice(("none", "efficiency", "fill"))
    return SplitRule(rule, *(t[k].integer(1) if k in t else 1 for k in ("min_tiles", "min_keys")))


def _constants(item: Item) -> Mapping[str, Quantity]:
    entries = item.table(required=tuple(CONSTANTS))
    return {name: _constant(entries[name], unit) for name, (unit, _) in CONSTANTS.items()}


def _constant(item: Item, unit: str) -> Quantity:
    t = item.table(required=("value", "kind", "source"))
    value = t["value"].quantity(unit) if unit == "s" else t["value"].number()
    if value < 0:
        raise t["value"].error("a number that is not negative")
    return Quantity(value, str(t["value"].value), t["kind"].choice(KINDS), t["source"].text())
