"""The small notations of the command line."""

from __future__ import annotations

import pytest

from einsight.cli.parsing import CommandError, fragment, sizes, whole


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("8192", 8192), ("8k", 8 * 1024), ("128K", 128 * 1024), ("1m", 1024**2)]
)
def test_whole_numbers(text: str, number: int) -> None:
    assert whole(text, "--seq") == number


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "8 k", "1e3", "k", "8kb", "٣", "9" * 30])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(CommandError, match="--seq: found"):
        whole(text, "--seq")


def test_sizes() -> None:
    assert sizes(["m=6,n=16", "e=1k"]) == {"m": 6, "n": 16, "e": 1024}
    assert sizes([]) == {}


@pytest.mark.parametrize("text", ["m", "m=", "=3", "m=6,,n=2", "m=6;n=3", "m=6,m=6", "m-1=3"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(CommandError):
        sizes([text])


def test_fragments() -> None:
    assert fragment("alibi") == {"kind": "alibi"}
    assert fragment("low_rank:r=16") == {"kind": "low_rank", "r": 16}
    assert fragment("softcap:cap=50.5,x=-1") == {"kind": "softcap", "cap": 50.5, "x": -1}


@pytest.mark.parametrize("text", ["a:", "a:r", "a:r=", "a:r=x", "a:=3", "a:r=1,,", "a:r=1e9", "a:r=nan"])
def test_bad_fragments(text: str) -> None:
    with pytest.raises(CommandError, match="--bias"):
        fragment(text)
