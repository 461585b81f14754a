"""The energy of a tensor-core operation per architecture (`tensor_energy` of hw_profiles/architectures): one command.

    python benchmarks/fit_clock.py [FOLDER of .csv.gz tables]

A long run pays that energy at TDP, so that its clock falls. It belongs to the architecture and the width of the operands,
not to a kernel: for each of a handful of values the constants of every kernel family are fitted again, on prefill rows of
`LONG_S` and more, and the least value whose error over all of them together is within `TELLS` of the smallest is printed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from measured_tables import given_files

from einsight.reports import measured
from einsight.reports.compare import parts
from einsight.reports.fitting import Ground, samples
from einsight.sim.calibration import STARTS, Sample, constants_for, fit
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import DTYPE_BYTES, OPERAND_CLASSES, Quantity

ROOT = Path(__file__).resolve().parents[1]
LONG_S = 5e-4
"""Rows from here on tell the clocks apart: the loops that lower it react within milliseconds."""
ROWS = 300
"""Rows of one fit."""
PICOJOULES = (0.0, 0.03, 0.06, 0.12, 0.2, 0.3, 0.45)
"""What is tried, per FLOP."""
TELLS = 0.05
"""Percent of mean error that the rows cannot tell apart: of such values the smallest claims least."""


def main() -> int:
    files = given_files()
    cases = measured.read(files)
    cases = cases.take(cases.phase == "prefill")
    errors: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for name in sorted({part.family for part in parts(cases) if part.family}):
        family = replace(load_family(name), fits=())
        for ground, made in samples(cases, family).items():
            long = [s for s in map(_long, made) if len(s.measured_s) >= ROWS // 4]
            if long:
                found = [_error(family, ground, long, energy) for energy in PICOJOULES]
                errors[ground.architecture, _class(family, ground, long[0])].append(found)
                where = f"{ground.architecture} {ground.framework} {'/'.join(ground.dtypes)}"
                print(f"  {name} {where}", *_rounded(found), flush=True)
    for (architecture, width), tables in sorted(errors.items()):
        mean = np.mean(tables, axis=0)
        chosen = PICOJOULES[int(np.flatnonzero(mean <= mean.min() + TELLS)[0])]
        print(f"{architecture} {width}: {chosen} pJ/FLOP; mean errors", *_rounded(mean.tolist()))
    return 0


def _long(sample: Sample) -> Sample:
    """The rows whose clock can fall, and those just too short for it."""
    keep = sample.measured_s >= LONG_S
    return Sample(sample.gpu, sample.rows.take(keep), sample.measured_s[keep])


def _class(family: Family, ground: Ground, sample: Sample) -> str:
    """Width of what the products run in."""
    return OPERAND_CLASSES[DTYPE_BYTES[family.for_products(sample.gpu, *ground.dtypes)[1]] < 2.0]


def _error(family: Family, ground: Ground, made: list[Sample], picojoule: float) -> float:
    """Mean error in percent of the rows that the fit saw, under one energy: those that judge choose no constant."""
    energy = dict.fromkeys(OPERAND_CLASSES, Quantity(1e-12 * picojoule, f"{picojoule} pJ/FLOP", "assumed", "tried"))
    tried = [
        replace(s, gpu=replace(s.gpu, architecture=replace(s.gpu.architecture, tensor_energy=energy))) for s in made
    ]
    return fit(tried, family, constants_for(family, ground.phase, tried), ROWS, starts=STARTS[1:2]).error_fitted


def _rounded(values: list[float]) -> list[str]:
    return [f"{v:.2f}" for v in values]


if __name__ == "__main__":
    sys.exit(main())
