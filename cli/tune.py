"""`einsight tune`: the best configuration of a kernel on the GPU at hand, or of a recorded space by replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from einsight.cli import workload as options
from einsight.cli.output import Json
from einsight.cli.parsing import CommandError, whole

DEFAULT_TRIALS = "64"


def run(
    kernel: Annotated[str | None, typer.Argument(metavar="[KERNEL]", help="One of `einsight kernels`.")] = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    batch: options.Batch = "1",
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
    target: Annotated[str | None, typer.Option(metavar="NAME", help="Profile; default: the GPU at hand.")] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="BLOCK_M=128,...", help="Why a configuration is in the space, or out of it.")
    ] = None,
    predict_only: Annotated[bool, typer.Option("--predict-only", help="Rank by the simulator; no GPU needed.")] = False,
    shapes: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Workloads to share few configurations.")] = None,
    keep: Annotated[str, typer.Option(metavar="N", help="With --shapes: configurations to keep.")] = "4",
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help="A recorded space is the device.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="With --replay: which workload of a record.")] = None,
    trials: Annotated[str, typer.Option(metavar="N", help="Measurements at most.")] = DEFAULT_TRIALS,
    seeds: Annotated[str | None, typer.Option(metavar="N", help="With --replay: independent runs; default 10.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of one search.")] = 0,
    prior: Annotated[
        str | None, typer.Option(metavar="none|simulator|noisy:RHO|FILE", help="What is believed beforehand.")
    ] = None,
    sampler: Annotated[str, typer.Option(metavar="pool|tpe|random|gp|...", help="pool is ours.")] = "pool",
    against: Annotated[
        str | None, typer.Option(metavar="tpe,random,...", help="With --replay: methods beside; default tpe.")
    ] = None,
    record: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Keep and resume measurements here.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="FILE|postgresql://...", help="Study that several workers share.")
    ] = None,
    ahead: Annotated[str, typer.Option(metavar="N", help="Builds compiled at the same time.")] = "4",
    all_trials: Annotated[bool, typer.Option("--no-stop", help="Use every trial, even where little is to gain.")] = False,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found.")] = None,
    export_as: Annotated[str, typer.Option("--as", metavar="triton|lookup|t4|kernel-tuner")] = "lookup",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg|png", help="With --replay: draw the curves.")] = None,
    as_json: Json = False,
) -> None:
    """Searches configurations on the GPU at hand, or in a recorded space.

    Example: einsight tune --replay convolution_a100.json.gz --trials 64 --seeds 50
    Example: einsight tune attention --heads 32 --kv-heads 8 --seq 8192 --causal --target h100-sxm --predict-only
    """
    _need_optuna()
    from einsight.cli import tune_kernel, tune_replay, tune_search  # optuna: only when a search runs

    live = tune_search.Live(
        whole(trials, "--trials"), seed, sampler, prior, record, storage, whole(ahead, "--ahead"), not all_trials,
        export, export_as, key or "",
    )  # fmt: skip
    if replay is not None:
        if kernel is not None:
            raise CommandError("--replay", f"it beside {kernel}", "either a kernel or a recorded space")
        if seeds is None and (record or storage or export):
            return tune_search.recorded(replay, live, as_json)
        count = whole(seeds or "10", "--seeds")
        replayed = tune_replay.Asked(replay, live.trials, count, sampler, prior, against, plot, live.key)
        return tune_replay.run(replayed, as_json)
    if kernel is None:
        raise CommandError("tune", "no kernel", "a kernel such as `attention`, or --replay FILE")
    if shapes is not None:
        return tune_kernel.shapes(kernel, shapes, target, whole(keep, "--keep"), predict_only, live, as_json)
    shape = options.Shape(
        None, phase, batch, heads, kv_heads, seq, seq_q, seq_kv, head_dim, dtype, causal, window, bias, cache or "warm"
    )
    if explain is not None:
        return tune_kernel.explain(kernel, shape.workload(), target, explain, as_json)
    if predict_only:
        return tune_kernel.predicted(kernel, shape.workload(), target, as_json)
    return tune_kernel.measured(kernel, shape.workload(), live, as_json)


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise CommandError("tune", f"no {error.name}", "the extra `tune`: pip install 'einsight[tune]'") from None
