"""The only reader of YAML: what it returns remembers where it stood, and what YAML would misread is refused.

YAML 1.1 readers take `1e12` and `3.35e12` for text, `NO` for false, `010` for eight, `1:30` for ninety and keep the
last of two equal keys, all without a word. Here each is an error with file, line and dotted path, as are tags, anchors,
aliases and empty values. Built on the parser's events alone, so no object of a document's choosing is ever constructed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from einsight.einsum.errors import nearest
from einsight.sim import units

MAX_DEPTH = 32
MAX_DIGITS = 40
MAX_CHARACTERS = 4_000_000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser, about ten times faster, where it was built

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[+-]?[0-9]+\.[0-9]+([eE][+-][0-9]{1,3})?")
_ODD_NUMBER = re.compile(
    r"[+-]?(0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0b[01_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9]*)?"
    r"|([0-9][0-9_,]*\.?[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?|\.?(inf|nan)(inity)?)",
    re.IGNORECASE,
)
_ODD_BOOLEANS = frozenset({"yes", "no", "on", "off", "true", "false"})
_EMPTY = frozenset({"", "~", "null", "Null", "NULL"})


class SpecError(Exception):
    """A file that does not say what it should. `line` is 1-based (0: the whole file), `path` dotted; `hint` or ""."""

    def __init__(self, file: str, line: int, path: str, found: str, expected: str, hint: str = "") -> None:
        self.file, self.line, self.path = file, line, path
        self.found, self.expected, self.hint = found, expected, hint
        super().__init__(file, line, path, found, expected, hint)

    @property
    def place(self) -> str:
        return f"line {self.line}" + (f", {self.path}" if self.path else "")

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        where += f"{self.path}: " if self.path else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}found {self.found}; expected {self.expected}{hint}"


@dataclass(frozen=True, slots=True)
class Item:
    """A value and its place. `value` is text, int, float, bool, a list of items or a dict of items by key."""

    value: Any
    file: str
    line: int
    path: str = ""

    def error(self, expected: str, hint: str = "", found: str | None = None) -> SpecError:
        """A `SpecError` at this item; the caller raises it."""
        return SpecError(self.file, self.line, self.path, found or _describe(self.value), expected, hint)

    def table(self, required: Collection[str] = (), optional: Collection[str] = ()) -> dict[str, Item]:
        """The items of a mapping that has every required key and no key beyond `required` and `optional`."""
        entries = self.entries()
        known = [*required, *optional]
        for key, item in entries.items():
            if key not in known:
                raise item.error(f"one of: {', '.join(known)}", did_you_mean(key, known), f'the unknown key "{key}"')
        if missing := [key for key in required if key not in entries]:
            raise self.error(f"the key{'s' * (len(missing) > 1)} {', '.join(missing)}", found=f"only {_list(entries)}")
        return entries

    def entries(self) -> dict[str, Item]:
        """The items of a mapping with free keys, in the order of the file."""
        if not isinstance(self.value, dict):
            raise self.error("a mapping (key: value)")
        return self.value

    def items(self) -> list[Item]:
        if not isinstance(self.value, list):
            raise self.error("a list ([a, b] or lines that begin with a dash)")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.error("text", "put it in quotes" if isinstance(self.value, int | float) else "")
        return self.value

    def choice(self, options: Collection[str]) -> str:
        text = self.text()
        if text not in options:
            raise self.error(f"one of: {', '.join(options)}", did_you_mean(text, options))
        return text

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error("true or false")
        return self.value

    def integer(self, at_least: int | None = None) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.error("a whole number", _unquote(self.value))
        if at_least is not None and self.value < at_least:
            raise self.error(f"a whole number of at least {at_least}")
        return self.value

    def number(self) -> float:
        """A bare number, for what has no unit (ratios, fitted constants named in cycles)."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            raise self.error("a number", _unquote(self.value))
        return float(self.value)

    def quantity(self, unit: str) -> float:
        """Text with a unit as a number in `unit` (see `units.parse`); a count may be a bare whole number."""
        if unit == units.COUNT and not isinstance(self.value, str):
            return float(self.integer())
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            raise self.error(f"text with a unit, {units.example(unit)}", found=f"the bare number {self.value}")
        try:
            return units.parse(self.text(), unit)
        except units.UnitError as error:
            raise self.error(error.expected, error.hint, error.found) from None


