"""GPUs as frozen values read from `hw_profiles/`; every number carries its unit, its kind and its source.

What the devices of one generation share (limits per SM, rates per cycle, operator costs) is an `Architecture`; a `Gpu`
names one and adds what the device alone decides (number of SMs, clock, memories, power).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("datasheet", "guide", "measured", "assumed")


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
    kind: str = "gpu"
