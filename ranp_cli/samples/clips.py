"""UCF101: something moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator
from torch import Tensor

from .fields import Array, mini_batches, smooth, ticks


def _polygon(corners: int, dent: float = 0.0) -> Callable[[Array, Array], Array]:
    """A regular polygon, its sides pulled in to (1 - dent) of the way: a star."""
    half = np.pi / corners
    side = np.cos(half) * (1 - dent)

    def inside(u: Array, v: Array) -> Array:
        angle = abs((np.arctan2(v, u) % (2 * half)) - half)  # from the middle of a side
        radius = np.hypot(u, v)
        p, q = radius * np.cos(angle), radius * np.sin(angle)
        across, along = np.sin(half), np.cos(half) - side  # the edge from (side, 0) to the corner
        return (across * (side - p) + along * q) / np.hypot(across, along)

    return inside


# How far a point lies inside a shape of radius 1, negative outside.
_SHAPES: list[Callable[[Array, Array], Array]] = [
    lambda u, v: 1 - np.hypot(u, v),  # disc
    lambda u, v: 0.25 - abs(np.hypot(u, v) - 0.75),  # ring
    _polygon(3),
    _polygon(4),
    _polygon(5, 0.5),  # star
    lambda u, v: np.minimum(1 - abs(u), 0.3 - abs(v)),  # bar
    lambda u, v: np.minimum(1 - np.maximum(abs(u), abs(v)), 0.3 - np.minimum(abs(u), abs(v))),  # cross
    lambda u, v: 0.75 + 0.25 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v),  # flower
    lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.5, v) - 0.75),  # crescent
    lambda u, v: np.minimum(1 - np.hypot(u, v), v + 0.2),  # cap
]

# Where the shape is at time t in [-1, 1]: to the right, down, turned by, larger by a power of 2.
_MOTIONS: list[Callable[[Array], tuple[Array | float, Array | float, Array | float, Array | float]]] = [
    lambda t: (0.5 * t, 0, 0, 0),  # to the right
    lambda t: (-0.5 * t, 0, 0, 0),  # to the left
    lambda t: (0, 0.5 * t, 0, 0),  # down
    lambda t: (0, -0.5 * t, 0, 0),  # up
    lambda t: (0, 0, 2.5 * t, 0),  # turns clockwise
    lambda t: (0, 0, -2.5 * t, 0),  # turns the other way
    lambda t: (0, 0, 0, 0.7 * t),  # grows
    lambda t: (0, 0, 0, -0.7 * t),  # shrinks
    lambda t: (0.4 * np.sin(2 * np.pi * t), 0, 0, 0),  # swings
    lambda t: (0.35 * np.cos(np.pi * t), 0.35 * np.sin(np.pi * t), 0, 0),  # goes round
]
_CLIPS = len(_SHAPES) * len(_MOTIONS) + 1  # the last one: nothing but the background


def _clip(rng: Generator, label: int, size: int, frames: int) -> Array:
    """A clip (3, frames, size, size) in [-1, 1] of one class; the generator chooses size, place, speed and colours."""
    scene = np.stack([smooth(rng, (size, size), 3) for _ in range(3)])[:, None] * np.float32(0.12)
    scene = scene + np.float32(0.08) * smooth(rng, (size, size), 20)
    scene = scene + rng.uniform(-0.6, 0.2, (3, 1, 1, 1)).astype(np.float32)
    colours = rng.uniform(-1, 1, (2, 3, 1, 1, 1)).astype(np.float32)
    colours[0] = np.sign(colours[0]) * (0.6 + 0.4 * abs(colours[0]))  # away from the background
    scale, angle, speed = rng.uniform(0.3, 0.4), rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.2)
    place, waves, phase = rng.uniform(-0.12, 0.12, 2), rng.uniform(4, 9, 2), rng.uniform(0, 2 * np.pi, 2)
    noise = np.float32(0.03) * rng.standard_normal((3, frames, size, size), dtype=np.float32)
    clip = np.broadcast_to(scene, noise.shape)
    if label < _CLIPS - 1:
        shape, motion = divmod(label, len(_MOTIONS))
        t = np.linspace(-1, 1, frames, dtype=np.float32).reshape(-1, 1, 1) * np.float32(speed)
        right, down, turned, larger = _MOTIONS[motion](t)
        y, x = ticks(size, 1, 3) - down - place[0], ticks(size, 2, 3) - right - place[1]
        width = scale * 2.0**larger
        cos, sin = np.cos(angle + turned) / width, np.sin(angle + turned) / width
        u, v = (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)
        texture = np.sin(waves[0] * u + phase[0]) * np.sin(waves[1] * v + phase[1]) > 0
        cover = np.clip(_SHAPES[shape](u, v) * (width * size / 2) + 0.5, 0, 1).astype(np.float32)  # smooth edges
        clip = clip + cover * (np.where(texture, *colours) - clip)
    return np.clip(clip + noise, -1, 1).astype(np.float32)


def _labelled_clip(rng: Generator, size: int, frames: int, classes: int) -> tuple[Array, Array]:
    label = rng.integers(classes, size=())
    return _clip(rng, int(label), size, frames), label


def moving_patterns(
    *, size: int = 112, frames: int = 16, classes: int = 101, batch_size: int = 1, batches: int = 4, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips of a textured shape that moves before a still background: what it is and what it does make the class.

    Class 10 * shape + motion. Shapes: disc, ring, triangle, square, star, bar, cross, flower, crescent, cap. Motions:
    right, left, down, up, clockwise, counterclockwise, grows, shrinks, swings, goes round. Class 100 is a background
    without any shape. A single frame does not tell the class.

    Args:
        size: pixels along each edge.
        frames: frames in a clip.
        classes: only classes with lower numbers; 101 for all, as many as UCF101 has.
        batch_size: clips in a mini-batch.
        batches: number of mini-batches.

    Returns: mini-batches of float32 in [-1, 1], of shape (batch_size, 3, frames, size, size), and int64, (batch_size,).
    Raises: ValueError for fewer than 1 or more than 101 classes.

    Example:
        >>> x, y = next(moving_patterns(batch_size=2))
        >>> x.shape, y.shape
        (torch.Size([2, 3, 16, 112, 112]), torch.Size([2]))
    """
    if not 1 <= classes <= _CLIPS:
        raise ValueError(f"classes={classes!r}: there are 10 shapes, 10 motions and none at all; give 1 to {_CLIPS}")
    yield from mini_batches(lambda rng: _labelled_clip(rng, size, frames, classes), batches, batch_size, seed)


def moving_patterns_224() -> Iterator[tuple[Tensor, Tensor]]:
    """`moving_patterns` of 224 x 224 pixels, the size that I3D was made for."""
    return moving_patterns(size=224)
