"""The built calibration data: shapes and classes, the same bytes for a seed, and each kind is what it says it is."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ranp_cli import samples
from ranp_cli.io.batches import load_batches
from ranp_cli.samples import clips, stereo, voxels

SMALL_VIEWS = {"size": (64, 128), "max_disparity": 48}

# name, options that make it small, shapes of the input's parts, shape of the target, its dtype
KINDS = [
    ("voxel_shapes", {"size": 16}, [(2, 1, 16, 16, 16)], (2, 16, 16, 16), torch.int64),
    ("brain_volumes", {"size": 24}, [(2, 4, 24, 24, 24)], (2, 24, 24, 24), torch.int64),
    ("moving_patterns", {"size": 20, "frames": 6}, [(2, 3, 6, 20, 20)], (2,), torch.int64),
    ("stereo_pairs", SMALL_VIEWS, [(2, 3, 64, 128)] * 2, (2, 64, 128), torch.float32),
]
# what `--batch ranp_cli.samples:NAME` gives
DEFAULTS = [
    ("voxel_shapes", [(1, 1, 64, 64, 64)], (1, 64, 64, 64)),
    ("brain_volumes", [(1, 4, 128, 128, 128)], (1, 128, 128, 128)),
    ("brain_volumes_64", [(1, 4, 64, 64, 64)], (1, 64, 64, 64)),
    ("moving_patterns", [(1, 3, 16, 112, 112)], (1,)),
    ("moving_patterns_224", [(1, 3, 16, 224, 224)], (1,)),
    ("stereo_pairs", [(1, 3, 256, 512)] * 2, (1, 256, 512)),
]


def tensors(batch):
    """The tensors of a mini-batch, the input's first."""
    x, y = batch
    return [*(x if isinstance(x, tuple) else [x]), y]


def everything(name, **options):
    return [tensor for batch in getattr(samples, name)(**options) for tensor in tensors(batch)]


def equal(some, others):
    return len(some) == len(others) and all(map(torch.equal, some, others))


@pytest.mark.parametrize(("name", "options", "inputs", "target", "dtype"), KINDS, ids=[k[0] for k in KINDS])
def test_shapes_and_types(name, options, inputs, target, dtype):
    batches = list(getattr(samples, name)(**options, batch_size=2, batches=3))
    assert len(batches) == 3
    for batch in batches:
        *xs, y = tensors(batch)
        assert [x.shape for x in xs] == inputs
        assert (y.shape, y.dtype) == (target, dtype)
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in xs)


@pytest.mark.parametrize(("name", "inputs", "target"), DEFAULTS, ids=[d[0] for d in DEFAULTS])
def test_it_is_a_batch_source(name, inputs, target):
    first = load_batches(f"ranp_cli.samples:{name}", 1).first
    assert [x.shape for x in first.args] == inputs
    assert first.target.shape == target


