import re
from pathlib import Path

import pytest

from einsight.sim.hardware import DTYPES
from einsight.sim.mask import KINDS
from einsight.sim.workload_file import OPTIONAL_KEYS, REQUIRED_KEYS, load_workloads

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "workloads.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_yaml_of_the_page_loads(tmp_path, text):
    path = tmp_path / "page.yaml"
    path.write_text(text)
    assert load_workloads(path)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_python_of_the_page_runs(monkeypatch, code):
    assert re.search(r"^assert ", code, re.MULTILINE), "an example says what comes out, so that this can fail"
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs/workloads.md", "exec"), {})


def test_page_names_every_key_type_and_restriction():
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)", PAGE, re.MULTILINE)
    assert {key for key, need in rows if need == "required"} >= set(REQUIRED_KEYS)
    assert {key for key, _ in rows} >= {*REQUIRED_KEYS, *OPTIONAL_KEYS}
    for word in (*DTYPES, *KINDS):
        assert f"`{word}" in PAGE or f"`{{{word}" in PAGE, word
