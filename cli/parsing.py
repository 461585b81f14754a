"""Small notations of the command line: `8k`, `m=6,n=16` and `low_rank:r=16`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = {"": 1, "k": 1024, "m": 1024**2}  # sequence lengths: 128k is 131072 tokens
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")
_WHOLE = re.compile(r"([0-9]+)([kKmM]?)")


class CommandError(ValueError):
    """An option that cannot be understood: which one, what it said, what it should say."""

    def __init__(self, option: str, found: str | None, expected: str) -> None:
        shown = "nothing" if found is None else f"'{found}'"
        super().__init__(f"{option}: found {shown}; expected {expected}")


def whole(text: str, option: str) -> int:
    """`8192` or `8k`, at least 1; k is 1024."""
    match = _WHOLE.fullmatch(text.strip())
    number = int(match[1]) * SUFFIXES[match[2].lower()] if match and len(match[1]) < 16 else 0
    if number < 1:
        raise CommandError(option, text, "a whole number of at least 1, such as 8192 or 8k")
    return number


def sizes(texts: Iterable[str], option: str = "--size") -> dict[str, int]:
    """`["m=6,n=16", "e=5"]` as {"m": 6, "n": 16, "e": 5}."""
    found: dict[str, int] = {}
    for pair in (p for text in texts for p in text.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isalnum():
            raise CommandError(option, pair, "name=number, several joined by commas: m=6,n=16")
        if name in found:
            raise CommandError(option, pair, f"{name} only once")
        found[name] = whole(value, f"{option} {name}")
    return found


def fragment(text: str, option: str = "--bias") -> dict[str, str | float]:
    """`alibi`, or with parameters `low_rank:r=16`, as the mapping that workload files write."""
    kind, colon, rest = text.partition(":")
    found: dict[str, str | float] = {"kind": kind}
    for pair in rest.split(",") if colon else ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name.isalnum() or not _NUMBER.fullmatch(value):
            raise CommandError(option, text, "a fragment's name, with parameters as in low_rank:r=16 or softcap:cap=50")
        found[name] = float(value) if "." in value else int(value)
    return found


def writable(path: Path | None, option: str) -> None:
    """Refuses at once what would fail after all the work. Raises CommandError for a folder, or a file in none."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        found = f"{path}, a folder" if path.is_dir() else f"{path}, in a folder that does not exist"
        raise CommandError(option, found, "a file to write, in a folder that exists")
