"""Kernel families: how a kind of kernel runs a cascade on a kind of target. Files `families/NAME.yaml`, data only.

A constant belongs to the family (and, once fitted, to the architecture), never to a device; each names what it means
and where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from einsight.sim import strict_yaml
from einsight.sim.file_state import State, state
from einsight.sim.framework import ADDED, added, additions
from einsight.sim.hardware import (
    DTYPE_BYTES,
    DTYPES,
    INSTRUCTIONS,
    KINDS,
    PHASES,
    Gpu,
    Quantity,
    load_gpu,
)
from einsight.sim.hardware import names as profile_names
from einsight.sim.nearness import Fit, Ground, chip, distance, same_kernels, widening
from einsight.sim.regime import NO_REGIMES, RESOURCES, Regime, Regimes
from einsight.sim.schedule import SCHEDULES
from einsight.sim.strict_yaml import Item, SpecError, did_you_mean
from einsight.sim.traffic import OUTER


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant that a family gives: unit, physical range, and what it means. Fits stay inside the range."""

    unit: str
    low: float
    high: float
    meaning: str


CONSTANTS: Mapping[str, Constant] = {
    "launch_s": Constant("s", 1e-6, 3e-5, "launch, first bytes and whatever comes with every call"),
    "sequence_s": Constant("s", 0.0, 5e-8, "scheduler work per sequence of the batch"),
    "combine_s": Constant("s", 0.0, 1.5e-5, "launch of the kernel that merges the parts of a split run"),
    "split_s": Constant("s", 0.0, 3e-7, "merging, per part"),
    "merge_cycles": Constant("cycle", 0.0, 400.0, "of an SM, per row of one head and group of lanes that holds parts of it"),
    "mma_efficiency": Constant("", 0.03, 1.0, "share of the tensor cores' issue slots that dependent products can fill"),
    "unhidden": Constant("", 0.005, 1.0, "share of the smaller resources' cycles that the largest does not hide"),
    "unhidden_memory": Constant("", 0.0, 1.0, "share of the smaller of compute and memory time that is not hidden"),
    "vector_per_score": Constant("op", 0.0, 12.0, "fp32-pipe operations per score beside the cascade's (conversions)"),
    "convert_per_element": Constant("op", 0.0, 16.0, "fp32-pipe operations to widen one element of a key, per warp"),
    "convert_unhidden": Constant("", 0.0, 1.0, "share of widening that the products of other blocks do not hide"),
    "mask_per_score": Constant("op", 0.0, 16.0, "fp32-pipe operations per score of a masked tile beside the mask's own"),
    "window_per_score": Constant("op", 0.0, 32.0, "the same, more, where a sliding window has two edges to test"),
    "block_cycles": Constant("cycle", 0.0, 20000.0, "prologue and epilogue of a block"),
    "block_bytes_per_cycle": Constant("byte", 2.0, 128.0, "rate at which one block loads its rows and stores results"),
    "row_cycles": Constant("cycle", 0.0, 1000.0, "once per block and row of its tile, filled or not (reductions across lanes)"),
    "result_cycles": Constant("cycle", 0.0, 10.0, "per element of a block's result, filled or not (registers it lacks)"),
    "part_cycles": Constant("cycle", 0.0, 30000.0, "what merging adds to a block of a split run, inside the kernel"),
    "exit_cycles": Constant("cycle", 0.0, 20000.0, "a part of a split run that finds no key of its own inside the window"),
    "test_per_score": Constant("op", 0.0, 256.0, "to test a tile, its keys loaded, against a window, where none is left out"),
    "tile_cycles": Constant("cycle", 0.0, 5000.0, "latency of a tile that nothing hides (barriers, pipeline refill)"),
    "regroup_s": Constant("s", 0.0, 1.5e-5, "copies that bring the packed query heads of several sequences into order"),
    "kv_copy": Constant("", 0.0, 4.0, "times that a framework's own kernels move the new keys and values (cache writer)"),
    "q_copy": Constant("", 0.0, 4.0, "times that a framework's own kernels move queries or outputs"),
    "token_cycles": Constant("cycle", 0.0, 20.0, "cycles per new token and thread of a cache writer with a block per token"),
    "uneven_copy": Constant("", 0.0, 10.0, "times that those kernels move new keys and values of different widths"),
    "uneven_s": Constant("s", 0.0, 1.5e-5, "extra framework kernels when keys and values have different widths"),
    "fill_s": Constant("s", 0.0, 2e-5, "once, of a run that HBM feeds: until it streams at its rate, and after its last byte"),
    "hbm_fraction": Constant("", 0.5, 0.95, "streaming bandwidth over the datasheet's; refresh and turnarounds take the rest"),
    "l2_usable": Constant("", 0.3, 1.1, "share of L2 that a re-read working set can occupy before it misses"),
    "interval": Constant("", 0.02, 2.0, "half width of the 90 % interval, relative, on this family's own ground"),
}
"""Every constant of a GPU family. A family gives what it knows of; the others have the value that changes nothing."""

