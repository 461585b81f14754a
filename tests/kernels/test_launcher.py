"""Triton's launch as a GPU runs it, without one: arguments bound and specialised, keys of both caches, hooks. (Other tests
interpret, or compile without tensors.)"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

needs_triton = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "triton")),
    reason="torch and triton are not installed (extra `gpu`)",
)


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
    order = [next((what, entry[what]) for what in ("compile", "launch") if what in entry) for entry in launched]
    new = [("compile", "forward"), ("launch", "forward")]
    gradients = [(what, name) for name in ("row_delta", "grad_queries", "grad_keys") for what in ("compile", "launch")]
    assert order == [*new, ("launch", "forward"), *new, *new, *new, *new, *gradients]
    keys = [entry["key"] for entry in launched if "compile" in entry]
    assert len(set(keys)) == len(keys)
    forward = [entry["disk_key"] for entry in launched if entry.get("launch") == "forward"]
    assert forward[0] == forward[1] and len(set(forward)) == len(forward) - 1


@needs_triton
def test_keys_are_the_same_in_another_process(launched: list[dict[str, Any]]) -> None:
    """The key of the folder of binaries, and the key in memory: no address and no order of a set is in them."""
    assert record(seed=2) == launched


@needs_triton
def test_a_launch_hands_over_tensors_and_numbers_and_hooks_can_write_the_rest(launched: list[dict[str, Any]]) -> None:
    pairs = zip((e for e in launched if "compile" in e), (e for e in launched if "launch" in e), strict=False)
    for compiled, launch in pairs:
        assert 0 < launch["kept"] < launch["given"]  # what is fixed and what is None does not reach the driver
        assert not any("0x" in str(part) for part in (compiled["key"], compiled["constants"]))
    first = next(e for e in launched if "compile" in e)
    (build,) = (c for c in first["constants"] if isinstance(c, dict))
    assert (build["E"], build["BLOCK_M"], build["HAS_RIGHT"], build["DESCRIPTORS"]) == (32, 64, True, False)
    assert "BLOCK_M=constexpr[64]" in first["key"]
