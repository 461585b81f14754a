"""The options that name workloads and targets, shared by every verb that predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from einsight.cli.parsing import CommandError, fragment, whole
from einsight.sim.hardware import load_hardware
from einsight.sim.layers import predict_layers
from einsight.sim.model_config import LayerGroup, load_model
from einsight.sim.predict import predict
from einsight.sim.prediction import Prediction
from einsight.sim.workload import Workload
from einsight.sim.workload_file import load_workloads

Files = Annotated[list[Path] | None, typer.Argument(metavar="WORKLOAD.yaml", help="Workload files.")]
Model = Annotated[Path | None, typer.Option(metavar="config.json", help="A Hugging Face model configuration.")]
Cascade = Annotated[str | None, typer.Option(help="A library name or a .casc file, with the sizes below.")]
Phase = Annotated[str | None, typer.Option(metavar="prefill|decode", help="What the model does.")]
Batch = Annotated[str | None, typer.Option(metavar="B", help="Sequences; default 1.")]
Heads = Annotated[str | None, typer.Option(metavar="H", help="Query heads.")]
KvHeads = Annotated[str | None, typer.Option(metavar="G", help="KV heads; default: as many as query heads.")]
Seq = Annotated[str | None, typer.Option(metavar="N", help="Queries and keys per sequence; 8k is 8192.")]
SeqQ = Annotated[str | None, typer.Option(metavar="M", help="Queries per sequence.")]
SeqKv = Annotated[str | None, typer.Option(metavar="N", help="Keys per sequence.")]
HeadDim = Annotated[str | None, typer.Option(metavar="E", help="Dimension of a head; default 128.")]
Dtype = Annotated[str | None, typer.Option(metavar="bf16|fp16|fp8_e4m3|...", help="Element type; default bf16.")]
Causal = Annotated[bool, typer.Option("--causal", help="Each query sees the keys up to its own position.")]
Window = Annotated[str | None, typer.Option(metavar="W", help="Each query sees the last W keys only.")]
Bias = Annotated[list[str] | None, typer.Option(metavar="KIND[:r=16]", help="A fragment such as alibi; repeatable.")]
Cache = Annotated[str | None, typer.Option(metavar="cold|warm", help="Whether small operands start in L2.")]
Target = Annotated[list[str] | None, typer.Option(metavar="NAME[:FAMILY]", help="Where; repeatable.")]

DEFAULT_HEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """The explicit options, as typed; None where the option was left out."""

    cascade: str | None
    phase: str | None
    batch: str | None
    heads: str | None
    kv_heads: str | None
    seq: str | None
    seq_q: str | None
    seq_kv: str | None
    head_dim: str | None
    dtype: str | None
    causal: bool
    window: str | None
    bias: list[str] | None
    cache: str | None

    @property
    def lengths(self) -> tuple[int, int]:
        """(queries, keys); --seq sets both, and in decode the keys only: one query per sequence."""
        keys = _optional(self.seq_kv, "--seq-kv") or _optional(self.seq, "--seq")
        queries = _optional(self.seq_q, "--seq-q") or (1 if self.phase == "decode" else _optional(self.seq, "--seq"))
        if queries is None and keys is None:
            raise CommandError("--seq", None, "the sequence length, such as --seq 8192 (or --seq-q and --seq-kv)")
        return queries or keys or 0, keys or queries or 0

    def workload(self) -> Workload:
        """The explicit options as a workload."""
        if self.heads is None:
            raise CommandError("--heads", None, "the number of query heads, such as --heads 32")
        queries, keys = self.lengths
        mask: list[Any] = ["causal"] if self.causal else []
        if window := _optional(self.window, "--window"):
            mask.append({"window": window})
        made = Workload.attention(
            cascade=self.cascade or "one_pass",
            batch=_optional(self.batch, "--batch") or 1,
            heads=whole(self.heads, "--heads"),
            kv_heads=_optional(self.kv_heads, "--kv-heads"),
            seq_q=queries,
            seq_kv=keys,
            head_dim=_optional(self.head_dim, "--head-dim") or DEFAULT_HEAD_DIM,
            dtype=self.dtype or "bf16",
            mask=mask,
            bias=[fragment(text) for text in self.bias or []],
            phase=self.phase,
            cache=self.cache or "cold",
        )
        made.composed()  # as for a workload file: what the cascade cannot carry is refused before anything is predicted
        return made

    @property
    def model_length(self) -> int:
        """--seq for a model: the prompt's length, or the keys in the cache."""
        if self.seq is None:
            raise CommandError("--seq", None, "the prompt's length, or the keys in the cache, such as --seq 8192")
        return whole(self.seq, "--seq")

    def given(self, *names: str) -> tuple[str, ...]:
        """Which of the options were used, as they are typed."""
        return tuple(f"--{name.replace('_', '-')}" for name in names if getattr(self, name))


