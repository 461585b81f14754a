"""Families fitted on measured tables: which rows go into which fit, and the family file that holds the outcome.

A fit is for one architecture, phase, framework and pair of element types: what the constants may depend on. Devices of
one architecture are fitted together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from einsight.reports.compare import SHORT_MS, parts, rows_of
from einsight.reports.measured import Measured
from einsight.reports.outliers import set_aside
from einsight.sim.calibration import Calibration, Sample, constants_for, fit_few, regimes_of, with_constants
from einsight.sim.family import Family
from einsight.sim.framework import ADDED, LAUNCH, Addition
from einsight.sim.hardware import Gpu
from einsight.sim.kernel_names import framework_name
from einsight.sim.nearness import Fit
from einsight.sim.regime import Regime, Regimes
from einsight.sim.rows import Rows

FEWEST_ROWS = 40
"""Rows below which there is nothing to fit a dozen constants on."""
MOST_ROWS = 1200
"""Rows that one fit looks at; more change the held-out error by less than the tables' noise."""


class FittingError(ValueError):
    """Nothing to fit, or a family file that cannot be extended."""


@dataclass(frozen=True, slots=True, order=True)
class Ground:
    """What the constants of one fit hold for."""

    architecture: str
    phase: str
    framework: str
    dtypes: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fit: its ground, the devices that it saw, what was found, and the 90 % interval: its half width over all rows, and
    how far below and above measured times lie by regime."""

    ground: Ground
    devices: tuple[str, ...]
    found: Calibration
    interval: float
    regimes: Regimes

    @property
    def constants(self) -> dict[str, float]:
        return {**self.found.constants, "interval": self.interval}

    def as_fit(self, fitted_on: str) -> Fit:
        """As a family holds it."""
        g, c = self.ground, self.found
        error = (
            f"{c.error_held_out:.1f} % mean over {c.rows_held_out} held-out rows, p90 {c.p90_held_out:.1f} %; "
            f"{c.error_before:.1f} % before"
        )
        rounded = {name: float(_number(value)) for name, value in self.constants.items()}
        on = f"{fitted_on}: {c.rows_fitted} rows of {', '.join(self.devices)}"
        regimes = Regimes(tuple(Regime(r.shares, round(r.below, 3), round(r.above, 3)) for r in self.regimes.listed))
        return Fit(g.architecture, g.phase, g.dtypes, rounded, on, error, g.framework, regimes)


def samples(measured: Measured, family: Family, leave_out: str | None = None) -> dict[Ground, list[Sample]]:
    """The rows that a family can be fitted on, by ground and device: at least 15 us long, and not noise.

    leave_out   profile whose rows stay out
    """
    kept = measured.take((measured.latency_ms >= SHORT_MS) & ~set_aside(measured))
    found: dict[tuple[Ground, str], list[tuple[Gpu, Measured]]] = {}
    for part in parts(kept):
        if part.gpu is None or part.family != family.name or part.gpu.name == leave_out:
            continue
        some = kept.take(part.index)
        rows = rows_of(some.take(np.array([0])))
        ground = Ground(
            part.gpu.architecture.name, part.phase, framework_name(str(some.framework[0])),
            (str(rows.dtype[0]), str(rows.kv_dtype[0])),
        )  # fmt: skip
        found.setdefault((ground, part.gpu.name), []).append((part.gpu, some))
    out: dict[Ground, list[Sample]] = {}
    for (ground, _), pieces in sorted(found.items(), key=lambda item: item[0]):
        out.setdefault(ground, []).append(_sample(pieces))
    return {ground: s for ground, s in out.items() if sum(len(x.rows) for x in s) >= FEWEST_ROWS}


def calibrate(grounds: Mapping[Ground, Sequence[Sample]], family: Family) -> list[Fitted]:
    """Every ground's fit, from the family's assumed constants: fitted on one half of the rows, judged on the other."""
    start = replace(family, fits=())
    out = []
    for ground, made in grounds.items():
        found = fit_few(made, start, constants_for(start, ground.phase, made), MOST_ROWS)
        written = [float(_number(value)) for value in found.constants.values()]  # what the file will say, so that it repeats
        width, regimes = regimes_of(made, with_constants(start, list(found.constants), written))
        devices = tuple(s.gpu.name for s in made)
        out.append(Fitted(ground, devices, found, width, regimes))
    return out


def without(device: str, fits: Sequence[Fitted], measured: Measured, family: Family) -> list[Fitted]:
    """The fits that a family would have if the device had never been measured; those that did not see it are as they are."""
    shared = {f.ground for f in fits if device in f.devices}
    remaining = {g: made for g, made in samples(measured, family, device).items() if g in shared}
    return [f for f in fits if f.ground not in shared] + calibrate(remaining, family)


def fitted_family(family: Family, fits: Sequence[Fitted], fitted_on: str) -> Family:
    """The family with these fits and no others."""
    return replace(family, fits=tuple(f.as_fit(fitted_on) for f in fits))


def described(files: Sequence[Path]) -> str:
    """Names of the files and the first 16 digits of the SHA-256 of each: what a fit was made on."""
    return ", ".join(f"{file.name} (sha256 {sha256(file.read_bytes()).hexdigest()[:16]})" for file in files)


def with_fits(text: str, old: Sequence[Fit], new: Sequence[Fitted], fitted_on: str) -> str:
    """The family file `text`, whose fits are `old`, with `new` ones: those of the same ground replaced, all else kept."""
    head, entries, tail = _split(text)
    if len(entries) != len(old):
        raise FittingError(f"the list of fits has {len(entries)} entries that begin with '  - '; expected {len(old)}")
    kept = {_ground(f): entry for f, entry in zip(old, entries, strict=True)}
    kept |= {f.ground: _entry(f, fitted_on) for f in new}
    return head + "".join(kept[g] for g in sorted(kept)) + tail


def framework_text(framework: str, family: str, old: Sequence[Addition], new: Sequence[Fitted], fitted_on: str) -> str:
    """The file of a framework's own constants, as `new` fits of a family found them; entries of other grounds are kept."""
    entries = {(a.family, a.architecture, a.phase, a.dtypes): a for a in old}
    for fitted in new:
        f = fitted.as_fit(fitted_on)
        own = {name: f.constants[name] for name in (LAUNCH, *ADDED) if name in f.constants}
        if f.framework == framework:
            made = Addition(family, f.architecture, f.phase, f.dtypes, own, f.fitted_on)
            entries[family, f.architecture, f.phase, f.dtypes] = made
    lines = ["# What this framework's own kernels and launches add around a kernel family, as fits of that family found it.",
             f"name: {framework}", "additions:"]  # fmt: skip
    for a in (entries[key] for key in sorted(entries)):
        lines += [f"  - family: {a.family}", f"    architecture: {a.architecture}", f"    phase: {a.phase}",
                  f"    dtypes: [{', '.join(a.dtypes)}]", f'    fitted_on: "{a.fitted_on}"',
                  "    constants:" + ("" if a.constants else " {}")]  # fmt: skip
        lines += [f"      {name}: {_number(value)}" for name, value in a.constants.items()]
    return "\n".join(lines) + "\n"


