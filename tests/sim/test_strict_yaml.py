"""What YAML readers misread in silence is an error here, with its place."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from einsight.sim import strict_yaml
from einsight.sim.strict_yaml import SpecError


def plain(item: strict_yaml.Item) -> object:
    if isinstance(item.value, dict):
        return {key: plain(child) for key, child in item.value.items()}
    return [plain(child) for child in item.value] if isinstance(item.value, list) else item.value


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        strict_yaml.parse(text, "f.yaml")
    return caught.value


def test_values_and_their_places() -> None:
    root = strict_yaml.parse('a: 1\nb: {c: [x, 2.5, true], d: "1e12"}\n', "f.yaml")
    assert plain(root) == {"a": 1, "b": {"c": ["x", 2.5, True], "d": "1e12"}}
    third = root.entries()["b"].entries()["c"].items()[2]
    assert (third.path, third.line) == ("b.c[2]", 2)


def test_names_that_look_like_keywords_but_are_not() -> None:
    text = "{n: 8, y: 1, kind: causal, date: 2024-05-01, shape: 30x48x80, version: 1.2.3, rate: 4.8 TB/s}"
    values = plain(strict_yaml.parse(text))
    assert values == {
        "n": 8,
        "y": 1,
        "kind": "causal",
        "date": "2024-05-01",
        "shape": "30x48x80",
        "version": "1.2.3",
        "rate": "4.8 TB/s",
    }


@pytest.mark.parametrize(
    "number", ["1e12", "3.35e12", "1E3", "inf", ".inf", "-.INF", "nan", "010", "0x10", "1_000", "1,000"]
)
def test_numbers_that_readers_disagree_about(number: str) -> None:
    error = refused(f"x: 1\nrate: {number}\n")
    assert (error.file, error.line, error.path) == ("f.yaml", 2, "rate")
    assert number in error.found and "4.8 TB/s" in error.hint
    assert plain(strict_yaml.parse(f'rate: "{number}"')) == {"rate": number}


def test_a_sexagesimal_number() -> None:
    assert refused("x: 1:30").path == "x"


@pytest.mark.parametrize("word", ["yes", "No", "ON", "off", "True", "FALSE"])
def test_booleans_in_disguise(word: str) -> None:
    assert "true or false" in str(refused(f"causal: {word}"))


@pytest.mark.parametrize("empty", ["", "~", "null"])
def test_empty_values(empty: str) -> None:
    assert refused(f"a: {empty}\nb: 1").path == "a"


def test_duplicate_key_names_both_lines() -> None:
    error = refused("gpu:\n  ports: 1\n  clock: 2\n  ports: 3\n")
    assert (error.line, error.path) == (4, "gpu")
    assert "ports" in error.found and "line 2" in error.hint


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("a: &x 1\nb: *x", 1, "an anchor or alias"),
        ("!!python/object/apply:os.system [echo]", 1, "the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!str 5", 1, "the tag tag:yaml.org,2002:str"),
        ("!x {a: 1}", 1, "the tag !x"),
        ("a: 1\n--- \nb: 2", 2, "2 documents"),
        ("", 1, "an empty file"),
        ("# only", 1, "an empty file"),
        ("a: [1, 2", 2, "text that is not YAML"),
        ("a: 'x", 1, "text that is not YAML"),
        ("a:\tb: c", 1, "text that is not YAML"),
        ("\ta: 1", 1, "text that is not YAML"),
        ("{1: x}", 1, "1"),
        ("{[1]: x}", 1, "a list of 1"),
        ("a: b: c", 1, "text that is not YAML"),
        ("[" * 5000, 2, "text that is not YAML"),
        ("a: \x00", 0, "text that is not YAML"),
        ("9" * 5000, 1, "one of 5000 characters"),
    ],
)
def test_refused_documents(text: str, line: int, found: str) -> None:
    """`line` 0: the reader names none."""
    error = refused(text)
    assert (error.file, error.line) == ("f.yaml", line) and error.found.startswith(found)


def test_size_limit() -> None:
    most = strict_yaml.MAX_CHARACTERS
    assert refused("#" * (most + 1)).found == f"{most + 1} characters"
    assert strict_yaml.parse("a: 1\n" + "#" * (most - 5)).value


def test_table_checks_keys() -> None:
    root = strict_yaml.parse("heads: 8\nbacth: 1\n", "w.yaml")
    with pytest.raises(SpecError, match='did you mean "batch"') as caught:
        root.table(["heads"], ["batch"])
    assert caught.value.line == 2
    with pytest.raises(SpecError, match="expected the keys batch, seq"):
        strict_yaml.parse("heads: 8").table(["heads", "batch", "seq"])
    assert set(root.table(["heads", "bacth"])) == {"heads", "bacth"}


def test_typed_readers() -> None:
    items = strict_yaml.parse('{i: 3, f: 2.5, b: true, s: text, l: [1], q: "4.8 TB/s", d: "7"}').entries()
    assert items["i"].integer(at_least=3) == 3
    assert items["i"].number() == 3.0 and items["f"].number() == 2.5
    assert items["b"].boolean() is True
    assert items["s"].choice(("text", "other")) == "text"
    assert items["q"].quantity("byte/s") == 4.8e12
    assert items["i"].quantity("count") == 3
    assert [item.value for item in items["l"].items()] == [1]
    for key, read in [
        ("b", "integer"),
        ("b", "number"),
        ("s", "boolean"),
        ("i", "text"),
        ("s", "items"),
        ("l", "entries"),
    ]:
        with pytest.raises(SpecError):
            getattr(items[key], read)()
    with pytest.raises(SpecError, match="at least 4"):
        items["i"].integer(at_least=4)
    with pytest.raises(SpecError, match="remove the quotes"):
        items["d"].integer()
    with pytest.raises(SpecError, match='did you mean "text"'):
        strict_yaml.parse("a: txt").entries()["a"].choice(["text"])


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("4.8", "bare number"),
        ("4800", "bare number"),
        ('"4.8"', "without a unit"),
        ('"4.8 TB"', "`/s` missing"),
        ('"4.8 Tb/s"', "capital B"),
        ("true", "expected text"),
        ("[1]", "expected text"),
    ],
)
def test_quantities(written: str, reason: str) -> None:
    item = strict_yaml.parse(f"hbm:\n  rate: {written}\n", "gpu.yaml").entries()["hbm"].entries()["rate"]
    with pytest.raises(SpecError) as caught:
        item.quantity("byte/s")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("gpu.yaml:2: hbm.rate: found ")


def test_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        strict_yaml.load(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xe8")
    with pytest.raises(SpecError, match="UTF-8"):
        strict_yaml.load(tmp_path / "latin.yaml")
    with pytest.raises(SpecError):
        strict_yaml.load(tmp_path)


@given(st.text(alphabet=st.sampled_from(list("ab1e.:-[]{},&*!|>'\"#% \n\t?~")), max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        assert isinstance(strict_yaml.parse(text), strict_yaml.Item)


WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), max_size=8)
VALUES = st.recursive(
    st.integers(-(10**9), 10**9) | st.booleans() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_is_read_as_it_stands(value: object) -> None:
    """Every JSON text is YAML; quoted text and plain integers come back unchanged."""
    assert plain(strict_yaml.parse(json.dumps(value))) == value
