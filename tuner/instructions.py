"""What the inner loop of a kernel should be made of, from its cascade: a check of the model's counts against a compiler.

The simulator counts operations of a tile; a compiler emits instructions. Between the two stand rules of instruction
selection and of layout, all of them written down here and none fitted:

- a sum with a matrix product is the product's accumulator, opened with the other operand: no instruction where that
  operand was just multiplied, one multiplication where it has to be brought to the scale of the product;
- a sum one of whose operands is an elementwise product is a fused multiply-add: one instruction for both;
- exp(x - y) is one fused multiply-add (log2 e times x, less y in those units) and one EX2; the sum in sigmoid(x + y) goes
  into the multiply-add before its EX2 in the same way;
- a value without key or feature index is held by the four lanes that share a row of an accumulator (PTX ISA, fragments of
  mma.m16n8 and of wgmma): computed in each; a reduction over keys is done in each lane over its quarter, then in two
  exchanges;
- Triton lays the warps of mma.sync along the columns of a tile that has fewer rows than the output has columns: then the
  lanes of all warps share a row, and partial reductions go through shared memory to be joined, a lane for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, log2, prod

from einsight.einsum.compose import compose
from einsight.einsum.counts import Count
from einsight.einsum.expression import Access, Apply, Expression
from einsight.einsum.ir import Cascade, Einsum
from einsight.einsum.library import fragment, load
from einsight.einsum.resolve import resolve
from einsight.kernels.catalog import Kernel
from einsight.kernels.decode_space import COLUMNS_PER_WARP
from einsight.kernels.spaces import Config, Heads
from einsight.sim.hardware import Architecture
from einsight.sim.work import QUERY, kernels

LANES = 32  # of a warp
LANES_OF_ROW = 4  # that hold one row of an accumulator
EXCHANGES = 2  # log2 of them
WARPS_OF_GROUP = 4  # that issue one wgmma together
FP32 = {"FADD": 1, "FMUL": 1, "FFMA": 1, "FMNMX": 1, "FMNMX3": 2, "FADD2": 2, "FMUL2": 2, "FFMA2": 2}
"""Instructions of the fp32 pipe and the operations that one of them does."""


@dataclass(frozen=True, slots=True)
class LoopMix:
    """Instructions that one thread issues for one tile of keys: tensor core, special function, fp32 operations."""

    tensor: float
    special: float
    fp32: float


def found_mix(loop: Mapping[str, int]) -> LoopMix:
    """The mix of a compiled inner loop (opcode -> instructions)."""
    tensor = sum(loop.get(name, 0) for name in ("HMMA", "HGMMA"))
    special = sum(n for name, n in loop.items() if name.startswith("MUFU"))
    return LoopMix(tensor, special, sum(n * loop.get(name, 0) for name, n in FP32.items()))


def expected_mix(kernel: Kernel, heads: Heads, config: Config, arch: Architecture) -> LoopMix | None:
    """The mix that the kernel's cascade asks for on tiles of this build; None where `why_unchecked` has a reason."""
    if why_unchecked(kernel, heads, config, arch):
        return None
    asynchronous = _asynchronous(config, arch)
    across = config.num_warps if _along_columns(heads, config, arch) else 1
    cascade = composed(kernel)
    sweep = kernels(cascade, True)[0].sweeps[0]
    einsums = {e.name: e for e in cascade.einsums if e.name in sweep.einsums}
    sizes = {
        "M": config.block_m, "N": config.block_n, "N0": config.block_n, "N1": 1, "E": heads.tile_e, "F": heads.tile_f,
        "R": heads.tile_r,
    }  # fmt: skip
    products = {c.einsum for c in sweep.share.counts if c.matmul}
    tensor = sum(_tensor(c, einsums[c.einsum], sizes, config.num_warps, asynchronous) for c in sweep.share.counts if c.matmul)
    special = fp32 = 0.0
    for entry in sweep.share.counts:
        if not entry.matmul:
            applications = _in_lanes(entry, einsums[entry.einsum], sizes, across)
            cost = arch.operators[entry.klass]
            special += applications * cost.get("special", 0.0)
            fp32 += applications * cost.get("vector", 0.0) * (not _folded(entry, einsums, products))
    threads = arch.warp_threads * config.num_warps
    return LoopMix(tensor, special / threads, fp32 / threads)


