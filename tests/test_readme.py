"""The README is run: Python blocks as programs, console blocks line by line. (Pages of docs/ have tests of their own.)

In a ```console block, lines that begin with "$ einsight" are run and must print exactly the lines below them.
After a change to a model's numbers: `python tests/test_readme.py` writes what the commands print now; read the difference.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from einsight.cli import main
from einsight.sim.hardware import names

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = "$ einsight "


def blocks(kind: str) -> list[tuple[str, str]]:
    """("README.md:line", text) of every block of a kind."""
    text = README.read_text(encoding="utf-8")
    return [
        (f"{README.name}:{text.count(chr(10), 0, match.start()) + 1}", match[2])
        for match in BLOCK.finditer(text)
        if match[1] == kind
    ]


def printed(command: str) -> str:
    """What `einsight ...` prints when it is run from the checkout."""
    out = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out):
        code = main(shlex.split(command))
    assert code == 0, f"einsight {command}: exit code {code}"
    return out.getvalue()


def refreshed(block: str) -> str:
    """A console block with the output of its commands as they print it now."""
    commands = [line for line in block.splitlines() if line.startswith(PROMPT)]
    return "".join(f"{line}\n{printed(line.removeprefix(PROMPT))}" for line in commands)


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=lambda v: v if "\n" not in v else "")
def test_python_block_prints_what_it_asks_for(
    place: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(text, place, "exec"), {"__name__": "__main__"})
    shown = re.findall(r"^target +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert shown and shown == [name for name in re.findall(r'"([\w-]+)"', text) if name in names()]


@pytest.mark.parametrize(("place", "text"), blocks("console"), ids=lambda v: v if "\n" not in v else "")
def test_console_block_prints_what_it_says(place: str, text: str) -> None:
    assert refreshed(text) == text, f"{place} is out of date; python {Path(__file__).relative_to(ROOT)} rewrites it"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


if __name__ == "__main__":
    old = README.read_text(encoding="utf-8")
    README.write_text(
        BLOCK.sub(lambda m: m[0] if m[1] != "console" else f"```console\n{refreshed(m[2])}```", old), encoding="utf-8"
    )
