"""Small notations of the command line: `8k`, `m=6,n=16`, `h100-sxm:flash3`, `n=1k:128k:8:log`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SUFFIXES = {"": 1, "k": 1024, "m": 1024**2}  # sequence lengths: 128k is 131072 tokens
_WHOLE = re.compile(r"([0-9]+)([kKmM]?)")
DEFAULT_POINTS = 8
MOST_POINTS = 100_000


class CommandError(ValueError):
    """An option that cannot be understood: which one, what it said, what it should say."""

    def __init__(self, option: str, found: str, expected: str) -> None:
        super().__init__(f"{option}: found '{found}'; expected {expected}")


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


def target(text: str) -> tuple[str, str | None]:
    """`h100-sxm:flash3` as (profile, family); the family may be left out. Paths to profile files have no colon."""
    profile, _, family = text.partition(":")
    if not profile:
        raise CommandError("--target", text, "PROFILE or PROFILE:FAMILY, such as h100-sxm or h100-sxm:flash3")
    return profile, family or None


@dataclass(frozen=True, slots=True)
class SweepRange:
    """Which size walks from where to where, in how many steps."""

    size: str
    first: int
    last: int
    points: int
    scale: str  # log | linear

    @property
    def values(self) -> tuple[int, ...]:
        """The sizes, rounded to whole numbers, each once, in rising order."""
        steps = max(self.points - 1, 1)
        if self.scale == "log":
            ratio = self.last / self.first
            found = (round(self.first * ratio ** (i / steps)) for i in range(self.points))
        else:
            found = (round(self.first + (self.last - self.first) * i / steps) for i in range(self.points))
        return tuple(dict.fromkeys(found))


def sweep(text: str) -> SweepRange:
    """`n=1k:128k[:points][:log|linear]`; by default as many log steps as powers of two, or 8 linear ones."""
    expected = "name=first:last[:points][:log|linear], such as n=1k:128k"
    name, equals, rest = text.partition("=")
    parts = rest.split(":")
    if not equals or not name.strip().isalnum() or not 2 <= len(parts) <= 4:
        raise CommandError("--sweep", text, expected)
    scale = parts.pop() if parts[-1] in ("log", "linear") else "log"
    if len(parts) not in (2, 3):
        raise CommandError("--sweep", text, expected)
    first, last = whole(parts[0], "--sweep"), whole(parts[1], "--sweep")
    if last < first:
        raise CommandError("--sweep", text, f"the first size ({first}) not above the last ({last})")
    by_default = (last // first).bit_length() if scale == "log" else DEFAULT_POINTS
    points = whole(parts[2], "--sweep points") if len(parts) == 3 else max(by_default, 2)
    if points > MOST_POINTS:
        raise CommandError("--sweep", text, f"at most {MOST_POINTS} points")
    return SweepRange(name.strip(), first, last, points, scale)
