"""What all samples are made with: mini-batches out of a seed, coordinates, smooth random fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]


def mini_batches(
    draw: Callable[[Generator], tuple[Array, ...]], batches: int, batch_size: int, seed: int
) -> Iterator[Any]:
    """Mini-batches of the parts of `batch_size` samples, stacked; each mini-batch has a generator of its own."""
    for index in range(batches):
        rng = np.random.default_rng([seed, index])
        samples = [draw(rng) for _ in range(batch_size)]
        yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))


def ticks(size: int, axis: int, axes: int) -> Array:
    """Centres of `size` cells of [-1, 1], along one axis of `axes`, to be broadcast."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return ticks.reshape([-1 if k == axis else 1 for k in range(axes)])


def smooth(rng: Generator, shape: tuple[int, ...], cells: int) -> Array:
    """A smooth random field of mean 0 and deviation 1, about: cubic B-splines over `cells` cells of the longest axis."""
    knots = [max(1, round(cells * size / max(shape))) for size in shape]
    field = rng.standard_normal([count + 3 for count in knots], dtype=np.float32)
    for axis in reversed(range(len(shape))):  # the first axis last: its slices are copied in one piece
        size, count = shape[axis], knots[axis]
        place = (np.arange(size, dtype=np.float32) + 0.5) * (count / size)
        first = place.astype(int)
        t = (place - first).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
        field = sum(w * field.take(first + k, axis) for k, w in enumerate(weights)) / np.float32(6 * 0.479**0.5)
    return field


def softened(image: Array, axes: int) -> Array:
    """`image` under a (1/4, 1/2, 1/4) window along its last `axes` axes."""
    for axis in range(image.ndim - axes, image.ndim):
        lines = image.swapaxes(0, axis)
        wider = np.concatenate([lines[:1], lines, lines[-1:]])
        lines = (wider[:-2] + 2 * lines + wider[2:]) / 4
        image = lines.swapaxes(0, axis)
    return image
