"""Spatial arrays as frozen values read from `hw_profiles/`: two arrays of processing elements, one buffer, one DRAM.

What a process technology decides (energy and area of a function, a register, a buffer row) is a `Technology`, a file of
`technologies/`; an `Array` names one and says how many elements there are and which functions they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from einsight.sim import plausible, strict_yaml
from einsight.sim.file_state import State, state
from einsight.sim.hardware import DTYPES, KINDS, OPERATOR_CLASSES, PHASES, PROFILES, Quantity, load_hardware, quantity
from einsight.sim.strict_yaml import Item, SpecError
from einsight.sim.units import COUNT


@dataclass(frozen=True, slots=True)
class Circuit:
    """A function with hardware of its own: energy of one application in pJ, area in um^2 (None: inside another)."""

    energy_pj: Quantity
    area_um2: Quantity | None


@dataclass(frozen=True, slots=True)
class BufferPoint:
    """A known buffer: capacity and row in bytes, with energies per row access (pJ) or an area (um^2)."""

    capacity: float
    row: float
    values: Mapping[str, Quantity]


@dataclass(frozen=True, slots=True)
class Technology:
    """Energies in pJ, areas in um^2. `buffer_energy`: read, write at one row width; `buffer_area`: by row width."""

    name: str
    functions: Mapping[str, Circuit]
    register_area_um2: Quantity
    register_doubling_um2: Quantity
    register_read_pj: Quantity
    register_write_pj: Quantity
    reads_per_operation: Quantity
    writes_per_operation: Quantity
    dram_pj_per_byte: Quantity
    network_um2: Quantity
    buffer_energy: tuple[BufferPoint, ...]
    buffer_area: tuple[BufferPoint, ...]

    def register_file_um2(self, entries: float) -> float:
        """Area of one element's register file: a floor and a part per address bit."""
        return self.register_area_um2.value + self.register_doubling_um2.value * math.ceil(math.log2(max(entries, 1)))

    def buffer_access_pj(self, access: str, capacity: float, row: float) -> float:
        """Energy of reading or writing one row, log-log between the known capacities, in proportion to the row."""
        known = [(p.capacity, p.values[access].value) for p in self.buffer_energy]
        return _between(known, capacity) * row / self.buffer_energy[0].row

    def buffer_um2(self, capacity: float, row: float) -> float:
        """Area, log-log between known capacities of the nearest row width, in proportion beyond them."""
        nearest = min({p.row for p in self.buffer_area}, key=lambda r: abs(math.log(r / row)))
        known = [(p.capacity, p.values["area"].value) for p in self.buffer_area if p.row == nearest]
        ends = (min(known), max(known))
        for (at, area), beyond in zip(ends, (capacity < ends[0][0], capacity > ends[1][0]), strict=True):
            if beyond:
                return area * capacity / at
        return _between(known, capacity)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one application of an operator class takes on an element: cycles, and the circuits that it drives."""

    cycles: float
    circuits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """One array of equal processing elements.

    costs       operator class -> cost; a class that is absent cannot run here
    own         circuits that the profile brings itself, beside those of the technology
    """

    name: str
    rows: Quantity
    columns: Quantity
    registers: Quantity
    costs: Mapping[str, Cost]
    own: Mapping[str, Circuit]
    source: str

    @property
    def elements(self) -> int:
        return int(self.rows.value) * int(self.columns.value)

    @property
    def sides(self) -> tuple[int, int]:
        return int(self.rows.value), int(self.columns.value)


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A spatial accelerator. Bandwidth in bytes per second, capacities in bytes, clock in hertz.

    array_2d    `rows` x `columns` elements; `array_1d`: one row of `columns` lanes
    family      default design per phase
    limit_buffer  whether the buffer's ports limit the speed: one row per port and cycle
    """

    name: str
    title: str
    technology: Technology
    devices: tuple[str, ...]
    family: Mapping[str, str]
    dtypes: tuple[str, ...]
    clock_hz: Quantity
    dram_bytes_per_s: Quantity
    buffer_bytes: Quantity
    buffer_row_bytes: Quantity
    buffer_ports: Quantity
    array_2d: Grid
    array_1d: Grid
    limit_buffer: bool = False
    kind: str = "array"

    def grid(self, unit: str) -> Grid:
        """The array named `2d` or `1d`."""
        return self.array_2d if unit == "2d" else self.array_1d

    def circuit(self, grid: Grid, name: str) -> Circuit:
        return grid.own[name] if name in grid.own else self.technology.functions[name]

    def energy_pj(self, unit: str, klass: str) -> float:
        """Energy of the circuits of one application, registers left out."""
        grid = self.grid(unit)
        parts = grid.costs[klass].circuits.items()
        return sum(times * self.circuit(grid, name).energy_pj.value for name, times in parts)

    def with_vector_units(self, units: Mapping[str, float]) -> Array:
        """The array with a circuit of its own for these operator classes in every lane; `units`: their cycles."""
        own = {klass: Cost(cycles, {klass: 1.0}) for klass, cycles in units.items()}
        return replace(self, array_1d=replace(self.array_1d, costs={**self.array_1d.costs, **own})) if own else self

    def areas_um2(self) -> dict[str, float]:
        """Area by component: both arrays, the buffer, the top-level network.

        Each row of the 2-D array, the 1-D array and the top level have one leaf network.
        """
        leaf = self.technology.network_um2.value
        two_d, one_d = (g.elements * self._element_um2(g) for g in (self.array_2d, self.array_1d))
        buffer = self.technology.buffer_um2(self.buffer_bytes.value, self.buffer_row_bytes.value)
        return {
            "2-D array": two_d + leaf * self.array_2d.sides[0], "1-D array": one_d + leaf, "buffer": buffer,
            "network": leaf,
        }  # fmt: skip

    def _element_um2(self, grid: Grid) -> float:
        circuits = dict.fromkeys(name for cost in grid.costs.values() for name in cost.circuits)
        areas = (self.circuit(grid, name).area_um2 for name in circuits)
        return self.technology.register_file_um2(grid.registers.value) + sum(a.value for a in areas if a)


