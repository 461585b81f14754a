"""What measured tables call a kernel -> the family that models it, row by row; data in `kernel_names.yaml`.

One name can stand for several kernels: a framework dispatches by phase, architecture, heads per KV head and head
dimension, and the rules say how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from einsight.sim import strict_yaml
from einsight.sim.family import names
from einsight.sim.hardware import DTYPES, INSTRUCTIONS, PHASES, Gpu
from einsight.sim.schedule import Array
from einsight.sim.strict_yaml import Item

ANY = (0, 10**9)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table; an empty tuple or None matches everything, ranges are inclusive."""

    kernels: tuple[str, ...]
    family: str
    frameworks: tuple[str, ...] = ()
    phase: str | None = None
    instructions: tuple[str, ...] = ()
    group: tuple[int, int] = ANY
    head_dim: tuple[int, int] = ANY
    kv_dtypes: tuple[str, ...] = ()
    small_grid: tuple[int, int, int] | None = None  # (times, min_keys, waves): see `_small`


@dataclass(frozen=True, slots=True)
class ValueDim:
    """Rows of a framework with this head dimension have values of another width."""

    frameworks: tuple[str, ...]
    head_dim: int
    value_dim: int
    source: str


@dataclass(frozen=True, slots=True)
class IgnoredWindow:
    """Rows whose sliding window the kernel was not told: their times are those of full attention."""

    frameworks: tuple[str, ...]
    kernels: tuple[str, ...]
    phase: str
    head_dim: tuple[int, int]
    source: str


@dataclass(frozen=True, slots=True)
class ChunkedWindow:
    """Prefill rows whose window stands for chunks: a token attends to its own chunk of that length, from its first key on."""

    frameworks: tuple[str, ...]
    kernels: tuple[str, ...]
    head_dim: tuple[int, int]
    window: int
    source: str


@dataclass(frozen=True, slots=True)
class FreshKeys:
    """Prefill rows whose kernel reads keys and values as they were computed, not from the cache that they are written to."""

    frameworks: tuple[str, ...]
    kernels: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Table:
    """The whole file."""

    rules: tuple[Rule, ...]
    value_dims: tuple[ValueDim, ...]
    ignored_windows: tuple[IgnoredWindow, ...]
    fresh_keys: tuple[FreshKeys, ...] = ()
    chunked_windows: tuple[ChunkedWindow, ...] = ()
    one_token_decodes: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)  # lower case -> the name that fits and rules use


def framework_name(framework: str) -> str:
    """A framework without its version, as the rules spell it: "SGLang" of "SGLang 0.5.14", "VLLM" of "vLLM 0.14"."""
    word = framework.strip().split(" ")[0]
    return table().spellings.get(word.lower(), word)


def family_for(
    kernel: str, framework: str, phase: str, gpu: Gpu, heads_q: Array, heads_kv: Array, head_dim: Array, batch: Array,
    seq_kv: Array, kv_dtype: str = "bf16",
) -> NDArray[np.str_]:  # fmt: skip
    """The family's name for every row (arrays of one length), "" where no rule knows the kernel.

    `kv_dtype`: the cache's element type, as ours are named.
    """
    group, done = heads_q / heads_kv, np.zeros(len(head_dim), dtype=bool)
    out = np.full(len(head_dim), "", dtype="<U32")
    for rule in table().rules:
        if not _concerns(rule, kernel, framework, phase, gpu) or (rule.kv_dtypes and kv_dtype not in rule.kv_dtypes):
            continue
        here = ~done & _within(group, rule.group) & _within(head_dim, rule.head_dim)
        if rule.small_grid is not None:
            here &= _small(rule.small_grid, batch * heads_kv, seq_kv, gpu.sms.value)
        out[here] = rule.family
        done |= here
    return out


def value_dims(framework: str, head_dim: Array) -> Array:
    """Width of the values of every row: the head dimension's, where the table knows of no other."""
    out = np.array(head_dim, dtype=np.float64)
    for line in table().value_dims:
        if framework_name(framework) in line.frameworks:
            out[np.asarray(head_dim) == line.head_dim] = line.value_dim
    return out


def windows(kernel: str, framework: str, phase: str, head_dim: Array, window: Array) -> Array:
    """The window that the kernel applied, 0 for none: the row's, unless the table knows that it was ignored."""
    out = np.array(window, dtype=np.float64)
    for line in table().ignored_windows:
        if _meant(line, kernel, framework) and phase == line.phase:
            out[_within(np.asarray(head_dim), line.head_dim)] = 0.0
    return out


def chunks(kernel: str, framework: str, phase: str, head_dim: Array, window: Array) -> Array:
    """The chunk length that the kernel applied instead of the row's window, 0 where it did not."""
    out = np.zeros(len(head_dim))
    for line in table().chunked_windows if phase == "prefill" else ():
        if _meant(line, kernel, framework):
            out[_within(np.asarray(head_dim), line.head_dim) & (np.asarray(window) == line.window)] = line.window
    return out


def acting_phases(framework: NDArray[np.str_], phase: NDArray[np.str_], seq_q: Array) -> NDArray[np.str_]:
    """The phase whose kernel ran, per row: decode for one new token in frameworks that go by their number alone."""
    named = np.array([framework_name(f) for f in np.unique(framework).tolist()])
    which = np.isin(named, table().one_token_decodes)[np.unique(framework, return_inverse=True)[1].ravel()]
    return np.where(which & (np.asarray(seq_q) <= 1), "decode", phase)


