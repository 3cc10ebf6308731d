"""The paper's networks have the structure, the sizes and the outputs that the paper states."""

import pytest
import torch
from torch import nn

from ranp_cli.models.unet3d import unet3d

BRATS = {"width": 32, "in_channels": 4, "num_classes": 5}


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv3d)]


def tiny(**options):
    torch.manual_seed(0)
    return unet3d(layers=7, width=4, num_classes=3, **options)


@pytest.mark.parametrize(
    ("options", "layers", "param_mb"),
    [({}, 15, 62.26), (BRATS, 15, 15.57), ({"layers": 23}, 23, 791.31)],
    ids=["shapenet", "brats", "23 layers"],
)
def test_unet3d_has_the_papers_layers_and_parameters(options, layers, param_mb):
    with torch.device("meta"):
        model = unet3d(**options)
    assert len(convolutions(model)) == layers
    assert sum(p.numel() for p in model.parameters()) * 4 / 2**20 == pytest.approx(param_mb, abs=0.005)


def test_unet3d_has_the_papers_neurons():
    with torch.device("meta"):
        neurons = [conv.out_channels for conv in convolutions(unet3d())]
    assert neurons == [32, 64, 64, 128, 128, 256, 256, 512, 256, 256, 128, 128, 64, 64, 50]
    assert sum(neurons) == 2386


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("options", "x", "y"),
    [
        ({}, (1, 1, 64, 64, 64), (1, 50, 64, 64, 64)),
        (BRATS, (1, 4, 128, 128, 128), (1, 5, 128, 128, 128)),
        ({"layers": 23}, (1, 1, 64, 64, 64), (1, 50, 64, 64, 64)),
        ({}, (2, 1, 24, 30, 17), (2, 50, 24, 30, 17)),
    ],
    ids=["shapenet", "brats", "23 layers", "odd sizes"],
)
def test_unet3d_keeps_the_shape_of_its_input(options, x, y, training):
    with torch.device("meta"):
        assert unet3d(**options).train(training)(torch.empty(x)).shape == y


def test_unet3d_softmax_is_on_in_eval_mode_only():
    x = torch.rand(2, 1, 8, 8, 8)
    model, plain = tiny(softmax=True), tiny()
    torch.testing.assert_close(model(x), plain(x))
    probabilities = model.eval()(x)
    torch.testing.assert_close(probabilities, plain.eval()(x).softmax(dim=1))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, 8, 8, 8))


def test_unet3d_gradient_reaches_every_parameter():
    model = tiny()
    model(torch.rand(2, 1, 8, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("layers", [0, 3, 14, 16, 27])
def test_unet3d_names_the_layers_it_can_have(layers):
    with pytest.raises(ValueError, match=rf"layers={layers}: a 3D-UNet of 2 to 6 levels has 7, 11, 15, 19, 23 layers"):
        unet3d(layers=layers)
