"""docs/gna.md: the command it shows prints what it shows, and the files it names are there."""

from __future__ import annotations

import json
import os
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


def test_the_page_tells_what_the_reproduction_prints(capsys: pytest.CaptureFixture[str]) -> None:
    if not (Path(os.environ.get("EINSIGHT_REFERENCE", "../shared/reference")) / "gna").is_dir():
        pytest.skip("no gna reference (EINSIGHT_REFERENCE names the folder)")
    main(["reproduce", "gna", "--json"])
    found = json.loads(capsys.readouterr().out)
    out = [abs(r["off"]) for r in found["profiles"] if not r["fitted"]]
    own = [abs(r["off"]) for r in found["profiles"] if not r["fitted"] and r["kernel"] != "cudnn"]
    words = " ".join(PAGE.split())
    mean, worst, natten = (f"{100 * x:.1f} %" for x in (sum(out) / len(out), max(out), max(own)))
    assert f"the {len(out)} held-out H100 and B200 kernel times {mean} off in the mean and {worst} at worst" in words
    assert f"of NATTEN's, {natten}" in words
    assert f"{len(found['counts'])} of {len(found['counts'])} count rows equal" in words
    assert f"column within {max(abs(r['off']) for r in found['simulator']):.3f}" in words


def test_the_page_names_every_kernel() -> None:
    for name in names():
        assert f"`{name}`" in PAGE
