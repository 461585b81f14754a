"""Triton's launch as a GPU runs it, without one: arguments bound and specialised, keys of both caches, hooks. (Other tests
interpret, or compile without tensors.)"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from einsight.kernels.catalog import KERNELS

needs_triton = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="torch and triton are not installed (extra `gpu`)",
)


ORDERED = 17  # records of what `launch_record.main` does before it compiles ahead


def record(seed: int) -> list[dict[str, Any]]:
    root = Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONHASHSEED": str(seed)}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / ".src"), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, Path(__file__).with_name("launch_record.py")], env=environment, text=True,
                          capture_output=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def launched() -> list[dict[str, Any]]:
    return record(seed=1)


@needs_triton
def test_a_build_is_compiled_once_and_found_again(launched: list[dict[str, Any]]) -> None:
    """Two equal launches, then descriptors, then another mask, then a length of another divisibility; then flashbias and its
    three backward kernels."""
    order = [(what, entry[what]) for entry in launched for what in ("compile", "launch") if what in entry][:ORDERED]
    new = [("compile", "forward"), ("launch", "forward")]
    gradients = [(what, name) for name in ("row_delta", "grad_queries", "grad_keys") for what in ("compile", "launch")]
    assert order == [*new, ("launch", "forward"), *new, *new, *new, *new, *gradients]
    assert len(order) == ORDERED
    keys = [entry["key"] for entry in launched if "compile" in entry]
    assert len(set(keys)) == len(keys)
    forward = [entry["disk_key"] for entry in launched if entry.get("launch") == "forward"][:6]
    assert forward[0] == forward[1] and len(set(forward)) == len(forward) - 1


@needs_triton
def test_what_is_compiled_ahead_is_what_a_launch_finds(launched: list[dict[str, Any]]) -> None:
    """Of every kernel but sigmoid, whose code for the CPU is another. The merge and the copies are not compiled ahead."""
    found = {entry["ahead"]: entry["anew"] for entry in launched if "ahead" in entry}
    others = {"decode": ["_merge"], "gna": ["_copy_tiles"]}
    assert found == {name: others.get(name, []) for name in KERNELS if name not in ("sigmoid", "lightning")}


@needs_triton
def test_keys_are_the_same_in_another_process(launched: list[dict[str, Any]]) -> None:
    """The key of the folder of binaries, and the key in memory: no address and no order of a set is in them."""
    assert record(seed=2) == launched


@needs_triton
def test_a_launch_hands_over_tensors_and_numbers_and_hooks_can_write_the_rest(launched: list[dict[str, Any]]) -> None:
    for launch in (entry for entry in launched if "launch" in entry):
        assert 0 < launch["kept"] < launch["given"]  # what is fixed and what is None does not reach the driver
    for compiled in (entry for entry in launched if "compile" in entry):
        assert not any("0x" in str(part) for part in (compiled["key"], compiled["constants"]))
    first = next(e for e in launched if "compile" in e)
    (build,) = (c for c in first["constants"] if isinstance(c, dict))
    assert (build["E"], build["BLOCK_M"], build["HAS_RIGHT"], build["DESCRIPTORS"]) == (32, 64, True, False)
    assert "BLOCK_M=constexpr[64]" in first["key"]


def test_a_launch_is_made_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which need not be theirs."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `gpu`)")
    pytest.importorskip("triton", reason="triton is not installed (extra `gpu`)")
    from einsight.kernels.attention_launch import Pass

    order: list[Any] = []

    class Guard:
        def __init__(self, tensor: Any) -> None:
            order.append(id(tensor))

        def __enter__(self) -> None:
            order.append("enter")

        def __exit__(self, *_: object) -> None:
            order.append("leave")

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **rest: order.append((grid, len(arguments), rest))

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    tensor = torch.zeros(1)
    Pass(Kernel(), 3, (tensor, 1), {"E": 32}, {"num_warps": 4}).run()
    assert order == [id(tensor), "enter", ((3,), 2, {"E": 32, "num_warps": 4}), "leave"]
    Pass(Kernel(), 0, (tensor, 1), {}, {}).run()
    assert len(order) == 4  # an empty problem launches nothing


def test_every_kernel_launches_through_a_pass() -> None:
    """Micro-benchmarks, which make their own tensors on the current device, do not."""
    folder = Path(__file__).parents[2] / "kernels"
    launching = {file.name for file in folder.glob("*.py") if re.search(r"\w\[\(.*\)\]\(", file.read_text())}
    assert launching == {"attention_launch.py", "probes.py"}
