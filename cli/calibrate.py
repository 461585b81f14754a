"""`einsight calibrate FILE...`: a kernel family's constants from measured cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.output import Json, print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, writable
from einsight.reports import measured
from einsight.reports.compare import Comparison, compare
from einsight.reports.fitting import (
    Fitted,
    calibrate,
    described,
    fitted_family,
    framework_text,
    samples,
    with_fits,
    without,
)  # fmt: skip
from einsight.reports.scores import HEADS, by_group, score
from einsight.sim.family import CONSTANTS, Family, family_file, load_family
from einsight.sim.framework import file_of, read_additions
from einsight.sim.hardware import find_device, load_gpu

HELD_OUT_BY = ("target", "framework", "phase")


def run(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Measured cases, .csv or .csv.gz.")],
    family: Annotated[str, typer.Option(metavar="NAME", help="Which family: a name, or the path of a family file.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the family file with the fits.")] = None,
    frameworks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write what each framework adds around the kernel, a file each.")
    ] = None,
    leave_out: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Fit without this device and judge on it; a profile or device string.")
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="That for every device of the files in turn.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fits a family's constants on half of the rows and judges on the others, or on a device left out.

    Example: einsight calibrate a100.csv.gz l40s.csv.gz --family flash2 --leave-one-out
    """
    if leave_out and leave_one_out:
        raise CommandError("--leave-out", "it beside --leave-one-out", "one of them")
    writable(out, "--out")
    fam, cases = load_family(family), measured.read(files)
    device = _profile(leave_out) if leave_out else None
    if device and not any(_on_device(cases, device)):
        raise CommandError("--leave-out", leave_out, f"a device that the files have rows of, one of {', '.join(_named(cases))}")
    fits = calibrate(samples(cases, fam, device), fam)
    if not fits:
        raise CommandError("FILE", f"no row to fit {fam.name} on", "at least 40 cases of 15 us and more that run it")
    on = described(files)
    left = [device] if device else _devices(fits) if leave_one_out else []
    judged = {name: _judge(cases, fam, name, fits, on) for name in left}
    if out is not None:
        text = family_file(family).read_text(encoding="utf-8")
        out.write_text(with_fits(text, fam.fits, fits, on), encoding="utf-8")
    if frameworks is not None:
        _write_frameworks(frameworks, fam.name, fits, on)
    if as_json:
        return print_json(_as_json(fam, fits, judged, on))
    for fit in fits:
        _print_fit(fam, fit)
    for name, found in judged.items():
        _print_left_out(name, found)
    if out is not None:
        print_lines([f"{out}: {len(fits)} fits of {fam.name} on {on}"])


def _named(cases: measured.Measured) -> list[str]:
    """The devices of the rows: profiles where they are known, else as the driver prints them."""
    return sorted({find_device(name) or repr(name) for name in measured.codes(cases.device)[0]})


def _write_frameworks(folder: Path, family: str, fits: Sequence[Fitted], on: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted({fit.ground.framework for fit in fits}):
        file = folder / file_of(name).name
        old = read_additions(file) if file.is_file() else ()
        file.write_text(framework_text(name, family, old, fits, on), encoding="utf-8")


def _profile(device: str) -> str:
    """The profile of a device string or of its own name."""
    return find_device(device) or load_gpu(device).name


def _devices(fits: Sequence[Fitted]) -> list[str]:
    return sorted({name for fit in fits for name in fit.devices})


def _judge(cases: measured.Measured, family: Family, device: str, fits: Sequence[Fitted], on: str) -> Comparison:
    """The device's rows of this family under constants fitted without it."""
    made = without(device, fits, cases, family)
    theirs = cases.take(_on_device(cases, device))
    found = compare(theirs, families=lambda name: fitted_family(family, made, on) if name == family.name else load_family(name))
    return found.take(found.family == family.name)


def _on_device(cases: measured.Measured, device: str) -> Any:
    names, place = measured.codes(cases.device)
    return [find_device(names[p]) == device for p in place.tolist()]


def _as_json(
    family: Family, fits: Sequence[Fitted], judged: dict[str, Comparison], on: str
) -> dict[str, Any]:
    return {
        "family": family.name,
        "fitted_on": on,
        "fits": [_fit_json(fit) for fit in fits],
        "left_out": {
            name: {"overall": score(c).as_json(), "groups": [{**v, **s.as_json()} for v, s in by_group(c, HELD_OUT_BY)]}
            for name, c in judged.items()
        },
    }


def _fit_json(fit: Fitted) -> dict[str, Any]:
    g, c = fit.ground, fit.found
    return {
        "architecture": g.architecture, "phase": g.phase, "framework": g.framework, "dtypes": list(g.dtypes),
        "devices": list(fit.devices), "rows_fitted": c.rows_fitted, "rows_held_out": c.rows_held_out,
        "error_before_percent": c.error_before, "error_fitted_percent": c.error_fitted,
        "error_held_out_percent": c.error_held_out, "p90_held_out_percent": c.p90_held_out,
        "constants": {
            name: {"value": value, "standard_error": c.uncertainty.get(name), "unit": CONSTANTS[name].unit}
            for name, value in fit.constants.items()
        },
    }  # fmt: skip


def _print_fit(family: Family, fit: Fitted) -> None:
    g, c = fit.ground, fit.found
    title = f"{family.name} on {g.architecture}, {g.phase}, {g.framework}, {'/'.join(g.dtypes)} ({', '.join(fit.devices)})"
    rows = []
    for name, value in fit.constants.items():
        error, bounds = c.uncertainty.get(name), CONSTANTS[name]
        at_bound = " (at its bound)" if _near(value, bounds.low, bounds.high) else ""
        rows.append((name, f"{value:.4g}", "" if error is None else f"{error:.2g}", bounds.unit, bounds.meaning + at_bound))
    print_table(title, ("constant", "value", "+-", "unit", "meaning"), rows, right=("value", "+-"))
    print_lines([
        f"mean error {c.error_before:.1f} % before, {c.error_fitted:.1f} % on the {c.rows_fitted} rows fitted, "
        f"{c.error_held_out:.1f} % on {c.rows_held_out} held out (p90 {c.p90_held_out:.1f} %)", "",
    ])  # fmt: skip


def _near(value: float, low: float, high: float) -> bool:
    return min(value - low, high - value) < 2e-3 * (high - low)


def _print_left_out(name: str, found: Comparison) -> None:
    rows = [(" ".join(map(str, values.values())), *s.cells()) for values, s in by_group(found, HELD_OUT_BY)]
    heads = (", ".join(HELD_OUT_BY), *HEADS)
    print_table(f"{name}, left out of every fit: error in percent", heads, rows, right=HEADS, wrap=heads[:1])
    print_lines([*(note[:1].upper() + note[1:] for note in found.notes), ""])
