"""Calibration data out of a seed: four kinds of samples that look like those of the paper's data sets.

Pruning at initialization needs gradients, and those need a few mini-batches of about the right kind, not the data set
itself. Nothing is downloaded, nothing is learnt here:

| function                       | stands in for            | input                              | target                |
|--------------------------------|--------------------------|------------------------------------|-----------------------|
| `voxel_shapes`                 | ShapeNet parts           | (N, 1, 64, 64, 64), 0 or 1         | part of each voxel    |
| `brain_volumes`, `.._64`       | BraTS                    | (N, 4, 128, 128, 128), 0 mean      | tissue of each voxel  |
| `moving_patterns`, `.._224`    | UCF101                   | (N, 3, 16, 112, 112), in [-1, 1]   | class of each clip    |
| `stereo_pairs`                 | SceneFlow                | two of (N, 3, 256, 512), 0 mean    | disparity of the left |

Each is a generator function of mini-batches `(input, target)` and a batch source as it stands:
`--batch ranp_cli.samples:voxel_shapes`. The same seed gives the same bytes, mini-batch by mini-batch, whatever is drawn
elsewhere; the global generators of numpy and torch are not used. `_batches` is the one way from samples to mini-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Triple = tuple[float, float, float]
IGNORED = -100  # the target that counts for nothing, as in torch


def _batches(draw: Callable[[Generator], tuple[Array, ...]], batches: int, batch_size: int, seed: int) -> Iterator[Any]:
    """Mini-batches of the parts of `batch_size` samples, stacked; each mini-batch has a generator of its own."""
    for index in range(batches):
        rng = np.random.default_rng([seed, index])
        samples = [draw(rng) for _ in range(batch_size)]
        yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))


def _ticks(size: int, axis: int, axes: int) -> Array:
    """Centres of `size` cells of [-1, 1], along one axis of `axes`, to be broadcast."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return ticks.reshape([-1 if k == axis else 1 for k in range(axes)])


def _smooth(rng: Generator, shape: tuple[int, ...], cells: int) -> Array:
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


def _softened(image: Array, axes: int) -> Array:
    """`image` under a (1/4, 1/2, 1/4) window along its last `axes` axes."""
    for axis in range(image.ndim - axes, image.ndim):
        lines = image.swapaxes(0, axis)
        wider = np.concatenate([lines[:1], lines, lines[-1:]])
        lines = (wider[:-2] + 2 * lines + wider[2:]) / 4
        image = lines.swapaxes(0, axis)
    return image


# -- ShapeNet parts: voxels of things


class _Space:
    """Which cells of the cube [-1, 1]^3 lie in a solid, the cube turned by `yaw` about its last axis, which is up.

    No solid is thinner than the cells: all parts of a thing are there at every size.
    """

    def __init__(self, size: int, yaw: float) -> None:
        x, y, z = (_ticks(size, axis, 3) for axis in range(3))
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
    yield from _batches(lambda rng: _thing(rng, size, classes), batches, batch_size, seed)


# -- BraTS: four contrasts of a brain with a tumour

_TISSUES = {  # how bright in T1, T1 with contrast agent, T2, FLAIR
    "fluid": (0.25, 0.25, 1.20, 0.20),
    "grey": (0.60, 0.62, 0.75, 0.75),
    "white": (0.90, 0.92, 0.50, 0.60),
    "necrosis": (0.40, 0.38, 1.05, 0.55),
    "edema": (0.62, 0.63, 1.00, 1.20),
    "tumour": (0.55, 0.60, 0.85, 0.95),
    "enhancing": (0.58, 1.45, 0.80, 0.95),
}
FLUID, GREY, WHITE, NECROSIS, EDEMA, TUMOUR, ENHANCING = range(len(_TISSUES))

_LABELS = {  # of (anything else, necrosis, edema, non-enhancing tumour, enhancing tumour), by number of classes
    5: (0, 1, 2, 3, 4),  # as BraTS numbered them to 2016, and as its networks still count: 3 is empty since
    4: (0, 1, 2, 1, 3),
    2: (0, 1, 1, 1, 1),
}


