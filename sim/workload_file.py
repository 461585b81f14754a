"""Workload files: a YAML document, or a list of them (a sweep), as `Workload` values. Schema: docs/workloads.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from einsight.einsum import library
from einsight.einsum.compose import IllegalComposition
from einsight.sim import array_design, family, hardware
from einsight.sim.additions import WorkloadError, additions_from
from einsight.sim.mask import MaskError, mask_from
from einsight.sim.strict_yaml import Item, SpecError, did_you_mean, load
from einsight.sim.workload import CACHES, PHASES, Workload

REQUIRED_KEYS = ("name", "cascade", "sizes", "dtype")
OPTIONAL_KEYS = ("mask", "bias", "phase", "cache", "family", "targets")


def load_workloads(path: str | Path) -> tuple[Workload, ...]:
    """Every workload of a file, checked against its cascade and fragments.

    Raises `SpecError` (file, line, place, what was found, what was expected), or `CascadeError` for the faults of a
    cascade file that the workload names.
    """
    document = load(path)
    items = document.items() if isinstance(document.value, list) else [document]
    if not items:
        raise document.error("a workload, or a list of them", found="an empty list")
    return tuple(_workload(item, Path(path).parent) for item in items)


def _workload(item: Item, folder: Path) -> Workload:
    table = item.table(REQUIRED_KEYS, OPTIONAL_KEYS)
    sizes = {name: size.integer(at_least=1) for name, size in table["sizes"].entries().items()}
    default, dtypes = _dtypes(table["dtype"])
    try:
        found = Workload(
            name=table["name"].text(),
            cascade=_casc(table["cascade"], folder, library.names(), "cascade"),
            sizes=sizes,
            dtype=default,
            dtypes=dtypes,
            mask=mask_from(plain(table["mask"]) if "mask" in table else None),
            bias=additions_from(_bias(table["bias"], folder) if "bias" in table else ()),
            phase=table["phase"].choice(PHASES) if "phase" in table else "prefill",
            cache=table["cache"].choice(CACHES) if "cache" in table else "cold",
            family=_family(table["family"], table["family"].text()) if "family" in table else None,
            targets=_targets(table["targets"]) if "targets" in table else (),
        )
        found.composed()
    except WorkloadError as error:
        raise _placed(table, item, error) from None
    except MaskError as error:
        raise table["mask"].error(error.expected, found=error.found) from None
    except IllegalComposition as error:
        place = table.get("bias", table.get("mask", table["cascade"]))
        raise place.error("what the cascade can carry", found=str(error)) from None
    _check_dtypes(found, table["dtype"])
    return found


def plain(item: Item) -> Any:
    """The item's value without places."""
    if isinstance(item.value, dict):
        return {key: plain(child) for key, child in item.value.items()}
    if isinstance(item.value, list):
        return [plain(child) for child in item.value]
    return item.value


def _dtypes(item: Item) -> tuple[str, dict[str, str]]:
    """`bf16`, or by tensor with an optional `default`; without one every input must be named (`_check_dtypes`)."""
    if not isinstance(item.value, dict):
        return item.text(), {}
    named = {tensor: child.text() for tensor, child in item.entries().items()}
    if not named:
        raise item.error("an element type, or one per input tensor", found="an empty mapping")
    return named.pop("default", None) or next(iter(named.values())), named


def _check_dtypes(found: Workload, item: Item) -> None:
    if isinstance(item.value, dict) and "default" not in item.value:
        inputs = [t.name for part in (found.base, *found.fragments) for t in part.inputs if t.ranks]
        if missing := [name for name in inputs if name not in found.dtypes]:
            raise item.error(f"also {', '.join(missing)}, or a `default`", found=f"only {', '.join(found.dtypes)}")


def _casc(item: Item, folder: Path, known: tuple[str, ...], what: str) -> str:
    """A library name as it is, or the path of a file relative to the workload file; any other name is refused here, where
    its line is known."""
    name = item.text()
    if name in known:
        return name
    if name.endswith(".casc"):
        return str(folder / name)
    if not Path(name).exists():
        expected = f"the path of a .casc file, or one of: {', '.join(known)}"
        raise item.error(expected, did_you_mean(name, known), f'"{name}", no such {what}')
    return name


def _bias(item: Item, folder: Path) -> Any:
    """The written form with every fragment found; what is no fragment stays as it is, for `additions_from` to refuse."""
    if isinstance(item.value, list):
        return [_bias(entry, folder) for entry in item.value]
    if isinstance(item.value, str):
        return _casc(item, folder, library.fragments(), "fragment")
    kind = item.value.get("kind") if isinstance(item.value, dict) else None
    if kind is None or not isinstance(kind.value, str):
        return plain(item)
    return {**plain(item), "kind": _casc(kind, folder, library.fragments(), "fragment")}


def _targets(item: Item) -> tuple[str, ...]:
    return tuple(map(_target, item.items())) if isinstance(item.value, list) else (_target(item),)


def _target(item: Item) -> str:
    """NAME or NAME:FAMILY; names that nothing shipped has are refused here, where their line is known."""
    name, _, chosen = item.text().partition(":")
    _one_of(item, name, hardware.names(), "the path of a .yaml profile")
    if chosen:
        _family(item, chosen)
    return item.text()


def _family(item: Item, name: str) -> str:
    """A family of GPU kernels or a design of arrays, by name or as the path of its file."""
    return _one_of(item, name, tuple(sorted({*family.names(), *array_design.names()})), "the path of a .yaml family or design")


def _one_of(item: Item, name: str, known: tuple[str, ...], file: str) -> str:
    if name not in known and not name.endswith((".yaml", ".yml")):
        raise item.error(f"{file}, or one of: {', '.join(known)}", did_you_mean(name, known), f'"{name}"')
    return name


def _placed(table: dict[str, Item], item: Item, error: WorkloadError) -> SpecError:
    """The error at the deepest place of its dotted field that the file has."""
    place = item
    for part in error.field.replace("[", ".").replace("]", "").split("."):
        children = table if place is item else place.value
        if isinstance(children, dict) and part in children:
            place = children[part]
        elif isinstance(children, list) and part.isdigit():
            place = children[int(part)]
    return place.error(error.expected, error.hint, error.found)
