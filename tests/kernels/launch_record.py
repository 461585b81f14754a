"""The child process of `test_launcher`: launches kernels on tensors of the CPU, with everything of Triton's own launch but
compiler and driver, and prints what reached them. Must not interpret: run without TRITON_INTERPRET."""

from __future__ import annotations

import json
from typing import Any

import torch
import triton
from triton.runtime import driver

from einsight.kernels import ops
from einsight.kernels.attention_space import AttentionConfig
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
    print(json.dumps(RECORD))


if __name__ == "__main__":
    main()
