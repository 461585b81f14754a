"""The shell of the command: lists, help, exit codes, one message for bad input, no traceback."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from einsight import cli

Einsight = Callable[..., Any]
FOLDER = Path(cli.__file__).parent


def test_every_verb_is_listed_and_has_a_file(einsight: Einsight) -> None:
    shown = einsight("--help")
    assert shown.code == 0
    for verb in cli.VERBS:
        assert f"\n  {verb}" in shown.out
        assert (FOLDER / f"{verb}.py").is_file()


def commands() -> list[tuple[str, ...]]:
    """Every verb, and where a verb is a group, every command of it."""
    groups = {verb: getattr(importlib.import_module(f"einsight.cli.{verb}"), "group", None) for verb in cli.VERBS}
    return [(v, str(c.name)) for v, g in groups.items() if g for c in g.registered_commands] + [
        (v,) for v, g in groups.items() if not g
    ]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_has_an_example_and_json(einsight: Einsight, words: tuple[str, ...]) -> None:
    shown = einsight(*words, "--help")
    assert shown.code == 0
    assert f"Example: einsight {' '.join(words)}" in " ".join(shown.out.split()) and "--json" in shown.out


def test_without_a_verb_it_shows_the_help(einsight: Einsight) -> None:
    ran = einsight()
    assert ran.code == 2 and "simulate" in ran.out + ran.err


def test_version(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")
    assert einsight("--version").out == "einsight 1.2.3 of einsight\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulat"], "simulat"),
        (["cascades", "--jsn"], "--jsn"),
        (["cascades", "one_pas"], "one_pass"),
        (["cascades", "absent.casc"], "absent.casc"),
        (["hardware", "h100-sx"], "h100-sxm"),
        (["explain", "one_pass", "--size", "m"], "--size: found 'm'"),
        (["explain", "one_pass", "--size", "m=0"], "at least 1"),
        (["explain", "one_pass", "--size", "m=4,m=5"], "only once"),
        (["explain", "one_pass", "--size", "m=4"], "missing size"),
        (["explain", "absent.yaml"], "absent.yaml"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(einsight: Einsight, words: list[str], said: str) -> None:
    ran = einsight(*words)
    assert ran.code == 2
    assert ran.out == "" and said in ran.err


def test_a_faulty_cascade_shows_line_and_place(einsight: Einsight, tmp_path: Path) -> None:
    file = tmp_path / "bad.casc"
    file.write_text("cascade bad\nrank M\nin A[m]\nout B[m]\nB[m] = C[m]\n", encoding="utf-8")
    ran = einsight("explain", str(file))
    assert ran.code == 2
    assert f"{file}:5:8" in ran.err and "^" in ran.err


def test_a_bug_says_so_and_how_to_see_more(
    einsight: Einsight, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ValueError("shapes do not match")

    monkeypatch.setattr("einsight.cli.doctor.diagnose", broken)
    ran = einsight("doctor")
    assert ran.code == cli.BUG
    assert "bug in einsight: ValueError: shapes do not match (broken" in ran.err and "EINSIGHT_DEBUG=1" in ran.err
    monkeypatch.setenv("EINSIGHT_DEBUG", "1")
    assert cli.main(["doctor"]) == cli.BUG
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_one_short_line(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("einsight.cli.doctor.diagnose", interrupted)
    ran = einsight("doctor")
    assert (ran.code, ran.out, ran.err) == (130, "", "einsight: interrupted\n")


def test_memory_that_is_not_there_is_no_bug(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy() -> None:
        raise MemoryError("Unable to allocate 58 GiB")

    monkeypatch.setattr("einsight.cli.doctor.diagnose", greedy)
    ran = einsight("doctor")
    assert (ran.code, ran.err) == (2, "einsight: this needs more memory than there is; ask for smaller sizes or fewer points\n")


COMMAND = [sys.executable, "-c", "import sys; from einsight.cli import main; sys.exit(main())"]
ENVIRONMENT = {"PYTHONPATH": str(FOLDER.parent.parent), "PYTHONIOENCODING": "ascii"}


def test_a_reader_that_leaves_early_is_no_fault() -> None:
    ran = subprocess.Popen([*COMMAND, "cascades", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           env=ENVIRONMENT)  # fmt: skip
    assert ran.stdout and ran.stderr
    ran.stdout.close()
    assert (ran.stderr.read(), ran.wait()) == (b"", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*COMMAND, "cascades"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert ran.returncode == 2 and "writing the output: No space left" in ran.stderr


def test_json_is_json_where_the_terminal_knows_ascii_only(tmp_path: Path) -> None:
    file = tmp_path / "mine.casc"
    file.write_text('cascade mine\npaper "Müller → 2025"\nrank M\nin A[m]\nout B[m]\nB[m] = exp(A[m])\n', encoding="utf-8")
    made = subprocess.run([*COMMAND, "cascades", str(file), "--json"], capture_output=True, text=True, env=ENVIRONMENT)
    assert json.loads(made.stdout)["paper"] == "Müller → 2025"
    shown = subprocess.run([*COMMAND, "cascades", str(file)], capture_output=True, text=True, env=ENVIRONMENT)
    assert shown.returncode == 0 and "M\\xfcller" in shown.stdout


def test_help_imports_no_heavy_package() -> None:
    code = "import sys; from einsight.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent,
        env={"PYTHONPATH": str(FOLDER.parent.parent)},
    )  # fmt: skip
    heavy = {"numpy", "scipy", "networkx", "yaml", "matplotlib", "torch", "rich"}
    assert heavy & set(done.stderr.split()) == set()


def test_verbs_parse_and_print_only() -> None:
    """No verb opens a network connection, runs a shell or evaluates text."""
    for file in FOLDER.glob("*.py"):
        names = {n.func.id for n in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                 if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
        assert not names & {"eval", "exec", "__import__"}, file


def test_version_where_nothing_is_installed(einsight: Einsight, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    ran = einsight("--version")
    assert (ran.code, ran.out) == (0, "einsight, not installed (running from the checkout)\n")


def test_the_package_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "einsight.cli", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("einsight")
