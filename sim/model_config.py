"""Hugging Face `config.json` files as attention workloads: one per kind of layer, with the number of such layers.

Key names and their defaults are those of the transformers library's configuration classes. Only attention is read:
projections and feed-forward layers are no part of these workloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from einsight.sim.additions import Addition, WorkloadError
from einsight.sim.hardware import DTYPES
from einsight.sim.mask import Causal, Mask, Window
from einsight.sim.strict_yaml import SpecError
from einsight.sim.workload import Workload, element_type

MAX_BYTES = 10_000_000
MAX_LAYERS = 10_000
NESTED = ("text_config", "llm_config", "language_config")
"""Where models with several modalities keep the language model's keys."""

WINDOW_PATTERNS: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""By `model_type`: every so-many-th layer sees all keys, the others a window, where the file itself does not say."""

ENCODERS = frozenset({"bert", "roberta", "distilbert", "electra", "deberta", "xlm-roberta", "modernbert", "vit"})
"""Model types whose queries see the keys after them too; all others are causal."""


class LayerGroup(NamedTuple):
    """Layers with the same attention, and how many there are."""

    workload: Workload
    layers: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a `config.json` says about attention.

    value_dim   differs from head_dim for multi-head latent attention in its expanded form
    windows     per layer: the sliding window, or None for all keys
    notes       what a prediction for this model should say beside it
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    windows: tuple[int | None, ...]
    dtype: str | None
    causal: bool = True
    softcap: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.windows)

    def groups(
        self, phase: str, batch: int, seq: int, dtype: str | None = None, cascade: str = "one_pass", cache: str = "cold"
    ) -> tuple[LayerGroup, ...]:
        """Workloads with layer counts; prefill has m = n = seq, decode m = 1 and n = seq keys in the cache.

        Layers whose windows exclude nothing at this length are one group. Raises WorkloadError.
        """
        queries = 1 if phase == "decode" else seq
        given = dtype or self.dtype
        if given is None or (dtype is None and element_type(given) is None):
            found = "no torch_dtype" if given is None else f"torch_dtype {given}"
            raise WorkloadError("dtype", f"{found} in the configuration of {self.name}",
                                f"one of {', '.join(DTYPES)}", "give it with --dtype")  # fmt: skip
        base = Workload.attention(
            batch=batch, heads=self.heads, kv_heads=self.kv_heads, seq_q=queries, seq_kv=seq, head_dim=self.head_dim,
            value_dim=self.value_dim, dtype=given, phase=phase, cache=cache, cascade=cascade,
            bias=() if self.softcap is None else Addition("softcap", (("cap", self.softcap),)),
        )  # fmt: skip
        counted: dict[Mask, int] = {}
        for window in self.windows:
            mask = self._mask(window).canonical(queries, seq)
            counted[mask] = counted.get(mask, 0) + 1
        length = f"{seq} tokens" if phase == "prefill" else f"{seq} keys"
        title = f"{self.name} {phase} b{batch} {length}"
        return tuple(
            LayerGroup(replace(base, name=title + (f" window {m.window}" if m.window else ""), mask=m), layers)
            for m, layers in counted.items()
        )

    def _mask(self, window: int | None) -> Mask:
        restrictions = (Causal(),) if self.causal else ()
        return Mask(restrictions if window is None else (*restrictions, Window(window)))


def load_model(path: str | Path) -> ModelConfig:
    """Reads a `config.json`. Raises SpecError for what is missing, contradictory or not attention as modelled here."""
    return model_from(_read(path), str(path), _name(Path(path)))


def model_workloads(
    path: str | Path, phase: str, batch: int, seq: int, dtype: str | None = None, cascade: str = "one_pass"
) -> tuple[LayerGroup, ...]:
    """`load_model(path).groups(...)`."""
    return load_model(path).groups(phase, batch, seq, dtype, cascade)


def model_from(data: Mapping[str, Any], file: str = "<config>", name: str = "model") -> ModelConfig:
    """The same from the parsed JSON object."""
    keys = _Keys(file, data, next((data[k] for k in NESTED if isinstance(data.get(k), Mapping)), {}))
    if keys.get("is_encoder_decoder") is True:
        raise keys.error("is_encoder_decoder", "true", "a model of one stack", "describe each attention as a workload")
    heads = keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise keys.error("num_key_value_heads", str(kv_heads), f"a divisor of num_attention_heads = {heads}")
    notes: tuple[str, ...] = ()
    if keys.get("kv_lora_rank") is not None:
        latent = keys.size("kv_lora_rank")
        head_dim = keys.size("qk_nope_head_dim") + keys.size("qk_rope_head_dim")
        value_dim, kv_heads = keys.size("v_head_dim"), heads
        notes = (f"multi-head latent attention in its expanded form: keys of {head_dim} and values of {value_dim} per "
                 f"head, not the latent of {latent}",)  # fmt: skip
        name += " (MLA expanded)"
    else:
        head_dim = value_dim = _head_dim(keys, heads)
    softcap = keys.get("attn_logit_softcapping")
    if softcap is not None and (isinstance(softcap, bool) or not isinstance(softcap, int | float) or not 0 < softcap <= 1e30):
        raise keys.error("attn_logit_softcapping", repr(softcap), "a positive number or null")
    dtype = keys.get("torch_dtype") or keys.get("dtype")
    return ModelConfig(
        name, heads, kv_heads, head_dim, value_dim, _windows(keys), None if dtype is None else str(dtype),
        str(keys.get("model_type")) not in ENCODERS, None if softcap is None else float(softcap), notes,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Keys:
    """The language model's own keys first, then the file's."""

    file: str
    outer: Mapping[str, Any]
    inner: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value, or None where it is missing or null."""
        found = self.inner.get(key)
        return self.outer.get(key) if found is None else found

    def size(self, key: str, default: int | None = None) -> int:
        found = self.get(key)
        if found is None and default is not None:
            return default
        if found is None:
            raise self.error(key, "no such key", "a whole number, as in the config.json of Llama, Mistral, Qwen, Gemma "
                             "or DeepSeek models")  # fmt: skip
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise self.error(key, repr(found), "a whole number of at least 1")
        return found

    def error(self, key: str, found: str, expected: str, hint: str = "") -> SpecError:
        return SpecError(self.file, 0, key, found, expected, hint)


