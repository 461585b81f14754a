"""What one build of a kernel occupies on an SM, without a GPU: closed form, or compiled offline. Plain numbers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from einsight.kernels.spaces import (
    LIMITS,
    SHARED_PER_BLOCK_RESERVED,
    Config,
    Heads,
    Limits,
    excluded,
    shared_bytes,
    tmem_columns,
)

# A stack frame above this many bytes is not a few spilled values: the assembler keeps the tile in local memory (and
# then reports as few as 32 registers, which would look like a high occupancy).
STACK_GIVEN_UP = 1024
REGISTER_GRANULE = 256  # registers are granted to a warp in multiples of this
QUARTERS = 4  # of an SM: each has its own registers, and a warp finds all of its in one

COMPILED_FIELDS = (
    "registers", "spill_bytes", "stack_bytes", "shared_bytes", "tmem_columns", "warps", "loop", "triton",
)  # fmt: skip

IMPORT = re.compile(rb"^from (einsight\.kernels\.\w+) import (\([^)]*\)|[^\n]*)", re.MULTILINE)

OK, SHARED, TENSOR_MEMORY, GAVE_UP, TRAP, REGISTERS, EXCLUDED, FAILED, TIMEOUT = (
    "ok", "shared_memory", "tensor_memory", "gave_up", "trap_stub", "registers", "excluded", "compile_failed",
    "timeout",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """Resources of one build on one compute capability.

    status   "ok" or the name of what makes the build unusable; `reason` says it in words with the numbers
    source   "compiled", "table" (of earlier compilations) or "closed_form", which cannot know registers, spills and
             instructions: they are None
    loop     instructions of the unmasked inner loop by opcode, with their "total"
    """

    status: str
    reason: str
    source: str
    registers: int | None = None
    spill_bytes: int | None = None
    stack_bytes: int | None = None
    shared_bytes: int | None = None
    tmem_columns: int | None = None
    warps: int | None = None
    blocks_per_sm: int | None = None
    loop: Mapping[str, int] = field(default_factory=dict)
    triton: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Request:
    """One offline compilation: `function(**arguments)` of `module` for sm_`capability`. Arguments are JSON values."""

    module: str
    function: str
    arguments: Mapping[str, Any]
    capability: int
    disassemble: bool = True


def closed_form(
    heads: Heads, config: Config, capability: int, rule: Callable[[Heads, Config, Limits], str] = excluded
) -> Estimate:
    """Shared and tensor memory of the attention kernel from its tile sizes alone; registers stay unknown.

    rule   why a build is left out of the kernel's space
    """
    limits = LIMITS[capability]
    known: dict[str, Any] = {
        "shared_bytes": shared_bytes(heads, config, capability),
        "tmem_columns": tmem_columns(heads, config, capability),
        "warps": config.num_warps,
        "registers": None,
        "stack_bytes": None,
    }
    status, reason = _judge(known, limits)
    why = rule(heads, config, limits)
    if status == OK and why:
        status, reason = EXCLUDED, why
    return Estimate(status, reason, "closed_form", blocks_per_sm=_blocks_per_sm(known, limits), **known)


def compile_offline(
    requests: Iterable[Request],
    *,
    workers: int = 2,
    timeout_s: float = 90.0,
    cache: Path | None = None,
    triton_cache: Path | None = None,
) -> Iterator[tuple[Request, Estimate]]:
    """Compile every request in child processes; yields each as soon as it is done, in any order.

    cache         folder of finished answers (JSON), keyed by the kernel's source, Triton's version and the request
    triton_cache  folder for Triton's own cache, kept (a later launch finds the binary there); None: temporary, deleted
    A compile that fails, aborts or takes longer than `timeout_s` is an answer with its status, never an exception.
    """
    requests = list(requests)
    folder = Path(tempfile.mkdtemp(prefix="einsight-triton-")) if triton_cache is None else triton_cache
    done: Queue[tuple[Request, Estimate]] = Queue()
    local = threading.local()
    children: list[_Child] = []

    def work(request: Request) -> None:
        if not hasattr(local, "child"):
            local.child = _Child(folder)
            children.append(local.child)
        done.put((request, _answer(request, local.child, timeout_s, cache)))

    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            futures: list[Future[None]] = [pool.submit(work, request) for request in requests]
            try:
                yield from _drain(done, futures)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in children:
                    child.stop()
    finally:
        if triton_cache is None:
            shutil.rmtree(folder, ignore_errors=True)


def _drain(done: Queue[tuple[Request, Estimate]], futures: list[Future[None]]) -> Iterator[tuple[Request, Estimate]]:
    for _ in futures:
        while True:
            try:
                yield done.get(timeout=1.0)
                break
            except Empty:  # only a bug in this file leaves a future failed without an answer: show it
                for future in futures:
                    if future.done() and not future.cancelled():
                        future.result()


def _answer(request: Request, child: _Child, timeout_s: float, cache: Path | None) -> Estimate:
    kept = None if cache is None else cache / f"{_key(request)}.json"
    if kept is not None and kept.exists():
        return _estimate(json.loads(kept.read_text()), request.capability)
    raw = child.ask(asdict(request), timeout_s)
    if kept is not None and "error" not in raw:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        partial.write_text(json.dumps(raw))
        partial.replace(kept)
    return _estimate(raw, request.capability)


def _estimate(raw: Mapping[str, Any], capability: int) -> Estimate:
    if "error" in raw:
        return Estimate(TIMEOUT if raw.get("timeout") else FAILED, raw["error"], "compiled")
    limits = LIMITS[capability]
    status, reason = _judge(raw, limits)
    fields = {name: raw[name] for name in COMPILED_FIELDS}
    return Estimate(status, reason, "compiled", blocks_per_sm=_blocks_per_sm(raw, limits), **fields)


def _judge(raw: Mapping[str, Any], limits: Limits) -> tuple[str, str]:
    """The failures that no compiler reports: it only says so at launch, or never."""
    if raw["shared_bytes"] > limits.shared_bytes_per_block:
        return SHARED, f"{raw['shared_bytes']} bytes of shared memory, a block may have {limits.shared_bytes_per_block}"
    if raw["tmem_columns"] > limits.tmem_columns:
        return TENSOR_MEMORY, f"{raw['tmem_columns']} columns of tensor memory, an SM has {limits.tmem_columns}"
    if raw.get("trap"):
        return TRAP, "the compiler emitted a trap instead of the kernel"
    if (raw["stack_bytes"] or 0) > STACK_GIVEN_UP:
        return GAVE_UP, f"a stack of {raw['stack_bytes']} bytes a thread: the assembler gave up on registers"
    if raw["registers"] and _blocks_per_sm(raw, limits) == 0:
        return REGISTERS, f"{raw['registers']} registers x {raw['warps']} warps exceed the {limits.registers} of an SM"
    return OK, ""


def _blocks_per_sm(raw: Mapping[str, Any], limits: Limits) -> int:
    """Blocks of an SM at once by shared memory, warps, registers (granted per warp, from its quarter) and tensor memory."""
    counts: list[int] = [limits.blocks, limits.warps // raw["warps"]]
    counts.append(limits.shared_bytes // (raw["shared_bytes"] + SHARED_PER_BLOCK_RESERVED))
    if raw["registers"]:
        per_warp = -(-raw["registers"] * 32 // REGISTER_GRANULE) * REGISTER_GRANULE
        warps = limits.registers // QUARTERS // per_warp * QUARTERS
        counts.append(warps // raw["warps"])
    if raw["tmem_columns"]:
        counts.append(limits.tmem_columns // raw["tmem_columns"])
    return min(counts)


def _key(request: Request) -> str:
    triton = find_spec("triton")
    version = _triton_version(triton.origin if triton else None)
    payload = json.dumps([source_hash(request.module), version, asdict(request)], sort_keys=True)
    return hashlib.sha256(payload.encode()).hexdigest()[:32]


@lru_cache
def source_hash(module: str) -> str:
    """SHA-256 (first 16 hex digits) of a kernel module's text and of the modules whose Triton functions it imports: what
    its records and cached builds are keyed by."""
    return hashlib.sha256(b"".join(_texts(module, set()))).hexdigest()[:16]


def _texts(module: str, seen: set[str]) -> Iterator[bytes]:
    """The text of a module, then of those whose Triton functions it imports, in the order of their names."""
    seen.add(module)
    text = _text(module)
    yield text
    for found in sorted(IMPORT.finditer(text), key=lambda match: match[1]):
        name = found[1].decode()
        if name not in seen and any(_defines(_text(name), function) for function in re.findall(rb"\w+", found[2])):
            yield from _texts(name, seen)


def _text(module: str) -> bytes:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module}: no such kernel module")
    return Path(spec.origin).read_bytes()


def _defines(text: bytes, function: bytes) -> bool:
    return re.search(rb"@triton\.jit\s+def " + function + rb"\(", text) is not None


def _triton_version(origin: str | None) -> str:
    """Triton's version read from its text: importing it here would load the compiler into the parent."""
    if origin is None:
        return "none"
    for line in Path(origin).read_text().splitlines():
        if line.startswith("__version__"):
            return line.split("=")[1].strip().strip("'\"")
    return "unknown"


class _Child:
    """One compiling process, started on first use and again after it died or was killed."""

    def __init__(self, triton_cache: Path) -> None:
        self.triton_cache = triton_cache
        self.process: subprocess.Popen[str] | None = None
        self.lines: Queue[str] = Queue()

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            self._start()
        process, lines = self.process, self.lines
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = lines.get(timeout=timeout_s)
        except Empty:
            self.stop()
            return {"error": f"not compiled after {timeout_s:g} s", "timeout": True}
        except (BrokenPipeError, ValueError):
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        return {"error": f"the compiler process ended with code {process.returncode}"}

    def _start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        root = str(Path(__file__).parents[2])  # the folder that holds the package `einsight`
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
        environment["TRITON_CACHE_DIR"] = str(self.triton_cache)
        self.lines = Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "einsight.kernels.offline"], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Thread(target=_forward_lines, args=(self.process, self.lines), daemon=True).start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _forward_lines(process: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")  # the process ended
