"""The wheel carries the data files and works from another folder, without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cli", "einsum", "hw_profiles", "kernels", "reports", "sim", "tuner")
DATA = (".casc", ".yaml", ".html", ".typed")
LEFT_BEHIND = shutil.ignore_patterns(
    ".*venv*", ".git", "out", "build", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command in an environment that knows nothing of the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout keeps no build folder."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=LEFT_BEHIND)
    here = int(version("setuptools").split(".")[0]) >= 77  # pyproject's build requirement is met without a download
    options = ["--no-isolation"] if here else []
    run(sys.executable, "-m", "build", "--wheel", *options, "--outdir", folder, folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel; the packages it depends on are lent by this one through a path file.

    Path files do not nest: an editable einsight of the lending environment stays invisible.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def einsight(environment: Path, *words: str) -> Any:
    elsewhere = environment / "work"
    elsewhere.mkdir(exist_ok=True)
    return json.loads(run(environment / "env" / "bin" / "einsight", *words, "--json", cwd=elsewhere))


def test_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"einsight/{file.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix in (".py", *DATA)
    }
    assert wanted - inside == set()


def test_wheel_claims_one_name_only(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {n for n in names if not n.endswith(".dist-info")} == {"einsight"}


def test_installed_package_is_not_the_checkout(environment: Path) -> None:
    where = run(
        environment / "env" / "bin" / "python", "-c", "import einsight.sim as s; print(s.__file__)", cwd=environment
    )
    assert Path(where.strip()).is_relative_to(environment)


def test_lists_are_complete(environment: Path) -> None:
    profiles = {p.stem for p in (ROOT / "hw_profiles").glob("*.yaml")}
    cascades = {p.stem for p in (ROOT / "einsum" / "cascades").glob("*.casc")}
    assert {h["name"] for h in einsight(environment, "hardware")} == profiles
    assert {c["name"] for c in einsight(environment, "cascades")["cascades"]} == cascades


def test_simulates_from_another_folder(environment: Path) -> None:
    words = ("--cascade", "one_pass", "--heads", "8", "--seq", "1024", "--head-dim", "64", "--target", "h100-sxm")
    (prediction,) = einsight(environment, "simulate", *words)
    assert prediction["target"] == "h100-sxm"
    assert prediction["flops"]["matmul"] == 4 * 8 * 1024 * 1024 * 64


def test_version_is_the_projects(environment: Path) -> None:
    (line,) = [x for x in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines() if x.startswith("version")]
    number = line.split('"')[1]
    assert run(environment / "env" / "bin" / "einsight", "--version", cwd=environment) == f"einsight {number}\n"
