"""`einsight report DIR`: the results as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from einsight.cli import workload as options
from einsight.cli.output import Json, print_json, print_lines
from einsight.cli.parsing import CommandError
from einsight.reports.compare import compare
from einsight.reports.measured import read
from einsight.reports.report import EXAMPLE_WORKLOADS, Results, report
from einsight.sim.family import load_family
from einsight.sim.predict import predict
from einsight.sim.workload_file import load_workloads

PAGE = "index.html"


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the page is written; made if missing.")],
    files: options.Files = None,
    target: options.Target = None,
    measured: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.csv", help="Measured cases to set beside predictions; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A self-contained HTML page: rooflines, predictions, passes, sources; without workloads, of an example model.

    Example: einsight report out llama.yaml --target h100-sxm --target b200
    """
    if folder.exists() and not folder.is_dir():
        raise CommandError("DIR", str(folder), "a folder, not a file, before the workload files")
    found = [w for file in files or [EXAMPLE_WORKLOADS] for w in load_workloads(file)]
    pairs = [(w, t) for w in found for t in options.targets(target or [], w)]
    predictions = tuple(predict(w, t) for w, t in pairs)
    hardware = options.profiles(t for _, t in pairs)
    families = {f: load_family(f) for f in dict.fromkeys(p.family for p in predictions if p.cycles is None)}  # of GPUs
    compared = compare(read(measured)) if measured else None
    page = report(Results(predictions, hardware, families, compared))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page, encoding="utf-8")
    if as_json:
        return print_json({"page": str(folder / PAGE), "predictions": [p.as_json() for p in predictions]})
    print_lines([f"{folder / PAGE}: {len(predictions)} predictions on {len(hardware)} targets"])
