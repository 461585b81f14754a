"""Workloads: one attention problem with its sizes, element types, mask and fragments, and the key that joins it.

    Workload.attention(batch=1, heads=32, kv_heads=8, seq_q=8192, head_dim=128, mask="causal")

`workload_file` reads the written form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from typing import Any, Self

from einsight.einsum import library
from einsight.einsum.compose import OUTER_RANKS, compose, own_ranks
from einsight.einsum.ir import Cascade
from einsight.einsum.sizes import required_sizes
from einsight.sim.additions import Addition, WorkloadError, additions_from, check_parameters
from einsight.sim.file_state import State, state
from einsight.sim.hardware import DTYPES
from einsight.sim.mask import DENSE, MAX_SIZE, Mask, mask_from
from einsight.sim.mask_predicate import predicate

PHASES = ("prefill", "decode")
CACHES = ("cold", "warm")
REQUIRED_SIZES = ("h", "m", "n", "e")
QUERY, KEY = "M", "N"
DECODE_QUERIES = 64
"""Most new tokens per sequence that count as decode (speculative decoding proposes a few); more is a prompt's chunk."""

_ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "tfloat32": "tf32",
    "fp8": "fp8_e4m3", "e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2", "float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """One attention problem.

    cascade    how it is computed: a library name or the path of a .casc file
    sizes      lower-case rank sizes. Given: h query heads, m queries, n keys, e; with defaults: b = 1, g = h, f = e.
               Completed: j = h / g query heads per KV head. Further ranks of the cascade (n0, ...) as needed
    dtype      element type of every input that `dtypes` does not name
    dtypes     element types by input tensor
    bias       fragments in the order in which they act; the mask acts after them
    phase      prefill | decode
    cache      cold: operands start in the farthest memory; warm: repeated measurement
    """

    name: str
    cascade: str
    sizes: Mapping[str, int]
    dtype: str = "bf16"
    dtypes: Mapping[str, str] = field(default_factory=dict)
    mask: Mask = DENSE
    bias: tuple[Addition, ...] = ()
    phase: str = "prefill"
    cache: str = "cold"
    family: str | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for word, options in (("phase", PHASES), ("cache", CACHES)):
            if getattr(self, word) not in options:
                raise WorkloadError(word, repr(getattr(self, word)), " or ".join(options))
        object.__setattr__(self, "sizes", _completed(self.sizes))
        object.__setattr__(self, "dtype", _dtype("dtype", self.dtype))
        dtypes = {tensor: _dtype(f"dtype.{tensor}", text) for tensor, text in sorted(self.dtypes.items())}
        object.__setattr__(self, "dtypes", dtypes)
        m, n = self.sizes["m"], self.sizes["n"]
        if self.mask.causal and m > n:
            raise WorkloadError(
                "sizes.m", f"{m} queries for {n} keys", f"at most {n} under a causal mask",
                f"the last query stands at the last key, so the first {m - n} would see none",
            )  # fmt: skip
        if self.phase == "decode" and m > min(n, DECODE_QUERIES):
            raise WorkloadError(
                "sizes.m", f"{m} queries in phase decode with {n} keys", f"at most {min(n, DECODE_QUERIES)}",
                "decode adds a few tokens to a cache; use phase: prefill for a chunk of the prompt",
            )  # fmt: skip
        self.mask.check(m, n)

    def __hash__(self) -> int:
        return hash((self.name, self.cascade, tuple(self.sizes.items()), self.mask, self.bias))

    @classmethod
    def attention(
        cls,
        *,
        heads: int,
        seq_q: int,
        head_dim: int,
        batch: int = 1,
        kv_heads: int | None = None,
        seq_kv: int | None = None,
        value_dim: int | None = None,
        mask: Any = None,
        bias: Any = (),
        dtype: str = "bf16",
        phase: str | None = None,
        cache: str = "cold",
        cascade: str = "one_pass",
        name: str = "",
        family: str | None = None,
    ) -> Self:
        """In a model's words. `seq_kv` defaults to `seq_q`, `kv_heads` to `heads`, `value_dim` to `head_dim`.

        mask    "causal", ["causal", {"window": 4096}], a Mask, or None for dense
        bias    "alibi", {"kind": "softcap", "cap": 50.0}, or a list of such, in order
        phase   default: decode for one query per sequence with a longer cache, else prefill
        """
        keys = seq_q if seq_kv is None else seq_kv
        kv = heads if kv_heads is None else kv_heads
        sizes = {"b": batch, "h": heads, "g": kv, "m": seq_q, "n": keys, "e": head_dim, "f": value_dim or head_dim}
        phase = phase or ("decode" if seq_q == 1 and keys > 1 else "prefill")
        name = name or f"{phase} b{batch} h{heads}/{kv} {seq_q}x{keys} d{head_dim}"
        return cls(name, cascade, sizes, dtype, {}, mask_from(mask), additions_from(bias), phase, cache, family)

    @property
    def canonical_mask(self) -> Mask:
        """The mask without restrictions that exclude no pair at these sizes."""
        return self.mask.canonical(self.sizes["m"], self.sizes["n"])

    @property
    def base(self) -> Cascade:
        """The cascade before composition."""
        return library.load(self.cascade)

    @property
    def fragments(self) -> tuple[Cascade, ...]:
        return tuple(library.fragment(added.kind) for added in self.bias)

    def dtype_of(self, tensor: str) -> str:
        """Element type of an input or output."""
        return self.dtypes.get(tensor, self.dtype)

    @property
    def rank_sizes(self) -> dict[str, int]:
        """Sizes of the composed cascade's ranks by upper-case name, fragments' ranks included; tile ranks as given."""
        own = {name.upper(): size for name, size in self.sizes.items() if name != "h"}
        if not self.bias:
            return own
        brought = self.composed(masked=False).ranks[len(OUTER_RANKS) + len(self.base.ranks) :]  # two may both have an R
        named = [(added, name) for added, f in zip(self.bias, self.fragments, strict=True) for name in own_ranks(f)]
        return own | {rank.name: int(dict(added.parameters)[name.lower()])
                      for rank, (added, name) in zip(brought, named, strict=True)}  # fmt: skip

    @property
    def composed_sizes(self) -> dict[str, int]:
        """Those of `rank_sizes` that the composed cascade has a rank for: a recurrence over keys has no queries of its own."""
        has = {name for rank in self.composed().ranks for name in (rank.name, *rank.parts)}
        return {name: size for name, size in self.rank_sizes.items() if name in has}

    def composed(self, masked: bool = True) -> Cascade:
        """The cascade with fragments, mask predicate and outer ranks: what every analysis reads.

        `masked=False` leaves the mask out: the cascade of one full tile, for models that count the mask's tiles apart.

        Raises WorkloadError where a parameter or tensor does not exist, `IllegalComposition` where the cascade cannot
        carry what the workload adds, `CascadeError` where a cascade file has faults.
        """
        self.check()
        states = tuple(state(path) for path in (self.cascade, *(added.kind for added in self.bias)))
        mask = self.canonical_mask if masked else DENSE
        return _composed(self.cascade, tuple(added.kind for added in self.bias), mask, states)

    def check(self) -> None:
        """Compares parameters, element types and sizes with what the cascade and the fragments declare."""
        base, fragments = self.base, self.fragments
        for k, (added, fragment) in enumerate(zip(self.bias, fragments, strict=True)):
            check_parameters(f"bias[{k}]" if len(self.bias) > 1 else "bias", added, fragment)
        inputs = [t.name for part in (base, *fragments) for t in part.inputs]
        for tensor in self.dtypes:
            if tensor not in (*inputs, *(t.name for t in base.outputs)):
                raise WorkloadError(f"dtype.{tensor}", f"tensor {tensor}", f"one of {', '.join(inputs)}")
        known = {"h", "b", "g", "j"} | {p.lower() for r in base.ranks for p in (r.name, *r.parts)}
        for size in self.sizes:
            if size not in known | {"m", "n", "e", "f"}:
                raise WorkloadError(f"sizes.{size}", f"size {size}", f"a rank of cascade {base.name}",
                                    f"it has {', '.join(sorted(known))}")  # fmt: skip
        if base.rank(KEY) is None:
            raise WorkloadError("cascade", f"cascade {base.name}, which has no rank {KEY}", "a cascade over keys",
                                f"it has {', '.join(r.name for r in base.ranks)}")  # fmt: skip
        m, n = self.sizes["m"], self.sizes["n"]
        if base.rank(QUERY) is None and m != n:
            raise WorkloadError("sizes.m", f"{m} queries for {n} keys", f"as many as keys, m: {n}",
                                f"cascade {base.name} walks one sequence of queries and keys")  # fmt: skip
        tiles = {part for rank in base.ranks for part in rank.parts}
        for name in required_sizes(base):
            if name.lower() not in self.sizes and name not in tiles:
                raise WorkloadError("sizes", f"no {name.lower()}", f"the size of rank {name} of cascade {base.name}",
                                    f"a workload file gives it: sizes: {{{name.lower()}: ...}}")  # fmt: skip

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the problem, not the algorithm: what reports join on."""
        return hashlib.sha256(self.key_json.encode()).hexdigest()[:16]

    @property
    def key_json(self) -> str:
        """What the key hashes: the problem as JSON with sorted keys and no spaces.

        Tile ranks (n0) belong to the algorithm and stay out, j follows from h and g, and scalar inputs are parameters
        without an element type.
        """
        base, fragments = self.base, self.fragments
        left_out = {"j", *(part.lower() for rank in base.ranks for part in rank.parts)}
        problem = {
            "computes": base.computes or base.name,
            "sizes": {name: size for name, size in self.sizes.items() if name not in left_out},
            "dtype": {t.name: self.dtype_of(t.name) for part in (base, *fragments) for t in part.inputs if t.ranks},
            "mask": self.canonical_mask.as_json(),
            "bias": [added.canonical(f) for added, f in zip(self.bias, fragments, strict=True)],
            "phase": self.phase,
            "cache": self.cache,
        }
        return json.dumps(problem, sort_keys=True, separators=(",", ":"))


