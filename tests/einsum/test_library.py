"""The shipped cascades and fragments: complete headers, sound, free of warnings, and every line needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from einsight.einsum.compose import IllegalComposition, compose
from einsight.einsum.errors import CascadeError
from einsight.einsum.format import format_cascade
from einsight.einsum.ir import Cascade
from einsight.einsum.library import FOLDER, fragment, fragments, listing, load, names
from einsight.einsum.lint import warnings
from einsight.einsum.parse import check, parse_expression, parse_file

FILES = sorted(FOLDER.rglob("*.casc"))


def test_what_is_shipped() -> None:
    assert names() == (
        "backward", "backward_dense_bias", "backward_low_rank", "flash1", "gla", "lightning", "linear", "naive",
        "naive_deferred", "one_pass", "sigmoid", "split_kv", "stable",
        "stable_deferred", "two_pass",
    )  # fmt: skip
    assert fragments() == (
        "alibi", "dense_bias", "dense_bias_by_batch", "dense_bias_shared", "dense_bias_unshared", "distance", "low_rank",
        "low_rank_scale", "sink", "softcap", "toeplitz", "window_table",
    )  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_is_sound_and_named_after_its_cascade(path: Path) -> None:
    cascade = parse_file(path)
    assert cascade.name == path.stem
    assert cascade.paper
    assert warnings(cascade) == ()
    assert (cascade.extends is not None) == (path.parent.name == "fragments")


@pytest.mark.parametrize("cascade", listing(), ids=lambda c: c.name)
def test_algorithms_of_one_word_are_interchangeable(cascade: Cascade) -> None:
    assert cascade.computes
    for other in listing():
        if other.computes == cascade.computes:
            assert {(t.name, t.ranks) for t in cascade.inputs} == {(t.name, t.ranks) for t in other.inputs}
            assert {(t.name, t.ranks) for t in cascade.outputs} == {(t.name, t.ranks) for t in other.outputs}


def test_roles_that_masks_and_fragments_can_take() -> None:
    roles = {c.name: {m.role for m in c.marks} for c in listing()}
    everything = {"score", "denominator", "maximum"}
    assert roles == {
        "naive": {"score", "denominator"},  # no maximum is taken
        "naive_deferred": {"score", "denominator"},
        "stable": everything,
        "stable_deferred": everything,
        "two_pass": everything,
        "one_pass": everything,
        "split_kv": everything,
        "flash1": {"score", "maximum"},  # divided in every step: nothing left to extend
        "sigmoid": {"score"},
        "linear": set(),
        "lightning": set(),  # a score within a chunk only: what lies before it has become a state
        "gla": set(),
        "backward": {"score", "slope"},
        "backward_dense_bias": {"score", "slope"},
        "backward_low_rank": {"score", "slope"},
    }


def test_a_cascade_is_stable_when_it_subtracts_a_maximum_or_needs_none() -> None:
    """gla divides keys by a product of gates, which may be as small as they like."""
    assert {c.name for c in listing() if not c.stable} == {"naive", "naive_deferred", "gla"}


def needed_lines() -> list[tuple[str, int, str]]:
    """Every line of the library but those that only inform or offer a role."""
    free = ("computes", "paper", "stable", "score", "denominator", "maximum", "slope")
    return [
        (path.stem, number, str(path))
        for path in FILES
        for number, line in enumerate(path.read_text().split("\n"))
        if line.strip() and not line.startswith("#")
        if not (line.split()[0] in free and path.parent.name != "fragments") and line.split()[0] != "paper"
    ]


@pytest.mark.parametrize(("stem", "number", "path"), needed_lines(), ids=lambda v: str(v).rsplit("/", 1)[-1])
def test_a_file_without_one_of_its_lines_is_refused(stem: str, number: int, path: str) -> None:
    lines = Path(path).read_text().split("\n")
    with pytest.raises(CascadeError):
        check("\n".join(lines[:number] + lines[number + 1 :]))


def test_a_file_of_ones_own_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.casc"
    path.write_text((FOLDER / "stable.casc").read_text().replace("cascade stable", "cascade mine"))
    assert load(path).name == load(str(path)).name == "mine"
    assert load(path).statements == load("stable").statements


def test_a_path_of_ones_own_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "stable.txt"
    path.write_text((FOLDER / "stable.casc").read_text())
    assert load(path) == load("stable")


@pytest.mark.parametrize(
    ("read", "name", "says"),
    [
        (load, "onepass", "there is no such cascade.*\n.*expected: .*flash1, gla.*\n.*Did you mean one_pass?"),
        (load, "qqq", "named by its path, such as my_cascade.casc"),
        (fragment, "alibbi", "there is no such fragment.*\n.*\n.*Did you mean alibi?"),
        (load, "absent.casc", "cannot be read"),
        (load, str(FOLDER / "fragments" / "sink.casc"), "the file holds a fragment\n.*expected: a cascade"),
        (fragment, str(FOLDER / "stable.casc"), "the file holds a cascade\n.*expected: a fragment"),
        (load, str(FOLDER), "cannot be read"),
        (load, "", "cannot be read|no such cascade"),
        (load, "a\x00b", "no such cascade"),
    ],
)
def test_names_that_lead_nowhere(read, name: str, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CascadeError, match=says):
        read(name)


@pytest.mark.parametrize("name", names())
def test_a_composed_cascade_prints_as_a_file_that_loads(name: str) -> None:
    causal = parse_expression("n <= m + N - M")
    composed = 0
    for part in fragments():
        try:
            cascade = compose(load(name), [fragment(part)], mask=causal)
        except IllegalComposition:
            continue
        composed += 1
        assert check(format_cascade(cascade)) == cascade
        assert warnings(cascade) == ()
    assert composed >= (7 if load(name).mark("score") else 0)
