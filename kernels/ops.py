"""The kernels as PyTorch operators: differentiable, and opaque single nodes for `torch.compile`.

`torch.ops.einsight.*` take a band as its two sides; the functions of this module take the arguments of the kernels and
pick defaults. The backward operators have no derivative of their own: a second derivative is refused by autograd.
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

from einsight.kernels import attention as fused
from einsight.kernels import attention_backward as back
from einsight.kernels import flashbias as biased
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import Config

Pair = tuple[Tensor, Tensor]
Window = int | tuple[int | None, int | None] | None
# torch reads an operator's schema from its annotations and knows `Optional`, not `|`.
OptionalTensor = Optional[Tensor]  # noqa: UP045
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalInts = Optional[Sequence[int]]  # noqa: UP045


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    window: Window = None,
    align: str = "last",
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    backward_config: Config | None = None,
) -> Pair:
    """`kernels.attention.attention` with gradients for q, k, v and the sink: (output, log-sum-exp)."""
    mask = band(causal, window, align)
    result: Pair = torch.ops.einsight.attention(
        q, k, v, sink, lengths_q, lengths_k, mask.left, mask.right, mask.align, _scale(q, scale), softcap,
        _plain(config), _plain(backward_config),
    )  # fmt: skip
    return result


def flashbias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pq: Tensor,
    pk: Tensor,
    *,
    causal: bool = False,
    window: Window = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    backward_config: Config | None = None,
) -> Pair:
    """`kernels.flashbias.flashbias` with gradients for q, k, v and both factors: (output, log-sum-exp)."""
    mask = band(causal, window, align)
    result: Pair = torch.ops.einsight.flashbias(
        q, k, v, pq, pk, lengths_q, lengths_k, mask.left, mask.right, mask.align, _scale(q, scale), _plain(config),
        _plain(backward_config),
    )  # fmt: skip
    return result


def attention_with_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    causal: bool = False,
    window: Window = None,
    align: str = "last",
    scale: float | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    config: Config | None = None,
    backward_config: Config | None = None,
) -> Pair:
    """`kernels.flashbias.attention_with_bias` with gradients for q, k, v and the bias: (output, log-sum-exp)."""
    mask = band(causal, window, align)
    result: Pair = torch.ops.einsight.attention_with_bias(
        q, k, v, bias, lengths_q, lengths_k, mask.left, mask.right, mask.align, _scale(q, scale), _plain(config),
        _plain(backward_config),
    )  # fmt: skip
    return result


def _scale(q: Tensor, scale: float | None) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _plain(config: Config | None) -> list[int] | None:
    return None if config is None else [config.block_m, config.block_n, config.num_warps, config.num_stages]


def _config(plain: Sequence[int] | None) -> Config | None:
    return None if plain is None else Config(*plain)


def _setting(left: int | None, right: int | None, align: str, scale: float, softcap: float | None,
             lengths_q: Tensor | None, lengths_k: Tensor | None) -> back.Setting:  # fmt: skip
    return back.Setting(Band(left, right, align), scale, softcap, lengths_q, lengths_k)


def _even(x: Tensor) -> Tensor:
    """A gradient whose last dimension can be read in rows: autograd may hand over an expanded scalar."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _like(*given: Tensor) -> tuple[Tensor, ...]:
    """Contiguous tensors of the same shapes, without values."""
    return tuple(x.new_empty(x.shape) for x in given)


def _results(q: Tensor, v: Tensor) -> Pair:
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


# --- attention -------------------------------------------------------------------------------------------------------


@custom_op("einsight::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, sink: OptionalTensor, lengths_q: OptionalTensor,
               lengths_k: OptionalTensor, left: OptionalInt, right: OptionalInt, align: str, scale: float,
               softcap: OptionalFloat, config: OptionalInts,
               backward_config: OptionalInts) -> tuple[Tensor, Tensor]:  # fmt: skip
    return fused.attention(
        q, k, v, window=(left, right), align=align, scale=scale, softcap=softcap, sink=sink, lengths_q=lengths_q,
        lengths_k=lengths_k, config=_config(config),
    )  # fmt: skip


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Pair:
    return _results(q, v)


@custom_op("einsight::attention_backward", mutates_args=())
def _attention_backward(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: OptionalTensor, out: Tensor,
                        lse: Tensor, lengths_q: OptionalTensor, lengths_k: OptionalTensor, left: OptionalInt,
                        right: OptionalInt, align: str, scale: float, softcap: OptionalFloat,
                        config: OptionalInts) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    setting = _setting(left, right, align, scale, softcap, lengths_q, lengths_k)
    dq, dk, dv, dsink = back.attention_backward(
        _even(dout), q, k, v, out, lse, setting, dlse=dlse, sink=sink, config=_config(config)
    )
    return dq, dk, dv, q.new_empty(0, dtype=torch.float32) if dsink is None else dsink


