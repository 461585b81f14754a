"""docs/bias.md: its Python runs, its commands succeed, its fragments and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from einsight.cli import main
from einsight.einsum.library import fragments

PAGE = (Path(__file__).parents[2] / "docs" / "bias.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_python_of_the_page_runs(code: str) -> None:
    assert re.search(r"^assert ", code, re.MULTILINE), "an example says what comes out, so that this can fail"
    exec(compile(code, "docs/bias.md", "exec"), {})


@pytest.mark.parametrize("line", [x for language, text in BLOCKS if language == "sh" for x in text.splitlines()])
def test_commands_of_the_page_succeed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *words = shlex.split(line)
    assert name == "einsight" and main(words) == 0
    assert capsys.readouterr().out


def test_the_page_lists_every_fragment_of_a_bias() -> None:
    for name in fragments():
        assert name in ("sink", "softcap") or f"`{name}`" in PAGE, name


def test_the_options_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["bias", "--help"]) == 0
    known = capsys.readouterr().out
    for option in set(re.findall(r"(?<!-)--[a-z][a-z-]+", PAGE)):
        assert option in known, option