def _completed(sizes: Mapping[str, int]) -> dict[str, int]:
    """All sizes with defaults and j, in a fixed order."""
    for name in REQUIRED_SIZES:
        if name not in sizes:
            raise WorkloadError("sizes", f"no {name}", f"{', '.join(REQUIRED_SIZES)} (b, g and f have defaults)")
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= MAX_SIZE:
            raise WorkloadError(f"sizes.{name}", repr(value), "a whole number of at least 1, up to 2^40")
        if name != name.lower():
            raise WorkloadError(f"sizes.{name}", f"size {name}", f"{name.lower()} (sizes are written in lower case)")
    sizes = {name: int(value) for name, value in sizes.items()}  # NumPy's integers, too
    h, g = sizes["h"], sizes.get("g", sizes["h"])
    if h % g:
        raise WorkloadError("sizes.g", f"{g} KV heads for h = {h} query heads", "a divisor of h",
                            "each KV head serves the same number of query heads")  # fmt: skip
    if sizes.get("j", h // g) != h // g:
        raise WorkloadError("sizes.j", str(sizes["j"]), f"h / g = {h // g}", "leave j out, it follows")
    first = {"b": sizes.get("b", 1), "h": h, "g": g, "j": h // g, "m": sizes["m"], "n": sizes["n"], "e": sizes["e"],
             "f": sizes.get("f", sizes["e"])}  # fmt: skip
    return first | {name: sizes[name] for name in sorted(sizes) if name not in first}


def element_type(text: str) -> str | None:
    """Our name of an element type that may be written as frameworks do ("bfloat16", "fp8"); None for an unknown one."""
    found = _ALIASES.get(text, text)
    return found if found in DTYPES else None


def _dtype(place: str, text: str) -> str:
    found = element_type(str(text))
    if found is None:
        raise WorkloadError(place, repr(text), f"one of {', '.join(DTYPES)}")
    return found


@lru_cache(maxsize=256)
def _composed(cascade: str, kinds: tuple[str, ...], mask: Mask, states: tuple[State, ...]) -> Cascade:
    fragments = [library.fragment(kind) for kind in kinds]
    return compose(library.load(cascade), fragments, predicate(mask), outer=True)
