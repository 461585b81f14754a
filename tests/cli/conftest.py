"""Runs the command in this process and keeps what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from einsight.cli import main


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def einsight(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`einsight("cascades", "--json").json`; nothing may ever print a traceback."""

    def run(*words: str) -> Ran:
        code = main(list(words))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ran(code, out, err)

    return run
