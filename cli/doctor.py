"""`einsight doctor`: what this installation has and what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from einsight.cli.output import Json, print_json, print_table

BASE = ("numpy", "scipy", "scikit-learn", "networkx", "pyyaml", "typer", "rich", "matplotlib", "threadpoolctl")
EXTRAS = {
    "gpu": ("torch", "triton"),
    "tune": ("optuna", "psycopg2-binary"),
    "dev": ("pytest", "hypothesis", "mypy", "ruff"),
}
REFERENCE_FOLDERS = ("measured", "gna", "fusemax", "tuner_spaces")
PROBE_TIMEOUT_S = 60

# torch is asked in a process of its own: importing it takes seconds and can fail in ways that should not end `doctor`.
GPU_PROBE = """
import torch
for i in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(i))
"""


def run(as_json: Json = False) -> None:
    """Versions, GPU seen or not, extras installed, reference data found.

    Example: einsight doctor
    """
    facts = diagnose()
    if as_json:
        return print_json(facts)
    print_table("einsight doctor", ("what", "found"), _rows(facts))


def diagnose() -> dict[str, Any]:
    """The facts of `einsight doctor --json`; a version is None where the package is missing."""
    return {
        "einsight": _version("einsight"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "base": {name: _version(name) for name in BASE},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        "gpu": _gpu(),
        "reference": _reference(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> dict[str, Any]:
    """Devices as the driver names them, and who was asked."""
    if _version("torch") is not None:
        seen, problem = _ask([sys.executable, "-c", GPU_PROBE])
        asked = "torch"
    elif tool := shutil.which("nvidia-smi"):
        seen, problem = _ask([tool, "--query-gpu=name", "--format=csv,noheader"])
        asked = "nvidia-smi"
    else:
        return {"devices": [], "asked": None, "problem": "neither torch nor nvidia-smi is here to ask"}
    return {"devices": seen, "asked": asked, "problem": problem}


def _ask(command: list[str]) -> tuple[list[str], str | None]:
    """The lines that a command prints, or why there are none."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    if answer.returncode:
        return [], (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()], None


def _reference() -> dict[str, Any]:
    """Where published data to test against was looked for, and which parts are there."""
    folder = Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference"))
    return {"folder": str(folder), "found": [name for name in REFERENCE_FOLDERS if (folder / name).is_dir()]}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    extras = [
        (f"extra {extra}", _versions(found) if all(found.values()) else f"{_versions(found)}; {_how_to_get(extra)}")
        for extra, found in facts["extras"].items()
    ]
    gpu, reference = facts["gpu"], facts["reference"]
    return [
        ("einsight", facts["einsight"] or "not installed (running from the checkout)"),
        ("python", f"{facts['python']} on {facts['platform']}"),
        ("base", _versions(facts["base"])),
        *extras,
        ("GPU", ", ".join(gpu["devices"]) or f"none ({gpu['problem'] or 'none seen by ' + gpu['asked']})"),
        (
            "reference data",
            f"{reference['folder']}: {', '.join(reference['found']) or 'not found (EINSIGHT_REFERENCE names it)'}",
        ),
    ]


def _versions(found: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {got or '-'}" for name, got in found.items())


def _how_to_get(extra: str) -> str:
    return f"pip install 'einsight[{extra}]'"
