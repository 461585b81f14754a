"""Array designs: how a spatial array runs a cascade. Files `designs/NAME.yaml`, data only.

A design says which Einsums run on which array, where tensors live while a block of queries is worked on, and which
Einsums overlap. It may restate mappings that a published search found, and what published numbers contain besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from einsight.einsum import library
from einsight.sim import strict_yaml
from einsight.sim.array_hardware import Array
from einsight.sim.file_state import State, state
from einsight.sim.hardware import OPERATOR_CLASSES
from einsight.sim.strict_yaml import Item, SpecError, did_you_mean

DATAFLOWS = ("tile", "output", "weight")
PLACES = ("tile", "whole", "stream")
CLASSES = ("matmul", "pairs")
RULES = ("pipelined", "sequential", "overlap", "phases")


@dataclass(frozen=True, slots=True)
class Residency:
    """Where tensors live while one block of query rows is worked on.

    dataflow  what the 2-D array spreads over its rows and columns:
              tile    keys and queries
              output  the two ranks of the result that stays in the elements (the columns take the queries)
              weight  the two ranks of the operand that stays in the elements
    rows      query rows per block: a number, "all", or "fit" (as many as the buffer holds)
    queries, keys, values, outputs
              tile    through the buffer, one tile at a time
              whole   the block's (queries, outputs) or head's (keys, values) whole operand stays in the buffer
              stream  between DRAM and the array directly
    scores    chip | memory: where tensors over pairs go when they change arrays
    spilled   share of such tensors that the buffer cannot hold; None: by the footprint
    """

    dataflow: str
    rows: int | str
    queries: str
    keys: str
    values: str
    outputs: str
    scores: str
    spilled: float | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """A mapping that a published search returned for head dimension `e` and `n` queries and keys."""

    e: int
    n: int
    residency: Residency


@dataclass(frozen=True, slots=True)
class Platform:
    """The array that published mappings were searched on."""

    rows: int
    columns: int
    buffer_bytes: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """How the Einsums of a tile share the arrays.

    rule    pipelined   epochs that hold Einsums of several tiles; the total is the sum of the longer array's per epoch
            sequential  the same, one tile at a time
            overlap     both arrays always busy with something: the longer of the two sums
            phases      runs of Einsums on one array, one after the other through DRAM
    drain   hidden | exposed: whether every tile waits for the 2-D array to drain
    epochs  the published epochs, by Einsum; cascades with other Einsums are placed by `array_schedule.first_fit`
    """

    rule: str
    drain: str
    epochs: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Wrap:
    """A tensor whose buffer reads the published tool counts in 64 bits; the words of its tile are a product of sizes."""

    tensor: str
    tile: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What the published numbers contain beside the model; nothing of it acts unless it is replicated."""

    tiling_buffer_bytes: float | None = None
    energy_left_out: tuple[str, ...] = ()
    one_cycle: tuple[tuple[str, ...], ...] = ()
    row_blocks: Mapping[tuple[int, int], int] | None = None  # (e, n) -> blocks
    wraps: tuple[Wrap, ...] = ()
    vector_reads: tuple[str, ...] = ()
    vector_less: tuple[str, ...] = ()
    vector_writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """An array family. `cascade`: the algorithm that the published design runs; `vector_units`: operator classes for which
    it gives every vector lane a circuit of its own, whatever the profile's lanes have, with their cycles."""

    name: str
    title: str
    source: str
    cascade: str
    array_2d: tuple[str, ...]
    lanes: str
    skips_masked: bool
    residencies: tuple[Residency, ...]
    schedule: Schedule
    published: tuple[Published, ...] = ()
    platform: Platform | None = None
    artifact: Artifact = Artifact()
    vector_units: Mapping[str, float] = field(default_factory=dict)

    def found_by_search(self, array: Array, e: int, n: int) -> Residency | None:
        """The published mapping for these sizes, if it was searched on an array like this one."""
        at = self.platform
        if at is None or (*array.array_2d.sides, array.buffer_bytes.value) != (at.rows, at.columns, at.buffer_bytes):
            return None
        return next((p.residency for p in self.published if (p.e, p.n) == (e, n)), None)


