"""GPUs as frozen values read from `hw_profiles/`; every number carries its unit, its kind and its source.

What the devices of one generation share (limits per SM, rates per cycle, operator costs) is an `Architecture`; a `Gpu`
names one and adds what the device alone decides (number of SMs, clock, memories, power).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from einsight.einsum.expression import OPERATORS
from einsight.sim import plausible, strict_yaml
from einsight.sim.file_state import State, state
from einsight.sim.strict_yaml import Item, SpecError
from einsight.sim.units import COUNT

if TYPE_CHECKING:
    from einsight.sim.array_hardware import Array

KINDS = ("datasheet", "guide", "measured", "assumed")
PROFILES = Path(__file__).resolve().parent.parent / "hw_profiles"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in base SI units (`value`), the unit it was written in, and where it comes from."""

    value: float
    text: str  # as written in the profile, for people: "4.8 TB/s"
    kind: str  # one of KINDS
    source: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """What every device of one compute capability shares, per SM.

    operators[klass][unit]  operations that one application of the operator class costs on `unit`, with units
    `special` (special-function unit), `vector` (fp32 pipe); `exp: {special: 1}`, `sigmoid: {special: 2, vector: 1}`.
    Every class of `einsum.expression.OPERATORS` is there, and `macc`: a multiply-accumulate outside the tensor cores.
    """

    name: str
    compute_capability: str
    instructions: str  # mma.sync | wgmma | tcgen05 | mfma
    vector_ops_per_cycle: Quantity  # fp32 lanes: instructions per cycle, an FMA is one
    special_ops_per_cycle: Quantity
    shared_bytes_per_cycle: Quantity
    l2_bytes_per_cycle: Quantity  # what one SM can pull from L2
    shared_bytes: Quantity  # per SM
    shared_bytes_per_block: Quantity  # opt-in maximum of one block
    registers: Quantity  # 32-bit, per SM
    registers_per_thread: Quantity
    warps: Quantity
    blocks: Quantity
    warp_threads: int
    operators: Mapping[str, Mapping[str, float]]
    operators_kind: str  # one of KINDS, for the whole table
    operators_source: str
    tensor_memory_columns: Quantity | None = None  # of 128 lanes x 4 B; None where accumulators live in registers
    tensor_energy: Mapping[str, Quantity] = field(default_factory=dict)  # J/FLOP beyond boost's budget, by `OPERAND_CLASSES`
    l2_energy: Quantity | None = None  # J/byte beyond boost's budget, of a byte that an SM pulls from L2

    def joule_per_flop(self, dtype: str) -> float:
        """Energy of one tensor-core operation that a long run pays at TDP; none where the file says nothing."""
        found = self.tensor_energy.get(OPERAND_CLASSES[DTYPE_BYTES[dtype] < 2.0])
        return found.value if found else 0.0

    @property
    def joule_per_byte(self) -> float:
        """Energy of one byte from L2 that a long run pays at TDP; none where the file says nothing."""
        return self.l2_energy.value if self.l2_energy else 0.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Bandwidths in bytes per second, capacities in bytes, clocks in hertz, power in watts."""

    name: str
    title: str
    architecture: Architecture
    devices: tuple[str, ...]  # what the driver prints
    family: Mapping[str, str]  # default kernel family per phase
    sms: Quantity
    boost_hz: Quantity
    tdp_w: Quantity
    hbm_bytes: Quantity
    hbm_bytes_per_s: Quantity
    l2_bytes: Quantity
    tensor_flops_per_cycle: Mapping[str, Quantity]  # dense, per SM, by dtype of the operands (fp32 accumulate)
    peak_flops_per_s: Mapping[str, Quantity]  # as the vendor prints it: dense, whole device; a check, not an input
    peak_hz: Quantity | None = None  # the clock at which the vendor quotes those peaks, where it is not the boost clock
    kind: str = "gpu"

    def tensor_flops_per_s(self, dtype: str, hz: float | None = None) -> float:
        """Dense tensor-core rate of the whole device at a clock (boost if none is given)."""
        return self.sms.value * self.tensor_flops_per_cycle[dtype].value * (hz or self.boost_hz.value)

    def sustained_hz(self, dtype: str) -> float:
        """The clock of a long run that keeps the tensor cores busy: boost, less what their energy takes of TDP."""
        drawn = self.architecture.joule_per_flop(dtype) * self.tensor_flops_per_s(dtype)
        return self.boost_hz.value / (1.0 + drawn / self.tdp_w.value)


OPERAND_CLASSES = ("bits16", "bits8")
"""Operands of two bytes and more, and narrower ones."""
INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05", "mfma")
PHASES = ("prefill", "decode")
DTYPES = ("fp16", "bf16", "tf32", "fp32", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1")
DTYPE_BYTES: Mapping[str, float] = {
    "fp16": 2.0, "bf16": 2.0, "tf32": 4.0, "fp32": 4.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "fp4_e2m1": 0.5,
}  # fmt: skip
COST_UNITS = ("special", "vector")
OPERATOR_CLASSES = tuple(sorted({op.klass for op in OPERATORS.values() if op.klass} | {"macc"}))

# field of the dataclass: key in the file, unit
_ARCHITECTURE_QUANTITIES = {
    "vector_ops_per_cycle": ("vector_rate", "op/cycle"),
    "special_ops_per_cycle": ("special_rate", "op/cycle"),
    "shared_bytes_per_cycle": ("shared_rate", "byte/cycle"),
    "l2_bytes_per_cycle": ("l2_rate", "byte/cycle"),
    "shared_bytes": ("shared_memory", "byte"),
    "shared_bytes_per_block": ("shared_memory_per_block", "byte"),
    "registers": ("registers", COUNT),
    "registers_per_thread": ("registers_per_thread", COUNT),
    "warps": ("warps", COUNT),
    "blocks": ("blocks", COUNT),
}
_GPU_QUANTITIES = {
    "sms": ("sms", COUNT),
    "boost_hz": ("boost", "Hz"),
    "tdp_w": ("tdp", "W"),
    "hbm_bytes": ("memory", "byte"),
    "hbm_bytes_per_s": ("memory_rate", "byte/s"),
    "l2_bytes": ("l2", "byte"),
}
_ON_CHIP = frozenset({"shared_memory", "shared_memory_per_block", "l2", "buffer"})  # powers of two: MB would be 5 % wrong


@cache
def names() -> tuple[str, ...]:
    """The shipped targets, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))


