"""Neighborhood attention as a PyTorch operator: one node for `torch.compile`. It has no backward; autograd says so."""

# mypy: disable-error-code="untyped-decorator"
# (torch is not followed by the type checker)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.library import custom_op

from einsight.kernels import gna as kernel
from einsight.kernels.gna_space import BoxConfig, box_config
from einsight.kernels.neighborhood import Shape, neighborhood

Pair = tuple[Tensor, Tensor]
# torch reads an operator's schema from its annotations and knows `Optional`, not `|`.
OptionalInts = Optional[Sequence[int]]  # noqa: UP045


def gna(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: int | Shape,
    window: int | Shape,
    stride: int | Shape = 1,
    dilation: int | Shape = 1,
    causal: bool | tuple[bool, ...] = False,
    *,
    scale: float | None = None,
    config: BoxConfig | None = None,
) -> Pair:
    """`kernels.gna.gna`: (output, log-sum-exp)."""
    mask = neighborhood(layout, window, stride, dilation, causal)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    build = None if config is None else [*config.q_tile, *config.kv_tile, config.num_warps, config.num_stages]
    result: Pair = torch.ops.einsight.gna(
        q, k, v, mask.layout, mask.window, mask.stride, mask.dilation, mask.causal, scale, build
    )
    return result


@custom_op("einsight::gna", mutates_args=())
def _gna(q: Tensor, k: Tensor, v: Tensor, layout: Sequence[int], window: Sequence[int], stride: Sequence[int],
         dilation: Sequence[int], causal: Sequence[bool], scale: float, config: OptionalInts) -> Pair:  # fmt: skip
    rank, chosen = len(layout), None
    if config is not None:
        chosen = box_config(tuple(config[:rank]), tuple(config[rank : 2 * rank]), *config[2 * rank :])
    lengths = (tuple(layout), tuple(window), tuple(stride), tuple(dilation))
    return kernel.gna(q, k, v, *lengths, tuple(causal), scale=scale, config=chosen)


@_gna.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, layout: Sequence[int], window: Sequence[int], stride: Sequence[int],
      dilation: Sequence[int], causal: Sequence[bool], scale: float, config: OptionalInts) -> Pair:  # fmt: skip
    shape = (*q.shape[:3], v.shape[3])
    return q.new_empty(shape), q.new_empty(shape[:3], dtype=torch.float32)