def names() -> tuple[str, ...]:
    """Every shipped design."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml")))


def _folder() -> Path:
    return Path(str(files("einsight.sim"))) / "designs"


def load_design(name: str) -> Design:
    """The shipped design of that name, or the one in a file, kept until it changes. Raises SpecError with the place."""
    return _load(name, state(name))


@lru_cache(maxsize=64)
def _load(name: str, edited: State) -> Design:
    path = Path(name) if name.endswith((".yaml", ".yml")) else _folder() / f"{name}.yaml"
    if path.parent == _folder() and name not in names():
        known = f"one of the array designs {', '.join(names())}"
        raise SpecError("family", 0, "", f'"{name}"', known, did_you_mean(name, names()))
    return _design(strict_yaml.load(path))


def _design(root: Item) -> Design:
    required = ("name", "title", "source", "cascade", "array_2d", "lanes", "skips_masked", "residencies", "schedule")
    t = root.table(required, ("published", "artifact", "vector_units"))
    published = t["published"].table(("platform", "mappings")) if "published" in t else {}
    return Design(
        name=t["name"].text(),
        title=t["title"].text(),
        source=t["source"].text(),
        cascade=_cascade(t["cascade"]),
        array_2d=tuple(i.choice(CLASSES) for i in t["array_2d"].items()),
        lanes=t["lanes"].choice(("query", "key")),
        skips_masked=t["skips_masked"].boolean(),
        residencies=tuple(_residency(i) for i in t["residencies"].items()),
        schedule=_schedule(t["schedule"], _cascade(t["cascade"])),
        published=tuple(_published(i) for i in published["mappings"].items()) if published else (),
        platform=_platform(published["platform"]) if published else None,
        artifact=_artifact(t["artifact"]) if "artifact" in t else Artifact(),
        vector_units=_units(t["vector_units"]) if "vector_units" in t else {},
    )


_RESIDENCY = ("dataflow", "rows", "queries", "keys", "values", "outputs", "scores")


def _units(item: Item) -> Mapping[str, float]:
    found = item.table(optional=OPERATOR_CLASSES).items()
    if wrong := next((cycles for _, cycles in found if cycles.number() <= 0), None):
        raise wrong.error("cycles above zero")
    return {klass: cycles.number() for klass, cycles in found}


def _residency(item: Item, more: tuple[str, ...] = ()) -> Residency:
    t = item.table((*_RESIDENCY, *more), ("spilled",))
    rows = t["rows"]
    return Residency(
        t["dataflow"].choice(DATAFLOWS),
        rows.choice(("all", "fit")) if isinstance(rows.value, str) else rows.integer(1),
        t["queries"].choice(PLACES),
        t["keys"].choice(PLACES),
        t["values"].choice(PLACES),
        t["outputs"].choice(PLACES),
        t["scores"].choice(("chip", "memory")),
        _share(t["spilled"]) if "spilled" in t else None,
    )


def _share(item: Item) -> float:
    if not 0 <= item.number() <= 1:
        raise item.error("a share from 0 to 1")
    return item.number()


def _published(item: Item) -> Published:
    residency = _residency(item, ("e", "n"))
    return Published(item.entries()["e"].integer(1), item.entries()["n"].integer(1), residency)


def _platform(item: Item) -> Platform:
    t = item.table(("rows", "columns", "buffer"))
    return Platform(t["rows"].integer(1), t["columns"].integer(1), t["buffer"].quantity("byte"))


def _cascade(item: Item) -> str:
    return item.text() if item.text().endswith(".casc") else item.choice(library.names())


def _schedule(item: Item, cascade: str) -> Schedule:
    """The epochs name Einsums of the design's own cascade, each once."""
    t = item.table(("rule", "drain"), ("epochs",))
    epochs = [epoch.items() for epoch in t["epochs"].items()] if "epochs" in t else []
    left = [einsum.name for einsum in library.load(cascade).einsums] if epochs else []
    for name in (name for epoch in epochs for name in epoch):
        left.remove(name.choice(left))
    found = tuple(tuple(name.text() for name in epoch) for epoch in epochs)
    return Schedule(t["rule"].choice(RULES), t["drain"].choice(("hidden", "exposed")), found)


def _artifact(item: Item) -> Artifact:
    t = item.table((), ("tiling_buffer", "energy_left_out", "one_cycle", "row_blocks", "wraps", "vector_registers"))
    vector = t["vector_registers"].table(("reads", "less", "writes")) if "vector_registers" in t else {}
    blocks = [i.table(("e", "n", "blocks")) for i in t["row_blocks"].items()] if "row_blocks" in t else []
    wraps = [i.table(("tensor", "tile")) for i in t["wraps"].items()] if "wraps" in t else []
    return Artifact(
        tiling_buffer_bytes=t["tiling_buffer"].quantity("byte") if "tiling_buffer" in t else None,
        energy_left_out=_choices(t.get("energy_left_out")),
        one_cycle=tuple(_choices(i) for i in t["one_cycle"].items()) if "one_cycle" in t else (),
        row_blocks={(b["e"].integer(1), b["n"].integer(1)): b["blocks"].integer(1) for b in blocks},
        wraps=tuple(Wrap(w["tensor"].text(), _texts(w["tile"])) for w in wraps),
        vector_reads=_texts(vector.get("reads")),
        vector_less=_texts(vector.get("less")),
        vector_writes=_texts(vector.get("writes")),
    )


def _texts(item: Item | None) -> tuple[str, ...]:
    return tuple(i.text() for i in item.items()) if item else ()


def _choices(item: Item | None) -> tuple[str, ...]:
    return tuple(i.choice(OPERATOR_CLASSES) for i in item.items()) if item else ()
