"""The `einsight` command: one file per verb; parsing and printing only.

A verb's module is imported when that verb runs, so that `einsight --help` does not pay for NumPy. Errors that a user
can mend are of einsight's own classes, or unreadable files; they become one message on stderr and exit code 2.
Anything else is a bug and says so.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

DONE, FELL_SHORT, BAD_INPUT, BUG, INTERRUPTED = 0, 1, 2, 70, 130

VERBS = {
    "simulate": "How long a workload takes on each target, what limits it, and why.",
    "explain": "A cascade's Einsums, operation counts, passes and live sets.",
    "cascades": "The attention algorithms that are there; one name: all about it.",
    "hardware": "The GPUs and arrays that are there; one name: every number with its source.",
    "gna": "Neighborhood attention: bounds, predicted time, and which strides and tiles to take.",
    "kernels": "The Triton kernels that are there; one name: its builds; one build: registers, memory, occupancy.",
    "tune": "The best configuration of a kernel: simulator first, few measurements; or by replay of a record.",
    "bias": "The rank of an attention bias, its error, and what its factors buy on a target.",
    "reproduce": "A paper's tables recomputed, beside the published values.",
    "calibrate": "A kernel family's constants fitted on measured cases, judged on rows or a device left out.",
    "compare": "Measured cases against predictions: errors per group, worst cases, the plain roofline beside.",
    "report": "A self-contained HTML page: rooflines, predictions, passes, sources.",
    "doctor": "Versions, GPU, extras, reference data found.",
}
"""Verb (a module of this folder with a function `run`, or with a `group` of commands) and its line in `einsight --help`."""

OPTIONAL_VALUES = {"gna": ("--causal=",)}
"""Flags of a verb that may take a value, which the parser does not know: it reads `--causal=1x0x0` as `--causal 1x0x0`."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 fell short, 2 bad input, 70 a bug, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code, not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        verb = next((w for w in words if not w.startswith("-")), "")
        joined = OPTIONAL_VALUES.get(verb, ())
        words = [part for w in words for part in (w.split("=", 1) if w.startswith(joined) else (w,))]
        application(verb)(words, prog_name="einsight")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    except Exception as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    return DONE


def application(chosen: str) -> typer.Typer:
    """The command with every verb listed and only the module of `chosen` imported."""
    app = typer.Typer(
        name="einsight", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, help="What an attention algorithm costs on a GPU or a spatial array, and why.",
        epilog="Example: einsight simulate --cascade one_pass --heads 32 --seq 8192 --target h100-sxm",
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(_global_options)
    for verb, summary in VERBS.items():
        module = importlib.import_module(f"einsight.cli.{verb}") if verb == chosen else None
        if (group := getattr(module, "group", None)) is not None:
            for command in group.registered_commands:
                command.callback = _interruptible(command.callback)
            app.add_typer(group, name=verb, short_help=summary)
        else:
            app.command(verb, short_help=summary)(_interruptible(module.run if module else _not_loaded))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        metadata = importlib.import_module("importlib.metadata")
        try:
            typer.echo(f"einsight {metadata.version('einsight')}")
        except metadata.PackageNotFoundError:
            typer.echo("einsight, not installed (running from the checkout)")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


def _not_loaded() -> None:
    raise AssertionError("only the chosen verb is run")


def _interruptible(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, with Ctrl-C and a reader that has left (`| head`) ending without the parser's own words."""

    def guarded(*args: Any, **options: Any) -> None:
        try:
            run(*args, **options)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(_say("interrupted", INTERRUPTED)) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere

    return functools.update_wrapper(guarded, run)


def _failed(error: Exception) -> int:
    if os.environ.get("EINSIGHT_DEBUG"):
        traceback.print_exception(error)
    if type(error).__module__.startswith("einsight."):
        return _say(str(error), BAD_INPUT)
    if isinstance(error, OSError) and error.strerror:
        return _say(f"{error.filename or 'writing the output'}: {error.strerror}", BAD_INPUT)
    if isinstance(error, MemoryError):
        return _say("this needs more memory than there is; ask for smaller sizes or fewer points", BAD_INPUT)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _say(
        f"this is a bug in einsight: {type(error).__name__}: {error} ({where.name}, line {where.lineno});"
        " EINSIGHT_DEBUG=1 shows the traceback",
        BUG,
    )


def _say(message: str, code: int) -> int:
    print(f"einsight: {message}", file=sys.stderr)
    return code