@pytest.mark.parametrize(("name", "options"), [k[:2] for k in KINDS], ids=[k[0] for k in KINDS])
def test_a_seed_means_the_same_bytes(name, options):
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    first = everything(name, **options, batches=3, seed=5)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(1)
    torch.manual_seed(1)
    assert equal(first, everything(name, **options, batches=3, seed=5))
    fewer = everything(name, **options, batches=2, seed=5)
    assert equal(fewer, first[: len(fewer)])  # a mini-batch does not depend on how many there are
    assert not equal(first, everything(name, **options, batches=3, seed=6))
    assert not torch.equal(first[0], first[len(fewer) // 2])  # nor are two alike


@pytest.mark.parametrize("size", [16, 64])
def test_voxels_are_labelled_surfaces(size):
    seen = set()
    for x, y in samples.voxel_shapes(size=size, batches=40):
        occupied = x[:, 0] == 1
        assert torch.equal(occupied, y != samples.IGNORED)
        assert torch.equal(~occupied, x[:, 0] == 0)
        assert 0.003 < occupied.float().mean() < 0.25
        parts = set(y[occupied].tolist())
        assert any(parts <= set(range(first, first + count)) for first, count, _ in voxels._CATEGORIES)
        seen |= parts
        assert not (F.avg_pool3d(x, 3, 1) == 1).any()  # no voxel is buried
        edges = [occupied.select(axis, end).any() for axis in (1, 2, 3) for end in (0, -1)]
        assert size < 32 or not any(edges)  # nothing is cut off
        whole = next(
            set(range(k, k + count)) for k, count, _ in voxels._CATEGORIES if min(parts) in range(k, k + count)
        )
        assert len(whole - parts) <= (1 if 12 in whole else 0)  # some chairs have no arms; nothing else is missing
    assert seen == {first + part for first, count, _ in voxels._CATEGORIES for part in range(count)}


def test_voxels_of_fewer_classes():
    for _, y in samples.voxel_shapes(size=16, classes=16, batches=20):
        assert y.max() < 16
    with pytest.raises(ValueError, match="classes=3: an airplane has 4 parts already; give 4 to 50"):
        next(samples.voxel_shapes(classes=3))


def fringe(region):
    """The voxels outside of `region` (D, H, W) that touch it."""
    return F.max_pool3d(region[None].float(), 3, 1, 1)[0].bool() & ~region


@pytest.mark.parametrize("seed", range(4))
def test_the_tumour_is_nested_and_in_the_brain(seed):
    x, y = next(samples.brain_volumes(size=64, seed=seed))
    y = y[0]
    assert y.unique().tolist() == [0, 1, 2, 3, 4]
    brain = (x[0] != 0).any(0)
    assert brain[y > 0].all()
    assert 0.15 < brain.float().mean() < 0.45
    assert 0.01 < (y > 0).float().mean() / brain.float().mean() < 0.35
    whole, core, active = y > 0, (y == 1) | (y > 2), (y == 1) | (y == 4)
    # Around the dead tissue is the rim, around that the rest of the core, around that edema: shells are not skipped.
    for inner, skipped in ((y == 1, (0, 2)), (active, (0,))):
        outside = fringe(inner) & whole
        assert torch.isin(y[outside], torch.tensor(skipped)).float().mean() < 0.12
    assert whole.sum() > core.sum() > active.sum() > (y == 1).sum() > 0


def test_labels_of_fewer_classes():
    labels = {classes: next(samples.brain_volumes(size=24, classes=classes))[1] for classes in (5, 4, 2)}
    for classes, renamed in ((4, [0, 1, 2, 1, 3]), (2, [0, 1, 1, 1, 1])):
        assert torch.equal(torch.tensor(renamed)[labels[5]], labels[classes])
    with pytest.raises(ValueError, match="classes=3: gives 5 classes"):
        next(samples.brain_volumes(classes=3))


def test_the_four_contrasts_show_one_anatomy():
    x, y = next(samples.brain_volumes(size=64))
    x, y = x[0], y[0]
    brain = (x != 0).any(0)
    for channel in x:
        assert (channel[~brain] == 0).all()
        assert channel[brain].mean().abs() < 1e-3
        assert (channel[brain].std() - 1).abs() < 1e-3
    t1, t1ce, t2, flair = x[:, brain]
    around = torch.corrcoef(torch.stack([t1, t1ce, t2, flair]))
    assert around[0, 1] > 0.6  # the agent changes little
    assert around[0, 2] < -0.5  # fluid is dark here, bright there
    mean = {label: x[:, y == label].mean(1) for label in (1, 2, 4)}
    assert mean[4][1] > mean[4][0] + 1  # the rim lights up with the agent only
    assert mean[2][3] == max(means[3] for means in mean.values())  # edema is brightest in FLAIR
    assert mean[1][1] < mean[4][1] - 1


def centre(clip):
    """Where the shape is in each frame: (frames, 2), to the right and down, from what differs from the median frame."""
    moving = (clip - clip.median(1, keepdim=True).values).abs().amax(0)
    return places(moving > 0.35)


def places(mask):
    ticks = torch.linspace(-1, 1, mask.shape[-1])
    total = mask.sum((1, 2)).clamp(min=1)
    return torch.stack([(mask * ticks).sum((1, 2)) / total, (mask * ticks[:, None]).sum((1, 2)) / total], 1)


def clip(label, seed=0, size=64, frames=16):
    return torch.from_numpy(clips._clip(np.random.default_rng(seed), label, size, frames))


MOVES = {"right": (0, 0, 1), "left": (1, 0, -1), "down": (2, 1, 1), "up": (3, 1, -1)}  # motion, axis, sign


@pytest.mark.parametrize("shape", range(10))
@pytest.mark.parametrize("move", MOVES)
def test_shapes_move_as_their_class_says(move, shape):
    motion, axis, sign = MOVES[move]
    path = centre(clip(10 * shape + motion))
    shift = (path[-1] - path[0])[axis] * sign
    across = (path[-1] - path[0])[1 - axis].abs()
    assert shift > 0.5
    assert across < 0.25


def test_motions_differ_and_the_rest_of_the_clip_does_not():
    """With one seed, the clips of two motions have the same background, and other frames."""
    clips = torch.stack([clip(motion) for motion in range(10)])
    for a in range(10):
        for b in range(a):
            assert (clips[a] - clips[b]).abs().amax(0).mean() > 0.02, (a, b)
    still = clip(100)
    assert (still[:, 1:] - still[:, :-1]).abs().max() < 0.4  # noise
    assert (clips[0][:, 1:] - clips[0][:, :-1]).abs().max() > 0.8
    assert (clips[..., :3, :3] - still[..., :3, :3]).abs().max() < 1e-6  # the corner is background in all


def test_growing_is_shrinking_backwards():
    def area(label):
        return ((clip(label) - clip(100)).abs().amax(0) > 0.3).float().mean((1, 2))

    grows, shrinks = area(6), area(7)
    assert grows[-1] > 3 * grows[0]
    torch.testing.assert_close(grows, shrinks.flip(0), atol=0.01, rtol=0.1)


def test_turning_keeps_the_place_and_going_round_comes_back():
    where = {motion: places((clip(50 + motion) - clip(100)).abs().amax(0) > 0.3) for motion in (4, 8, 9)}
    assert (where[4] - where[4][0]).abs().max() < 0.1
    assert (where[8][:, 1] - where[8][0, 1]).abs().max() < 0.1  # swings to the side only
    steps = where[8][:, 0].diff().sign()
    assert (steps[1:] != steps[:-1]).sum() >= 2
    assert where[9].std(0).min() > 0.15


def test_clips_have_classes_and_a_range():
    labels = set()
    for x, y in samples.moving_patterns(size=16, frames=4, classes=7, batch_size=8, batches=8):
        assert x.min() >= -1
        assert x.max() <= 1
        labels |= set(y.tolist())
    assert labels == set(range(7))
    for classes in (0, 102):
        with pytest.raises(ValueError, match=f"classes={classes}: .* give 1 to 101"):
            next(samples.moving_patterns(classes=classes))


def seen_in_both(disparity):
    """Pixels (H, W) of the left view whose point lies in the right one, with nothing in front: not by the renderer."""
    height, width = disparity.shape
    place = torch.arange(width) - disparity
    seen = (place >= 1) & (place <= width - 2)
    for y in range(height):
        hidden = (place[y][:, None] - place[y]).abs() < 1.5  # near one another in the right view
        nearer = disparity[y] > disparity[y][:, None] + 1
        seen[y] &= ~(hidden & nearer).any(1)
        steps = disparity[y].diff().abs() > 0.5  # an edge between two surfaces
        seen[y, 1:] &= ~steps
        seen[y, :-1] &= ~steps
    return seen


def warped(right, disparity):
    """The right view (3, H, W) as the left one would see it."""
    place = (torch.arange(disparity.shape[1]) - disparity).clamp(0, disparity.shape[1] - 1.001)
    first = place.long()
    share = place - first
    values = [right.gather(2, (first + k).expand(3, -1, -1)) for k in range(2)]
    return values[0] * (1 - share) + values[1] * share


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, SMALL_VIEWS], ids=["full", "small"])
def test_the_right_view_is_the_left_one_shifted(options, seed):
    (left, right), disparity = next(samples.stereo_pairs(**options, seed=seed))
    left, right, disparity = left[0], right[0], disparity[0]
    most = options.get("max_disparity", 192)
    assert disparity.min() > 0
    assert most * 0.4 < disparity.max() < most
    seen = seen_in_both(disparity)
    assert 0.3 < seen.float().mean() < 1
    error = (warped(right, disparity) - left).abs().mean(0)
    scale = (left[:, :, 1:] - left[:, :, :-1]).abs().mean()
    assert error[seen].mean() < 0.6 * scale  # twice interpolated
    assert torch.quantile(error[seen][:100_000], 0.99) < 2 * scale
    for wrong in (-3, 2):  # any other disparity shows other dots
        assert (warped(right, disparity + wrong) - left).abs().mean(0)[seen].mean() > 1.2 * scale
    assert error[~seen].mean() > 2 * error[seen].mean()  # what is hidden was not copied


def test_surfaces_of_the_scene_are_smooth():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        disparity, surface = stereo._disparity(rng, 256, 512, 192)
        inside = surface[:, 1:] == surface[:, :-1]
        assert abs(np.diff(disparity, axis=1))[inside].max() < 0.5
        assert len(np.unique(surface)) > 3
        assert abs(np.diff(disparity, axis=1))[~inside].max() > 20


def test_views_without_a_scale():
    (left, right), _ = next(samples.stereo_pairs(batch_size=2))
    for view in (left, right):
        assert view.mean().abs() < 0.5
        assert 0.8 < view.std() < 1.3
