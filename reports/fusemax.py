"""FuseMax's evaluation (MICRO 2024) recomputed: attention, whole layers, arrays of other sizes, and the headline means.

Workloads are section VI's: one encoder layer, batch 64, as many queries as keys. `published` reads the tables of the
paper's artifact where they are at hand; nothing here is fitted to them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import geometric_mean, mean

from einsight.sim.array import Run, run
from einsight.sim.array_case import ARTIFACT
from einsight.sim.array_design import load_design
from einsight.sim.array_hardware import Array, load_array
from einsight.sim.array_linear import LinearRun, encoder_layer, run_linear
from einsight.sim.array_search import Point, resized
from einsight.sim.workload import Workload

BATCH = 64


@dataclass(frozen=True, slots=True)
class Model:
    """One encoder layer: heads, head dimension, width of the model and of its feed-forward network."""

    name: str
    heads: int
    head_dim: int
    width: int
    feed_forward: int


MODELS: Mapping[str, Model] = {
    m.name: m
    for m in (
        Model("BERT", 12, 64, 768, 3072), Model("TrXL", 16, 64, 1024, 4096), Model("T5", 8, 64, 512, 2048),
        Model("XLM", 16, 128, 2048, 8192),
    )
}  # fmt: skip
SEQUENCES: Mapping[str, int] = {
    "1K": 2**10, "4K": 2**12, "16K": 2**14, "64K": 2**16, "256K": 2**18, "1M": 2**20,
}  # fmt: skip
TARGETS: Mapping[str, str] = {
    "unfused": "flat:unfused", "flat": "flat:flat-fused", "cascade": "flat:cascade",
    "architecture": "fusemax:architecture", "binding": "fusemax:binding",
}  # fmt: skip
"""Configuration of the paper -> array profile and design."""

SIDES = (16, 32, 64, 128, 256, 512)
SIDES_TARGET, SIDES_SEQUENCE = "fusemax:binding", "256K"

FILES: Mapping[str, str] = {
    "unfused": "attn-unfused", "flat": "attn-flat", "cascade": "attn-cascade", "architecture": "attn-arch",
    "binding": "attn-binding",
}  # fmt: skip
LAYER_FILES: Mapping[str, str] = {"flat": "end2end-flat", "fusemax": "end2end-proposal"}
"""Array profile -> table of its linear layers."""


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration on one workload. Bytes through DRAM, seconds, pJ; utilisations of both arrays, and of the 2-D
    array by each of its Einsums."""

    design: str
    model: str
    seq_len: str
    traffic_bytes: float
    latency_s: float
    energy_pj: float
    util_2d: float
    util_1d: float
    einsums: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.design, self.model, self.seq_len


