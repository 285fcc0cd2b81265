"""Groups of images that are the same or nearly so, among hundreds of thousands."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from fcos_fast.models.optional import import_optional

MAX_DISTANCE = 6
"""Perceptual hashes of near-duplicates differ in at most so many of their 64 bits."""

MIN_CORRELATION = 0.95
"""Smallest correlation of the thumbnails of near-duplicates."""

_PAIRS = 1 << 20  # whose hashes are compared at once
_SIMILAR = 1 << 13  # whose thumbnails are compared at once


def near_duplicates(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The groups of near-duplicates: images that are connected by pairs whose hashes and thumbnails are similar.

    The bits of a hash are divided into ``MAX_DISTANCE + 1`` bands. The hashes of a pair agree in at least one of them,
    so only hashes with an equal band are compared: a few thousandths of all pairs.

    Args:
        hashes: (N,) uint64 perceptual hashes.
        thumbnails: (N, ...) uint8.

    Returns:
        (N,) int64, the number of each image's group.
    """
    labels = np.arange(len(hashes))
    ends = np.linspace(0, 64, MAX_DISTANCE + 2).round().astype(int).tolist()
    for low, high in pairwise(ends):
        band = hashes >> np.uint64(low) & np.uint64((1 << (high - low)) - 1)
        order = np.lexsort((hashes, labels, band))
        for first, second in _pairs(band[order], labels[order]):
            i, j = order[first], order[second]
            near = count_bits(hashes[i] ^ hashes[j]) <= MAX_DISTANCE
            labels = _connect(labels, i[near], j[near], thumbnails)
    return labels


def _pairs(band: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of positions with equal bands and different labels, in parts of about :data:`_PAIRS`. Both arrays are
    sorted by band, then label."""
    positions = np.arange(len(band))
    changes = np.flatnonzero((band[1:] != band[:-1]) | (labels[1:] != labels[:-1])) + 1
    ends = np.append(changes, len(band))
    begin = ends[np.searchsorted(ends, positions, side="right")]  # of each position's partners
    partners = np.searchsorted(band, band, side="right") - begin
    before = np.concatenate(([0], np.cumsum(partners)))
    start = 0
    while start < len(band):
        stop = max(start + 1, int(np.searchsorted(before, before[start] + _PAIRS, side="right")) - 1)
        counts = partners[start:stop]
        first = np.repeat(positions[start:stop], counts)
        number = np.arange(len(first)) - np.repeat(before[start:stop] - before[start], counts)
        yield first, begin[first] + number
        start = stop


def _connect(labels: np.ndarray, i: np.ndarray, j: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The labels after joining those of the pairs (i, j) with similar thumbnails."""
    sparse = import_optional("scipy.sparse", "finding duplicate images needs", "check")
    graph = import_optional("scipy.sparse.csgraph", "finding duplicate images needs", "check")
    while len(i):
        a, b = i[:_SIMILAR], j[:_SIMILAR]
        same = _similar(thumbnails[a], thumbnails[b])
        if same.any():
            edges = (np.ones(np.count_nonzero(same)), (labels[a[same]], labels[b[same]]))
            matrix = sparse.coo_matrix(edges, shape=(len(labels), len(labels)))
            labels = graph.connected_components(matrix, directed=False)[1][labels]
        i, j = i[_SIMILAR:], j[_SIMILAR:]
        apart = labels[i] != labels[j]  # a video has millions of pairs in one group
        i, j = i[apart], j[apart]
    return labels


def count_bits(values: np.ndarray) -> np.ndarray:
    """The number of ones in each uint64."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(values)
    return np.unpackbits(values[:, None].view(np.uint8), axis=1).sum(axis=1)


def _similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the thumbnails of each pair correlate; brightness and contrast do not matter."""
    a, b = _standardized(a), _standardized(b)
    return (a * b).sum(axis=1) >= MIN_CORRELATION


def _standardized(thumbnails: np.ndarray) -> np.ndarray:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