NOT_BESIDE_A_MODEL = ("heads", "kv_heads", "seq_q", "seq_kv", "head_dim", "causal", "window", "bias")
NOT_BESIDE_FILES = (*NOT_BESIDE_A_MODEL, "batch", "cascade", "phase", "seq", "dtype", "cache")


@dataclass(frozen=True, slots=True)
class Case:
    """Workloads that are predicted together: the kinds of layers of a model, or a single one."""

    groups: tuple[LayerGroup, ...]
    layered: bool = False
    notes: tuple[str, ...] = ()

    @property
    def workloads(self) -> tuple[Workload, ...]:
        return tuple(group.workload for group in self.groups)

    def predictions(self, target: str) -> tuple[Prediction, ...]:
        if self.layered:
            return predict_layers(self.groups, target, self.notes)
        return tuple(predict(w, target) for w in self.workloads)


def cases(files: Sequence[Path], model: Path | None, shape: Shape) -> list[Case]:
    """What the options name: the workloads of files, the layers of a model, or the one of the explicit options."""
    if files and model:
        raise CommandError("--model", f"{model} beside {files[0]}", "either workload files or a model")
    for used, others in ((files, NOT_BESIDE_FILES), (model, NOT_BESIDE_A_MODEL)):
        if used and (both := shape.given(*others)):
            first = str(model) if used is model else str(files[0])
            raise CommandError(both[0], f"{both[0]} beside {first}", "either a file or the explicit options")
    if cascade := next((f for f in files if f.suffix == ".casc"), None):
        raise CommandError("WORKLOAD.yaml", str(cascade), f"a workload; an algorithm is named by --cascade {cascade}")
    if files:
        return [Case((LayerGroup(w, 1),)) for file in files for w in load_workloads(file)]
    if model is None and shape.heads is None:
        raise CommandError("--heads", None, "the number of query heads, a workload file, or --model config.json")
    if model is None:
        return [Case((LayerGroup(shape.workload(), 1),))]
    config = load_model(model)
    groups = config.groups(
        shape.phase or "prefill", _optional(shape.batch, "--batch") or 1, shape.model_length, shape.dtype,
        shape.cascade or "one_pass", shape.cache or "cold",
    )  # fmt: skip
    return [Case(groups, True, config.notes)]


def targets(named: Sequence[str], workload: Workload) -> tuple[str, ...]:
    """The targets of the command line, else those of the workload file."""
    found = tuple(named) or workload.targets
    if not found:
        raise CommandError("--target", None, "a target such as --target h100-sxm; `einsight hardware` lists them")
    return found


def profiles(named: Iterable[str]) -> dict[str, Any]:
    """The profiles of targets (names or files, families left out) by the name that predictions carry."""
    found = (load_hardware(target.partition(":")[0]) for target in dict.fromkeys(named))
    return {hardware.name: hardware for hardware in found}


def _optional(text: str | None, option: str) -> int | None:
    return None if text is None else whole(text, option)