def _sample(pieces: Sequence[tuple[Gpu, Measured]]) -> Sample:
    rows = [rows_of(some) for _, some in pieces]
    joined = Rows(*(np.concatenate([getattr(r, name) for r in rows]) for name in Rows.__slots__))
    return Sample(pieces[0][0], joined, np.concatenate([some.latency_ms for _, some in pieces]) * 1e-3)


def _ground(f: Fit) -> Ground:
    return Ground(f.architecture, f.phase, f.framework, (f.dtypes[0], f.dtypes[-1]))


def _split(text: str) -> tuple[str, list[str], str]:
    """(up to and with the key `fits` and what is said about it, its entries, what follows)."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    begin = next((k for k, line in enumerate(lines) if line.startswith("fits:")), None)
    if begin is None:
        return "".join([*lines, "fits:\n"]), [], ""
    end = next((k for k in range(begin + 1, len(lines)) if lines[k][0] not in " -#\n"), len(lines))
    starts = [k for k in range(begin + 1, end) if lines[k].startswith("  - ")]
    entries = ["".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], end], strict=True)]
    return "".join(lines[: starts[0] if starts else end]), entries, "".join(lines[end:])


def _entry(fitted: Fitted, fitted_on: str) -> str:
    """The YAML of one fit; every constant with its standard error."""
    f = fitted.as_fit(fitted_on)
    lines = [
        f"  - architecture: {f.architecture}", f"    phase: {f.phase}", f"    framework: {f.framework}",
        f"    dtypes: [{', '.join(f.dtypes)}]", f'    fitted_on: "{f.fitted_on}"', f'    error: "{f.error}"',
        "    constants:",
    ]  # fmt: skip
    for name, value in f.constants.items():
        error = fitted.found.uncertainty.get(name)
        lines.append(f"      {name}: {_number(value)}" + ("" if error is None else f"  # +- {error:.2g}"))
    lines.append("    regimes:" + ("" if f.regimes.listed else " []"))
    for r in f.regimes.listed:
        where = "".join(f", {name}: [{low:g}, {high:g}]" for name, (low, high) in sorted(r.shares.items()))
        lines.append(f"      - {{below: {r.below}, above: {r.above}{where}}}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """Four digits, as the reader of families takes numbers: with a point, the exponent signed."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:.3e}" if 0.0 < abs(rounded) < 1e-3 else repr(rounded)
