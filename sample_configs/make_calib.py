"""Make `calib.pt`: chairs and airplanes out of boxes and ellipsoids, each voxel labelled with its part.

A small stand-in for ShapeNet parts. `calib.pt` is a list of mini-batches `(input, target)`, one chair and one
airplane in each:

    input   float32 (2, 1, 24, 24, 24)   1 in the voxels of the shape, 0 elsewhere
    target  uint8   (2, 24, 24, 24)      the part of each voxel of the shape, 255 elsewhere

Run `python make_calib.py`; the same seed gives the same voxels.
"""

import math
import random
from pathlib import Path

import torch
from torch import Tensor

SIZE = 24
EMPTY = 255
LEG, SEAT, BACK, WING, TAIL, BODY = range(6)

Triple = tuple[float, float, float]


def grid(yaw: float) -> Tensor:
    """Voxel centres of the cube [-1, 1]^3, turned by `yaw` about the vertical axis: (SIZE, SIZE, SIZE, 3)."""
    ticks = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    x, y, z = torch.meshgrid(ticks, ticks, ticks, indexing="ij")
    cos, sin = math.cos(yaw), math.sin(yaw)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)


def box(points: Tensor, centre: Triple, half: Triple) -> Tensor:
    """Which of the points (..., 3) lie in the box with these half edges: bool (...)."""
    return ((points - torch.tensor(centre)) / torch.tensor(half)).abs().amax(dim=-1) <= 1


def ellipsoid(points: Tensor, centre: Triple, radii: Triple) -> Tensor:
    """Which of the points (..., 3) lie in the ellipsoid with these radii: bool (...)."""
    return ((points - torch.tensor(centre)) / torch.tensor(radii)).square().sum(dim=-1) <= 1


def chair(points: Tensor, rng: random.Random) -> Tensor:
    """Four legs, a seat and a back of random proportions: parts (...) of points (..., 3)."""
    width, depth = rng.uniform(0.40, 0.60), rng.uniform(0.40, 0.60)
    seat, thick, leg = rng.uniform(-0.20, 0.10), rng.uniform(0.06, 0.10), rng.uniform(0.07, 0.11)
    top = rng.uniform(0.60, 0.95)
    parts = torch.full(points.shape[:-1], EMPTY, dtype=torch.uint8)
    for side in (-1, 1):
        for end in (-1, 1):
            centre = (side * (width - leg), end * (depth - leg), (seat - 0.95) / 2)
            parts[box(points, centre, (leg, leg, (seat + 0.95) / 2))] = LEG
    parts[box(points, (0, thick - depth, (seat + top) / 2), (width, thick, (top - seat) / 2))] = BACK
    parts[box(points, (0, 0, seat), (width, depth, thick))] = SEAT
    return parts


def airplane(points: Tensor, rng: random.Random) -> Tensor:
    """Wings, a fin with a tailplane and a body of random proportions: parts (...) of points (..., 3)."""
    length, radius = rng.uniform(0.75, 0.95), rng.uniform(0.12, 0.20)
    span, chord, shift = rng.uniform(0.60, 0.90), rng.uniform(0.12, 0.22), rng.uniform(-0.10, 0.20)
    fin, tailplane = rng.uniform(0.30, 0.45), rng.uniform(0.25, 0.40)
    parts = torch.full(points.shape[:-1], EMPTY, dtype=torch.uint8)
    parts[box(points, (shift, 0, 0), (chord, span, 0.06))] = WING
    parts[ellipsoid(points, (0, 0, 0), (length, radius, radius))] = BODY
    parts[box(points, (0.12 - length, 0, fin / 2), (0.12, 0.07, fin / 2))] = TAIL
    parts[box(points, (0.12 - length, 0, 0), (0.12, tailplane, 0.06))] = TAIL
    return parts


def make_calib(batches: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Mini-batches of one chair and one airplane, each turned at random: [(input, target), ...]."""
    rng = random.Random(seed)
    calib = []
    for _ in range(batches):
        target = torch.stack([shape(grid(rng.uniform(0, 2 * math.pi)), rng) for shape in (chair, airplane)])
        calib.append(((target != EMPTY).float().unsqueeze(1), target))
    return calib


if __name__ == "__main__":
    torch.save(make_calib(), Path(__file__).with_name("calib.pt"))
