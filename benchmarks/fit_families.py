"""Every fitted constant of the shipped kernel families, again from the measured tables: one command, a few minutes.

    python benchmarks/fit_families.py [FOLDER of .csv.gz tables] [OUT]

Does for each family what `einsight calibrate --family F --out ... --frameworks ...` does, on the tables that hold its
kernels, and writes OUT/families and OUT/frameworks (default: sim/). Fits of grounds without a table stay as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path

from measured_tables import given_files

from einsight.reports import measured
from einsight.reports.compare import parts
from einsight.reports.fitting import calibrate, described, framework_text, samples, with_fits
from einsight.sim.family import family_file, load_family
from einsight.sim.framework import file_of, read_additions

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    files, out = given_files(), Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "sim"
    for kind in ("families", "frameworks"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    tables = {file: measured.read([file]) for file in files}
    used = {file: families_of(cases) for file, cases in tables.items()}
    for family in sorted(set().union(*used.values())):
        refit(family, {file: tables[file] for file in files if family in used[file]}, out)
    return 0


def families_of(cases: measured.Measured) -> set[str]:
    """The families that model a table's kernels."""
    return {part.family for part in parts(cases) if part.family}


def refit(name: str, tables: dict[Path, measured.Measured], out: Path) -> None:
    """Fits a family on its tables and writes its file and its frameworks' files."""
    family, on = load_family(name), described(list(tables))
    fits = calibrate(samples(measured.concatenate(list(tables.values())), family), family)
    text = family_file(name).read_text(encoding="utf-8")
    (out / "families" / f"{name}.yaml").write_text(with_fits(text, family.fits, fits, on), encoding="utf-8")
    for framework in sorted({fit.ground.framework for fit in fits}):
        file = out / "frameworks" / file_of(framework).name
        old = read_additions(file) if file.is_file() else ()
        file.write_text(framework_text(framework, name, old, fits, on), encoding="utf-8")
    for fit in fits:
        g, c = fit.ground, fit.found
        ground = f"{g.architecture} {g.phase} {g.framework} {'/'.join(g.dtypes)}"
        held_out = f"{c.error_held_out:6.1f} % of {c.rows_held_out:6} held out, interval {100 * fit.interval:.0f} %"
        print(f"{name:20} {ground:45} {held_out}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
