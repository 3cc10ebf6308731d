"""Connected components of labels that are tied."""

from __future__ import annotations

import numpy as np


def components(edges: list[np.ndarray], size: int) -> np.ndarray:
    """For each of `size` labels the smallest that edges, each of shape (2, n), lead to."""
    root = np.arange(size)
    if not edges:
        return root
    a, b = np.concatenate(edges, axis=1)
    a, b = distinct(a, b, size)
    while a.size:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        np.minimum.at(root, high, low)
        while not np.array_equal(up := root[root], root):
            root = up
        live = root[a] != root[b]
        a, b = a[live], b[live]
    return root


def distinct(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    """The different edges among (a, b), of shape (2, n); labels are below `size`."""
    return np.stack(np.divmod(np.unique(np.minimum(a, b) * size + np.maximum(a, b)), size))
