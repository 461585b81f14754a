"""The tuned configuration of a launch: its problem in the words of the lookup file, found once per shape."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from einsight.kernels.band import Band
from einsight.kernels.lookup import FOLDER_VARIABLE, LookupFileError, default_path, tuned_config
from einsight.kernels.neighborhood import Neighborhood
from einsight.kernels.spaces import Config

NAMES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float8_e4m3fn: "fp8_e4m3", torch.float8_e5m2: "fp8_e5m2",
}  # fmt: skip
SIZES = ("b", "h", "g", "m", "n", "e", "f")
Mask = Band | Neighborhood
Bias = tuple[tuple[str, str, float], ...]  # (kind, name of its number, the number) of each; the name "" for none


def tuned(kernel: str, q: Tensor, sizes: tuple[int, ...], mask: Mask, bias: Bias = ()) -> Config | None:
    """The configuration tuned for a launch on q's device near these sizes (B, H, G, M, N, E, F), None where there is none.

    The answer is kept per problem until the lookup file changes; a launch pays a dictionary and the file's date. A file
    that cannot be read is a warning, not an error: the launch goes on with the default.
    """
    path = _path(kernel, os.environ.get(FOLDER_VARIABLE))
    try:
        stamp = os.stat(path).st_mtime_ns
    except OSError:
        return None
    name = device_name(q.device)
    return _found(kernel, name, sizes, NAMES[q.dtype], mask, bias, path, stamp) if name else None


def device_name(device: torch.device) -> str:
    """As records name it; "" for what is no GPU."""
    return _gpu_name(device) if device.type == "cuda" else ""


def mask_in_words(mask: Mask) -> list[Any] | None:
    """The mask of a workload file, without what changes nothing; None for a band that has no words there."""
    if isinstance(mask, Neighborhood):
        return _grid_in_words(mask)
    if mask.right == 0:
        return ["causal", *([] if mask.left is None else [{"window": mask.left + 1}])]
    if mask.dense:
        return []
    return [{"window": mask.left + 1}] if mask.left is not None and mask.left == mask.right else None


def _grid_in_words(mask: Neighborhood) -> list[Any]:
    whole = [w == n and not c for w, n, c in zip(mask.window, mask.layout, mask.causal, strict=True)]
    if all(whole):
        return []
    stride = tuple(1 if full else s for full, s in zip(whole, mask.stride, strict=True))
    told = {"stride": (stride, 1), "dilation": (mask.dilation, 1), "causal": (mask.causal, False)}
    changed = {name: list(values) for name, (values, usual) in told.items() if any(v != usual for v in values)}
    return [{"gna": {"layout": list(mask.layout), "window": list(mask.window)} | changed}]


@lru_cache(maxsize=4096)
def _found(kernel: str, device: str, sizes: tuple[int, ...], dtype: str, mask: Mask, bias: Bias, path: str,
           stamp: int) -> Config | None:  # fmt: skip
    words = mask_in_words(mask)
    if words is None:
        return None
    added = [{"kind": kind} | ({name: number} if name else {}) for kind, name, number in bias]
    workload: Mapping[str, Any] = {
        "sizes": dict(zip(SIZES, sizes, strict=True)), "dtype": dtype, "mask": words, "bias": added,
    }  # fmt: skip
    try:
        return tuned_config(kernel, device, workload)
    except LookupFileError as error:
        warnings.warn(f"{error}; default configurations are used", RuntimeWarning, stacklevel=3)
        return None


@lru_cache
def _path(kernel: str, folder: str | None) -> str:
    """folder   part of the key: `default_path` reads it from the environment"""
    return str(default_path(kernel))


@lru_cache
def _gpu_name(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).name)