def _head_dim(keys: _Keys, heads: int) -> int:
    if keys.get("head_dim") is not None:
        return keys.size("head_dim")
    hidden = keys.size("hidden_size")
    if hidden % heads:
        raise keys.error("hidden_size", str(hidden), f"a multiple of num_attention_heads = {heads}",
                         "or a head_dim of its own")  # fmt: skip
    return hidden // heads


def _windows(keys: _Keys) -> tuple[int | None, ...]:
    """Window of each layer: by `layer_types`, else by a pattern, else from `max_window_layers` on, else everywhere."""
    layers, kinds = keys.size("num_hidden_layers"), keys.get("layer_types")
    if layers > MAX_LAYERS:
        raise keys.error("num_hidden_layers", str(layers), f"at most {MAX_LAYERS} layers")
    if kinds is not None:
        return _typed_windows(keys, layers, kinds)
    if keys.get("sliding_window") is None or keys.get("use_sliding_window") is False:
        return (None,) * layers
    window = keys.size("sliding_window")
    pattern = next((k for k in ("sliding_window_pattern", "_sliding_window_pattern") if keys.get(k) is not None), None)
    every = keys.size(pattern) if pattern else WINDOW_PATTERNS.get(str(keys.get("model_type")))
    if every is not None:
        return tuple(window if (i + 1) % every else None for i in range(layers))
    first = 0
    if keys.get("use_sliding_window") is True and keys.get("max_window_layers") is not None:
        first = keys.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:  # zero: all layers
            raise keys.error("max_window_layers", repr(first), "a whole number of layers, 0 or more")
    return tuple(window if i >= first else None for i in range(layers))


def _typed_windows(keys: _Keys, layers: int, kinds: Any) -> tuple[int | None, ...]:
    if not isinstance(kinds, list) or len(kinds) != layers:
        found = f"{len(kinds)} entries" if isinstance(kinds, list) else repr(kinds)
        raise keys.error("layer_types", found, f"a list with one entry for each of the {layers} layers")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise keys.error("layer_types", repr(kind), "full_attention or sliding_attention",
                             "describe other layers as workloads of their own")  # fmt: skip
    return tuple(keys.size("sliding_window") if kind == "sliding_attention" else None for kind in kinds)


def _read(path: str | Path) -> Mapping[str, Any]:
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise SpecError(str(path), 0, "", error.strerror or "an unreadable file", "a config.json") from None
    if len(raw) > MAX_BYTES:
        raise SpecError(str(path), 0, "", f"{len(raw)} bytes", f"a config.json of at most {MAX_BYTES}")
    try:
        data = json.loads(raw)
    except json.JSONDecodeError as error:
        raise SpecError(str(path), error.lineno, "", f"text that is not JSON in column {error.colno}", "valid JSON",
                        error.msg) from None  # fmt: skip
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise SpecError(str(path), 0, "", "bytes that are not JSON", "a config.json") from None
    if not isinstance(data, dict):
        raise SpecError(str(path), 0, "", type(data).__name__, "a JSON object with the keys of a model")
    return data


def _name(path: Path) -> str:
    """The file's name, or its folder's where the file is just called config.json."""
    folder = path.resolve().parent.name
    return folder if path.stem == "config" and folder else path.stem