@dataclass(frozen=True, slots=True)
class LayerRow:
    """Attention and the linear layers around it."""

    attention: Row
    linear: LinearRun

    @property
    def total(self) -> Row:
        a, rest = self.attention, self.linear
        latency = a.latency_s + rest.time_s
        share = a.latency_s / latency
        energy = a.energy_pj + sum(rest.energy_pj.values())
        return Row(
            a.design, a.model, a.seq_len, a.traffic_bytes + rest.dram_bytes, latency, energy,
            a.util_2d * share + rest.busy_s / latency, a.util_1d * share, {},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """An array of side `side` sized by the paper's rule, at 256K tokens."""

    row: Row
    side: int
    memory_s: float
    array_2d_s: float
    array_1d_s: float
    array_2d_um2: float
    area_um2: float
    point: Point


def length(text: str) -> int:
    """`24K` or `1000` as a number of tokens."""
    scale = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
    return int(text if scale == 1 else text[:-1]) * scale


def attention(
    designs: Iterable[str] = tuple(TARGETS), models: Iterable[Model] = tuple(MODELS.values()),
    sequences: Iterable[str] = tuple(SEQUENCES), replicate: frozenset[str] = frozenset(), array: str | None = None,
) -> tuple[Row, ...]:  # fmt: skip
    """Rows in the order design, model, length. `array`: run every design on this profile instead of its own."""
    return tuple(
        _attention(d, m, s, replicate, _array(d, array)) for d in designs for m in models for s in sequences
    )


def _array(name: str, profile: str | None) -> Array:
    """The array of a configuration, or the profile that stands in for all of them."""
    return load_array(profile or TARGETS[name].partition(":")[0])


@lru_cache(maxsize=8192)
def _attention(name: str, model: Model, seq_len: str, replicate: frozenset[str], array: Array) -> Row:
    found = _run(model, seq_len, array, TARGETS[name].partition(":")[2], replicate)
    return _row(name, model, seq_len, found)


def _run(model: Model, seq_len: str, array: Array, design: str, replicate: frozenset[str]) -> Run:
    made = load_design(design)
    workload = Workload.attention(
        batch=BATCH, heads=model.heads, seq_q=length(seq_len), head_dim=model.head_dim, cascade=made.cascade
    )
    return run(workload, array, made, replicate=replicate)


def _row(name: str, model: Model, seq_len: str, found: Run) -> Row:
    on_2d = {s.name: found.busy_by[s.name] for s in found.case.flow.on("2d")}
    return Row(
        name, model.name, seq_len, found.dram_bytes, found.time_s, sum(found.energy_pj.values()), found.busy["2d"],
        found.busy["1d"], on_2d,
    )  # fmt: skip


def layers(
    designs: Iterable[str] = tuple(TARGETS), models: Iterable[Model] = tuple(MODELS.values()),
    sequences: Iterable[str] = tuple(SEQUENCES), replicate: frozenset[str] = frozenset(), array: str | None = None,
) -> tuple[LayerRow, ...]:  # fmt: skip
    """Whole encoder layers, in the order design, model, length."""
    return tuple(
        LayerRow(_attention(d, m, s, replicate, _array(d, array)), _linear(_array(d, array), m, s, replicate))
        for d in designs for m in models for s in sequences
    )  # fmt: skip


def linear(profile: str, model: Model, seq_len: str, replicate: frozenset[str]) -> LinearRun:
    """The six matrix products around attention on one array."""
    return _linear(load_array(profile), model, seq_len, replicate)


@lru_cache(maxsize=4096)
def _linear(array: Array, model: Model, seq_len: str, replicate: frozenset[str]) -> LinearRun:
    tokens = BATCH * length(seq_len)
    products = encoder_layer(tokens, model.width, model.heads, model.head_dim, model.feed_forward)
    return run_linear(products, array, replicate)


def pareto(
    models: Iterable[Model] = tuple(MODELS.values()), sides: Iterable[int] = SIDES,
    replicate: frozenset[str] = frozenset(),
) -> tuple[ParetoRow, ...]:  # fmt: skip
    """Arrays of other sides, each with the smallest buffer of the paper's rule that keeps DRAM from limiting."""
    return tuple(_sized(m, side, replicate) for m in models for side in sides)


def _sized(model: Model, side: int, replicate: frozenset[str]) -> ParetoRow:
    """The paper's sizing (its artifact, `pareto`): registers for two tiles of a head dimension, and a buffer of two
    tiles a row block, doubled while reading DRAM takes longer than the 1-D array."""
    profile, _, design = SIDES_TARGET.partition(":")
    tiles = 2 * max(1, side // model.head_dim)
    buffer = 16 * side * model.head_dim * max(1, tiles // (2**18 // side))
    while True:
        array = resized(load_array(profile), side, buffer, 2 * tiles, 8 * tiles)
        found = _run(model, SIDES_SEQUENCE, array, design, replicate)
        if found.bounds_s["DRAM"] <= found.bounds_s["1-D array"]:
            break
        buffer *= 2
    areas = found.areas_um2
    return ParetoRow(
        _row("binding", model, SIDES_SEQUENCE, found), side, found.bounds_s["DRAM"], found.bounds_s["2-D array"],
        found.bounds_s["1-D array"], areas["2-D array"], sum(areas.values()),
        Point(array, found),
    )  # fmt: skip


# -- headlines -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Headline:
    """A ratio between two designs: ours by the paper's aggregation (the mean of the ratios of all rows) and by the
    geometric mean. `printed`: the paper's number, None for what it only plots."""

    what: str
    printed: float | None
    mean: float
    geometric: float
    low: float
    high: float


_HEADLINES = (  # what, part, new, base, quantity, as printed in the paper's abstract and section VI
    ("attention speedup over FLAT", "attention", "binding", "flat", "latency_s", 6.7),
    ("attention energy over FLAT", "attention", "binding", "flat", "energy_pj", 0.79),
    ("attention speedup over unfused", "attention", "binding", "unfused", "latency_s", 10.0),
    ("attention energy over unfused", "attention", "binding", "unfused", "energy_pj", 0.77),
    ("layer speedup over FLAT", "layer", "binding", "flat", "latency_s", 5.3),
    ("layer energy over FLAT", "layer", "binding", "flat", "energy_pj", 0.83),
    ("layer speedup over unfused", "layer", "binding", "unfused", "latency_s", 7.6),
    ("layer energy over unfused", "layer", "binding", "unfused", "energy_pj", 0.82),
    ("+Cascade speedup over FLAT", "attention", "cascade", "flat", "latency_s", None),
    ("+Cascade energy over FLAT", "attention", "cascade", "flat", "energy_pj", None),
    ("+Architecture speedup over FLAT", "attention", "architecture", "flat", "latency_s", None),
    ("+Architecture energy over FLAT", "attention", "architecture", "flat", "energy_pj", None),
)


def headlines(attention: Sequence[Row], whole: Sequence[LayerRow] = ()) -> tuple[Headline, ...]:
    """Means over the workloads for which the rows have both designs of a ratio."""
    rows = {"attention": {r.key: r for r in attention}, "layer": {r.attention.key: r.total for r in whole}}
    out = []
    for what, part, name, base, quantity, printed in _HEADLINES:
        pairs = [(rows[part].get((name, *key[1:])), row) for key, row in rows[part].items() if key[0] == base]
        ratios = [getattr(new, quantity) / getattr(old, quantity) for new, old in pairs if new is not None]
        if quantity == "latency_s":
            ratios = [1 / r for r in ratios]
        if ratios:
            out.append(Headline(what, printed, mean(ratios), geometric_mean(ratios), min(ratios), max(ratios)))
    return tuple(out)


MEANING: Mapping[str, str] = {
    "binary bandwidth": "400 GB/s of DRAM are taken for 400 GiB/s",
    "tiling buffer": "+Cascade tiles for 16 MiB and pays the energy of 32 MiB",
    "one cycle": "FLAT and unfused subtract and exponentiate in one cycle, the others in two",
    "energy left out": "+Cascade pays nothing for exponentials (a misspelt name)",
    "row blocks": "unfused at 256K reads K and V four times more often than its buffer asks for",
    "wrap": "buffer reads overflow 64 bits from 64K tokens on",
    "registers": "register accesses are counted for one element of 65536",
    "no fill": "pipelines fill and drain in no time",
}
"""What each switch of `ARTIFACT` replicates."""


def differences(
    models: Sequence[Model] = tuple(MODELS.values()), sequences: Sequence[str] = tuple(SEQUENCES)
) -> dict[str, tuple[Headline, ...]]:
    """The headlines with everything replicated, with each switch alone turned off, and with none replicated."""
    designs = ("unfused", "flat", "cascade", "binding")
    cases = {"as published": ARTIFACT}
    cases |= {f"without: {MEANING[name]}": ARTIFACT - {name} for name in MEANING}
    cases["none of these"] = frozenset()
    made = {what: layers(designs, models, sequences, switches) for what, switches in cases.items()}
    return {what: headlines([r.attention for r in rows], rows) for what, rows in made.items()}


# -- published tables ------------------------------------------------------------------------------------------------


def published(folder: Path) -> dict[tuple[str, str, str], Mapping[str, float]]:
    """(design, model, length) -> columns of the artifact's attention tables; empty where the folder lacks them."""
    return _tables(folder, FILES)


def published_layers(folder: Path) -> dict[tuple[str, str, str], Mapping[str, float]]:
    """(array profile, model, length) -> columns of the artifact's tables of linear layers."""
    return _tables(folder, LAYER_FILES)


def published_pareto(folder: Path) -> dict[tuple[str, int], Mapping[str, float]]:
    """(model, side) -> columns of the artifact's table of arrays."""
    found = read_table(folder / "pareto.csv")
    return {(str(row["model"]), int(row["PE_dim"])): _numbers(row) for row in found}


def _tables(folder: Path, files: Mapping[str, str]) -> dict[tuple[str, str, str], Mapping[str, float]]:
    found: dict[tuple[str, str, str], Mapping[str, float]] = {}
    for name, file in files.items():
        for row in read_table(folder / f"{file}.csv"):
            found[(name, row["model"], row["seq_len"])] = _numbers(row)
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text by column; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    text = ("accel", "model", "seq_len")
    return {name: float(value) for name, value in row.items() if name and name not in text and value}