def _brain(rng: Generator, size: int, classes: int) -> tuple[Array, Array]:
    shape = (size, size, size)
    z, y, x = (_ticks(size, axis, 3) for axis in range(3))  # up, to the back, to the side
    tissue = np.full(shape, WHITE, np.uint8)

    # A shell of folded cortex: how deep a voxel lies below the surface, or below the wall of a fold.
    radii = rng.uniform((0.68, 0.84, 0.66), (0.76, 0.93, 0.74)).astype(np.float32)
    x, y, z = x / radii[2] + 0.03 * _smooth(rng, shape, 4), y / radii[1], z / radii[0]
    depth = 1 - np.sqrt(x * x + y * y + z * z) + 0.02 * _smooth(rng, shape, 6)
    brain = depth > 0
    folds = abs(_smooth(rng, shape, 14))
    depth = np.minimum(depth, 0.065 * folds + np.maximum(depth - 0.2, 0))
    depth = np.minimum(depth, abs(x) + np.maximum(0.45 - abs(y), 0))  # the fissure between the halves
    tissue[depth < 0.065] = GREY
    tissue[depth < 0.014] = FLUID

    # Kernels of grey matter beside the ventricles, which are two horns, bent outwards at the back.
    side = abs(x) - 0.1 * np.maximum(y, 0)
    wide, long = rng.uniform(0.06, 0.13), rng.uniform(0.32, 0.45)
    nuclei = ((side - wide - 0.16) / 0.12) ** 2 + (y / 0.32) ** 2 + ((z + 0.02) / 0.2) ** 2
    tissue[nuclei + 0.2 * folds < 1] = GREY
    ventricles = ((side - wide) / wide) ** 2 + (y / long) ** 2 + ((z - 0.1 + 0.3 * y * y) / 0.16) ** 2
    tissue[ventricles + 0.3 * folds < 1.1] = FLUID

    # A tumour in one hemisphere: edema creeps along white matter, in it a core, in that a rim around necrosis.
    centre = rng.uniform((-0.25, -0.45, 0.3), (0.35, 0.45, 0.5)) * (1, 1, rng.choice((-1, 1)))
    extent = rng.uniform(0.3, 0.5) * rng.uniform(0.8, 1.2, 3)
    far = sum(
        ((axis - np.float32(c)) / np.float32(e)) ** 2 for axis, c, e in zip((z, y, x), centre, extent, strict=True)
    )
    far = np.sqrt(far) + 0.16 * _smooth(rng, shape, 9)
    whole = (far + 0.25 * (tissue == GREY) < 1) & brain & (tissue != FLUID)
    inner = far + 0.09 * _smooth(rng, shape, 15)
    core = whole & (inner < rng.uniform(0.6, 0.7))
    active = core & (inner < rng.uniform(0.46, 0.55))
    dead = active & (inner < rng.uniform(0.28, 0.38))
    target = np.zeros(shape, np.int64)
    for region, kind, label in ((whole, EDEMA, 2), (core, TUMOUR, 3), (active, ENHANCING, 4), (dead, NECROSIS, 1)):
        tissue[region] = kind
        target[region] = _LABELS[classes][label]

    # The scanner: soft edges, a field that is not even, the magnitude of a noisy complex number; zero mean, unit scale.
    bright = np.array(list(_TISSUES.values()), np.float32).T * rng.uniform(0.95, 1.05, (4, 1)).astype(np.float32)
    texture = 1 + 0.03 * _smooth(rng, shape, 24)
    volume = np.zeros((4, *shape), np.float32)
    for channel, values in zip(volume, bright, strict=True):
        clean = _softened(values[tissue] * texture, 3) * np.exp(0.12 * _smooth(rng, shape, 2))
        real, imaginary = (0.035 * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        seen = np.hypot(clean + real, imaginary)[brain]
        channel[brain] = (seen - seen.mean()) / seen.std()
    return volume, target


def brain_volumes(
    *, size: int = 128, classes: int = 5, batch_size: int = 1, batches: int = 4, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Brains with a tumour, as four kinds of magnetic resonance image show them.

    The channels are T1, T1 with contrast agent, T2 and FLAIR of the same tissues: a skull-stripped brain with folded
    cortex, white matter, nuclei and ventricles. They share the anatomy, and each has its own contrast, bias field and
    Rician noise. Every channel has mean 0 and deviation 1 in the brain, and 0 outside.

    Args:
        size: voxels along each edge.
        classes: 5: 0 is all else, 1 necrosis, 2 edema, 3 non-enhancing and 4 enhancing tumour (BraTS to 2016); the core
            is 1, 3 and 4, and lies within the whole, 1 to 4. 4: the kinds that are left from 2017, without a gap (3 is
            enhancing). 2: tumour or not.
        batch_size: brains in a mini-batch.
        batches: number of mini-batches.

    Returns: mini-batches of float32, (batch_size, 4, size, size, size), and int64, (batch_size, size, size, size). The
        axes are up, to the back and to the side.
    Raises: ValueError for another number of classes.

    Example:
        >>> x, y = next(brain_volumes(size=32))
        >>> x.shape, y.unique().tolist()
        (torch.Size([1, 4, 32, 32, 32]), [0, 1, 2, 3, 4])
    """
    if classes not in _LABELS:
        raise ValueError(f"classes={classes!r}: gives 5 classes (BraTS to 2016), 4 (BraTS from 2017) or 2")
    yield from _batches(lambda rng: _brain(rng, size, classes), batches, batch_size, seed)


def brain_volumes_64() -> Iterator[tuple[Tensor, Tensor]]:
    """`brain_volumes` of 64^3 voxels: an eighth of the work."""
    return brain_volumes(size=64)


# -- UCF101: something moves


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
    scene = np.stack([_smooth(rng, (size, size), 3) for _ in range(3)])[:, None] * np.float32(0.12)
    scene = scene + np.float32(0.08) * _smooth(rng, (size, size), 20)
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
        y, x = _ticks(size, 1, 3) - down - place[0], _ticks(size, 2, 3) - right - place[1]
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
    yield from _batches(lambda rng: _labelled_clip(rng, size, frames, classes), batches, batch_size, seed)


def moving_patterns_224() -> Iterator[tuple[Tensor, Tensor]]:
    """`moving_patterns` of 224 x 224 pixels, the size that I3D was made for."""
    return moving_patterns(size=224)


# -- SceneFlow: two views


def _disparity(rng: Generator, height: int, width: int, most: float) -> tuple[Array, Array]:
    """Disparities below `most`, and the number of the surface that is seen, each (height, width).

    No surface is steeper than half a pixel per pixel, so that its order from left to right is the same in both views.
    """
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    hills = _smooth(rng, (height, width), 5) * np.float32(min(0.1 * most, 0.015 * width))
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
    return _softened(dots.astype(np.float32), 2) * np.float32(3.95)


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
    for left, right, disparity in _batches(
        lambda rng: _stereo(rng, height, width, max_disparity), batches, batch_size, seed
    ):
        yield (left, right), disparity
