"""`einsight tune`: the best configuration of a kernel on the GPU at hand, or of a recorded space by replay."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli import workload as options
from einsight.cli.output import Json
from einsight.cli.parsing import CommandError, whole

Kernel = Annotated[str | None, typer.Argument(metavar="[KERNEL]", help="One of `einsight kernels`.")]
Target = Annotated[str | None, typer.Option(metavar="NAME", help="Profile; default: the GPU at hand.")]
Explain = Annotated[str | None, typer.Option(metavar="BLOCK_M=128,...", help="Why a configuration is in the space or out.")]
PredictOnly = Annotated[bool, typer.Option("--predict-only", help="Rank by the simulator; no GPU needed.")]
WorkloadFile = Annotated[Path | None, typer.Option("--workload", metavar="FILE.yaml", help="Instead of the sizes.")]
Shapes = Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Workloads that share few configurations.")]
Keep = Annotated[str, typer.Option(metavar="N", help="With --shapes: configurations to keep.")]
Replay = Annotated[Path | None, typer.Option(metavar="FILE", help="A recorded space is the device.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", help="With --replay: which workload of a record.")]
Trials = Annotated[str, typer.Option(metavar="N", help="Measurements at most.")]
Seeds = Annotated[str | None, typer.Option(metavar="N", help="With --replay: independent runs; default 10.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of one search.")]
Prior = Annotated[str | None, typer.Option(metavar="none|simulator|noisy:RHO|FILE", help="What is believed beforehand.")]
Sampler = Annotated[str, typer.Option(metavar="pool|tpe|random|gp|...", help="pool is ours.")]
Against = Annotated[str | None, typer.Option(metavar="tpe,random,...", help="With --replay: methods beside; default tpe.")]
Record = Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Keep and resume measurements here.")]
Storage = Annotated[str | None, typer.Option(metavar="FILE|postgresql://...", help="Study that several workers share.")]
Ahead = Annotated[str, typer.Option(metavar="N", help="Builds compiled at the same time.")]
NoStop = Annotated[bool, typer.Option("--no-stop", help="Use every trial, even where little is to gain.")]
Export = Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found.")]
ExportAs = Annotated[
    str | None, typer.Option("--as", metavar="lookup|triton|t4|kernel-tuner", help="How; lookup alone: where kernels read.")
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="With --replay: draw the curves.")]


def run(
    kernel: Kernel = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    batch: options.Batch = None,
    seq: options.Seq = None,
    seq_q: options.SeqQ = None,
    seq_kv: options.SeqKv = None,
    head_dim: options.HeadDim = None,
    dtype: options.Dtype = None,
    phase: options.Phase = None,
    causal: options.Causal = False,
    window: options.Window = None,
    bias: options.Bias = None,
    cache: options.Cache = None,
    workload: WorkloadFile = None,
    target: Target = None,
    explain: Explain = None,
    predict_only: PredictOnly = False,
    shapes: Shapes = None,
    keep: Keep = "4",
    replay: Replay = None,
    key: Key = None,
    trials: Trials = "64",
    seeds: Seeds = None,
    seed: Seed = 0,
    prior: Prior = None,
    sampler: Sampler = "pool",
    against: Against = None,
    record: Record = None,
    storage: Storage = None,
    ahead: Ahead = "4",
    no_stop: NoStop = False,
    export: Export = None,
    export_as: ExportAs = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Searches configurations on the GPU at hand, or in a recorded space.

    Example: einsight tune --replay convolution_a100.json.gz --trials 64 --seeds 50
    Example: einsight tune attention --heads 32 --kv-heads 8 --seq 8192 --causal --target h100-sxm --predict-only
    """
    shape = options.Shape(None, phase, batch, heads, kv_heads, seq, seq_q, seq_kv, head_dim, dtype, causal, window, bias, cache)
    others = {"--explain": explain, "--workload": workload, "--predict-only": predict_only, "--target": target}
    _alone(replay, {"--key": key, "--seeds": seeds, "--against": against, "--plot": plot}, shapes, shape, others)
    from einsight.cli import tune_predict

    _unused(explain, predict_only, {"--record": record, "--storage": storage, "--prior": prior}, export or export_as)
    out, asked = tune_predict.output(kernel, export, export_as), tune_predict.asked(kernel, shape, workload)
    if asked is not None and shapes is None and (explain is not None or predict_only):  # no search: needs no optuna
        return tune_predict.dispatch(asked, target, explain, out, as_json)
    tune_kernel, tune_replay, tune_search = _with_optuna("tune_kernel", "tune_replay", "tune_search")
    most, several = whole(trials, "--trials"), whole(ahead, "--ahead")
    live = tune_search.Live(most, seed, sampler, prior, record, storage, several, not no_stop, out, key or "")
    with _plain_warnings():
        if replay is not None:
            tune_replay.dispatch(replay, kernel, live, seeds, against, plot, as_json)
        else:
            tune_kernel.dispatch(asked, target, predict_only, shapes, whole(keep, "--keep"), live, as_json)


def _alone(
    replay: Path | None, of_replay: Mapping[str, object], shapes: Path | None, shape: options.Shape,
    others: Mapping[str, object],
) -> None:  # fmt: skip
    """A file says what is computed: options that say it as well would be passed over in silence, as `of_replay` without one."""
    for option, value in of_replay.items():
        if value is not None and replay is None:
            raise CommandError(option, str(value), "--replay RECORD.jsonl beside it")
    if replay is not None:
        file, others = f"--replay {replay}", {**others, "--shapes": shapes}
    elif shapes is not None:
        file, others = f"--shapes {shapes}", {name: others[name] for name in ("--explain", "--workload")}
    else:
        return
    given = [name for name, value in others.items() if value] + list(shape.given(*options.NOT_BESIDE_FILES))
    if given:
        raise CommandError(given[0], f"{given[0]} beside {file}", "either of them")


def _unused(explain: str | None, predict_only: bool, of_search: Mapping[str, object], exported: object) -> None:
    """What only a search takes would be passed over in silence where there is none."""
    instead = "--explain" if explain is not None else "--predict-only"
    given = [name for name, value in of_search.items() if value and (predict_only or explain is not None)]
    given += ["--export"] if exported and explain is not None else []
    if given:
        raise CommandError(given[0], f"{given[0]} beside {instead}", "either of them: nothing is measured there")


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A repaired record is told in one line, without the place in the code that noticed it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"einsight: {message}", file=sys.stderr)
        yield


def _with_optuna(*modules: str) -> list[Any]:
    """Modules of this folder that search; Optuna takes a while to import."""
    try:
        importlib.import_module("einsight.tuner.search")
    except ImportError as error:
        raise CommandError("tune", f"no {error.name}", "the extra `tune`: pip install 'einsight[tune]'") from None
    return [importlib.import_module(f"einsight.cli.{module}") for module in modules]
