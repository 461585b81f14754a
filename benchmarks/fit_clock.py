"""What lowers the clock of a long run (`tensor_energy` and `l2_energy` of hw_profiles/architectures): one command.

    python benchmarks/fit_clock.py [FOLDER of .csv.gz tables]

A long run pays the energy of its products and of its bytes from L2 at TDP, so that its clock falls. A byte from L2 costs the
same on all architectures, an operation of the tensor cores belongs to the architecture and the width of the operands; neither
belongs to a kernel. Each is given a handful of values, the others as shipped; for each value the constants of every kernel
family are fitted again, on prefill rows of `LONG_S` and more, and the one with the smallest mean error is printed, beside what
is shipped: run it again with new values until nothing changes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measured_tables import given_files

from einsight.reports import measured
from einsight.reports.compare import parts
from einsight.reports.fitting import Ground, samples
from einsight.sim.calibration import STARTS, Sample, constants_for, fit
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import DTYPE_BYTES, OPERAND_CLASSES, Quantity
from einsight.sim.schedule import Array

LONG_S = 5e-4
"""Rows from here on tell the clocks apart: the loops that lower it react within milliseconds."""
ROWS = 300
"""Rows of one fit."""
L2 = "L2"
TRIED: Mapping[str, tuple[float, ...]] = {
    L2: (0.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0),
    **dict.fromkeys(OPERAND_CLASSES, (0.03, 0.06, 0.12, 0.2, 0.3, 0.45)),
}
"""Picojoules, per byte from L2 and per FLOP of operands of either width; a product is never free."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """Long rows of one family on one ground, and the width of what its products run in."""

    family: Family
    ground: Ground
    rows: list[Sample]
    width: str


def main() -> int:
    kernels = _kernels(given_files())
    architectures = sorted({k.ground.architecture for k in kernels})
    print("mean errors of the fitted rows, %, at pJ per byte from L2:", *TRIED[L2])
    errors = {name: _errors(name, L2, [k for k in kernels if k.ground.architecture == name]) for name in architectures}
    _choose("all architectures", L2, np.mean(list(errors.values()), axis=0), kernels)
    for width in OPERAND_CLASSES:
        print(f"at pJ per FLOP of {width}:", *TRIED[width])
        for name in architectures:
            if concerned := [k for k in kernels if (k.ground.architecture, k.width) == (name, width)]:
                _choose(name, width, _errors(name, width, concerned), concerned)
    return 0


def _errors(name: str, what: str, kernels: list[Kernel]) -> Array:
    """Mean error over some kernels for each value of one energy, the others as shipped."""
    tables = []
    for k in kernels:
        tables.append([_error(k, {**_shipped(k), what: value}) for value in TRIED[what]])
        where = f"{k.family.name} {k.ground.framework} {'/'.join(k.ground.dtypes)}"
        print(f"    {name} {where}", *_rounded(tables[-1]), flush=True)
    mean: Array = np.mean(tables, axis=0)
    print(f"  {name}:", *_rounded(mean.tolist()), flush=True)
    return mean


def _choose(name: str, what: str, errors: Array, kernels: list[Kernel]) -> None:
    """Prints the best value beside what the files of these kernels' architectures say."""
    best = TRIED[what][int(np.argmin(errors))]
    shipped = sorted({round(_shipped(k)[what], 6) for k in kernels})
    print(f"{name}, {what}: {best:g} pJ, {errors.min():.2f} %; shipped", *shipped, "\n", flush=True)


def _kernels(files: list[Path]) -> list[Kernel]:
    """What has enough long rows."""
    cases = measured.read(files)
    cases = cases.take(cases.phase == "prefill")
    found = []
    for name in sorted({part.family for part in parts(cases) if part.family}):
        family = replace(load_family(name), fits=())
        for ground, made in samples(cases, family).items():
            long = [s for s in map(_long, made) if len(s.measured_s) >= ROWS // 4]
            if long:
                operands = family.for_products(long[0].gpu, *ground.dtypes)[1]
                found.append(Kernel(family, ground, long, OPERAND_CLASSES[DTYPE_BYTES[operands] < 2.0]))
    return found


def _long(sample: Sample) -> Sample:
    """The rows whose clock can fall, and those just too short for it."""
    keep = sample.measured_s >= LONG_S
    return Sample(sample.gpu, sample.rows.take(keep), sample.measured_s[keep])


def _shipped(kernel: Kernel) -> dict[str, float]:
    """Picojoules as the file of the architecture has them."""
    architecture = kernel.rows[0].gpu.architecture
    tensor = {width: 1e12 * q.value for width, q in architecture.tensor_energy.items()}
    return {L2: 1e12 * architecture.joule_per_byte, **dict.fromkeys(OPERAND_CLASSES, 0.0), **tensor}


def _error(kernel: Kernel, energies: Mapping[str, float]) -> float:
    """Mean error in percent of the rows that the fit saw: those that judge choose no constant."""
    given = {name: Quantity(1e-12 * value, f"{value} pJ", "assumed", "tried") for name, value in energies.items()}
    tensor = {width: given[width] for width in OPERAND_CLASSES}

    def with_energies(s: Sample) -> Sample:
        architecture = replace(s.gpu.architecture, tensor_energy=tensor, l2_energy=given[L2])
        return replace(s, gpu=replace(s.gpu, architecture=architecture))

    tried, family = [with_energies(s) for s in kernel.rows], kernel.family
    return fit(tried, family, constants_for(family, kernel.ground.phase, tried), ROWS, starts=STARTS[1:2]).error_fitted


def _rounded(values: list[float]) -> list[str]:
    return [f"{v:.2f}" for v in values]


if __name__ == "__main__":
    sys.exit(main())
