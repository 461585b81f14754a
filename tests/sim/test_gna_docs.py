"""docs/gna.md: the command it shows prints what it shows, and the files it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einsight.cli import main
from einsight.sim.gna_kernel import names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gna.md").read_text(encoding="utf-8")


def test_the_command_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    ((command, shown),) = re.findall(r"```console\n\$ einsight (.*?)\n(.*?)```", PAGE, re.DOTALL)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.split() == shown.split()


def test_the_page_names_every_kernel() -> None:
    for name in names():
        assert f"`{name}`" in PAGE
