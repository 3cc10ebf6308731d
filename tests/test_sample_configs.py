"""The files a new user starts from: `model.py` runs, and `calib.pt` is what `make_calib.py` makes."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

CONFIGS = Path(__file__).parents[1] / "sample_configs"
EMPTY = 255
CLASSES = 6


@pytest.fixture(scope="module")
def calib():
    return torch.load(CONFIGS / "calib.pt", weights_only=True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return runpy.run_path(str(CONFIGS / "model.py"))["UNet3D"]()


def test_calib_is_what_make_calib_makes(calib):
    made = runpy.run_path(str(CONFIGS / "make_calib.py"))["make_calib"]()
    assert len(calib) == len(made) == 4
    for (x, y), (made_x, made_y) in zip(calib, made, strict=True):
        assert torch.equal(x, made_x)
        assert torch.equal(y, made_y)


def test_calib_is_mostly_empty_and_shows_every_class_in_every_batch(calib):
    for x, y in calib:
        assert (x.shape, x.dtype) == ((2, 1, 24, 24, 24), torch.float32)
        assert (y.shape, y.dtype) == ((2, 24, 24, 24), torch.uint8)
        assert torch.equal(x[:, 0] == 1, y != EMPTY)
        assert torch.equal(x[:, 0] == 0, y == EMPTY)
        assert y.unique().tolist() == [*range(CLASSES), EMPTY]
        assert (y == EMPTY).float().mean() > 0.9


def test_calib_is_small():
    assert (CONFIGS / "calib.pt").stat().st_size <= 600_000


def test_model_trains_on_calib(model, calib):
    for x, y in calib:
        model.zero_grad()
        F.cross_entropy(model(x), y.long(), ignore_index=EMPTY).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(x).shape == (2, CLASSES, 24, 24, 24)


def test_model_layers_have_readable_names(model):
    layers = [name.removesuffix(".weight") for name, p in model.named_parameters() if p.ndim == 5]
    assert len(layers) == 18
    assert {"encoders.0.conv1", "ups.0", "decoders.2.conv2", "head"} <= set(layers)
