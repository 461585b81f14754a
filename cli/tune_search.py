"""One search with everything that a real one has: record, shared study, progress, Ctrl-C, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from einsight.cli import INTERRUPTED
from einsight.cli.output import print_json, print_lines, print_table
from einsight.cli.parsing import CommandError
from einsight.cli.tune_predict import Output
from einsight.sim.units import format_time
from einsight.tuner import recorded as records
from einsight.tuner.export import export
from einsight.tuner.prior import Floats
from einsight.tuner.record import Measurement, Status
from einsight.tuner.search import Search, open_study, sampler
from einsight.tuner.space import Space
from einsight.tuner.store import Store, Subject
from einsight.tuner.tune import INTERRUPTED as ENDED_BY_USER
from einsight.tuner.tune import Device, Progress, Tuned, noise, tune

SHOWN = 8


@dataclass(frozen=True, slots=True)
class Live:
    """The options of one search."""

    trials: int
    seed: int
    sampler: str
    prior: str | None
    record: Path | None
    storage: str | None
    ahead: int
    stop_early: bool
    output: Output | None
    key: str


def recorded(file: Path, live: Live, as_json: bool) -> None:
    """A search whose device is a recorded space; or, without a record and a study, only another format of it."""
    from einsight.cli.tune_replay import prior_for

    found = records.load(file, live.key)
    if live.record is None and live.storage is None:
        assert live.output is not None
        export([found.measure(row) for row in range(len(found.space))], live.output.kind, live.output.file)
        if as_json:
            return print_json({"written": str(live.output.file), "as": live.output.kind, "configurations": len(found.space)})
        return print_lines([f"{live.output.file}: {len(found.space)} configurations as {live.output.kind}"])
    prior = prior_for(live.prior, found)
    subject = Subject(found.kernel, found.workload, found.device)
    believed = prior(live.seed) if prior else None
    outcome = search(found.space, found, subject, believed, live, f"{found.kernel} on {found.device}")
    return finish(outcome, live, as_json)


def search(
    space: Space, device: Device, subject: Subject, prior: Floats | None, live: Live, title: str, key: str = ""
) -> Tuned:
    """Runs it with a progress bar on stderr. The study beside a record is a journal file, unless --storage names one."""
    storage = live.storage or (str(live.record.with_suffix(".journal")) if live.record and live.record.name else None)
    if live.record is not None and (live.record.is_dir() or storage == str(live.record)):
        what = "is a folder" if live.record.is_dir() else "is the study's journal as well"
        raise CommandError("--record", f"{live.record}, which {what}", "a file of its own, such as tuned.jsonl")
    name = f"{subject.kernel} {subject.device} {subject.source_hash} {key or 'recorded'} {space.identity}"
    study = open_study(name, storage, sampler(live.sampler, space, prior, live.seed))
    store = Store(subject, live.record)
    with _bar(title, min(live.trials, len(space))) as each:
        return tune(
            Search(study, space), device, store, live.trials, ahead=live.ahead, stop_early=live.stop_early, each=each
        )


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[Progress], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn(), TextColumn("{task.fields[best]}"))  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, best="", rate="")

        def each(progress: Progress) -> None:
            best = f"best {format_time(progress.best.time_s)}" if progress.best else "no success yet"
            speed = bar.tasks[0].speed
            bar.update(task, completed=progress.done, best=best, rate=f"{speed:.1f}/s" if speed else "")

        yield each


def finish(outcome: Tuned, live: Live, as_json: bool) -> None:
    """Print, export; exit code 130 after Ctrl-C, 1 where no configuration works."""
    if live.output is not None and outcome.best is not None:
        export(outcome.measured, live.output.kind, live.output.file, outcome.ranking)
    if as_json:
        print_json(as_document(outcome))
    else:
        print_outcome(outcome, live)
    if outcome.why == ENDED_BY_USER:
        raise typer.Exit(INTERRUPTED)
    if outcome.best is None:
        raise typer.Exit(1)


def as_document(outcome: Tuned) -> dict[str, Any]:
    return {
        "best": outcome.best.as_json() if outcome.best else None,
        "best_time_s": outcome.best.time_s if outcome.best else None,
        "tied": [dict(m.configuration) for m in outcome.tied] if outcome.best else [],
        "measured": len(outcome.measured), "resumed": outcome.resumed, "statuses": dict(outcome.statuses),
        "configurations": len(outcome.space), "ended": outcome.why,
        "study_best": dict(zip(("configuration", "time_s"), outcome.study_best, strict=True)) if outcome.study_best else None,
    }  # fmt: skip


def print_outcome(outcome: Tuned, live: Live) -> None:
    statuses = ", ".join(f"{count} {status}" for status, count in outcome.statuses.items())
    taken = f", {outcome.resumed} of them from the record" if outcome.resumed else ""
    print_lines([f"{len(outcome.measured)} of {len(outcome.space)} configurations measured{taken} ({statuses})",
                 f"ended: {outcome.why}"])  # fmt: skip
    if outcome.best is None:
        return print_lines(["no configuration works", *(f"  {m.configuration}: {m.reason}" for m in outcome.measured[:SHOWN])])
    order = outcome.order
    tied = outcome.tied if len(outcome.tied) > 1 else []
    rows = [
        (_text(m), format_time(m.time_s), f"{100 * (m.time_s / order[0].time_s - 1):.1f} %", "tied" if m in tied else "")
        for m in order[:SHOWN]
    ]
    raced = any(m.status is Status.OK for m in outcome.raced)
    heading = "Finalists, measured in turns" if raced else "Fastest"
    columns = ("configuration", "time", "behind", "")
    print_table(f"{heading} (noise {100 * noise(order):.1f} %)", columns, rows, right=columns[1:3], wrap=columns[:1])
    if outcome.study_best is not None and outcome.study_best[1] < order[0].time_s:
        told = ", ".join(f"{name}={value}" for name, value in outcome.study_best[0].items())
        print_lines([f"faster, by another worker of the study: {told} at {format_time(outcome.study_best[1])}"])
    failures = [m for m in (*outcome.measured, *outcome.raced) if m.status is not Status.OK]
    print_lines(f"  {m.status.value}: {_text(m)}: {m.reason}" for m in failures[:SHOWN])
    if live.output is not None:
        print_lines([f"written: {live.output.file} ({live.output.kind})"])


def _text(m: Measurement) -> str:
    return ", ".join(f"{name}={value}" for name, value in m.configuration.items())