def _between(known: Sequence[tuple[float, float]], at: float) -> float:
    """Log-log interpolation through two or more points, the end segments prolonged; one point is a constant."""
    points = sorted(known)
    if len(points) == 1:
        return points[0][1]
    right = next((i for i in range(1, len(points) - 1) if at <= points[i][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    if at in (x0, x1):
        return y0 if at == x0 else y1
    return math.exp(math.log(y0) + math.log(y1 / y0) * math.log(at / x0) / math.log(x1 / x0))


# -- files -----------------------------------------------------------------------------------------------------------

_REQUIRED = (
    "name", "title", "kind", "devices", "family", "technology", "dtypes", "clock", "dram_rate", "buffer", "buffer_row",
    "buffer_ports", "array_2d", "array_1d",
)  # fmt: skip


def load_array(name_or_path: str | Path) -> Array:
    """As `load_hardware`, for what only a spatial array can answer. Raises `SpecError` for a GPU."""
    found = load_hardware(name_or_path)
    if not isinstance(found, Array):
        raise SpecError("hardware", 0, "", f'"{name_or_path}", a GPU', "a spatial array, such as fusemax")
    return found


def array_from(root: Item, path: Path) -> Array:
    """The array of one profile file; raises `SpecError`."""
    table = root.table(_REQUIRED, ["limit_buffer"])
    if table["name"].text() != path.stem:
        raise table["name"].error(f'"{path.stem}", the name of the file')
    technology = _technology_of(table["technology"], path)
    return Array(
        name=table["name"].text(),
        title=table["title"].text(),
        technology=technology,
        devices=tuple(item.text() for item in table["devices"].items()),
        family={phase: item.text() for phase, item in table["family"].table(PHASES).items()},
        dtypes=_dtypes(table["dtypes"]),
        array_2d=_grid("2-D array", table["array_2d"], ("rows", "columns"), technology),
        array_1d=_grid("1-D array", table["array_1d"], ("lanes",), technology),
        clock_hz=quantity(table["clock"], "Hz"),
        dram_bytes_per_s=quantity(table["dram_rate"], "byte/s"),
        buffer_bytes=quantity(table["buffer"], "byte"),
        buffer_row_bytes=quantity(table["buffer_row"], "byte"),
        buffer_ports=quantity(table["buffer_ports"], COUNT),
        limit_buffer=table["limit_buffer"].boolean() if "limit_buffer" in table else False,
    )


def _dtypes(item: Item) -> tuple[str, ...]:
    found = tuple(entry.choice(DTYPES) for entry in item.items())
    if not found:
        raise item.error(f"what the array computes in, one or more of: {', '.join(DTYPES)}")
    return found


def _grid(name: str, item: Item, sides: tuple[str, ...], technology: Technology) -> Grid:
    table = item.table([*sides, "registers", "functions", "source"])
    shape = [quantity(table[side], COUNT) for side in sides]
    one = Quantity(1.0, "1", "datasheet", "one row of lanes: the meaning of a 1-D array")
    rows, columns = shape if len(shape) == 2 else (one, shape[0])
    entries = table["functions"].table(optional=OPERATOR_CLASSES)
    own = {klass: _circuit(entry) for klass, entry in entries.items() if _is_circuit(entry)}
    known = {**technology.functions, **own}
    simple = {klass: _simple(klass, entry, known) for klass, entry in entries.items() if not _is_made_of(entry)}
    made = {klass: _made_of(entry, simple) for klass, entry in entries.items() if _is_made_of(entry)}
    costs = {klass: simple.get(klass) or made[klass] for klass in entries}
    return Grid(name, rows, columns, quantity(table["registers"], COUNT), costs, own, table["source"].text())


def _is_circuit(item: Item) -> bool:
    """A function that the profile brings itself: cycles, energy and, unless it is part of another, area."""
    return isinstance(item.value, dict) and "energy" in item.value


def _is_made_of(item: Item) -> bool:
    return isinstance(item.value, dict) and "energy" not in item.value


def _simple(klass: str, item: Item, known: Mapping[str, Circuit]) -> Cost:
    cycles = _positive(item.entries()["cycles"] if _is_circuit(item) else item)
    if klass not in known:
        hint = "give {cycles, energy, area, kind, source} here, or make it of functions: {macc: 6}"
        raise item.error(f"a function with a known energy: {', '.join(known)}", hint, f"{klass}, which has none")
    return Cost(cycles, {klass: 1.0})


def _made_of(item: Item, simple: Mapping[str, Cost]) -> Cost:
    """Functions applied one after another: cycles and circuits add up."""
    parts = {name: _positive(times) for name, times in item.table(optional=tuple(simple)).items()}
    if not parts:
        raise item.error(f"functions and how often, such as {{macc: 6}}, of: {', '.join(simple)}")
    return Cost(sum(n * simple[name].cycles for name, n in parts.items()), parts)


def _positive(item: Item) -> float:
    if item.number() <= 0:
        raise item.error("a number above zero")
    return item.number()


def _circuit(item: Item) -> Circuit:
    """`{energy: "17 pJ", area: "1545 um^2", kind: ..., source: ...}`; `cycles` beside it in profiles."""
    table = item.table(["energy", "kind", "source"], ["area", "cycles"])
    kind, source = table["kind"].choice(KINDS), table["source"].text()
    found = {key: Quantity(table[key].quantity(unit), table[key].text(), kind, source)
             for key, unit in (("energy", "pJ"), ("area", "um^2")) if key in table}  # fmt: skip
    plausible.check(table["energy"], "energy", found["energy"].value)
    return Circuit(found["energy"], found.get("area"))


def load_technology(path: Path) -> Technology:
    """One file of `technologies/`; raises `SpecError`."""
    table = strict_yaml.load(path).table(
        ["name", "title", "functions", "register_file", "dram", "network", "buffer_energy", "buffer_area"]
    )
    registers = table["register_file"].table(
        ["area", "area_per_doubling", "read", "write", "reads_per_operation", "writes_per_operation"]
    )
    energies = table["buffer_energy"].table(["row", "points"])
    row = quantity(energies["row"], "byte").value
    return Technology(
        name=table["name"].text(),
        functions={klass: _circuit(item) for klass, item in table["functions"].table(optional=OPERATOR_CLASSES).items()},
        register_area_um2=quantity(registers["area"], "um^2"),
        register_doubling_um2=quantity(registers["area_per_doubling"], "um^2"),
        register_read_pj=quantity(registers["read"], "pJ"),
        register_write_pj=quantity(registers["write"], "pJ"),
        reads_per_operation=quantity(registers["reads_per_operation"], COUNT),
        writes_per_operation=quantity(registers["writes_per_operation"], COUNT),
        dram_pj_per_byte=quantity(table["dram"].table(["energy"])["energy"], "pJ/byte"),
        network_um2=quantity(table["network"].table(["area"])["area"], "um^2"),
        buffer_energy=tuple(_point(i, {"read": "pJ", "write": "pJ"}, row) for i in energies["points"].items()),
        buffer_area=tuple(_point(i, {"area": "um^2"}) for i in table["buffer_area"].items()),
    )


def _point(item: Item, values: Mapping[str, str], row: float | None = None) -> BufferPoint:
    table = item.table(["capacity", *values, *(["row"] if row is None else []), "kind", "source"])
    kind, source = table["kind"].choice(KINDS), table["source"].text()
    found = {key: Quantity(table[key].quantity(unit), table[key].text(), kind, source) for key, unit in values.items()}
    return BufferPoint(table["capacity"].quantity("byte"), row or table["row"].quantity("byte"), found)


@cache
def _load_technology(path: Path, edited: State) -> Technology:
    return load_technology(path)


def _technology_of(item: Item, profile: Path) -> Technology:
    """The named technology: a file beside a profile of the user's own, or a shipped one."""
    folders = (profile.parent / "technologies", PROFILES / "technologies")
    name = item.choice(sorted({path.stem for folder in folders for path in folder.glob("*.yaml")}))
    file = next(f / f"{name}.yaml" for f in folders if (f / f"{name}.yaml").is_file())
    return _load_technology(file, state(file))