def load_hardware(name_or_path: str | Path) -> Gpu | Array:
    """The hardware of a shipped profile ("h200-sxm") or of a profile file ("./my-gpu.yaml"). Kept until the file changes.

    Raises `SpecError` for an unknown name, an unreadable file or a profile that says something else than it should.
    """
    path = Path(name_or_path)
    if path.suffix != ".yaml":
        if name_or_path in names():
            return _load(PROFILES / f"{name_or_path}.yaml", ())
        hint = strict_yaml.did_you_mean(str(name_or_path), names())
        known = f"a .yaml file or one of: {', '.join(names())}"
        raise SpecError("hardware", 0, "", f'"{name_or_path}"', known, hint)
    beside = (f for folder in ("architectures", "technologies") for f in sorted((path.parent / folder).glob("*.yaml")))
    return _load(path.resolve(), (state(path), *map(state, beside)))


def load_gpu(name_or_path: str | Path) -> Gpu:
    """As `load_hardware`, for what only a GPU can answer. Raises `SpecError` for a spatial array."""
    found = load_hardware(name_or_path)
    if not isinstance(found, Gpu):
        raise SpecError("hardware", 0, "", f'"{name_or_path}", a spatial array', "a GPU")
    return found


def find_device(device: str) -> str | None:
    """Name of the shipped profile that lists this device as the driver prints it ("NVIDIA H200"), or None."""
    for name in names():
        listed = strict_yaml.load(PROFILES / f"{name}.yaml").entries().get("devices")
        if listed is not None and device.strip() in (item.text() for item in listed.items()):
            return name
    return None


def load_architecture(path: Path) -> Architecture:
    """One file of `architectures/`; raises `SpecError`."""
    root = strict_yaml.load(path)
    keys = [key for key, _ in _ARCHITECTURE_QUANTITIES.values()]
    required = ["name", "compute_capability", "instructions", "warp_threads", *keys, "operators"]
    table = root.table(required, ["tensor_memory_columns", "tensor_energy", "l2_energy"])
    _same_as_file(table["name"], path)
    operators = table["operators"].table(["kind", "source", "costs"])
    costs = operators["costs"].table(OPERATOR_CLASSES)
    columns = table.get("tensor_memory_columns")
    energy = table["tensor_energy"].table(OPERAND_CLASSES) if "tensor_energy" in table else {}
    return Architecture(
        name=table["name"].text(),
        compute_capability=table["compute_capability"].text(),
        instructions=table["instructions"].choice(INSTRUCTIONS),
        warp_threads=table["warp_threads"].integer(1),
        operators={klass: _cost(item) for klass, item in costs.items()},
        operators_kind=operators["kind"].choice(KINDS),
        operators_source=operators["source"].text(),
        tensor_energy={name: quantity(entry, "J/flop") for name, entry in energy.items()},
        l2_energy=quantity(table["l2_energy"], "J/byte") if "l2_energy" in table else None,
        tensor_memory_columns=quantity(columns, COUNT) if columns else None,
        **{name: quantity(table[key], unit) for name, (key, unit) in _ARCHITECTURE_QUANTITIES.items()},
    )


