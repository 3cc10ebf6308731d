"""Small versions of PSMNet, VGG16 and the recurrent C3D."""

from __future__ import annotations

import torch
import zoo
from torch import nn

from ranp_cli.models.c3d_rnn import c3d_rnn
from ranp_cli.models.psmnet import psmnet
from ranp_cli.models.vgg16 import vgg16


def tiny_psmnet():
    return psmnet(max_disparity=16, width=8)


def tiny_basic_psmnet():
    return psmnet(max_disparity=16, width=8, variant="basic")


def tiny_vgg16():
    return vgg16(num_classes=5, image_size=32, width=8, hidden=32)


def tiny_vgg16_without_norms():
    return vgg16(num_classes=5, image_size=32, width=8, hidden=32, batch_norm=False)


def tiny_c3d_rnn():
    return c3d_rnn(num_classes=5, image_size=32, width=8, features=32, hidden=16)


VIEWS = ((2, 3, 32, 32), (2, 3, 32, 32))


TINY = {
    make.__name__.removeprefix("tiny_"): zoo.Case(make, units, shape=shape)
    for make, shape, units in [
        (tiny_psmnet, VIEWS, (8 * 2 + 8) + 8 * 3 + (16 * 16 + 16) + (32 * 3 + 32) + 32 * 3 + 4 * 8 + (32 + 8)
         + 8 + 8 + 8 + (3 * 3 * 16 + 16) + 8 * 3 + 3),
        (tiny_basic_psmnet, VIEWS, (8 * 2 + 8) + 8 * 3 + (16 * 16 + 16) + (32 * 3 + 32) + 32 * 3 + 4 * 8 + (32 + 8)
         + 8 + 8 * 4 + 8 + 8 + 1),
        (tiny_vgg16, (2, 3, 32, 32), 8 * 2 + 16 * 2 + 32 * 3 + 64 * 6 + 32 * 2 + 5),
        (tiny_vgg16_without_norms, (2, 3, 32, 32), 8 * 2 + 16 * 2 + 32 * 3 + 64 * 6 + 32 * 2 + 5),
        (tiny_c3d_rnn, (2, 1, 24, 32, 32), 8 + 16 + 32 * 2 + 64 * 4 + 32 * 2 + 16 + 5),
    ]
}  # fmt: skip


def build(name):
    """The network with running statistics, and parameters of norms, that are not those of a fresh one."""
    model = zoo.build(TINY[name])
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.copy_(torch.randn(m.num_features, generator=g) * 0.1)
                m.running_var.copy_(torch.rand(m.num_features, generator=g) + 0.5)
                m.weight.add_(torch.rand(m.num_features, generator=g) * 0.2 - 0.1)
                m.bias.add_(torch.rand(m.num_features, generator=g) * 0.2 - 0.1)
    return model


def noise(name, seed=7):
    return zoo.inputs(TINY[name], torch.Generator().manual_seed(seed))


def on_meta(make, shape, training, **options):
    """The shape(s) that come out, of a network that is never allocated."""
    with torch.device("meta"):
        x = tuple(torch.empty(s) for s in shape) if isinstance(shape[0], tuple) else (torch.empty(shape),)
        y = make(**options).train(training)(*x)
    return [tuple(t.shape) for t in y] if isinstance(y, list) else tuple(y.shape)


def parameters(make, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in make(**options).parameters())
