"""The child process of `resources`: compiles kernels for a target without a GPU, one JSON request and answer a line.

It must be its own process: a process that interprets cannot compile, a compiler assertion may abort it, and a compile
that hangs has to be killed. Run as `python -m einsight.kernels.offline`; needs torch and triton, no GPU and no driver.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# What an inner loop is made of, by the pipe that runs it. The part of the opcode before the first dot, MUFU in full.
MATRIX = ("HMMA", "HGMMA", "QGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*)")
LABEL = re.compile(r"^\s*(\.L[\w.$]+):")


class OfflineDriver:
    """Just enough of a Triton driver to specialise and compile for `capability`: nothing can be launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_request(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one request {module, function, arguments, capability} and read the resources out of what came out."""
    driver.set_active(OfflineDriver(request["capability"]))
    function = getattr(importlib.import_module(request["module"]), request["function"])
    kernel = function(**request["arguments"])
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "k.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", cubin)
        sass = listing(cubin) if request.get("disassemble", True) else ""
        stack = _number(r"STACK:(\d+)", usage)
        spills = _spill_stores(kernel.asm["ptx"], request["capability"], Path(folder)) if stack else 0
    return {
        "registers": _number(r"REG:(\d+)", usage),
        "stack_bytes": stack,
        "spill_bytes": spills,
        "shared_bytes": kernel.metadata.shared,
        "tmem_columns": getattr(kernel.metadata, "tmem_size", 0) or 0,
        "warps": kernel.metadata.num_warps,
        "trap": bool(sass) and "BPT.TRAP" in sass and not any(name in sass for name in MATRIX) and sass.count(";") < 64,
        "loop": inner_loop(sass),
        "triton": triton.__version__,
    }


def listing(cubin: Path) -> str:
    """The instructions; "" where Triton's disassembler does not know the architecture, as that of 3.6 does not know sm_103."""
    try:
        return _tool("nvdisasm", "-c", cubin)
    except subprocess.CalledProcessError:
        return ""


def inner_loop(sass: str) -> dict[str, int]:
    """Instructions of the steady-state loop of `sass` (nvdisasm -c), by opcode; empty when there is none.

    A loop is the range closed by a backward branch; of the innermost ones with tensor-core instructions the one with
    the fewest other instructions per tensor-core instruction is taken: the loop over tiles without mask arithmetic.
    Without tensor-core instructions (micro-benchmarks) the longest innermost loop.
    """
    code, position = _listing(sass)
    loops = [(position[target], at) for at, (opcode, target) in enumerate(code)
             if opcode.startswith("BRA") and target in position and position[target] <= at]  # fmt: skip
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    counted = [Counter(_opcode(name) for name, _ in code[first : last + 1]) for first, last in inner]
    if not counted:
        return {}
    dots = [c for c in counted if any(c[name] for name in MATRIX)]
    best = max(counted, key=Counter.total)
    if dots:
        best = min(dots, key=lambda c: c.total() / sum(c[name] for name in MATRIX))
    return dict(sorted(best.items())) | {"total": best.total()}


def _listing(sass: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(opcode, branch target) in program order, and the index at which each label stands."""
    code: list[tuple[str, str]] = []
    position: dict[str, int] = {}
    for line in sass.splitlines():
        if label := LABEL.match(line):
            position[label[1]] = len(code)
        elif found := INSTRUCTION.match(line):
            target = re.search(r"\.L[\w.$]+", found[3])
            code.append((found[2], target[0] if target else ""))
    return code, position


def _opcode(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("MUFU") else name.split(".")[0]


def _tool(name: str, *arguments: str | Path) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"cuobjdump -res-usage: {pattern} not in its output: {text[:200]!r}")
    return int(found[1])


def _spill_stores(ptx: str, capability: int, folder: Path) -> int:
    """Bytes of spill stores as ptxas reports them (the stack frame alone also counts arrays indexed at run time)."""
    source = folder / "k.ptx"
    source.write_text(ptx)
    assembler = "ptxas-blackwell" if capability >= 100 and (TOOLS / "ptxas-blackwell").exists() else "ptxas"
    suffix = "a" if capability >= 90 else ""
    text = _tool(assembler, "-v", f"--gpu-name=sm_{capability}{suffix}", source, "-o", folder / "again.cubin")
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", text))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # a compiler that prints must not break the line protocol
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = compile_request(json.loads(line))
        except Exception as error:  # every failure of a compiler is an answer, with its reason
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
