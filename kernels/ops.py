"""The attention kernels as PyTorch operators: differentiable, and opaque single nodes for `torch.compile`.

`torch.ops.einsight.*` take a band as its two sides; the functions of this module take the arguments of the kernels and
pick defaults. The backward operators have no derivative of their own: a second derivative is refused by autograd.
"""

# mypy: disable-error-code="untyped-decorator"
# (torch is not followed by the type checker)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.library import custom_op

from einsight.kernels import attention as fused
from einsight.kernels import attention_backward as back
from einsight.kernels import flashbias as biased
from einsight.kernels.band import Band, band
from einsight.kernels.spaces import AttentionConfig, Config

Pair = tuple[Tensor, Tensor]
Window = int | tuple[int | None, int | None] | None


class Common(TypedDict, total=False):
    """What every function here takes by name; the kernels say what each means. `backward_config` is for the gradients."""

    causal: bool
    window: Window
    align: str
    scale: float | None
    lengths_q: Tensor | None
    lengths_k: Tensor | None
    config: Config | None
    backward_config: Config | None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softcap: float | None = None, sink: Tensor | None = None,
              descales: fused.Descales = fused.NO_DESCALES, **common: Unpack[Common]) -> Pair:  # fmt: skip
    """`kernels.attention.attention` with gradients for q, k, v and the sink: (output, log-sum-exp)."""
    result: Pair = torch.ops.einsight.attention(q, k, v, sink, *descales, softcap, *_plain_arguments(q, **common))
    return result


def attention_packed(q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor, longest_q: int, longest_k: int,
                     *, softcap: float | None = None, sink: Tensor | None = None,
                     descales: fused.Descales = fused.NO_DESCALES, **common: Unpack[Common]) -> Pair:  # fmt: skip
    """`kernels.attention.attention_packed` with gradients for q, k, v and the sink.

    Raises ValueError for lengths beside the bounds.
    """
    if given := [name for name in ("lengths_q", "lengths_k") if common.get(name) is not None]:
        raise ValueError(f"{given[0]}: got lengths beside bounds_q and bounds_k, expected the bounds alone")
    common |= {"lengths_q": bounds_q, "lengths_k": bounds_k}
    result: Pair = torch.ops.einsight.attention_packed(
        q, k, v, sink, *descales, softcap, longest_q, longest_k, *_plain_arguments(q, **common)
    )
    return result


def flashbias(q: Tensor, k: Tensor, v: Tensor, pq: Tensor, pk: Tensor, **common: Unpack[Common]) -> Pair:
    """`kernels.flashbias.flashbias` with gradients for q, k, v and both factors: (output, log-sum-exp)."""
    result: Pair = torch.ops.einsight.flashbias(q, k, v, pq, pk, *_plain_arguments(q, **common))
    return result


def attention_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, **common: Unpack[Common]) -> Pair:
    """`kernels.flashbias.attention_with_bias` with gradients for q, k, v and the bias: (output, log-sum-exp)."""
    result: Pair = torch.ops.einsight.attention_with_bias(q, k, v, bias, *_plain_arguments(q, **common))
    return result


# What `_plain_arguments` gives, as every operator takes it after its tensors.
COMMON_SCHEMA = ("Tensor? lengths_q, Tensor? lengths_k, SymInt? left, SymInt? right, str align, float scale, "
                 "SymInt[]? config, SymInt[]? backward_config")  # fmt: skip


