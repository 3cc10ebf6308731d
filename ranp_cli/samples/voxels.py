"""ShapeNet parts: voxels of things."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator
from torch import Tensor

from .fields import Array, mini_batches, ticks

Triple = tuple[float, float, float]
IGNORED = -100  # the target that counts for nothing, as in torch


class _Space:
    """Which cells of the cube [-1, 1]^3 lie in a solid, the cube turned by `yaw` about its last axis, which is up.

    No solid is thinner than the cells: all parts of a thing are there at every size.
    """

    def __init__(self, size: int, yaw: float) -> None:
        x, y, z = (ticks(size, axis, 3) for axis in range(3))
        cos, sin = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
        self.axes = (cos * x - sin * y, sin * x + cos * y, z)
        self.thinnest = 1.8 / size  # a ball of such a radius always holds the centre of a cell

    def _scaled(self, centre: Triple, half: Triple) -> list[Array]:
        parts = zip(self.axes, centre, half, strict=True)
        return [(axis - np.float32(c)) / np.float32(max(h, self.thinnest)) for axis, c, h in parts]

    def box(self, centre: Triple, half: Triple) -> Array:
        x, y, z = (abs(axis) <= 1 for axis in self._scaled(centre, half))
        return x & y & z

    def ball(self, centre: Triple, half: Triple) -> Array:
        x, y, z = self._scaled(centre, half)
        return x * x + y * y + z * z <= 1

    def tube(self, centre: Triple, half: Triple, along: int = 2, tip: float = 1.0) -> Array:
        """A cylinder `along` an axis, whose radii at the upper end are `tip` times those at the lower: a cone at 0."""
        scaled = self._scaled(centre, half)
        h = scaled.pop(along)
        radius = (1 + np.float32(tip) + (np.float32(tip) - 1) * h) / 2
        return (abs(h) <= 1) & (scaled[0] ** 2 + scaled[1] ** 2 <= np.maximum(radius, 0.15) ** 2)

    def ring(self, centre: Triple, radius: float, thick: float) -> Array:
        """A ring that stands upright in the plane of the first and the last axis."""
        x, y, z = self._scaled(centre, (1, 1, 1))
        return (np.hypot(x, z) - np.float32(radius)) ** 2 + y * y <= np.float32(max(thick, self.thinnest)) ** 2


Part = tuple[int, Array]  # its number within the category, its cells; a later one is painted over an earlier one
Draw = Callable[[float, float], float]


def _airplane(space: _Space, u: Draw) -> list[Part]:  # body, wing, tail, engine
    long, r, span, chord, at = u(0.75, 0.9), u(0.08, 0.13), u(0.65, 0.9), u(0.1, 0.16), u(-0.05, 0.2)
    fin, low = u(0.12, 0.2), -u(0.0, 0.05)
    engines = [space.tube((at + 0.08, side * span * 0.4, low - 0.09), (0.12, 0.06, 0.06), 0) for side in (-1, 1)]
    return [
        (1, space.box((at, 0, low), (chord, span, 0.02))),
        (3, engines[0] | engines[1]),
        (2, space.box((0.1 - long, 0, fin), (0.08, 0.02, fin)) | space.box((0.1 - long, 0, 0.05), (0.08, 0.3, 0.02))),
        (0, space.ball((0, 0, 0), (long, r, r))),
    ]


def _car(space: _Space, u: Draw) -> list[Part]:  # roof, hood, wheel, body
    long, wide, high, r, base = u(0.75, 0.9), u(0.32, 0.4), u(0.13, 0.2), u(0.14, 0.18), -0.2
    cabin, at = u(0.3, 0.5), u(-0.15, 0.05)
    corners = [(end * long * 0.62, side * wide, base - high) for end in (-1, 1) for side in (-1, 1)]
    return [
        (3, space.box((0, 0, base), (long, wide, high)) | space.box((at, 0, base + 0.22), (cabin, wide * 0.85, 0.2))),
        (1, space.box((long * 0.75, 0, base + high), (long * 0.25, wide, 0.03))),
        (0, space.box((at, 0, base + 0.42), (cabin * 0.9, wide * 0.85, 0.04))),
        *[(2, space.tube(corner, (r, 0.07, r), 1)) for corner in corners],
    ]


def _chair(space: _Space, u: Draw) -> list[Part]:  # back, seat, leg, arm
    wide, deep, seat, top = u(0.38, 0.52), u(0.38, 0.52), u(-0.2, 0.0), u(0.65, 0.9)
    leg, thick, arm = u(0.03, 0.06), u(0.03, 0.06), u(0.18, 0.28)
    feet = [(x * (wide - leg), y * (deep - leg), (seat - 0.9) / 2) for x in (-1, 1) for y in (-1, 1)]
    parts = [(2, space.box(foot, (leg, leg, (seat + 0.9) / 2))) for foot in feet]
    if u(0, 1) < 0.6:
        for side in (-wide, wide):
            rest = space.box((side, 0, seat + arm), (0.04, deep, 0.03))
            parts.append((3, rest | space.box((side, deep - 0.05, seat + arm / 2), (0.04, 0.04, arm / 2))))
    parts.append((0, space.box((0, thick - deep, (seat + top) / 2), (wide, thick, (top - seat) / 2))))
    return [*parts, (1, space.box((0, 0, seat), (wide, deep, thick)))]


def _lamp(space: _Space, u: Draw) -> list[Part]:  # base, shade, bulb, pole
    foot, pole, wide, high = u(0.25, 0.4), u(0.02, 0.04), u(0.35, 0.55), u(0.2, 0.32)
    at = u(0.35, 0.55)
    hollow = space.tube((0, 0, at - 0.03), (wide - 0.06, wide - 0.06, high), tip=0.5)
    return [
        (3, space.tube((0, 0, (at - 0.85) / 2), (pole, pole, (at + 0.85) / 2))),
        (0, space.tube((0, 0, -0.86), (foot, foot, 0.05), tip=u(0.5, 1))),
        (1, space.tube((0, 0, at), (wide, wide, high), tip=0.5) & ~hollow),
        (2, space.ball((0, 0, at), (0.09, 0.09, 0.12))),
    ]


def _laptop(space: _Space, u: Draw) -> list[Part]:  # keyboard, screen
    wide, deep, high, lean = u(0.5, 0.65), u(0.32, 0.42), u(0.65, 0.9), u(0.05, 0.3)
    x, y, z = space.axes
    flat = y + deep + np.float32(lean) * (z + 0.5)  # 0 on the screen, which leans back from the rear edge
    screen = (abs(x) <= wide) & (abs(flat) <= max(0.04, space.thinnest)) & (z >= -0.5) & (z <= high - 0.5)
    return [(1, screen), (0, space.box((0, 0, -0.5), (wide, deep, 0.04)))]


def _mug(space: _Space, u: Draw) -> list[Part]:  # handle, cup
    r, high, wall, tip = u(0.4, 0.55), u(0.45, 0.7), u(0.05, 0.08), u(0.85, 1.15)
    hollow = space.tube((0, 0, 2 * wall), (r - wall, r - wall, high), tip=tip)
    cup = space.tube((0, 0, 0), (r, r, high), tip=tip)
    handle = space.ring((r * (1 + tip) / 2, 0, 0), high * u(0.45, 0.6), u(0.05, 0.08))
    return [(0, handle & ~hollow), (1, cup & ~hollow)]


def _rocket(space: _Space, u: Draw) -> list[Part]:  # body, fin, nose
    r, long, nose, fin = u(0.12, 0.22), u(0.45, 0.6), u(0.15, 0.25), u(0.15, 0.3)
    fins = space.box((0, 0, fin - long), (r + fin, 0.025, fin)) | space.box((0, 0, fin - long), (0.025, r + fin, fin))
    return [
        (1, fins),
        (0, space.tube((0, 0, -0.1), (r, r, long))),
        (2, space.tube((0, 0, long + nose - 0.1), (r, r, nose), tip=0)),
    ]


def _table(space: _Space, u: Draw) -> list[Part]:  # top, leg, bar
    wide, deep, high, thick, leg = u(0.6, 0.85), u(0.4, 0.6), u(0.1, 0.4), u(0.03, 0.06), u(0.03, 0.07)
    top, inwards = (space.tube, 0.65) if u(0, 1) < 0.3 else (space.box, 1)
    corners = [(x * (wide - leg) * inwards, y * (deep - leg) * inwards) for x in (-1, 1) for y in (-1, 1)]
    parts = [(1, space.box((*corner, (high - 0.8) / 2), (leg, leg, (high + 0.8) / 2))) for corner in corners]
    bars = [space.box((x, 0, -0.5), (0.03, y, 0.03)) for x, y in corners if y > 0]
    return [*parts, (2, bars[0] | bars[1]), (0, top((0, 0, high), (wide, deep, thick)))]


# The number of a category's first part among ShapeNet's 50, how many parts it has, and how a thing of it is built.
_CATEGORIES: list[tuple[int, int, Callable[[_Space, Draw], list[Part]]]] = [
    (0, 4, _airplane),
    (8, 4, _car),
    (12, 4, _chair),
    (24, 4, _lamp),
    (28, 2, _laptop),
    (36, 2, _mug),
    (41, 3, _rocket),
    (47, 3, _table),
]


def _surface(solid: Array) -> Array:
    """The cells of a solid that have a neighbour outside of it."""
    padded = np.pad(solid, 1)
    inside = np.ones_like(solid)
    for axis in range(3):
        for shift in (-1, 1):
            inside &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
    return solid & ~inside


def _thing(rng: Generator, size: int, classes: int) -> tuple[Array, Array]:
    known = [category for category in _CATEGORIES if sum(category[:2]) <= classes]
    first, _, build = known[rng.integers(len(known))]
    target = np.full((size, size, size), IGNORED, np.int64)
    for part, cells in build(_Space(size, rng.uniform(0, 2 * np.pi)), rng.uniform):
        target[cells] = first + part
    target[~_surface(target != IGNORED)] = IGNORED
    return (target != IGNORED).astype(np.float32)[None], target


def voxel_shapes(
    *, size: int = 64, classes: int = 50, batch_size: int = 1, batches: int = 4, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Surfaces of airplanes, cars, chairs, lamps, laptops, mugs, rockets and tables, voxel by voxel.

    As in ShapeNet part segmentation, a thing is a shell of occupied voxels, the parts have the numbers of its category,
    and a voxel outside of it has no part: it is ignored (-100), as by the sparse networks of Graham et al. (CVPR 2018),
    which see occupied voxels only, and by the authors of RANP. Proportions and the heading are random.

    Args:
        size: voxels along each edge.
        classes: only things whose parts all have lower numbers; 50 for all, at least 4 (airplanes).
        batch_size: things in a mini-batch.
        batches: number of mini-batches.

    Returns: mini-batches of occupancy, float32 of shape (batch_size, 1, size, size, size), 0 or 1, and parts, int64 of
        shape (batch_size, size, size, size), in [0, classes) where it is occupied and -100 elsewhere. Up is the last axis.
    Raises: ValueError if no category has so few classes.

    Example:
        >>> x, y = next(voxel_shapes())
        >>> x.shape, y.shape, bool(((y >= 0) == (x[:, 0] == 1)).all())
        (torch.Size([1, 1, 64, 64, 64]), torch.Size([1, 64, 64, 64]), True)
    """
    if classes < 4:
        raise ValueError(f"classes={classes!r}: an airplane has 4 parts already; give 4 to 50")
    yield from mini_batches(lambda rng: _thing(rng, size, classes), batches, batch_size, seed)
