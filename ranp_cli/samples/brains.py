"""BraTS: four contrasts of a brain with a tumour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from torch import Tensor

from .fields import Array, mini_batches, smooth, softened, ticks

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
    z, y, x = (ticks(size, axis, 3) for axis in range(3))  # up, to the back, to the side
    tissue = np.full(shape, WHITE, np.uint8)

    # A shell of folded cortex: how deep a voxel lies below the surface, or below the wall of a fold.
    radii = rng.uniform((0.68, 0.84, 0.66), (0.76, 0.93, 0.74)).astype(np.float32)
    x, y, z = x / radii[2] + 0.03 * smooth(rng, shape, 4), y / radii[1], z / radii[0]
    depth = 1 - np.sqrt(x * x + y * y + z * z) + 0.02 * smooth(rng, shape, 6)
    brain = depth > 0
    folds = abs(smooth(rng, shape, 14))
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
    far = np.sqrt(far) + 0.16 * smooth(rng, shape, 9)
    whole = (far + 0.25 * (tissue == GREY) < 1) & brain & (tissue != FLUID)
    inner = far + 0.09 * smooth(rng, shape, 15)
    core = whole & (inner < rng.uniform(0.6, 0.7))
    active = core & (inner < rng.uniform(0.46, 0.55))
    dead = active & (inner < rng.uniform(0.28, 0.38))
    target = np.zeros(shape, np.int64)
    for region, kind, label in ((whole, EDEMA, 2), (core, TUMOUR, 3), (active, ENHANCING, 4), (dead, NECROSIS, 1)):
        tissue[region] = kind
        target[region] = _LABELS[classes][label]

    # The scanner: soft edges, a field that is not even, the magnitude of a noisy complex number; zero mean, unit scale.
    bright = np.array(list(_TISSUES.values()), np.float32).T * rng.uniform(0.95, 1.05, (4, 1)).astype(np.float32)
    texture = 1 + 0.03 * smooth(rng, shape, 24)
    volume = np.zeros((4, *shape), np.float32)
    for channel, values in zip(volume, bright, strict=True):
        clean = softened(values[tissue] * texture, 3) * np.exp(0.12 * smooth(rng, shape, 2))
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
    yield from mini_batches(lambda rng: _brain(rng, size, classes), batches, batch_size, seed)


def brain_volumes_64() -> Iterator[tuple[Tensor, Tensor]]:
    """`brain_volumes` of 64^3 voxels: an eighth of the work."""
    return brain_volumes(size=64)