NEUTRAL: Mapping[str, float] = {
    "block_bytes_per_cycle": 32.0, "l2_usable": 0.7,
    **dict.fromkeys((
        "sequence_s", "split_s", "merge_cycles", "tile_cycles", "kv_copy", "q_copy", "regroup_s", "token_cycles", "uneven_s",
        "uneven_copy", "convert_per_element", "mask_per_score", "window_per_score", "exit_cycles", "test_per_score",
        "row_cycles", "result_cycles", "part_cycles", "convert_unhidden", "fill_s",
    ), 0.0),
}  # fmt: skip
"""What a constant is when a family does not name it: the effect absent, or the rate of an SM's L2 port."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Block shape for head dimensions up to `head_dim` and, where given, up to `rows` query rows of one head.

    operand_rows, warps  query rows that one warp's reading of a key tile serves and warps of the block, where not the family's
    registers  of a thread of this build, where not the family's
    blocks     blocks wanted on an SM: the key tile is halved, down to `least_n` keys, until so many fit
    shared_by  blocks of a cluster that load each key tile together (multicast, products of two SMs)
    dtypes, instructions, architectures  types of the products and devices that the line holds for (any, when empty)
    buffered   keys of a tile that one buffer in shared memory holds (all of them, when not given)
    queries    query positions of one head up to which the line holds (1: decode alone)
    partials   groups of warps that split a tile's keys, whose fp32 results lie in shared memory at the end
    step       the tile has this many keys, doubled up to block_n as long as the shared memory of half an SM holds them
    """

    head_dim: int
    block_m: int
    block_n: int
    rows: int | None = None
    shared_by: int = 1
    blocks: int = 1
    least_n: int = 16
    operand_rows: int | None = None
    warps: int | None = None
    architectures: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    buffered: int | None = None
    step: int | None = None
    partials: int = 0
    queries: int | None = None
    registers: int | None = None


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a family cuts the key rank when the grid is too small.

    none        never
    efficiency  below 80 % of `waves` waves and from `min_tiles` key tiles on: the smallest split whose waves are at
                least 85 % as full as the best split's (FlashAttention's heuristic)
    balanced    FlashAttention-3's decode scheduler: that split for one sequence, and no more parts than tiles per SM allow
    fill        `waves` waves of parts, none shorter than `min_keys` or, times the head dimension, than `min_elements`;
                a wave is one block per resident slot, or per SM (`fills`), the last one filled (`rounds: up`) or not
                begun; with `root`, no more parts than the root of `root` times the most, so that merging stays short
                (TensorRT-LLM's XQA)
    logarithmic as many parts as SMs, times log2(keys / `min_keys`), at most `most` (SGLang's Triton kernels)
    packed_only any rule: only where several query heads share a block's rows (FlashAttention-2 splits no other decode)
    fixed       `most` parts for grids of up to `blocks_up_to` blocks (vLLM's Triton kernel)
    """

    rule: str
    min_tiles: int = 1
    min_keys: int = 1
    waves: int = 1
    min_elements: int = 0
    fills: str = "slots"
    most: int = 1
    blocks_up_to: int = 0
    packed_only: bool = False
    root: int = 0
    rounds: str = "down"


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A kernel family.

    operand_rows  query rows that one shared-memory read of a K or V tile serves
    row_granule   rows that a block computes together: rows beyond the last group that holds any are not computed
    constants     assumed ones, with their sources; `fits` take their place where there is one
    """

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
    row_granule: int
    schedule: str
    pack_gqa: str  # always | decode | never
    skips_masked: bool
    window_packs: bool  # whether pack_gqa holds under a sliding window too
    window_splits: bool
    split: Mapping[str, SplitRule]  # by phase
    constants: Mapping[str, Quantity]
    fits: tuple[Fit, ...] = ()
    window_skips: bool = True  # whether tiles outside a sliding window are left out
    window_split_by: str = "window"  # what sets the number of parts: keys in the window, or the "cache", cut or "dealt"
    queries_in_place: bool = False  # 16-bit queries are read where the projection left them: nothing copies them
    products: str = "tensor"  # matrix products on the tensor cores, or on the fp32 lanes ("vector")
    regimes: Regimes = NO_REGIMES  # of the fit in use
    moves: str = "filled"  # rows of queries and results that a block moves: all of its tile's, or those "held" by a query
    multiplies: str = "filled"  # keys of a tile that products and lanes run over: all of it, or up to the last one "held"
    widths: tuple[int, ...] = ()  # head dimensions that there are kernels for; others take the next one, filled with zeros
    grows: bool = False  # blocks take more threads where the grid leaves SMs room, and fewer of them fit an SM at a time
    order: tuple[str, ...] = OUTER  # outer ranks as blocks are launched, slowest first; the tiles of a head's rows come last
    arithmetic: str = "operands"  # products in the operands' type, or in the "cache"'s: then queries are converted too

    def for_products(self, gpu: Gpu, dtype: str, kv_dtype: str) -> tuple[Family, str]:
        """(the family with the tile lines for this device and these element types, the type its products run in)."""
        used = kv_dtype if self.arithmetic == "cache" else dtype
        if not any(t.dtypes or t.instructions or t.architectures for t in self.tiles):
            return self, used
        arch = gpu.architecture
        here = [t for t in self.tiles if not t.instructions or arch.instructions in t.instructions]
        here = [t for t in here if not t.architectures or arch.name in t.architectures]
        return replace(self, tiles=tuple(t for t in here if not t.dtypes or used in t.dtypes)), used

    def constant(self, name: str) -> float:
        found = self.constants.get(name)
        return NEUTRAL[name] if found is None else found.value

    def on(self, gpu: Gpu, phase: str, dtype: str, kv_dtype: str, framework: str = "") -> tuple[Family, str]:
        """(this family with the constants fitted nearest to the target, how near in words; "" when none was fitted).

        The same architecture first, then the nearest one with the same instructions; the interval grows with the
        distance. `framework`: whose kernels run around it; default: those of the framework that the fit was made on.
        """
        arch = gpu.architecture
        if not self.fits:
            return self._unfitted(framework, arch.name, phase, (dtype, kv_dtype)), ""
        rate = gpu.tensor_flops_per_cycle.get(dtype)
        ground = Ground(
            arch.name, arch.compute_capability, arch.instructions, gpu.name, arch.shared_bytes.value,
            rate.value if rate else 0.0,
        )  # fmt: skip
        return self._on(ground, phase, dtype, kv_dtype, framework)

    @lru_cache(maxsize=4096)  # noqa: B019  (families are loaded once and stay)
    def _on(self, arch: Ground, phase: str, dtype: str, kv_dtype: str, framework: str) -> tuple[Family, str]:
        dtypes = dtype, kv_dtype
        far, fit = min(
            ((distance(f, arch, phase, dtypes, framework, self.arithmetic), f) for f in self.fits), key=lambda found: found[0]
        )  # fmt: skip
        *steps, _, foreign, _, _ = far
        if steps[0] and steps[1] == 2:  # another phase on other instructions says less than what is assumed
            note = f"family {self.name}: constants assumed; none fitted for {phase} on {arch.name} or its like"
            return self._unfitted(framework, arch.name, phase, dtypes), note
        values = dict(fit.constants)  # what its framework adds is among them
        if foreign and additions(framework):
            values |= {name: NEUTRAL[name] for name in ADDED} | self._brought(framework, arch.name, phase, dtypes)
        if steps[1] and chip(fit.architecture)[1] != arch.shared_bytes:
            values.pop("l2_usable", None)  # the cache's own, not the kernel's: as assumed on a chip of another class
        if steps[1] == 2:  # scores lie across warps as the instructions have them, and their test reduces across warps
            values.pop("test_per_score", None)
        devices = fit.fitted_on.rsplit(" rows of ", 1)[-1].split(", ")
        if steps[1] == 2 and devices[0] in profile_names():
            values |= _same_rate(values, load_gpu(devices[0]), dtype, arch.flops_per_cycle)
        merged = {n: Quantity(v, f"{v:.4g}", "fitted", fit.fitted_on) for n, v in values.items()}
        apart = 0 if same_kernels(fit.architecture, arch) else steps[1]
        widen = widening([steps[0], apart, steps[2]], foreign, arch.device not in devices, phase)
        half = values.get("interval", 0.0)
        if half:
            merged["interval"] = replace(merged["interval"], value=half * widen)
        regimes = fit.regimes.widened(half * (widen - 1.0))
        note = f"constants of {self.name} fitted for {fit.architecture} {fit.phase} {'/'.join(fit.dtypes)} on {fit.fitted_on}"
        if sum(steps):
            note += f"; none for {arch.name} {phase} {dtype}/{kv_dtype}, interval widened x{widen:g}"
        elif widen > 1.0:
            other = f"not with {framework}" if foreign else f"not on {arch.device}"
            note += f"; {other}, interval widened x{widen:g}"
        return replace(self, constants={**self.constants, **merged}, regimes=regimes), note

    def _unfitted(self, framework: str, architecture: str, phase: str, dtypes: tuple[str, str]) -> Family:
        """The assumed constants, and what the framework adds around other kernels: its own kernels are the same around all."""
        brought = {n: v for n, v in self._brought(framework, architecture, phase, dtypes).items() if n in ADDED}
        if not brought:
            return self
        from_others = {n: Quantity(v, f"{v:.4g}", "fitted", f"beside other kernels of {framework}") for n, v in brought.items()}
        return replace(self, constants={**self.constants, **from_others})

    def _brought(self, framework: str, architecture: str, phase: str, dtypes: tuple[str, str]) -> dict[str, float]:
        """What a framework adds (see `added`), without the copies of queries that this kernel reads in place."""
        found = dict(added(framework, self.name, architecture, phase, dtypes))
        if self.queries_in_place and DTYPE_BYTES[dtypes[0]] >= 2.0:
            found.pop("q_copy", None)
        return found

    def tile(self, head_dim: int, rows: int) -> Tile:
        """The block for a head dimension and rows: the first line that covers both, else the last."""
        fits = (t for t in self.tiles if head_dim <= t.head_dim and (t.rows is None or rows <= t.rows))
        return next(fits, self.tiles[-1])

    def why_unusable(self, gpu: Gpu, dtype: str, kv_dtype: str = "") -> str | None:
        """The reason why this family cannot run on the GPU with these types of operands and of the keys that it reads
        (default: the operands'), or None."""
        if gpu.architecture.instructions not in self.instructions:
            return (
                f"family {self.name} needs {' or '.join(self.instructions)} instructions; "
                f"{gpu.name} has {gpu.architecture.instructions}"
            )
        if dtype not in gpu.tensor_flops_per_cycle:
            return f"the profile {gpu.name} has no tensor-core rate for {dtype}; it has {', '.join(gpu.tensor_flops_per_cycle)}"
        if dtype not in self.dtypes:
            return f"family {self.name} covers {', '.join(self.dtypes)}; the operands are {dtype}"
        used = kv_dtype if kv_dtype and self.arithmetic == "cache" else dtype
        if used not in gpu.tensor_flops_per_cycle or used not in self.dtypes:
            return f"family {self.name} multiplies in the cache's type, {used}; it covers {', '.join(self.dtypes)}"
        return None


def _same_rate(values: Mapping[str, float], fitted_on: Gpu, dtype: str, flops_per_cycle: float) -> dict[str, float]:
    """The share of the tensor cores' peak that keeps a kernel's products per SM and cycle: that is what it carries from one
    set of instructions to another, not its share of a peak that other instructions reach."""
    known = fitted_on.tensor_flops_per_cycle.get(dtype)
    if known is None or not flops_per_cycle or "mma_efficiency" not in values:
        return {}
    bounds = CONSTANTS["mma_efficiency"]
    kept = values["mma_efficiency"] * known.value / flops_per_cycle
    return {"mma_efficiency": min(max(kept, bounds.low), bounds.high)}


@cache
def names() -> tuple[str, ...]:
    """Every shipped family."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml")))


def _folder() -> Path:
    return Path(str(files("einsight.sim"))) / "families"


def family_file(name: str) -> Path:
    """Where a family is or would be written: the shipped one of that name, or the file that the name already is."""
    return Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"


def load_family(name: str) -> Family:
    """The shipped family of that name, or the one in a file, kept until it changes. Raises SpecError with the place."""
    return _load(name, state(name))


@lru_cache(maxsize=64)
def _load(name: str, edited: State) -> Family:
    path = family_file(name)
    if path.parent == _folder() and name not in names():
        known = f"one of the families of GPUs {', '.join(names())}"
        raise SpecError("family", 0, "", f'"{name}"', known, did_you_mean(name, names()))
    return _family(strict_yaml.load(path))


def usable(gpu: Gpu, dtype: str, kv_dtype: str = "") -> tuple[str, ...]:
    """The shipped families that run on the GPU with these types of operands and of the keys that they read."""
    return tuple(name for name in names() if load_family(name).why_unusable(gpu, dtype, kv_dtype) is None)


_KEYS = (
    "name", "title", "source", "instructions", "dtypes", "fuses", "tiles", "warps", "stages", "registers_per_thread",
    "operand_rows", "row_granule", "schedule", "pack_gqa", "skips_masked", "split", "constants",
)  # fmt: skip


def _family(root: Item) -> Family:
    optional = ("window", "fits", "arithmetic", "products", "grows", "widths", "moves", "queries_in_place", "order",
                "multiplies")  # fmt: skip
    t = root.table(required=_KEYS, optional=optional)
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
        row_granule=t["row_granule"].integer(1),
        schedule=t["schedule"].choice(SCHEDULES),
        pack_gqa=t["pack_gqa"].choice(("always", "decode", "never")),
        skips_masked=t["skips_masked"].boolean(),
        window_packs=_flag(t.get("window"), "packs"),
        window_splits=_flag(t.get("window"), "splits"),
        window_split_by=_split_by(t.get("window")),
        window_skips=_flag(t.get("window"), "skips"),
        split={p: _split(item) for p, item in t["split"].table(required=PHASES).items()},
        constants=_constants(t["constants"]),
        fits=tuple(_fit(i) for i in t["fits"].items()) if "fits" in t else (),
        products=t["products"].choice(("tensor", "vector")) if "products" in t else "tensor",
        multiplies=t["multiplies"].choice(("filled", "held")) if "multiplies" in t else "filled",
        widths=tuple(i.integer(1) for i in t["widths"].items()) if "widths" in t else (),
        moves=t["moves"].choice(("filled", "held")) if "moves" in t else "filled",
        grows=t["grows"].boolean() if "grows" in t else False,
        queries_in_place=t["queries_in_place"].boolean() if "queries_in_place" in t else False,
        order=tuple(i.choice(OUTER) for i in t["order"].items()) if "order" in t else OUTER,
        arithmetic=t["arithmetic"].choice(("operands", "cache")) if "arithmetic" in t else "operands",
    )


_WINDOW = ("packs", "splits", "splits_by", "skips")


def _flag(item: Item | None, name: str) -> bool:
    """An entry of `window: {packs: false, splits: false}`; true where nothing is said."""
    if item is None:
        return True
    table = item.table(optional=_WINDOW)
    return table[name].boolean() if name in table else True


def _split_by(item: Item | None) -> str:
    """`splits_by` of the same table: "window" where nothing is said."""
    table = item.table(optional=_WINDOW) if item is not None else {}
    return table["splits_by"].choice(("window", "cache", "dealt")) if "splits_by" in table else "window"


def _tile(item: Item) -> Tile:
    others = ("buffered", "step", "rows", "queries", "operand_rows", "warps", "registers")
    optional = (*others, "shared_by", "blocks", "least_n", "partials", "architectures", "dtypes", "instructions")
    t = item.table(required=("head_dim", "block_m", "block_n"), optional=optional)
    held, step, rows, queries, serves, warps, registers = (t[k].integer(1) if k in t else None for k in others)
    blocks, least = (t[k].integer(1) if k in t else default for k, default in (("blocks", 1), ("least_n", 16)))
    shared = t["shared_by"].integer(1) if "shared_by" in t else 1
    where = tuple(i.choice(INSTRUCTIONS) for i in t["instructions"].items()) if "instructions" in t else ()
    only = tuple(d.choice(DTYPES) for d in t["dtypes"].items()) if "dtypes" in t else ()
    head_dim, block_m, block_n = (t[k].integer(1) for k in ("head_dim", "block_m", "block_n"))
    named = tuple(a.text() for a in t["architectures"].items()) if "architectures" in t else ()
    partials = t["partials"].integer(1) if "partials" in t else 0
    return Tile(
        head_dim, block_m, block_n, rows, shared, blocks, least, serves, warps, named, only, where, held, step, partials,
        queries, registers,
    )  # fmt: skip


def _split(item: Item) -> SplitRule:
    keys = ("min_tiles", "min_keys", "waves", "min_elements", "fills", "most", "blocks_up_to", "packed_only", "root",
            "rounds")  # fmt: skip
    t = item.table(required=("rule",), optional=keys)
    rule = t["rule"].choice(("none", "efficiency", "balanced", "fill", "logarithmic", "fixed"))
    tiles, least, waves = (t[k].integer(1) if k in t else 1 for k in ("min_tiles", "min_keys", "waves"))
    elements = t["min_elements"].integer(1) if "min_elements" in t else 0
    fills = t["fills"].choice(("slots", "sms")) if "fills" in t else "slots"
    most, blocks = (t[k].integer(1) if k in t else 1 for k in ("most", "blocks_up_to"))
    packed = t["packed_only"].boolean() if "packed_only" in t else False
    root = t["root"].integer(1) if "root" in t else 0
    rounds = t["rounds"].choice(("up", "down")) if "rounds" in t else "down"
    return SplitRule(rule, tiles, least, waves, elements, fills, most, blocks, packed, root, rounds)


def _constants(item: Item) -> Mapping[str, Quantity]:
    required = [name for name in CONSTANTS if name not in NEUTRAL]
    entries = item.table(required=required, optional=tuple(NEUTRAL))
    return {name: _constant(entry, CONSTANTS[name].unit) for name, entry in entries.items()}


def _constant(item: Item, unit: str) -> Quantity:
    t = item.table(required=("value", "kind", "source"))
    value = t["value"].quantity(unit) if unit == "s" else t["value"].number()
    if value < 0:
        raise t["value"].error("a number that is not negative")
    return Quantity(value, str(t["value"].value), t["kind"].choice(KINDS), t["source"].text())


def _fit(item: Item) -> Fit:
    known = ("architecture", "phase", "dtypes", "fitted_on", "constants")
    t = item.table(required=known, optional=("error", "framework", "regimes"))
    numbers = t["constants"].table(optional=tuple(CONSTANTS))
    for name, entry in numbers.items():
        bounds = CONSTANTS[name]
        if not bounds.low <= entry.number() <= bounds.high:
            raise entry.error(f"a number from {bounds.low:g} to {bounds.high:g}: {bounds.meaning}")
    return Fit(
        t["architecture"].text(), t["phase"].choice(PHASES), tuple(d.choice(DTYPES) for d in t["dtypes"].items()),
        {name: entry.number() for name, entry in numbers.items()}, t["fitted_on"].text(),
        t["error"].text() if "error" in t else "", t["framework"].text() if "framework" in t else "",
        Regimes(tuple(_regime(i) for i in t["regimes"].items()) if "regimes" in t else ()),
    )  # fmt: skip


def _regime(item: Item) -> Regime:
    """`{below: 0.05, above: 0.1, HBM: [0.3, 0.8]}`: how far off, and the shares of resources where that holds."""
    t = item.table(required=("below", "above"), optional=RESOURCES)
    for name in ("below", "above"):
        if t[name].number() < 0:
            raise t[name].error("a number that is not negative: how far off measured times lie on that side")
    return Regime({n: _share(entry) for n, entry in t.items() if n in RESOURCES}, t["below"].number(), t["above"].number())


def _share(item: Item) -> tuple[float, float]:
    ends = [end.number() for end in item.items()]
    if len(ends) != 2 or not 0.0 <= ends[0] < ends[1] <= 1.0:
        raise item.error("two shares of the time, [from, to], with 0 <= from < to <= 1")
    return ends[0], ends[1]
