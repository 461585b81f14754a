"""`einsight tune`: the best configuration of a kernel on the GPU at hand, or of a recorded space by replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.output import Json
from einsight.cli.parsing import CommandError, whole

Kernel = Annotated[str | None, typer.Argument(metavar="[KERNEL]", help="A kernel of `einsight kernels`.")]


def run(
    kernel: Kernel = None,
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help="A recorded space as the device.")] = None,
    trials: Annotated[str, typer.Option(metavar="N", help="Measurements at most.")] = "64",
    seeds: Annotated[str, typer.Option(metavar="N", help="With --replay: independent runs.")] = "10",
    prior: Annotated[
        str | None, typer.Option(metavar="none|simulator|noisy:RHO|FILE", help="What is believed beforehand.")
    ] = None,
    sampler: Annotated[str, typer.Option(metavar="pool|tpe|random|gp|...", help="pool is ours.")] = "pool",
    against: Annotated[
        str | None, typer.Option(metavar="tpe,random,...", help="With --replay: methods to compare; default tpe.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="With --replay: draw the convergence.")] = None,
    as_json: Json = False,
) -> None:
    """Searches configurations on the GPU at hand, or in a recorded space.

    Example: einsight tune --replay convolution_a100.json.gz --trials 64 --seeds 50
    """
    if replay is None:
        raise CommandError("--replay", "nothing", "a recorded space")
    from einsight.cli import tune_replay  # optuna: only when a search runs

    asked = tune_replay.Asked(replay, whole(trials, "--trials"), whole(seeds, "--seeds"), sampler, prior, against, plot)
    tune_replay.run(asked, as_json)


def search_modules() -> Any:
    """The modules that need the extra `tune`. Raises CommandError that says how to get it."""
    try:
        from einsight.tuner import search
    except ImportError as error:
        raise CommandError("tune", f"no {error.name}", "the extra `tune`: pip install 'einsight[tune]'") from None
    return search
