"""The tables of docs/accuracy.md, from measured tables and the shipped fits: one command, no argument needed.

    python benchmarks/accuracy_table.py [FOLDER of .csv.gz tables]

Writes between the marks of docs/accuracy.md, the summary into README.md too. Four views of every group
(device, framework, phase):

held out              the half of the rows that no fit saw, under the shipped fits
architecture unseen   every row, under families without any fit of the device's architecture
framework unseen      rows whose kernel has fits of another framework on this architecture, under those alone: without what
                      the row's framework gave for this kernel, and without anything of that framework
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from measured_tables import given_files

from einsight.reports import measured
from einsight.reports.compare import Comparison, compare, parts, rows_of
from einsight.reports.outliers import RULE
from einsight.reports.scores import Score, clusters, score
from einsight.sim import family as family_module
from einsight.sim import framework as frameworks
from einsight.sim.calibration import held_out
from einsight.sim.family import Family, load_family
from einsight.sim.hardware import find_device, load_gpu
from einsight.sim.kernel_names import framework_name
from einsight.sim.nearness import Fit

ROOT = Path(__file__).resolve().parents[1]
PAGE, README = ROOT / "docs" / "accuracy.md", ROOT / "README.md"
KINDS = ("16 bit", "sliding window", "fp8")
BARS = {
    ("prefill", True): (6.5, 8.0, 15.0, 20.0), ("decode", True): (8.0, 10.0, 18.0, 25.0),
    ("prefill", False): (10.0, 12.0, 20.0, 30.0), ("decode", False): (10.0, 12.0, 20.0, 30.0),
}  # fmt: skip
"""Largest mean error in percent that we allow: held-out rows, device unseen, framework unseen, architecture unseen."""


def main() -> int:
    files = given_files()
    table, shipped = [], []
    for file in files:
        cases = measured.read([file])
        whole = compare(cases)
        shipped.append(whole)
        table += list(_lines(cases, whole))
        print(file.name, file=sys.stderr)
    text = PAGE.read_text(encoding="utf-8")
    summary = _summary(shipped, table)
    for name, block in (("groups", _table(table)), ("clusters", _clusters(joined(shipped))), ("summary", summary)):
        text = _between(text, name, block)
    PAGE.write_text(text, encoding="utf-8")
    README.write_text(_between(README.read_text(encoding="utf-8"), "summary", summary), encoding="utf-8")
    return 0


def _lines(cases: measured.Measured, shipped: Comparison) -> Iterator[tuple[str, ...]]:
    """The table's lines of one file: per phase and kind, an error per view."""
    fresh = judged_rows(cases)
    unseen = compare_without(cases, lambda _, fit, arch, __: fit.architecture == arch)
    foreign = [_foreign(cases, shipped, everywhere) for everywhere in (False, True)]
    device, framework = str(cases.device[0]), str(cases.framework[0])
    for phase in measured.PHASES:
        for kind in (*KINDS, "all"):
            rows = _kind_of(unseen, phase, kind)
            own, far = score(shipped, rows & fresh), score(unseen, rows)
            if not own.n:
                continue
            kernel, at_all = (None if f is None else score(f, _kind_of(f, phase, kind)) for f in foreign)
            bars = BARS[phase, kind in ("16 bit", "all")]
            yield (
                f"{device}, {framework}", phase, kind, str(own.n), _against(own, bars[0]), f"{own.mdape_percent:.1f}",
                f"{own.p90_percent:.1f}", f"{own.coverage_percent:.0f}", _times_median(own),
                _against(far, bars[3]), f"{far.coverage_percent:.0f}",
                _against(kernel, bars[2]), _against(at_all), f"{own.roofline_mape_percent:.0f}",
            )  # fmt: skip


def judged_rows(cases: measured.Measured) -> measured.Flags:
    """The rows that a fit of theirs never saw."""
    out = np.zeros(len(cases), dtype=bool)
    for part in parts(cases):
        if part.gpu is not None:
            out[part.index] = held_out(rows_of(cases.take(part.index)))
    return out


def _kind_of(compared: Comparison, phase: str, kind: str) -> measured.Flags:
    """Which rows of a comparison a line of the table means."""
    found: measured.Flags = (compared.measured.phase == phase) & of_kind(compared.measured, kind)
    return found


def of_kind(cases: measured.Measured, kind: str) -> measured.Flags:
    """Sliding windows first, then what is fp8 in arithmetic or cache, then the rest."""
    window, eight = cases.window > 0, (cases.dtype == "fp8") | (cases.kv_dtype == "fp8")
    return {"16 bit": ~window & ~eight, "sliding window": window, "fp8": eight & ~window, "all": window | ~window}[kind]


def _foreign(cases: measured.Measured, shipped: Comparison, everywhere: bool) -> Comparison | None:
    """The rows of kernels that another framework has a fit of on this architecture, without the fits of the rows' framework:
    those of the kernel, or `everywhere`, of whatever kernel. None where there is no such row."""
    shared = [n for n in np.unique(shipped.family).tolist() if n and _fitted_elsewhere(n, cases)]

    def alone(name: str) -> Comparison:
        def leaves(family: str, fit: Fit, _: str, framework: str) -> bool:
            return fit.framework == framework and (everywhere or family == name)

        return compare_without(cases.take(shipped.family == name), leaves)

    return joined([alone(name) for name in shared]) if shared else None


