"""`einsight tune --replay`: runs searches against a recorded space and prints how well they did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from einsight.cli import tune_search
from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError, whole
from einsight.cli.tune_search import Live
from einsight.tuner import prior as priors
from einsight.tuner import recorded as records
from einsight.tuner.recorded import Recorded
from einsight.tuner.replay import REGRET_AT, TOLERANCES, Floats, PriorFor, Replay, random_curve, replay
from einsight.tuner.search import SAMPLERS

SHOWN_AT = (8, 16, 32, 64, 100, 200)
CHART_ROWS, CHART_COLUMNS = 12, 72
MARKS = "ox+*#@"

PUBLISHED: dict[str, tuple[tuple[str, tuple[float | None, ...]], ...]] = {
    "convolution_a100": (
        ("Kernel Tuner genetic algorithm", (None, 56, None, 64, 66, 83)),
        ("Kernel Tuner simulated annealing", (None, 60, None, 75, 79, 85)),
        ("Kernel Tuner bayes_opt", (None, 55, None, 76, 85, 88)),
        ("Kernel Tuner hybrid_vndx", (None, 57, None, 72, 77, 89)),
        ("Kernel Tuner adaptive_tabu_greywolf", (None, 57, None, 73, 81, 88)),
    ),
    "gemm_clblast_rtx3090": (
        ("Kernel Tuner genetic algorithm", (None, 72, None, 80, 81, 90)),
        ("Kernel Tuner simulated annealing", (None, 69, None, 86, 88, 89)),
        ("Kernel Tuner hybrid_vndx", (None, 69, None, 89, 93, 96)),
        ("Kernel Tuner adaptive_tabu_greywolf", (None, 82, None, 93, 97, 99)),
    ),
}
"""Percent of the optimum after SHOWN_AT evaluations: Kernel Tuner 1.4.0 in simulation mode on the same recordings, default
settings, 4 to 6 seeds each (so take them as +-5 points)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line of a replay."""

    file: Path
    trials: int
    seeds: int
    sampler: str
    prior: str | None
    against: str | None
    plot: Path | None
    key: str


def dispatch(
    file: Path, kernel: str | None, live: Live, seeds: str | None, against: str | None, plot: Path | None, as_json: bool
) -> None:
    """One search with all that a real one has when something is to be kept; else many, judged."""
    if kernel is not None:
        raise CommandError("--replay", f"it beside {kernel}", "either a kernel or a recorded space")
    kept = {"--record": live.record, "--storage": live.storage, "--export": live.output}
    judged = {"--seeds": seeds, "--against": against, "--plot": plot}
    keeping, judging = ([name for name, value in given.items() if value is not None] for given in (kept, judged))
    if keeping and judging:
        raise CommandError(judging[0], f"{judging[0]} beside {keeping[0]}", "one search that is kept, or several to be judged")
    if keeping:
        return tune_search.recorded(file, live, as_json)
    count = whole(seeds or "10", "--seeds")
    return run(Asked(file, live.trials, count, live.sampler, live.prior, against, plot, live.key), as_json)


def run(asked: Asked, as_json: bool) -> None:
    recorded = records.load(asked.file, asked.key)
    if not np.isfinite(recorded.times_s).any():
        raise CommandError("--replay", f"{asked.file}, in which every configuration failed", "a space with times")
    trials = min(asked.trials, len(recorded.space))
    prior = prior_for(asked.prior, recorded)
    ours = _replay(recorded, asked.sampler, trials, asked.seeds, prior)
    rivals = [_replay(recorded, m, trials, asked.seeds, None) for m in _rivals(asked, as_json)]
    chance = random_curve(recorded, trials)
    if asked.plot is not None:
        from einsight.reports.figures import convergence_figure, save  # matplotlib: half a second, only for a picture

        curves = {r.method: r.curve for r in (ours, *rivals)} | {"random": chance}
        save(convergence_figure(f"{recorded.name}: {asked.seeds} seeds", curves), asked.plot)
    if as_json:
        found = ours.as_json() | {"prior": asked.prior or "none", "random_curve": chance.tolist()}
        return print_json(found | {"against": [r.as_json() for r in rivals]} if rivals else found)
    print_replay(ours, rivals, chance, asked.prior)


def _rivals(asked: Asked, as_json: bool) -> Sequence[str]:
    """Methods to compare: as asked; else TPE for people, nothing for programs."""
    named = asked.against if asked.against is not None else ("" if as_json else "tpe")
    found = [m for m in named.split(",") if m and m != asked.sampler]
    for name in (*found, asked.sampler):
        if name not in SAMPLERS:
            option = "--sampler" if name == asked.sampler else "--against"
            raise CommandError(option, name, f"one of {', '.join(SAMPLERS)}")
    return found


def prior_for(text: str | None, recorded: Recorded) -> PriorFor | None:
    """`none`, `simulator`, `noisy:0.9`, or the file of another recorded space of the same kernel."""
    if text in (None, "none"):
        return None
    assert text is not None
    if text == "simulator":
        simulated = priors.of_record(recorded)
        return lambda seed: simulated
    kind, _, value = text.partition(":")
    if kind == "noisy":
        try:
            correlation = float(value)
        except ValueError:
            raise CommandError("--prior", text, "a correlation, such as noisy:0.9") from None
        times = recorded.times_s
        return lambda seed: priors.noisy(times, correlation, seed)
    if not Path(text).exists():
        raise CommandError("--prior", text, "none, simulator, noisy:RHO, or the file of another record of this kernel")
    believed = priors.other_device(records.load(Path(text)), recorded.space)
    return lambda seed: believed


def _replay(recorded: Recorded, method: str, trials: int, seeds: int, prior: PriorFor | None) -> Replay:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{recorded.name} {method}", total=seeds)
        each: Callable[[int], None] = lambda seed: progress.advance(task)  # noqa: E731
        return replay(recorded, method, trials, range(seeds), prior, each)


def print_replay(ours: Replay, rivals: Sequence[Replay], chance: Floats, prior: str | None) -> None:
    space, times = ours.recorded.space, ours.recorded.times_s
    failed = int(np.isnan(times).sum())
    print_lines([
        f"{ours.recorded.name}: {ours.recorded.kernel} on {ours.recorded.device or 'a device without a name'}, "
        f"{len(space)} configurations"
        f" ({failed} fail); optimum {np.nanmin(times) * 1e3:.4g} ms, middle {np.nanmedian(times) / np.nanmin(times):.2f}x",
        f"{len(ours.seeds)} seeds, prior {prior or 'none'}; mean percent of the optimum after ... evaluations", "",
    ])  # fmt: skip
    trials = ours.fraction.shape[1]
    at = [k for k in SHOWN_AT if k < trials] + [trials]
    rows = [(r.method, *(f"{r.curve[k - 1]:.1f}" for k in at)) for r in (ours, *rivals)]
    rows.append(("random (exact)", *(f"{chance[k - 1]:.1f}" for k in at)))
    for name, values in PUBLISHED.get(ours.recorded.name, ()):
        by = dict(zip(SHOWN_AT, values, strict=True))
        rows.append((name, *(f"{v:.0f}" if (v := by.get(k)) is not None else "" for k in at)))
    print_table("", ("method", *map(str, at)), rows, right=[str(k) for k in at])
    print_table(
        "Evaluations to within ... of the optimum (median; share of seeds that got there)",
        ("method", *(f"{p} %  ({_qualify(times, p)} qualify)" for p in TOLERANCES)),
        [(r.method, *(_reached(r, p) for p in TOLERANCES)) for r in (ours, *rivals)],
    )
    regret_at = [k for k in REGRET_AT if k <= trials]
    print_table(
        "Mean regret (time over optimum, less 1) after ... evaluations",
        ("method", *map(str, regret_at)),
        [(r.method, *(f"{100 * r.regret_at(k):.1f} %" for k in regret_at)) for r in (ours, *rivals)],
    )
    print_lines(chart({r.method: r.curve for r in (ours, *rivals)} | {"random": chance}))


def _qualify(times: Floats, percent: float) -> int:
    return int(np.sum(times <= np.nanmin(times) * (1 + percent / 100)))


def _reached(found: Replay, percent: float) -> str:
    median, share = found.evaluations_to(percent)
    return f"{'-' if median is None else f'{median:.0f}'} ({100 * share:.0f} %)"


def chart(curves: dict[str, Floats]) -> list[str]:
    """The curves (percent over evaluations) as lines of text, the first on top."""
    floor = min(float(c[min(3, len(c) - 1)]) for c in curves.values())
    low, trials = 10 * np.floor(floor / 10), len(next(iter(curves.values())))
    columns = np.unique(np.linspace(0, trials - 1, min(CHART_COLUMNS, trials)).round().astype(int))
    grid = [[" "] * len(columns) for _ in range(CHART_ROWS)]
    for mark, curve in reversed(list(zip(MARKS, curves.values(), strict=False))):
        for x, k in enumerate(columns):
            y = (curve[k] - low) / (100 - low) * (CHART_ROWS - 1)
            if y >= 0:
                grid[CHART_ROWS - 1 - round(y)][x] = mark
    labels = [f"{100 - (100 - low) * i / (CHART_ROWS - 1):5.0f} " for i in range(CHART_ROWS)]
    lines = [label + "|" + "".join(row) for label, row in zip(labels, grid, strict=True)]
    legend = "   ".join(f"{mark} {name}" for mark, name in zip(MARKS, curves, strict=False))
    axis = f"{'':7}1{'evaluations':^{len(columns) - 2}}{trials}"
    return [*lines, " " * 6 + "+" + "-" * len(columns), axis, f"{'':7}{legend}"]