def load(path: str | Path) -> Item:
    """The single document of a file. Raises `SpecError`, also when the file cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(str(path), 0, "", error.strerror or "an unreadable file", "a readable YAML file") from None
    except UnicodeDecodeError:
        raise SpecError(str(path), 0, "", "bytes that are not UTF-8", "a text file in UTF-8") from None
    return parse(text, str(path))


def parse(text: str, file: str = "<text>") -> Item:
    """The single document of a text."""
    if len(text) > MAX_CHARACTERS:
        raise SpecError(file, 0, "", f"{len(text)} characters", f"at most {MAX_CHARACTERS}")
    try:
        events = list[Any](yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "indent with spaces" if "'\\t'" in str(error.problem) else "is a quote, bracket or colon missing?"
        line = mark.line + 1 if mark else 0
        found = f"text that is not YAML ({error.problem})" if error.problem else "text that is not YAML"
        raise SpecError(file, line, "", found, "valid YAML", hint) from None
    except yaml.YAMLError as error:
        raise SpecError(file, 0, "", f"text that is not YAML ({str(error).splitlines()[0]})", "valid YAML") from None
    starts: list[Any] = [event for event in events if isinstance(event, yaml.DocumentStartEvent)]
    documents = [event.start_mark.line + 1 for event in starts]
    if len(documents) != 1:
        line = documents[1] if documents else 1
        found = f"{len(documents)} documents" if documents else "an empty file"
        raise SpecError(file, line, "", found, "one YAML document", "use a list for several" if documents else "")
    inner = (e for e in events if isinstance(e, yaml.NodeEvent | yaml.CollectionEndEvent))
    return _build(next(inner), inner, file, "", 0)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word, or nothing."""
    near = nearest(word, known)
    return f'did you mean "{near}"?' if near else ""


def _build(event: Any, events: Iterator[Any], file: str, path: str, depth: int) -> Item:
    """The item that begins with `event`; takes its inner events from `events`."""
    item = Item("", file, event.start_mark.line + 1, path)
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise item.error("the value itself", "write it out", "an anchor or alias")
    if event.tag is not None:
        raise item.error("a value without a tag", found=f"the tag {event.tag}")
    if depth > MAX_DEPTH:
        raise item.error("a flatter document", found=f"more than {MAX_DEPTH} levels")
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        return replace(item, value=_scalar(event.value, item) if plain else event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Item] = []
        while not isinstance(child := next(events), yaml.SequenceEndEvent):
            items.append(_build(child, events, file, f"{path}[{len(items)}]", depth + 1))
        return replace(item, value=items)
    table: dict[str, Item] = {}
    while not isinstance(child := next(events), yaml.MappingEndEvent):
        key = _build(child, events, file, path, depth + 1)
        if not isinstance(key.value, str):
            raise key.error("a key that is text", "put it in quotes")
        if key.value in table:
            first = f"the first stands in line {table[key.value].line}"
            raise key.error("every key once", first, f'the key "{key.value}" a second time')
        table[key.value] = _build(next(events), events, file, f"{path}.{key.value}" if path else key.value, depth + 1)
    return replace(item, value=table)


def _scalar(text: str, item: Item) -> str | int | float | bool:
    """The value of unquoted text; what different YAML readers take for different things is refused."""
    if text in ("true", "false"):
        return text == "true"
    if len(text) > MAX_DIGITS and _ODD_NUMBER.fullmatch(text):
        raise item.error(f"a number of at most {MAX_DIGITS} digits", found=f"one of {len(text)} characters")
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text in _EMPTY:
        raise item.error("a value", "leave the key out if there is none", "an empty value")
    if text.lower() in _ODD_BOOLEANS:
        hint = "YAML readers disagree about it; quote it to mean text"
        raise item.error("true or false", hint, f"{text} without quotes")
    if _ODD_NUMBER.fullmatch(text):
        hint = 'write 1000 or 1.0e+12; a quantity is text with its unit, "4.8 TB/s"'
        raise item.error("a plain decimal number", hint, f"{text}, which YAML readers take for text or another number")
    return text


def _unquote(value: Any) -> str:
    number = isinstance(value, str) and (_INTEGER.fullmatch(value) or _FLOAT.fullmatch(value))
    return "remove the quotes" if number else ""


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return f"a mapping with {_list(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _list(keys: Collection[str]) -> str:
    return ", ".join(list(keys)[:8]) + (", ..." if len(keys) > 8 else "") if keys else "nothing"
