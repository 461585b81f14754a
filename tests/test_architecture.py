"""Who may import whom, where device names may stand, and how long functions and files may be.

Every rule is itself tested on a planted violation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OURS: dict[str, frozenset[str]] = {
    "einsum": frozenset(),
    "hw_profiles": frozenset(),
    "sim": frozenset({"einsum"}),
    "kernels": frozenset(),
    "tuner": frozenset({"einsum", "sim", "kernels"}),
    "reports": frozenset({"einsum", "sim", "tuner"}),
    "cli": frozenset({"einsum", "sim", "kernels", "tuner", "reports"}),
}
"""Folder and the folders of ours that it may import."""

REPORTS_MAY_READ = ("einsight.tuner.record", "einsight.tuner.store")  # of the tuner: records, never measuring or search

HOME: dict[str, tuple[str, ...]] = {
    "torch": ("kernels/", "tuner/measure", "tuner/ceilings"),
    "triton": ("kernels/", "tuner/measure", "tuner/ceilings"),
    "optuna": ("tuner/",),
    "matplotlib": ("reports/figures.py",),
    "yaml": ("sim/strict_yaml.py",),
}
"""Package and the paths (by their beginning) that may import it."""

HARDWARE_IS_DATA = ("einsum", "sim", "kernels", "tuner", "reports")
"""Folders whose code may not name a device (docstrings may, as examples; the command's hints and the tests too)."""

FUNCTION_LINES, TRITON_LINES, FILE_LINES = 60, 160, 500


def violations(root: Path) -> list[str]:
    """Every broken rule as `path:line: what`, over our folders, tests and benchmarks below `root`."""
    found: list[str] = []
    devices = tuple(p.stem for p in (root / "hw_profiles").glob("*.yaml") if any(c.isdigit() for c in p.stem))
    for folder in (*OURS, "tests", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text, filename=path)
            found += _long(path, text, tree)
            if folder in HARDWARE_IS_DATA:
                found += _named_devices(path, tree, devices)
            for line, module in _imports(path, tree):
                found += [f"{path}:{line}: {why}" for why in _wrong_import(path, module)]
    return found


def _imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported module with its line; `from a import b` gives `a.b`, relative names are made absolute."""
    package = ["einsight", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _wrong_import(path: str, module: str) -> Iterator[str]:
    folder, parts = path.split("/")[0], module.split(".")
    if parts[-1] == "*":
        yield f"import * from {'.'.join(parts[:-1])}"
    if parts[0] in OURS:
        yield f"bare import of {parts[0]}; say einsight.{parts[0]}"
    if folder not in OURS:
        return  # tests and benchmarks see everything
    if parts[0] in HOME and not path.startswith(HOME[parts[0]]):
        yield f"{parts[0]} is imported only in {', '.join(HOME[parts[0]])}"
    if parts[0] != "einsight" or len(parts) < 2 or parts[1] == folder:
        return
    if parts[1] not in OURS[folder]:
        yield f"{folder} may not import {parts[1]}"
    elif folder == "reports" and parts[1] == "tuner" and not f"{module}.".startswith(REPORTS_MAY_READ):
        yield f"reports may read only the records of tuner, not {module}"


def _named_devices(path: str, tree: ast.AST, devices: tuple[str, ...]) -> Iterator[str]:
    """String literals, docstrings aside, that contain the name of a profile."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from (f"{path}:{node.lineno}: names the device {d}" for d in devices if d in node.value)


def _long(path: str, text: str, tree: ast.AST) -> Iterator[str]:
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{path}:1: {lines} lines; a file has at most {FILE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = TRITON_LINES if any("jit" in ast.unparse(d) for d in node.decorator_list) else FUNCTION_LINES
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > most:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines; at most {most}"


def test_our_folders_keep_the_rules() -> None:
    assert violations(ROOT) == []


def test_every_folder_of_the_table_is_there_and_linked() -> None:
    assert {p.name for p in (ROOT / ".src" / "einsight").iterdir() if p.is_symlink()} == set(OURS)
    assert all((ROOT / folder / "__init__.py").is_file() for folder in OURS)


PLANTED = [
    ("sim/a.py", "from einsight.tuner.record import Record", "sim may not import tuner"),
    ("sim/a.py", "import einsight.kernels.attention", "sim may not import kernels"),
    ("sim/a.py", "from einsight import tuner", "sim may not import tuner"),
    ("einsum/a.py", "from einsight.sim.mask import Mask", "einsum may not import sim"),
    ("einsum/a.py", "from ..sim import mask", "einsum may not import sim"),
    ("kernels/a.py", "from einsight.einsum.ir import Cascade", "kernels may not import einsum"),
    ("reports/a.py", "import einsight.cli", "reports may not import cli"),
    ("reports/a.py", "from einsight.tuner.search import search", "reports may read only the records"),
    ("tuner/a.py", "from einsight.reports import html", "tuner may not import reports"),
    ("sim/a.py", "def f():\n    import torch", "torch is imported only in kernels/"),
    ("tuner/search.py", "import triton.language as tl", "triton is imported only in kernels/"),
    ("sim/a.py", "from optuna import create_study", "optuna is imported only in tuner/"),
    ("cli/a.py", "import matplotlib.pyplot", "matplotlib is imported only in reports/figures.py"),
    ("sim/workload.py", "import yaml", "yaml is imported only in sim/strict_yaml.py"),
    ("sim/a.py", "from math import *", "import * from math"),
    ("tests/a.py", "import sim", "bare import of sim"),
    ("tests/a.py", "from hw_profiles import x", "bare import of hw_profiles"),
    ("sim/a.py", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines; at most 60"),
    ("kernels/a.py", "@triton.jit\ndef f():\n" + "    x = 1\n" * 160, "f has 161 lines; at most 160"),
    ("sim/a.py", "\n" * 501, "501 lines; a file has at most 500"),
]


@pytest.mark.parametrize(("path", "text", "why"), PLANTED, ids=[why for _, _, why in PLANTED])
def test_a_planted_violation_is_found(tmp_path: Path, path: str, text: str, why: str) -> None:
    plant(tmp_path, path, text)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{path}:") and why in found




def test_a_device_named_in_code_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "hw_profiles/x100.yaml", "")
    plant(tmp_path, "sim/a.py", '"""Such as x100."""\nname = "x100"\n')
    assert violations(tmp_path) == ["sim/a.py:2: names the device x100"]


ALLOWED = [
    ("sim/a.py", "from einsight.einsum.ir import Cascade\nfrom .mask import Mask\nimport numpy"),
    ("sim/strict_yaml.py", "import yaml"),
    ("kernels/a.py", "import torch, triton\n@triton.jit\ndef f():\n" + "    x = 1\n" * 100),
    ("tuner/measure.py", "import torch\nfrom einsight.kernels import attention"),
    ("reports/a.py", "from einsight.tuner.record import Record\nfrom einsight.tuner import store"),
    ("tests/a.py", "import torch, yaml, einsight.tuner.search"),
]


@pytest.mark.parametrize(("path", "text"), ALLOWED, ids=[path for path, _ in ALLOWED])
def test_what_the_table_allows_passes(tmp_path: Path, path: str, text: str) -> None:
    plant(tmp_path, path, text)
    assert violations(tmp_path) == []


def plant(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
