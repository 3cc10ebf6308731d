"""SceneFlow: two views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from torch import Tensor

from .fields import Array, mini_batches, smooth, softened


def _disparity(rng: Generator, height: int, width: int, most: float) -> tuple[Array, Array]:
    """Disparities below `most`, and the number of the surface that is seen, each (height, width).

    No surface is steeper than half a pixel per pixel, so that its order from left to right is the same in both views.
    """
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    hills = smooth(rng, (height, width), 5) * np.float32(min(0.1 * most, 0.015 * width))
    slope = rng.uniform((0, 0.02), (0.02, 0.1)) * most / 192
    disparity = np.maximum(0.12 * most + hills + slope[0] * x + slope[1] * y, 0.02 * most).astype(np.float32)
    surface = np.zeros((height, width), int)
    for number in range(1, 9):
        nearest, angle = most * rng.uniform(0.2, 0.8), rng.uniform(0, np.pi)
        half = rng.uniform(0.1, 0.35, 2) * height
        over, down = x - rng.uniform(0.1, 1) * width, y - rng.uniform(0, 1) * height
        u, v = np.cos(angle) * over + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * over
        if number % 2:  # a tilted board
            tilt = rng.uniform(-0.25, 0.25, 2)
            covers = np.maximum(abs(u) / half[0], abs(v) / half[1]) < 1
            level = nearest + tilt[0] * over + tilt[1] * down
        else:  # a dome
            round_ = (u / half[0]) ** 2 + (v / half[1]) ** 2
            covers = round_ < 1
            level = nearest + 0.2 * half.min() * (1 - round_)
        level = np.clip(level, 0.02 * most, 0.95 * most)
        covers &= level > disparity
        disparity = np.where(covers, level, disparity).astype(np.float32)
        surface = np.where(covers, number, surface)
    return disparity, surface


def _dots(rng: Generator, height: int, width: int) -> Array:
    """Random dots (3, height, width) of mean 0 and deviation 1, soft enough to be interpolated."""
    dots = rng.uniform(-1, 1, (1, height, width)) + 0.6 * rng.uniform(-1, 1, (3, height, width))
    return softened(dots.astype(np.float32), 2) * np.float32(3.95)


def _stereo(rng: Generator, height: int, width: int, most: float) -> tuple[Array, Array, Array]:
    """The left view, the right view and the disparity: left[:, y, x] is seen at right[:, y, x - disparity[y, x]]."""
    disparity, surface = _disparity(rng, height, width, most)
    tints = rng.uniform(-0.5, 0.5, (3, surface.max() + 1)).astype(np.float32)
    left = _dots(rng, height, width) + tints[:, surface]
    right = _dots(rng, height, width) + tints[:, :1, None]  # what the left view does not see

    # A pixel and the next one of the same surface span a piece of the right view; the pixels in there lie between them.
    start = np.arange(width, dtype=np.float32) - disparity
    length = np.diff(start, axis=1)
    joined = (surface[:, 1:] == surface[:, :-1]) & (length > 0)
    pieces = []
    for step in range(2):  # no piece holds more than two pixels
        place = np.ceil(start[:, :-1]).astype(int) + step
        share = (place - start[:, :-1]) / np.where(joined, length, 1)
        y, x = np.nonzero(joined & (share < 1) & (place >= 0) & (place < width))
        pieces.append(np.stack([disparity[y, x], y, x, place[y, x], share[y, x]]))
    found = np.concatenate(pieces, axis=1)
    found = found[:, np.argsort(found[0], kind="stable")]  # the nearest comes last and stays
    y, x, place = found[1:4].astype(int)
    share = found[4].astype(np.float32)
    right[:, y, place] = left[:, y, x] * (1 - share) + left[:, y, x + 1] * share
    return left, right, disparity


def stereo_pairs(
    *,
    size: tuple[int, int] = (256, 512),
    max_disparity: float = 192,
    batch_size: int = 1,
    batches: int = 4,
    seed: int = 0,
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Random-dot stereo pairs of hills behind tilted boards and domes.

    The right view is drawn from the left one: left[..., y, x] == right[..., y, x - d] where d is the disparity, up to
    linear interpolation. What is hidden in the left view has new dots in the right one.

    Args:
        size: height and width in pixels.
        max_disparity: all disparities are positive and below it.
        batch_size: pairs in a mini-batch.
        batches: number of mini-batches.

    Returns: mini-batches of ((left, right), disparity), float32: two of shape (batch_size, 3, height, width), about mean 0
        and deviation 1, for a network that is called as `model(left, right)`, and (batch_size, height, width) in pixels.

    Example:
        >>> (left, right), disparity = next(stereo_pairs())
        >>> left.shape, disparity.shape
        (torch.Size([1, 3, 256, 512]), torch.Size([1, 256, 512]))
    """
    height, width = size
    for left, right, disparity in mini_batches(
        lambda rng: _stereo(rng, height, width, max_disparity), batches, batch_size, seed
    ):
        yield (left, right), disparity