def why_unchecked(kernel: Kernel, heads: Heads, config: Config, arch: Architecture) -> str:
    """Why no rule says what the inner loop of this build is made of; "" where one does."""
    if arch.instructions not in ("mma.sync", "wgmma"):
        return "accumulators lie in tensor memory"
    if heads.element_bytes == 1:
        return "fp8 operands are transposed or widened in the loop, for which no rule is written down"
    if composed(kernel).rank(QUERY) is None:
        return "a chunk's decays and masks are made where their operands lie, some of them before the loop"
    if _along_columns(heads, config, arch):
        few = min(config.block_n, heads.tile_f) < COLUMNS_PER_WARP * config.num_warps
    else:
        few = config.block_m < 16 * config.num_warps
    if few:
        return "warps repeat each other's work on too few rows or columns"
    return ""


def _along_columns(heads: Heads, config: Config, arch: Architecture) -> bool:
    """Whether the warps of mma.sync lie along the columns of a tile; see `spaces.shared_bytes`."""
    return not _asynchronous(config, arch) and config.block_m < heads.tile_f


def _asynchronous(config: Config, arch: Architecture) -> bool:
    return arch.instructions == "wgmma" and config.block_m >= 64 and config.num_warps % WARPS_OF_GROUP == 0


def composed(kernel: Kernel) -> Cascade:
    """The cascade of the kernel's inner loop with its fragments, without outer ranks, ready to be counted."""
    base = load(kernel.loop or kernel.cascade)
    pieces = tuple(fragment(name) for name in kernel.fragments)
    return resolve(compose(base, pieces, None, outer=False) if pieces else base)


def _tensor(entry: Count, einsum: Einsum, sizes: Mapping[str, int], warps: int, asynchronous: bool) -> float:
    """Tensor-core instructions of one product, per warp: 16 x 8 x 16 each, or 64 x up to 256 x 16 per group of warps."""
    depth = _extent(entry.reduces, sizes)
    columns = _extent((v for v in einsum.output_variables if v != "m"), sizes)
    if asynchronous:
        return sizes["M"] / 64 * ceil(columns / 256) * depth / 16 / (warps / WARPS_OF_GROUP)
    return sizes["M"] / 16 * columns / 8 * depth / 16 / warps


def _extent(names: Iterable[str], sizes: Mapping[str, int]) -> int:
    return prod(sizes[name.upper()] for name in names)


def _in_lanes(entry: Count, einsum: Einsum, sizes: Mapping[str, int], across: int) -> float:
    """Applications over all lanes of a block, of one entry for one tile. `across`: warps that share a row."""
    number = float(entry.formula.evaluate(sizes))
    if einsum.output_variables & {"n0", "n", "f"}:  # a row's elements along these lie in different lanes
        return number
    kept, rows = LANES_OF_ROW * across, sizes["M"]
    if not entry.reduces:
        return number * kept
    joined = max(LANES * across, rows * across) * log2(across)  # every lane of every warp takes part
    return rows * (_extent(entry.reduces, sizes) - kept + kept * EXCHANGES) + joined


def _folded(entry: Count, einsums: Mapping[str, Einsum], products: set[str]) -> bool:
    """Whether another instruction does this operation as well."""
    einsum = einsums[entry.einsum]
    root = einsum.expression
    if entry.reduces:
        return False
    if entry.klass in ("add", "sub") and isinstance(root, Apply) and root.op in ("exp", "sigmoid"):
        return True
    if entry.klass == "add":  # the accumulator of a product, opened with what was just multiplied
        others = _operands(root) - products
        return bool(_operands(root) & products) and any(n in einsums and _is(einsums[n].expression, "*") for n in others)
    if entry.klass == "mul":  # read by a sum that is an instruction of its own
        readers = [e for e in einsums.values() if einsum.name in _operands(e.expression) and _is(e.expression, "+")]
        return any(not _operands(e.expression) & products for e in readers)
    return False


def _is(node: Expression, op: str) -> bool:
    return isinstance(node, Apply) and node.op == op


def _operands(root: Expression) -> set[str]:
    """Tensors that the root operation reads directly."""
    return {a.tensor for a in root.args if isinstance(a, Access)} if isinstance(root, Apply) else set()