def reads_fresh(kernel: str, framework: str, phase: str) -> bool:
    """Whether the kernel reads keys in the type that they were computed in; the cache's type is then the writer's alone."""
    return phase == "prefill" and any(_meant(line, kernel, framework) for line in table().fresh_keys)


def known_kernels() -> tuple[str, ...]:
    """Every kernel string of the table."""
    return tuple(dict.fromkeys(k for rule in table().rules for k in rule.kernels))


def _meant(line: IgnoredWindow | ChunkedWindow | FreshKeys, kernel: str, framework: str) -> bool:
    return framework_name(framework) in line.frameworks and kernel.strip().lower() in line.kernels


def _concerns(rule: Rule, kernel: str, framework: str, phase: str, gpu: Gpu) -> bool:
    return (
        kernel.strip().lower() in rule.kernels
        and (not rule.frameworks or framework_name(framework) in rule.frameworks)
        and rule.phase in (None, phase)
        and (not rule.instructions or gpu.architecture.instructions in rule.instructions)
    )


def _small(limits: tuple[int, int, int], blocks: Array, keys: Array, sms: float) -> NDArray[np.bool_]:
    """Whether `times` the blocks of a split grid are fewer than the SMs; parts of `min_keys` keys fill at most `waves`."""
    times, min_keys, waves = limits
    parts = np.clip(np.floor(keys / min_keys), 1.0, np.maximum(1.0, np.floor(waves * sms / blocks)))
    found: NDArray[np.bool_] = times * blocks * parts < sms
    return found


def _within(values: Array, bounds: tuple[int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (values >= bounds[0]) & (values <= bounds[1])
    return found


@cache
def table() -> Table:
    """The shipped table."""
    return read_table(Path(str(files("einsight.sim"))) / "kernel_names.yaml")


def read_table(path: Path) -> Table:
    """A table from a file. Raises SpecError with file, line and place."""
    optional = ["fresh_keys", "chunked_windows", "one_token_decodes", "spellings"]
    root = strict_yaml.load(path).table(["rules", "value_dims", "ignored_windows"], optional)
    return Table(
        tuple(_rule(item) for item in root["rules"].items()),
        tuple(_value_dim(item) for item in root["value_dims"].items()),
        tuple(_ignored(item) for item in root["ignored_windows"].items()),
        tuple(_fresh(item) for item in root["fresh_keys"].items()) if "fresh_keys" in root else (),
        tuple(_chunked(item) for item in root["chunked_windows"].items()) if "chunked_windows" in root else (),
        _texts(root["one_token_decodes"]) if "one_token_decodes" in root else (),
        _spellings(root["spellings"]) if "spellings" in root else {},
    )


def _rule(item: Item) -> Rule:
    optional = ["frameworks", "phase", "instructions", "group", "head_dim", "small_grid", "kv_dtypes"]
    t = item.table(["kernels", "family"], optional)
    return Rule(
        kernels=_texts(t["kernels"]),
        family=t["family"].choice(names()),
        frameworks=_texts(t["frameworks"]) if "frameworks" in t else (),
        phase=t["phase"].choice(PHASES) if "phase" in t else None,
        instructions=tuple(i.choice(INSTRUCTIONS) for i in t["instructions"].items()) if "instructions" in t else (),
        group=_range(t["group"]) if "group" in t else ANY,
        head_dim=_range(t["head_dim"]) if "head_dim" in t else ANY,
        kv_dtypes=tuple(i.choice(DTYPES) for i in t["kv_dtypes"].items()) if "kv_dtypes" in t else (),
        small_grid=_small_grid(t["small_grid"]) if "small_grid" in t else None,
    )


def _value_dim(item: Item) -> ValueDim:
    t = item.table(["frameworks", "head_dim", "value_dim", "source"])
    return ValueDim(_texts(t["frameworks"]), t["head_dim"].integer(1), t["value_dim"].integer(1), t["source"].text())


def _ignored(item: Item) -> IgnoredWindow:
    t = item.table(["frameworks", "kernels", "phase", "source"], ["head_dim"])
    dims = _range(t["head_dim"]) if "head_dim" in t else ANY
    phase = t["phase"].choice(PHASES)
    return IgnoredWindow(_texts(t["frameworks"]), _texts(t["kernels"]), phase, dims, t["source"].text())


def _chunked(item: Item) -> ChunkedWindow:
    t = item.table(["frameworks", "kernels", "head_dim", "window", "source"])
    kernels, dims = _texts(t["kernels"]), _range(t["head_dim"])
    return ChunkedWindow(_texts(t["frameworks"]), kernels, dims, t["window"].integer(1), t["source"].text())


def _fresh(item: Item) -> FreshKeys:
    t = item.table(["frameworks", "kernels", "source"])
    return FreshKeys(_texts(t["frameworks"]), _texts(t["kernels"]), t["source"].text())


def _spellings(item: Item) -> Mapping[str, str]:
    return {other.lower(): name for name, entry in item.entries().items() for other in _texts(entry)}


def _small_grid(item: Item) -> tuple[int, int, int]:
    t = item.table(["times", "min_keys", "waves"])
    return t["times"].integer(1), t["min_keys"].integer(1), t["waves"].integer(1)


def _texts(item: Item) -> tuple[str, ...]:
    return tuple(i.text() for i in item.items())


def _range(item: Item) -> tuple[int, int]:
    ends = [i.integer(1) for i in item.items()]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise item.error("two whole numbers, the smaller first")
    return ends[0], ends[1]