def compare_without(cases: measured.Measured, leaves: Callable[[str, Fit, str, str], bool]) -> Comparison:
    """The comparison under families, and frameworks' own constants, without those fits that `leaves` names by family, fit,
    the device's architecture and the rows' framework."""
    name = find_device(str(cases.device[0]))
    arch = load_gpu(name).architecture.name if name else ""
    framework = framework_name(str(cases.framework[0]))

    @lru_cache
    def families(family: str) -> Family:
        found = load_family(family)
        return replace(found, fits=tuple(f for f in found.fits if not leaves(family, f, arch, framework)))

    shipped = frameworks.additions

    def additions(name: str) -> tuple[frameworks.Addition, ...]:
        def gone(a: frameworks.Addition) -> bool:
            return leaves(a.family, Fit(a.architecture, a.phase, a.dtypes, {}, "", "", name), arch, framework)

        return tuple(a for a in shipped(name) if not gone(a))

    with patch.object(frameworks, "additions", additions), patch.object(family_module, "additions", additions):
        return compare(cases, families=families)


def _fitted_elsewhere(family: str, cases: measured.Measured) -> bool:
    """Whether the family has a fit on this architecture from another framework."""
    name, framework = find_device(str(cases.device[0])), framework_name(str(cases.framework[0]))
    arch = load_gpu(name).architecture.name if name else ""
    return any(f.architecture == arch and f.framework != framework for f in load_family(family).fits)


def joined(compared: list[Comparison]) -> Comparison:
    """All tables as one."""
    names = ("target", "family", "predicted_s", "low_s", "high_s", "roofline_s", "bound", "set_aside")
    columns = {n: np.concatenate([getattr(c, n) for c in compared]) for n in names}
    return Comparison(measured.concatenate([c.measured for c in compared]), **columns, unpredicted=(), notes=())


# -- text --------------------------------------------------------------------------------------------------------------

HEADS = (
    "table", "phase", "rows", "held out: n", "mean error, %", "median", "p90", "inside, %", "width / median error",
    "architecture unseen, %", "inside, %", "framework unseen: kernel, %", "at all, %", "plain roofline, %",
)  # fmt: skip


def _against(found: Score | None, bar: float = np.inf) -> str:
    """The mean error, marked where it is above its bar; nothing where there is no row."""
    if found is None or found.mape_percent is None:
        return ""
    return f"{found.mape_percent:.1f}" + (f" (bar {bar:g})" if found.mape_percent > bar else "")


def _times_median(found: Score) -> str:
    """How many times the median error an interval is wide."""
    return f"{(found.width_percent or 0.0) / found.mdape_percent:.1f}" if found.mdape_percent else ""


def _table(lines: list[tuple[str, ...]]) -> str:
    return _markdown(HEADS, lines, numbers=range(3, len(HEADS)))


def _clusters(compared: Comparison) -> str:
    heads = ("", "cluster", "rows", "mean error, %", "bias, %", "median", "of all error, %")
    lines = []
    for k, c in enumerate(clusters(compared, 10), 1):
        v, s = c.values, c.score
        window = ", window" if v["windowed"] == "yes" else ""
        where = f"{v['target']}, {v['framework']}, {v['family']}, {v['phase']}"
        what = f"D {v['head_dim']}, {v['kv_dtype']} keys{window}, length {v['length']}"
        numbers = (s.mape_percent, s.bias_percent, s.mdape_percent, c.share_percent)
        lines.append((str(k), f"{where}: {what}", str(s.n), *(f"{x or 0:.1f}" for x in numbers)))
    return _markdown(heads, lines, numbers=range(2, len(heads)))


def _range(table: list[tuple[str, ...]], column: int) -> str:
    """Smallest and largest number of a column over the (device, framework, phase) tables as a whole."""
    found = [line[column].split()[0] for line in table if line[2] == "all" and line[column]]
    return f"{min(found, key=float)} to {max(found, key=float)}"


def _summary(shipped: list[Comparison], table: list[tuple[str, ...]]) -> str:
    whole = score(joined(shipped))
    return (
        f"Over all {len(joined(shipped).measured):,} rows: {whole.n:,} judged, {whole.n_short:,} under 15 us (mean error "
        f"{whole.short_mape_percent:.1f} %), {whole.n_set_aside} set aside as noise, {whole.unpredicted} not predicted. "
        f"Mean error {whole.mape_percent:.1f} %, median {whole.mdape_percent:.1f} %, p90 {whole.p90_percent:.1f} %, rank "
        f"correlation {whole.spearman:.3f}; the plain roofline {whole.roofline_mape_percent:.0f} % on the same rows. "
        f"Half of these rows could enter a fit; on the half that could not, the mean error is {_range(table, 4)} % by table "
        f"and phase, and {_range(table, 9)} % under constants of other architectures alone. The 90 % intervals hold "
        f"{_range(table, 7)} % of those rows and are {_range(table, 8)} times the median error wide; of architectures left "
        f"out they hold {_range(table, 10)} %. "
        f"Every predicted row: {whole.mape_all_percent:.1f} %. The rule for noise: {RULE}."
    )


def _markdown(heads: tuple[str, ...], lines: list[tuple[str, ...]], numbers: range) -> str:
    marks = ["---:" if k in numbers else "---" for k in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, marks, *lines))


def _between(text: str, name: str, block: str) -> str:
    """The text with `block` between the marks of that name."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"no marks '{begin.strip()}' and '{end}'")
    return f"{head}{begin}{block}\n{found}{tail}"


if __name__ == "__main__":
    sys.exit(main())
