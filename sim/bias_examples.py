"""Biases like those of published models, made up from a seed: nothing is downloaded, and the shapes are the real ones.

Swin V2's continuous position bias: Liu et al. 2022, arXiv 2111.09883, section 3.3. Pair bias of triangle attention:
AlphaFold 2, Jumper et al. 2021, algorithm 13. Buckets of relative positions: T5, Raffel et al. 2020, arXiv 1910.10683,
section 2.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from einsight.sim.bias_exact import Array, BiasError, alibi_slopes, positions


def window_bias(tables: NDArray[np.floating], rows: int, columns: int) -> Array:
    """[heads, T, T] of a window of T = rows * columns tokens, from tables [heads, (2 rows - 1) * (2 columns - 1)].

    Entry (i, j) is that of the difference of their coordinates, smallest first, row-major: Swin, arXiv 2103.14030, equation 4.
    """
    high, wide = 2 * rows - 1, 2 * columns - 1
    if tables.ndim != 2 or tables.shape[1] != high * wide:
        raise BiasError("table", f"shape {tables.shape}", f"[heads, {high * wide}] for a window of {rows}x{columns}")
    y, x = np.divmod(np.arange(rows * columns), columns)
    entry = (y[:, None] - y + rows - 1) * wide + x[:, None] - x + columns - 1
    return np.ascontiguousarray(tables[:, entry])


def toeplitz_bias(tables: NDArray[np.floating], queries: int, keys: int) -> Array:
    """[heads, M, N] from one entry per offset n - m, from -(M-1) to N-1: tables [heads, M + N - 1]."""
    if tables.ndim != 2 or tables.shape[1] != queries + keys - 1:
        raise BiasError(
            "table", f"shape {tables.shape}", f"[heads, {queries + keys - 1}] for {queries} queries and {keys} keys"
        )
    offset = np.arange(keys) - np.arange(queries)[:, None] + queries - 1
    return np.ascontiguousarray(tables[:, offset])


def swin_v2_tables(heads: int, window: int = 24, hidden: int = 512, seed: int = 0) -> Array:
    """Tables [heads, (2 window - 1)^2] of a continuous position bias with random weights.

    Log-spaced coordinates go through a two-layer perceptron with ReLU; 16 * sigmoid bounds the result. Heads differ in how
    sharply they respond, as trained heads do: some are nearly constant, some change within a few tokens.
    """
    rng = np.random.default_rng(seed)
    offset = np.arange(-(window - 1), window) / max(window - 1, 1)
    spaced = np.sign(offset) * np.log2(1 + 8 * np.abs(offset)) / np.log2(8)
    grid = np.stack(np.meshgrid(spaced, spaced, indexing="ij"), axis=-1).reshape(-1, 2)
    first = rng.normal(size=(2, hidden))
    shift = rng.normal(size=hidden)
    last = rng.normal(size=(hidden, heads)) / np.sqrt(hidden)
    width = np.geomspace(0.2, 6.0, heads)  # of the coordinates: the wider, the sooner the hidden units saturate or switch
    columns = [np.maximum(w * (grid @ first) + shift, 0.0) @ last[:, h] for h, w in enumerate(width)]
    response = np.stack(columns, axis=-1)
    return np.asarray(16.0 / (1.0 + np.exp(-(response - response.mean(axis=0)))).T)


def pair_bias(tokens: int, heads: int = 4, channels: int = 128, seed: int = 0) -> tuple[Array, Array]:
    """(pair representation [T, T, C], bias [heads, T, T]) like AlphaFold's: residues folded into space, a few of them in
    contact, relative positions along the chain, and noise; normalised over the channels, then a linear map to heads."""
    rng = np.random.default_rng(seed)
    chain = np.cumsum(rng.normal(size=(tokens, 3)), axis=0)
    apart = np.linalg.norm(chain[:, None] - chain, axis=-1)
    along = np.clip(np.arange(tokens)[:, None] - np.arange(tokens), -32, 32) / 32
    single = rng.normal(size=(tokens, 8))
    features = np.stack([np.exp(-apart / d) for d in (2.0, 4.0, 8.0, 16.0, 32.0)] + [along, np.abs(along)], axis=-1)
    features = np.concatenate(
        [features, np.broadcast_to(single[:, None], (tokens, tokens, 8)), np.broadcast_to(single, (tokens, tokens, 8))], axis=-1
    )
    pair = features @ rng.normal(size=(features.shape[-1], channels)) + 0.05 * rng.normal(size=(tokens, tokens, channels))
    centred = pair - pair.mean(axis=-1, keepdims=True)
    normal = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-5)
    bias = normal @ rng.normal(size=(channels, heads)) / np.sqrt(channels)
    return normal, np.ascontiguousarray(np.moveaxis(bias, -1, 0))


def point_cloud(points: int, dimensions: int = 3, seed: int = 0) -> Array:
    """[points, D] on the surface of an ellipsoid with noise, as a mesh of a body has them."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(points, dimensions))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions * np.linspace(1.0, 0.4, dimensions) + 0.01 * rng.normal(size=(points, dimensions)))


def t5_tables(heads: int, queries: int, keys: int, buckets: int = 32, farthest: int = 128, seed: int = 0) -> Array:
    """Tables [heads, M + N - 1] with one random value per bucket of the offset: single offsets near, wider and wider far."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(heads, buckets))
    offset = np.arange(-(queries - 1), keys)
    half = buckets // 2
    near = half // 2
    size = np.abs(offset)
    far = near + np.log(np.maximum(size, 1) / near) / np.log(farthest / near) * (half - near)
    bucket = np.where(size < near, size, np.minimum(far, half - 1)).astype(np.int64)
    return np.asarray(values[:, bucket + half * (offset > 0)])


def absolute_offset(heads: int, queries: int, keys: int) -> Array:
    """-slope_h * |i - j|: ALiBi made symmetric. Smooth, and of full rank."""
    i, j = positions(queries, keys)
    return np.asarray(-alibi_slopes(heads)[:, None, None] * np.abs(i[:, None] - j))
