"""The cascades and fragments that come with einsight, one file per algorithm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from einsight.einsum.errors import CascadeError, Problem, did_you_mean
from einsight.einsum.ir import Cascade
from einsight.einsum.parse import parse_file

FOLDER = Path(__file__).parent / "cascades"


def names() -> tuple[str, ...]:
    """Names of the library's cascades, sorted."""
    return _names(FOLDER)


def fragments() -> tuple[str, ...]:
    """Names of the library's fragments, sorted."""
    return _names(FOLDER / "fragments")


def load(name_or_path: str | Path) -> Cascade:
    """A library cascade by name, or the cascade in a file. Raises `CascadeError` with every fault of the file."""
    return _find(name_or_path, FOLDER, "cascade")


def fragment(name_or_path: str | Path) -> Cascade:
    """A library fragment by name, or the fragment in a file. Raises `CascadeError`."""
    return _find(name_or_path, FOLDER / "fragments", "fragment")


def listing() -> tuple[Cascade, ...]:
    """Every cascade of the library, by name: `computes`, `paper`, `stable` and `marks` describe it."""
    return tuple(load(name) for name in names())


def _find(name_or_path: str | Path, folder: Path, kind: str) -> Cascade:
    if isinstance(name_or_path, str) and name_or_path in _names(folder):
        return _shipped(name_or_path, folder)
    path = Path(name_or_path)
    if not str(name_or_path) or (path.suffix != ".casc" and not path.exists()):
        known = _names(folder)
        hint = (
            did_you_mean(str(name_or_path), known)
            or f"A file of your own is named by its path, such as my_{kind}.casc."
        )
        raise CascadeError(str(name_or_path), "", [Problem(f"there is no such {kind}", None, ", ".join(known), hint)])
    found = parse_file(path)
    if (found.extends is not None) != (kind == "fragment"):
        other = "cascade" if kind == "fragment" else "fragment"
        raise CascadeError(str(path), "", [Problem(f"the file holds a {other}", None, f"a {kind}")])
    return found


@cache
def _shipped(name: str, folder: Path) -> Cascade:
    return parse_file(folder / f"{name}.casc")


@cache
def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.casc")))