@_attention_backward.register_fake
def _(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, sink: OptionalTensor, *_rest: Any) -> tuple[Tensor, ...]:
    return *_like(q, k, v), q.new_empty(0 if sink is None else q.shape[1], dtype=torch.float32)


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    q, k, v, sink, lengths_q, lengths_k, *ctx.setting, _config, ctx.backward_config = inputs
    ctx.save_for_backward(q, k, v, sink, *output, lengths_q, lengths_k)


def _attention_grads(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, sink, out, lse, lengths_q, lengths_k = ctx.saved_tensors
    dq, dk, dv, dsink = torch.ops.einsight.attention_backward(
        dout, dlse, q, k, v, sink, out, lse, lengths_q, lengths_k, *ctx.setting, ctx.backward_config
    )
    return dq, dk, dv, None if sink is None else dsink.to(sink.dtype), *[None] * 9


torch.library.register_autograd("einsight::attention", _attention_grads, setup_context=_keep_attention)

# --- a bias as factors -----------------------------------------------------------------------------------------------


@custom_op("einsight::flashbias", mutates_args=())
def _flashbias(q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, lengths_q: OptionalTensor,
               lengths_k: OptionalTensor, left: OptionalInt, right: OptionalInt, align: str, scale: float,
               config: OptionalInts, backward_config: OptionalInts) -> tuple[Tensor, Tensor]:  # fmt: skip
    return biased.flashbias(
        q, k, v, pq, pk, window=(left, right), align=align, scale=scale, lengths_q=lengths_q, lengths_k=lengths_k,
        config=_config(config),
    )  # fmt: skip


@_flashbias.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Pair:
    return _results(q, v)


@custom_op("einsight::flashbias_backward", mutates_args=())
def _flashbias_backward(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, out: Tensor,
                        lse: Tensor, lengths_q: OptionalTensor, lengths_k: OptionalTensor, left: OptionalInt,
                        right: OptionalInt, align: str, scale: float,
                        config: OptionalInts) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    setting = _setting(left, right, align, scale, None, lengths_q, lengths_k)
    dq, dk, dv, dpq, dpk = biased.flashbias_backward(
        _even(dout), q, k, v, pq, pk, out, lse, setting, dlse=dlse, config=_config(config)
    )
    return dq, dk, dv, dpq, dpk


@_flashbias_backward.register_fake
def _(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, *_rest: Any) -> tuple[Tensor, ...]:
    return _like(q, k, v, pq, pk)


def _keep_flashbias(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    q, k, v, pq, pk, lengths_q, lengths_k, *ctx.setting, _config, ctx.backward_config = inputs
    ctx.save_for_backward(q, k, v, pq, pk, *output, lengths_q, lengths_k)


def _flashbias_grads(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.einsight.flashbias_backward(dout, dlse, *ctx.saved_tensors, *ctx.setting, ctx.backward_config)
    return *grads, *[None] * 8


torch.library.register_autograd("einsight::flashbias", _flashbias_grads, setup_context=_keep_flashbias)

# --- a bias as a matrix ----------------------------------------------------------------------------------------------


@custom_op("einsight::attention_with_bias", mutates_args=())
def _with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, lengths_q: OptionalTensor, lengths_k: OptionalTensor,
               left: OptionalInt, right: OptionalInt, align: str, scale: float, config: OptionalInts,
               backward_config: OptionalInts) -> tuple[Tensor, Tensor]:  # fmt: skip
    return biased.attention_with_bias(
        q, k, v, bias, window=(left, right), align=align, scale=scale, lengths_q=lengths_q, lengths_k=lengths_k,
        config=_config(config),
    )  # fmt: skip


@_with_bias.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: Any) -> Pair:
    return _results(q, v)


@custom_op("einsight::attention_with_bias_backward", mutates_args=())
def _with_bias_backward(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor,
                        lse: Tensor, lengths_q: OptionalTensor, lengths_k: OptionalTensor, left: OptionalInt,
                        right: OptionalInt, align: str, scale: float, config: OptionalInts,
                        wants_bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    setting = _setting(left, right, align, scale, None, lengths_q, lengths_k)
    dq, dk, dv, dbias = biased.bias_backward(
        _even(dout), q, k, v, bias, out, lse, setting, dlse=dlse, config=_config(config), wants_bias=wants_bias
    )
    return dq, dk, dv, bias.new_empty(0) if dbias is None else dbias


@_with_bias_backward.register_fake
def _(dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_like(q, k, v), bias.new_empty(bias.shape if rest[-1] else 0)


def _keep_with_bias(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    q, k, v, bias, lengths_q, lengths_k, *ctx.setting, _config, ctx.backward_config = inputs
    ctx.save_for_backward(q, k, v, bias, *output, lengths_q, lengths_k)


def _with_bias_grads(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[3]  # the matrix's gradient costs a third kernel
    dq, dk, dv, dbias = torch.ops.einsight.attention_with_bias_backward(
        dout, dlse, *ctx.saved_tensors, *ctx.setting, ctx.backward_config, wanted
    )
    return dq, dk, dv, dbias if wanted else None, *[None] * 8


torch.library.register_autograd("einsight::attention_with_bias", _with_bias_grads, setup_context=_keep_with_bias)
