"""A run of this folder's tests on a GPU leaves a record; without one it leaves none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def hooks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    plugin: Any = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    monkeypatch.setattr(plugin, "RECORD", tmp_path / "r.jsonl")
    monkeypatch.setattr(plugin, "HAVE_GPU_EXTRA", True)
    monkeypatch.setattr(plugin, "here", lambda: {"device": "Test GPU"})
    return plugin


def reported(hooks: Any, fixtures: tuple[str, ...], when: str = "call", error: Exception | None = None) -> None:
    report = SimpleNamespace(when=when, outcome="failed" if error else "passed", duration=0.25)
    item = SimpleNamespace(nodeid="test_x.py::test_y", fixturenames=fixtures)
    wrapped = hooks.pytest_runtest_makereport(item, SimpleNamespace(excinfo=SimpleNamespace(value=error) if error else None))
    next(wrapped)
    with pytest.raises(StopIteration):
        wrapped.send(report)


def test_what_ran_on_a_gpu_is_a_line(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_cuda", lambda: True)
    reported(hooks, ("device",))
    reported(hooks, ("device",), when="setup")
    reported(hooks, ("tmp_path",))  # no kernel was run there
    reported(hooks, ("device",), error=AssertionError("off by 0.5"))
    fine, wrong = (json.loads(line) for line in hooks.RECORD.read_text().splitlines())
    assert (fine["outcome"], fine["seconds"], fine["environment"]["device"]) == ("passed", 0.25, "Test GPU")
    assert (wrong["outcome"], wrong["reason"]) == ("failed", "off by 0.5")


def test_without_a_gpu_there_is_no_record(hooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_cuda", lambda: False)
    reported(hooks, ("device",))
    assert not hooks.RECORD.exists()
