"""The page on the cascade language: every example is read, checked and runs; what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from einsight.cli import main
from einsight.einsum.compose import compose
from einsight.einsum.counts import count
from einsight.einsum.definitions import DEFINITIONS
from einsight.einsum.errors import CascadeError
from einsight.einsum.evaluate import evaluate
from einsight.einsum.expression import OPERATORS, REDUCERS
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.library import load
from einsight.einsum.lint import warnings
from einsight.einsum.parse import check, parse
from einsight.einsum.tokens import KEYWORDS

PAGE = Path(__file__).parents[2] / "docs" / "cascade-language.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


EXAMPLES = {cascade.name: cascade for cascade in map(check, blocks("casc"))}
SIZES = {"M": 5, "N": 9, "E": 3, "F": 2}


def arrays(cascade: Cascade, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {t.name: rng.normal(size=[sizes[r] for r in t.ranks]) for t in cascade.inputs}


def test_there_are_examples() -> None:
    assert set(EXAMPLES) == {"stable_softmax", "strided_window", "running_maximum", "temperature", "relu_attention"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_sound(name: str) -> None:
    assert warnings(EXAMPLES[name]) == ()
    assert parse(format_cascade(EXAMPLES[name])) == EXAMPLES[name]


def test_the_first_example_is_the_library_s() -> None:
    assert EXAMPLES["stable_softmax"].statements == load("stable").statements


def test_strided_window() -> None:
    sizes = {**SIZES, "M": 9, "W": 4, "S": 3}
    inputs = arrays(EXAMPLES["strided_window"], sizes)
    score = inputs["Q"] @ inputs["K"].T
    for m in range(9):
        leader = min(m // 3 * 3 + 1, 8)
        first = min(max(leader - 2, 0), 9 - 4)
        score[m, [n for n in range(9) if not first <= n < first + 4]] = -np.inf
    weights = np.exp(score - score.max(axis=1, keepdims=True))
    expected = weights @ inputs["V"] / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(evaluate(EXAMPLES["strided_window"], sizes, inputs)["AV"], expected, rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 4, 20])
def test_running_maximum(chunk: int) -> None:
    inputs = arrays(EXAMPLES["running_maximum"], SIZES)
    expected = np.log(np.exp(inputs["X"]).sum(axis=1))
    found = evaluate(EXAMPLES["running_maximum"], {"M": 5, "N": 9, "N0": chunk}, inputs)["LSE"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_relu_attention() -> None:
    inputs = arrays(EXAMPLES["relu_attention"], SIZES)
    expected = np.maximum(inputs["Q"] @ inputs["K"].T, 0) / 9 @ inputs["V"]
    np.testing.assert_allclose(evaluate(EXAMPLES["relu_attention"], SIZES, inputs)["AV"], expected, rtol=1e-12)


def test_temperature() -> None:
    cascade = compose(load("stable"), [EXAMPLES["temperature"]], outer=False)
    inputs = {**arrays(load("stable"), SIZES), "TAU": np.array(2.0)}
    doubled = {**inputs, "Q": 2 * inputs["Q"]}
    doubled.pop("TAU")
    expected = evaluate(load("stable"), SIZES, doubled)["AV"]
    np.testing.assert_allclose(evaluate(cascade, SIZES, inputs)["AV"], expected, rtol=1e-12)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """The Python lines of the page, with the example they follow saved where they look for it."""
    path = tmp_path / "relu_attention.casc"
    path.write_text(next(b for b in blocks("casc") if "cascade relu_attention" in b))
    (code,) = blocks("python")
    printed: list[object] = []
    exec(code.replace("path/to/relu_attention.casc", str(path)), {"print": printed.append})
    assert str(printed[0]) == str(count(EXAMPLES["relu_attention"]))


def test_the_commands_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "relu_attention.casc"
    path.write_text(next(b for b in blocks("casc") if "cascade relu_attention" in b))
    (lines,) = blocks("sh")
    for line in lines.splitlines():
        command, *words = line.replace("path/to/relu_attention.casc", str(path)).split()
        assert (command, main(words)) == ("einsight", 0)
    assert "relu_attention" in capsys.readouterr().out


def test_the_words_with_a_definition() -> None:
    for word in DEFINITIONS:
        assert f"`{word}`" in TEXT


def test_the_error_that_is_shown() -> None:
    with pytest.raises(CascadeError) as caught:
        check("cascade x\n\nrank M, N, E, F\nin Q[m,e] K[n,e] V[n,f]\nout Z[m]\nZ[m] = Q[m,e] * KK[n,e]\n", "mine.casc")
    assert blocks("text") == [str(caught.value) + "\n"]


def test_the_page_lists_every_word_of_the_language() -> None:
    (grammar,) = blocks("ebnf")
    for keyword in (*KEYWORDS, *REDUCERS, "over", "where", "inf"):
        assert f'"{keyword}"' in grammar
    for name in OPERATORS:
        assert name == "neg" or (name in TEXT if name.isidentifier() else f'"{name}"' in grammar)