PEAK_ALLOWED = 0.04
"""Relative difference between the printed peak and SMs x rate x clock: vendors round, and quote clocks of their own."""


@cache
def _load(path: Path, edited: tuple[State, ...]) -> Gpu | Array:
    root = strict_yaml.load(path)
    kind = root.entries().get("kind")
    if kind is None:
        raise root.error(f"the key kind, one of: {', '.join(_BUILDERS)}")
    return _BUILDERS[kind.choice(_BUILDERS)](root, path)


def _gpu(root: Item, path: Path) -> Gpu:
    keys = [key for key, _ in _GPU_QUANTITIES.values()]
    required = ["name", "title", "kind", "architecture", "devices", "family", *keys, "tensor", "peak"]
    table = root.table(required, ["peak_clock"])
    _same_as_file(table["name"], path)
    tensor, peak = table["tensor"].table(optional=DTYPES), table["peak"].table(optional=DTYPES)
    clock = table.get("peak_clock")
    gpu = Gpu(
        name=table["name"].text(),
        title=table["title"].text(),
        kind=table["kind"].text(),
        architecture=_architecture(table["architecture"], path),
        devices=tuple(item.text() for item in table["devices"].items()),
        family={phase: item.text() for phase, item in table["family"].table(PHASES).items()},
        tensor_flops_per_cycle={dtype: quantity(item, "flop/cycle") for dtype, item in tensor.items()},
        peak_flops_per_s={dtype: quantity(item, "flop/s") for dtype, item in peak.items()},
        peak_hz=quantity(clock, "Hz") if clock else None,
        **{name: quantity(table[key], unit) for name, (key, unit) in _GPU_QUANTITIES.items()},
    )
    for dtype, item in peak.items():
        _check_peak(gpu, dtype, item)
    return gpu


def _check_peak(gpu: Gpu, dtype: str, item: Item) -> None:
    """SMs x rate x clock has to give the peak that the vendor prints: a wrong clock, rate or sparse peak shows here."""
    if dtype not in gpu.tensor_flops_per_cycle:
        raise item.error(f"a rate of {dtype} under `tensor`, too", found=f"a peak of {dtype} alone")
    clock, printed = gpu.peak_hz or gpu.boost_hz, gpu.peak_flops_per_s[dtype]
    made = gpu.tensor_flops_per_s(dtype, clock.value)
    if abs(made / printed.value - 1) > PEAK_ALLOWED:
        name = "peak_clock" if gpu.peak_hz else "boost"
        hint = "is it the peak with sparsity?" if 1.9 < printed.value / made < 2.1 else "peak_clock names another clock"
        gives = f"what sms x tensor.{dtype} x {name} gives, {made * 1e-12:.4g} TFLOP/s"
        raise item.error(f"{gives}, within {PEAK_ALLOWED:.0%}", hint, printed.text)


def _array(root: Item, path: Path) -> Array:
    from einsight.sim.array_hardware import array_from  # that module reads its quantities with this one's functions

    return array_from(root, path)


_BUILDERS: Mapping[str, Callable[[Item, Path], Gpu | Array]] = {"gpu": _gpu, "array": _array}


def _architecture(item: Item, profile: Path) -> Architecture:
    """The named architecture: a file beside a profile of the user's own, or a shipped one."""
    folders = (profile.parent / "architectures", PROFILES / "architectures")
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    name = item.choice(known)
    file = next(f / f"{name}.yaml" for f in folders if (f / f"{name}.yaml").is_file())
    return _load_architecture(file, state(file))


@cache
def _load_architecture(path: Path, edited: State) -> Architecture:
    return load_architecture(path)


def _cost(item: Item) -> dict[str, float]:
    return {unit: number.number() for unit, number in item.table((), COST_UNITS).items()}


def quantity(item: Item, unit: str) -> Quantity:
    """One number of a profile: `{value: "4.8 TB/s", kind: datasheet, source: "title of the document"}`; the source of an
    `assumed` one is what it rests on."""
    table = item.table(["value", "kind", "source"])
    value = table["value"].quantity(unit)
    if value <= 0:
        raise table["value"].error("a number above zero")
    if unit == COUNT and value != int(value):
        raise table["value"].error("a whole number")
    plausible.check(table["value"], item.path, value)
    if item.path.split(".")[-1] in _ON_CHIP and "iB" not in table["value"].text():
        hint = "vendors print MB and mean MiB here; MB is 10^6 bytes"
        raise table["value"].error("on-chip memory in KiB or MiB", hint)
    if not table["source"].text().strip():
        raise table["source"].error("where the number comes from")
    return Quantity(value, str(table["value"].value), table["kind"].choice(KINDS), table["source"].text())


def _same_as_file(name: Item, path: Path) -> None:
    if name.text() != path.stem:
        raise name.error(f'"{path.stem}", the name of the file')