def _plain_arguments(
    q: Tensor, *, causal: bool = False, window: Window = None, align: str = "last", scale: float | None = None,
    lengths_q: Tensor | None = None, lengths_k: Tensor | None = None, config: Config | None = None,
    backward_config: Config | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    mask = band(causal, window, align)
    return (lengths_q, lengths_k, mask.left, mask.right, mask.align, fused.own_scale(q, scale),
            *(None if c is None else [int(value) for value in astuple(c)] for c in (config, backward_config)))  # fmt: skip


def _config(plain: Sequence[int] | None) -> Config | None:
    if plain is None:
        return None
    block_m, block_n, num_warps, num_stages, *flags = plain
    if not flags:
        return Config(block_m, block_n, num_warps, num_stages)
    return AttentionConfig(block_m, block_n, num_warps, num_stages, *map(bool, flags))


def _attention(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, descale_q: Tensor | None, descale_k: Tensor | None,
               descale_v: Tensor | None, softcap: float | None, lengths_q: Tensor | None, lengths_k: Tensor | None,
               left: int | None, right: int | None, align: str, scale: float, config: Sequence[int] | None,
               _backward_config: Any) -> Pair:  # fmt: skip
    return fused.attention(
        q, k, v, window=(left, right), align=align, scale=scale, softcap=softcap, sink=sink, lengths_q=lengths_q,
        lengths_k=lengths_k, descales=(descale_q, descale_k, descale_v), config=_config(config),
    )  # fmt: skip


def _attention_grads(dout: Tensor, dlse: Tensor, out: Tensor, lse: Tensor, wanted: bool, q: Tensor, k: Tensor, v: Tensor,
                     sink: Tensor | None, _dq: Any, _dk: Any, _dv: Any, softcap: float | None, lengths_q: Tensor | None,
                     lengths_k: Tensor | None, left: int | None, right: int | None, align: str, scale: float,
                     _config_of_forward: Any, config: Sequence[int] | None) -> tuple[Tensor | None, ...]:  # fmt: skip
    setting = back.Setting(Band(left, right, align), scale, softcap, lengths_q, lengths_k)
    return back.attention_backward(
        dout, q, k, v, out, lse, setting, dlse=dlse, sink=sink if wanted else None, config=_config(config)
    )


def _packed(q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, descale_q: Tensor | None, descale_k: Tensor | None,
            descale_v: Tensor | None, softcap: float | None, longest_q: int, longest_k: int, bounds_q: Tensor,
            bounds_k: Tensor, left: int | None, right: int | None, align: str, scale: float,
            config: Sequence[int] | None, _backward_config: Any) -> Pair:  # fmt: skip
    return fused.attention_packed(
        q, k, v, bounds_q, bounds_k, longest_q, longest_k, window=(left, right), align=align, scale=scale,
        softcap=softcap, sink=sink, descales=(descale_q, descale_k, descale_v), config=_config(config),
    )  # fmt: skip


def _packed_grads(dout: Tensor, dlse: Tensor, out: Tensor, lse: Tensor, wanted: bool, q: Tensor, k: Tensor, v: Tensor,
                  sink: Tensor | None, _dq: Any, _dk: Any, _dv: Any, softcap: float | None, longest_q: int,
                  longest_k: int, bounds_q: Tensor, bounds_k: Tensor, left: int | None, right: int | None, align: str,
                  scale: float, _config_of_forward: Any,
                  config: Sequence[int] | None) -> tuple[Tensor | None, ...]:  # fmt: skip
    setting = back.Setting(Band(left, right, align), scale, softcap, bounds_q, bounds_k, q.shape[0])
    return back.attention_packed_backward(
        dout, q, k, v, out, lse, longest_q, longest_k, setting, dlse=dlse, sink=sink if wanted else None,
        config=_config(config),
    )  # fmt: skip


def _with_bias(run: Callable[..., Pair], tensors: int) -> Callable[..., Pair]:
    """Of an operator whose first `tensors` arguments are q, k, v and a bias in the form that `run` takes."""
    def forward(*given: Any) -> Pair:
        lengths_q, lengths_k, left, right, align, scale, config, _ = given[tensors:]
        return run(*given[:tensors], window=(left, right), align=align, scale=scale, lengths_q=lengths_q,
                   lengths_k=lengths_k, config=_config(config))  # fmt: skip

    return forward


def _with_bias_grads(run: Callable[..., tuple[Tensor | None, ...]], tensors: int) -> Callable[..., Any]:
    def backward(dout: Tensor, dlse: Tensor, out: Tensor, lse: Tensor, wanted: bool, *given: Any) -> Any:
        lengths_q, lengths_k, left, right, align, scale, _, config = given[tensors:]
        setting = back.Setting(Band(left, right, align), scale, None, lengths_q, lengths_k)
        return run(dout, *given[:tensors], out, lse, setting, dlse=dlse, config=_config(config), wants_bias=wanted)

    return backward


def _results(q: Tensor, v: Tensor) -> Pair:
    out = q.new_empty((*q.shape[:3], v.shape[3]), dtype=fused.output_dtype(q))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _packed_results(q: Tensor, v: Tensor) -> Pair:
    T, H, _ = q.shape
    return q.new_empty((T, H, v.shape[2]), dtype=fused.output_dtype(q)), q.new_empty((H, T), dtype=torch.float32)


def _register(name: str, extras: str, differentiable: int, run: Callable[..., Pair], grads: Callable[..., Any],
              results: Callable[[Tensor, Tensor], Pair]) -> None:  # fmt: skip
    """Define `einsight::name` and its backward.

    extras           schema of what is given between q, k, v and the common arguments
    differentiable   of the extras, how many (the first ones) get a gradient
    """
    inputs, last = f"Tensor q, Tensor k, Tensor v, {extras}, {COMMON_SCHEMA}", 3 + differentiable
    forward = custom_op(f"einsight::{name}", run, mutates_args=(), schema=f"({inputs}) -> (Tensor, Tensor)")
    forward.register_fake(lambda *given: results(given[0], given[2]))

    def backward(dout: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        # Autograd may hand over an expanded scalar: its last dimension cannot be read in rows.
        found = grads(dout if dout.stride(-1) == 1 else dout.contiguous(), *rest)
        given = rest[4:]
        return tuple(dout.new_empty(0) if g is None else g.to(x.dtype) for g, x in zip(found, given, strict=False))

    results_schema = ", ".join(["Tensor"] * last)
    operator = custom_op(
        f"einsight::{name}_backward", backward, mutates_args=(),
        schema=f"(Tensor dout, Tensor dlse, Tensor out, Tensor lse, bool wanted, {inputs}) -> ({results_schema})",
    )  # fmt: skip

    @operator.register_fake
    def _(dout: Tensor, _dlse: Tensor, _out: Tensor, _lse: Tensor, wanted: bool, *given: Any) -> tuple[Tensor, ...]:
        known = [x if i < 3 or wanted else None for i, x in enumerate(given[:last])]
        return tuple(dout.new_empty(0) if x is None else x.new_empty(x.shape) for x in known)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs), *output)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def differentiate(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        given = [other if tensor is None else tensor for tensor, other in zip(tensors, ctx.others, strict=True)]
        wanted = any(ctx.needs_input_grad[3:last])  # of a bias: a matrix's gradient costs a third kernel
        call = getattr(torch.ops.einsight, f"{name}_backward")
        found = call(dout, dlse, out, lse, wanted, *given)
        needed = zip(found, ctx.needs_input_grad, strict=False)
        return *(g if need else None for g, need in needed), *[None] * (len(given) - last)

    forward.register_autograd(differentiate, setup_context=keep)


ATTENTION_EXTRAS = "Tensor? sink, Tensor? descale_q, Tensor? descale_k, Tensor? descale_v, float? softcap"
_register("attention", ATTENTION_EXTRAS, 1, _attention, _attention_grads, _results)
_register("attention_packed", f"{ATTENTION_EXTRAS}, SymInt longest_q, SymInt longest_k", 1, _packed, _packed_grads,
          _packed_results)  # fmt: skip
_register("flashbias", "Tensor pq, Tensor pk", 2, _with_bias(biased.flashbias, 5),
          _with_bias_grads(biased.flashbias_backward, 5), _results)  # fmt: skip
_register("attention_with_bias", "Tensor bias", 1, _with_bias(biased.attention_with_bias, 4),
          _with_bias_grads(biased.bias_backward, 4), _results)  # fmt: skip
