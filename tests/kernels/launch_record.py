"""The child process of `test_launcher`: launches kernels on tensors of the CPU, with everything of Triton's own launch but
compiler and driver, and prints what reached them. Must not interpret: run without TRITON_INTERPRET."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.runtime import driver

from einsight.kernels import attention, decode, flashbias, gna, linear, ops
from einsight.kernels.attention_space import AttentionConfig
from einsight.kernels.gna_space import in_best_boxes
from einsight.kernels.neighborhood import neighborhood
from einsight.kernels.offline import OfflineDriver
from einsight.kernels.spaces import Config

RECORD: list[dict[str, Any]] = []


class Binary:
    """Stands for a compiled kernel: notes what a launch hands to it."""

    function, packed_metadata = 0, ()

    def __init__(self, source: Any) -> None:
        self.source = source

    def launch_metadata(self, grid: Any, stream: int, *arguments: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: int, packed: Any, metadata: Any, enter: Any, leave: Any,
            *arguments: Any) -> None:  # fmt: skip
        kept = sum(kind != "constexpr" for kind in self.source.signature.values())
        RECORD.append({"launch": self.source.name, "grid": [x, y, z], "given": len(arguments), "kept": kept,
                       "disk_key": self.source.hash()})  # fmt: skip


def compiled(**given: Any) -> None:
    told = given["compile"]
    written = json.loads(told["specialization_data"])
    RECORD.append({"compile": given["fn"].name, "key": told["key"], "constants": written["constant_vals"]})


def ahead(name: str, compile_it: Callable[[], object], launch: Callable[[], object]) -> None:
    """Compile from plain values, as is done in parallel beforehand, then launch: what is compiled anew in the launch?"""
    compile_it()
    before = len(RECORD)
    launch()
    RECORD.append({"ahead": name, "anew": [entry["compile"] for entry in RECORD[before:] if "compile" in entry]})


def main() -> None:
    driver.set_active(OfflineDriver(90))
    triton.compiler.compile = lambda source, **_: Binary(source)
    triton.knobs.runtime.jit_post_compile_hook = compiled
    q, k, v = (torch.zeros(1, heads, 64, 32, dtype=torch.float16) for heads in (4, 2, 2))
    build = Config(64, 32, 4, 2)
    for config in (build, Config(64, 32, 4, 2), AttentionConfig(64, 32, 4, 2, descriptors=True)):
        ops.attention(q, k, v, causal=True, config=config)
    ops.attention(q, k, v, config=build)
    ops.attention(q[:, :, :63], k, v, causal=True, config=build)  # not another build: only a length's divisibility
    q.requires_grad_(True)
    pq, pk = (torch.zeros(1, heads, 64, 16, dtype=torch.float16) for heads in (4, 4))
    ops.flashbias(q, k, v, pq, pk, config=build)[0].sum().backward()
    compiled_ahead()
    print(json.dumps(RECORD))


def compiled_ahead() -> None:
    sizes, half, causal, tiles = [2, 4, 2, 96, 96, 64, 64], "float16", {"right": 0}, [64, 64, 4, 1]
    q, k, v = (torch.zeros(2, heads, 96, 64, dtype=torch.float16) for heads in (4, 2, 2))
    config = Config(64, 64, 4, 1)
    ahead("attention", lambda: attention.compile_named(sizes, half, causal, tiles),
          lambda: attention.attention(q, k, v, causal=True, config=config))  # fmt: skip
    pq, bias = torch.zeros(2, 4, 96, 16, dtype=torch.float16), torch.zeros(2, 4, 96, 96, dtype=torch.float16)
    ahead("flashbias", lambda: flashbias.compile_named(sizes, half, causal, tiles, rank=16),
          lambda: flashbias.flashbias(q, k, v, pq, pq, causal=True, config=config))  # fmt: skip
    ahead("attention_with_bias", lambda: flashbias.compile_named(sizes, half, causal, tiles),
          lambda: flashbias.attention_with_bias(q, k, v, bias, causal=True, config=config))  # fmt: skip
    short = q[:, :, :1].contiguous()
    ahead("decode", lambda: decode.compile_named(sizes, half, {}, [16, 64, 4, 1], 1),
          lambda: decode.decode(short, k, v, config=Config(16, 64, 4, 1)))  # fmt: skip
    grid = {"layout": [96], "window": [32]}
    ahead("gna", lambda: gna.compile_named(sizes, half, {}, tiles, neighborhood=grid),
          lambda: gna.gna(q, k, v, 96, 32, config=in_best_boxes(neighborhood(96, 32), config)))  # fmt: skip
    gates = torch.zeros(2, 2, 96, 64)
    chunk = Config(32, 32, 4, 1)
    ahead("gla", lambda: [linear.compile_named(sizes, half, {}, [32, 32, 4, 1], "gates", scores) for scores in (True, False)],
          lambda: linear.linear_attention(q, k, v, log_gates=gates, config=chunk))  # fmt: skip


if __name__ == "__main__":
    main()
