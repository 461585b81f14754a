"""Kernels without a backward as PyTorch operators: decode, sigmoid attention, chunked linear attention.

Each is one node for `torch.compile`; autograd refuses to differentiate it. Arguments and defaults are those of the kernels.
"""

# mypy: disable-error-code="untyped-decorator"
# (torch is not followed by the type checker)

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.library import custom_op

from einsight.kernels import decode as decoding
from einsight.kernels import linear as chunked
from einsight.kernels import sigmoid as fused
from einsight.kernels.band import band
from einsight.kernels.spaces import Config

Pair = tuple[Tensor, Tensor]
Window = int | tuple[int | None, int | None] | None
# torch reads an operator's schema from its annotations and knows `Optional`, not `|`.
OptionalTensor = Optional[Tensor]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalInts = Optional[Sequence[int]]  # noqa: UP045


def decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    schedule: str = "stream",
    programs: int | None = None,
    splits: int | None = None,
    causal: bool = False,
    window: Window = None,
    scale: float | None = None,
    softcap: float | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
) -> Pair:
    """`kernels.decode.decode`: (output, log-sum-exp)."""
    mask = band(causal, window, "last")
    result: Pair = torch.ops.einsight.decode(
        q, k, v, lengths_k, schedule, programs, splits, mask.left, mask.right, _scale(q, scale), softcap, _plain(config)
    )
    return result


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: float | None = None,
    causal: bool = False,
    window: Window = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """`kernels.sigmoid.sigmoid_attention`."""
    mask = band(causal, window, align)
    result: Tensor = torch.ops.einsight.sigmoid_attention(
        q, k, v, lengths_q, lengths_k, bias, mask.left, mask.right, mask.align, _scale(q, scale), _plain(config)
    )
    return result


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    log_gates: Tensor | None = None,
    scale: float = 1.0,
    state: Tensor | None = None,
    config: Config | None = None,
) -> Pair:
    """`kernels.linear.linear_attention`: (output, state after the last position)."""
    result: Pair = torch.ops.einsight.linear_attention(q, k, v, log_decay, log_gates, scale, state, _plain(config))
    return result


def _scale(q: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _plain(config: Config | None) -> list[int] | None:
    return None if config is None else [config.block_m, config.block_n, config.num_warps, config.num_stages]


def _config(plain: Sequence[int] | None) -> Config | None:
    return None if plain is None else Config(*plain)


@custom_op("einsight::decode", mutates_args=())
def _decode(q: Tensor, k: Tensor, v: Tensor, lengths_k: OptionalTensor, schedule: str, programs: OptionalInt,
            splits: OptionalInt, left: OptionalInt, right: OptionalInt, scale: float, softcap: OptionalFloat,
            config: OptionalInts) -> tuple[Tensor, Tensor]:  # fmt: skip
    return decoding.decode(
        q, k, v, schedule=schedule, programs=programs, splits=splits, window=(left, right), scale=scale, softcap=softcap,
        lengths_k=lengths_k, config=_config(config),
    )  # fmt: skip


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Pair:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


@custom_op("einsight::sigmoid_attention", mutates_args=())
def _sigmoid(q: Tensor, k: Tensor, v: Tensor, lengths_q: OptionalTensor, lengths_k: OptionalTensor, bias: OptionalFloat,
             left: OptionalInt, right: OptionalInt, align: str, scale: float, config: OptionalInts) -> Tensor:  # fmt: skip
    return fused.sigmoid_attention(
        q, k, v, bias=bias, window=(left, right), align=align, scale=scale, lengths_q=lengths_q, lengths_k=lengths_k,
        config=_config(config),
    )  # fmt: skip


@_sigmoid.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Tensor:
    return q.new_empty((*q.shape[:3], v.shape[3]))


@custom_op("einsight::linear_attention", mutates_args=())
def _linear(q: Tensor, k: Tensor, v: Tensor, log_decay: OptionalTensor, log_gates: OptionalTensor, scale: float,
            state: OptionalTensor, config: OptionalInts) -> tuple[Tensor, Tensor]:  # fmt: skip
    return chunked.linear_attention(
        q, k, v, log_decay=log_decay, log_gates=log_gates, scale=scale, state=state, config=_config(config)
    )


@_linear.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Pair:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty((*q.shape[:2], q.shape[3], v.shape[3]), dtype=torch.float32)
