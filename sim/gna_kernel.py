"""Kernels for neighborhood attention: what each can tile, when it masks, and what stands around it. Data only.

Files `families/gna/NAME.yaml`, named as NATTEN names its backends. The cost of a tile belongs to the kernel family that
the file names; what only neighborhoods need stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from einsight.sim import strict_yaml
from einsight.sim.family import Family, load_family
from einsight.sim.gna_tiles import TILINGS, Shape, shape_from
from einsight.sim.hardware import KINDS, Gpu, Quantity
from einsight.sim.strict_yaml import Item, SpecError, did_you_mean

MASKS = ("all", "cut")


@dataclass(frozen=True, slots=True)
class TilePair:
    """A Q and a KV tile shape that the kernel is built for, for head dimensions up to `head_dim`; `not_on`: architectures
    on which it is not."""

    head_dim: int
    q: Shape
    kv: Shape
    not_on: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.q))} / {'x'.join(map(str, self.kv))}"


@dataclass(frozen=True, slots=True, eq=False)
class GnaKernel:
    """One kernel.

    family        the kernel family that says what a tile costs
    dense         the family of dense attention that it is compared with
    tiling        where KV tiles start: static | dynamic (see `gna_tiles`)
    permutes      tokens are brought into tile order by copies before, and back after
    masks         all: every visited tile runs the mask unless the problem is fully block-sparse; cut: only cut tiles do
    mask_cycles   cycles that a masked tile stalls, whatever the mask: its scores wait for the mask between two products
    division_ops  fp32-pipe slots per score and dimension but one, to find a key's coordinate in tiles not compiled in
    mask_hidden   share of the mask's operations that run while the tensor cores work for another tile
    permute_rate  bytes per SM and cycle, read and written, of the copies that permute
    head_dims     what the kernel is built for: a list, or every multiple of one number up to the tiles' largest
    tiles         in NATTEN's order: the first that covers the head dimension is its default
    """

    name: str
    title: str
    source: str
    family: str
    dense: str
    tiling: str
    permutes: bool
    masks: str
    mask_cycles: Quantity
    division_ops: Quantity
    mask_hidden: Quantity
    permute_rate: Quantity
    head_dims: tuple[int, ...]
    tiles: tuple[TilePair, ...]

    def covers(self, head_dim: int) -> bool:
        """Whether the kernel is built for this head dimension."""
        return head_dim in self.head_dims

    def legal_tiles(self, rank: int, head_dim: int, architecture: str = "") -> tuple[TilePair, ...]:
        """Tile pairs for a grid of `rank` dimensions: those of the narrowest row of head dimensions that covers it.
        `architecture`: without those that are not built for it."""
        covering = [t for t in self.tiles if len(t.q) == rank and t.head_dim >= head_dim and architecture not in t.not_on]
        narrowest = min((t.head_dim for t in covering), default=0)
        return tuple(t for t in covering if t.head_dim == narrowest)


@cache
def names() -> tuple[str, ...]:
    """Every shipped kernel."""
    return tuple(sorted(p.stem for p in _folder().glob("*.yaml")))


def _folder() -> Path:
    return Path(str(files("einsight.sim"))) / "families" / "gna"


@lru_cache(maxsize=64)
def load_gna_kernel(name: str) -> GnaKernel:
    """The shipped kernel of that name, or the one in a file. Raises SpecError with file, line and place."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if path.parent == _folder() and name not in names():
        raise SpecError("--target", 0, "kernel", f'"{name}"', f"one of: {', '.join(names())}", did_you_mean(name, names()))
    return _kernel(strict_yaml.load(path))


def kernel_for(gpu: Gpu) -> GnaKernel:
    """The kernel that NATTEN picks on this GPU: the first whose family has the GPU's instructions, permuted ones first."""
    found = [k for k in map(load_gna_kernel, names()) if runs_on(k, gpu)]
    if not found:
        raise SpecError(
            gpu.name, 0, "architecture.instructions", f'"{gpu.architecture.instructions}"',
            f"instructions of a kernel for neighborhood attention: {', '.join(names())}",
        )  # fmt: skip
    return min(found, key=lambda k: len(load_family(k.family).instructions))


def runs_on(kernel: GnaKernel, gpu: Gpu) -> bool:
    return gpu.architecture.instructions in family_of(kernel).instructions


def family_of(kernel: GnaKernel) -> Family:
    return load_family(kernel.family)


_KEYS = (
    "name", "title", "source", "family", "dense", "tiling", "permutes", "masks", "mask_cycles", "division_ops", "mask_hidden",
    "permute_rate", "head_dims", "tiles",
)  # fmt: skip


def _kernel(root: Item) -> GnaKernel:
    t = root.table(required=_KEYS)
    tiles = tuple(_tile(i) for i in t["tiles"].items())
    return GnaKernel(
        name=t["name"].text(), title=t["title"].text(), source=t["source"].text(), family=t["family"].text(),
        dense=t["dense"].text(), tiling=t["tiling"].choice(TILINGS), permutes=t["permutes"].boolean(),
        head_dims=_head_dims(t["head_dims"], max(tile.head_dim for tile in tiles)),
        masks=t["masks"].choice(MASKS), mask_cycles=_quantity(t["mask_cycles"]), division_ops=_quantity(t["division_ops"]),
        mask_hidden=_quantity(t["mask_hidden"]), permute_rate=_quantity(t["permute_rate"]),
        tiles=tiles,
    )  # fmt: skip


def _head_dims(item: Item, most: int) -> tuple[int, ...]:
    """`[32, 64]`, or `{multiples_of: 8}` up to the widest tile's."""
    if isinstance(item.value, dict):
        step = item.table(("multiples_of",))["multiples_of"].integer(1)
        return tuple(range(step, most + 1, step))
    return tuple(i.integer(1) for i in item.items())


def _tile(item: Item) -> TilePair:
    t = item.table(required=("head_dim", "q", "kv"), optional=("not_on",))
    not_on = tuple(i.text() for i in t["not_on"].items()) if "not_on" in t else ()
    return TilePair(t["head_dim"].integer(1), _shape(t["q"]), _shape(t["kv"]), not_on)


def _shape(item: Item) -> Shape:
    found = shape_from(item.text())
    if found is None:
        raise item.error("a tile shape such as 2x8x8")
    return found


def _quantity(item: Item) -> Quantity:
    t = item.table(required=("value", "kind", "source"))
    if t["value"].number() < 0:
        raise t["value"].error("a number that is not negative")
    return Quantity(t["value"].number(), str(t["value"].value), t["kind"].choice((*KINDS, "fitted")), t["source"].text())
