"""VGG16 and the recurrent C3D as their papers describe them, and the laws on all three."""

from __future__ import annotations

import doctest
import sys
from collections import Counter
from itertools import pairwise

import laws
import pytest
import torch
import zoo
from other_models import (
    TINY,
    build,
    noise,
    on_meta,
    parameters,
    tiny_c3d_rnn,
    tiny_vgg16,
    tiny_vgg16_without_norms,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ranp_cli as ranp
from ranp_cli.models.c3d_rnn import c3d_rnn
from ranp_cli.models.psmnet import psmnet
from ranp_cli.models.vgg16 import vgg16

EACH = pytest.mark.parametrize("name", TINY)


def norms(*channels):
    return 2 * sum(channels)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_vgg16_gives_one_row_of_logits_per_image(batch_norm, training):
    options = {"batch_norm": batch_norm}
    assert on_meta(vgg16, (2, 3, 224, 224), training, **options) == (2, 1000)
    options |= {"num_classes": 7, "in_channels": 1, "image_size": 64, "width": 4, "hidden": 16}
    assert on_meta(vgg16, (2, 1, 64, 64), training, **options) == (2, 7)


def test_vgg16_parameters():
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(i * o * 9 + o for i, o in pairwise(widths))
    head = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert parameters(vgg16, batch_norm=False) == convolutions + head == 138_357_544
    assert parameters(vgg16) == convolutions + head + norms(*widths[1:]) == 138_365_992
    small = {"image_size": 32, "num_classes": 10, "hidden": 512, "batch_norm": False}
    assert parameters(vgg16, **small) == convolutions + 2 * (512 + 1) * 512 + (512 + 1) * 10


def kinds(model):
    return Counter(type(m).__name__ for m in model.modules() if not list(m.children()))


def test_vgg16_layers():
    layers = {"Conv2d": 13, "ReLU": 13 + 2, "MaxPool2d": 5, "Flatten": 1, "Linear": 3, "Dropout": 2}
    assert kinds(tiny_vgg16_without_norms()) == layers
    assert kinds(tiny_vgg16()) == {**layers, "BatchNorm2d": 13}


@pytest.mark.parametrize("image_size", [0, 16, 100])
def test_vgg16_says_what_it_cannot_see(image_size):
    with pytest.raises(ValueError, match=f"image_size={image_size}: VGG16 halves its input five times"):
        vgg16(image_size=image_size)


@pytest.mark.parametrize("training", [True, False])
def test_c3d_rnn_gives_one_column_of_logits_per_clip(training):
    assert on_meta(c3d_rnn, (2, 1, 80, 112, 112), training) == (2, 25, 10)
    options = {"num_classes": 7, "in_channels": 3, "frames": 5, "image_size": 48, "width": 4, "features": 8}
    assert on_meta(c3d_rnn, (3, 3, 5, 48, 48), training, hidden=6, **options) == (3, 7, 1)
    options |= {"frames": 16}
    assert on_meta(c3d_rnn, (3, 3, 64, 48, 48), training, hidden=6, **options) == (3, 7, 4)


def test_c3d_rnn_parameters():
    widths = [1, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(i * o * 27 + o for i, o in pairwise(widths))
    dense = (512 * 4 * 4 + 1) * 4096 + (4096 + 1) * 4096
    recurrent = 256 * (4096 + 256) + 2 * 256
    assert parameters(c3d_rnn) == convolutions + dense + recurrent + (256 + 1) * 25 == 79_113_369
    assert parameters(c3d_rnn, in_channels=3) == 79_113_369 + 2 * 64 * 27


def test_c3d_rnn_multiply_adds_of_a_clip():
    with torch.device("meta"):
        model = c3d_rnn()
    layers = [(1, 64, 8, 112), (64, 128, 8, 56), (128, 256, 4, 28), (256, 256, 4, 28)]
    layers += [(256, 512, 2, 14), (512, 512, 2, 14), (512, 512, 1, 7), (512, 512, 1, 7)]
    convolutions = sum(i * o * 27 * t * s * s for i, o, t, s in layers)
    dense = 512 * 4 * 4 * 4096 + 4096 * 4096 + (4096 + 256) * 256 + 256 * 25
    assert ranp.profile(model, (1, 1, 8, 112, 112)).to_dict()["before"]["macs"] == convolutions + dense


def test_c3d_rnn_layers():
    layers = {"Conv3d": 8, "ReLU": 8 + 2, "MaxPool3d": 5, "Flatten": 1, "Linear": 2 + 1, "Dropout": 2, "RNN": 1}
    assert kinds(tiny_c3d_rnn()) == layers


def test_c3d_rnn_reads_clips_in_turn():
    model, x = build("c3d_rnn").eval(), noise("c3d_rnn")
    rnn, state, columns = model.recurrent, torch.zeros(2, 16), []
    with torch.no_grad():
        for clip in x.split(8, dim=2):
            heard = rnn.weight_ih_l0 @ model.embed(model.c3d(clip))[..., None]
            kept = rnn.weight_hh_l0 @ state[..., None]
            state = (heard[..., 0] + kept[..., 0] + rnn.bias_ih_l0 + rnn.bias_hh_l0).clamp(min=0)
            columns.append(model.head(state))
        torch.testing.assert_close(model(x), torch.stack(columns, dim=2))


def test_c3d_rnn_hears_earlier_clips_only():
    model = build("c3d_rnn").eval()
    x = noise("c3d_rnn")
    late, early = x.clone(), x.clone()
    late[:, :, 16:] = 0
    early[:, :, :8] = 0
    with torch.no_grad():
        y, after, before = model(x), model(late), model(early)
    torch.testing.assert_close(after[..., :2], y[..., :2])
    assert ((after - y).abs().amax((0, 1)) > 1e-6).tolist() == [False, False, True]
    assert ((before - y).abs().amax((0, 1)) > 1e-6).tolist() == [True, True, True]


def test_c3d_rnn_softmax_is_on_in_eval_mode_only():
    options = {"num_classes": 5, "image_size": 32, "width": 8, "features": 32, "hidden": 16}
    plain, model = build("c3d_rnn").eval(), c3d_rnn(softmax=True, **options).eval()
    model.load_state_dict(plain.state_dict())
    x = noise("c3d_rnn")
    torch.testing.assert_close(model(x), plain(x).softmax(dim=1))
    model.training = True  # its dropout stays off
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0: a clip has at least 1 frame"),
        ({"image_size": 100}, "image_size=100: C3D halves its input four times; give a multiple of 16"),
        ({"image_size": 0}, "image_size=0: C3D halves its input four times; give a multiple of 16"),
    ],
)
def test_c3d_rnn_says_what_it_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        c3d_rnn(**options)


def test_c3d_rnn_says_what_it_cannot_cut_into_clips():
    with pytest.raises(ValueError, match="a video of 20 frames: clips have 8 frames"):
        on_meta(c3d_rnn, (1, 1, 20, 112, 112), False)


@pytest.mark.parametrize("factory", [psmnet, vgg16, c3d_rnn], ids=lambda f: f.__name__)
def test_the_example_gives_what_it_says(factory):
    results = doctest.testmod(sys.modules[factory.__module__], extraglobs={"torch": torch})
    assert results == (0, 2)


@EACH
def test_gradient_reaches_every_parameter(name):
    model, x = build(name), noise(name)
    model.eval()
    for m in model.modules():
        m.training = not isinstance(m, nn.Dropout)
    zoo.loss(laws.call(model, x), None).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@EACH
def test_profile_counts_as_torch_does(name):
    model, x = build(name).eval(), noise(name)
    one = tuple(t[:1] for t in x) if isinstance(x, tuple) else x[:1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        laws.call(model, one)
    before = ranp.profile(model, x).to_dict()["before"]
    assert before["flops"] == counter.get_total_flops() > 0
    assert before["macs"] * 2 == counter.get_total_flops()


@EACH
def test_units_by_hand(name):
    graph = laws.analyse(build(name), laws.example(noise(name)))
    assert len(graph.unit_roots) == TINY[name].units
    assert not graph.eval_run.tracer.unruled
    assert not graph.eval_run.real


SETTINGS = [(0.5, "flops"), (0.5, "mem"), (0.9, "flops"), (0.9, "mem")]


PAPERS = (0.462, "flops")  # of PSMNet; the other two have none


FAST = {  # the others are marked slow
    "psmnet": [],
    "basic_psmnet": [],  # the same parts without the hourglasses
    "vgg16": [SETTINGS[0], SETTINGS[3]],
    "vgg16_without_norms": [SETTINGS[3]],
    "c3d_rnn": [SETTINGS[0], SETTINGS[3]],
}
PRUNINGS = [
    pytest.param(name, *setting, id=f"{name}-{setting[0]}-{setting[1]}", marks=() if fast else pytest.mark.slow)
    for name in TINY
    for setting in ([*SETTINGS, PAPERS] if name.endswith("psmnet") else SETTINGS)
    for fast in [setting in FAST[name]]
]


@pytest.mark.parametrize(("name", "sparsity", "resource"), PRUNINGS)
def test_the_share_goes_and_the_laws_hold(name, sparsity, resource, tmp_path):
    model, x = build(name), noise(name)
    options = {"loss": zoo.loss, "sparsity": sparsity, "resource": resource, "allow_less": True}
    result = ranp.prune(model, zoo.batches(TINY[name])[:1], **options)
    report = result.report.to_dict()
    assert sparsity - 0.05 < report["sparsity"]["achieved"] <= sparsity + 0.01
    assert set(result.mask.fixed.values()) <= {"network output", "its only neuron"}
    assert not report.get("unruled_ops")
    laws.slim_is_masked(model, result, x)
    laws.same_behaviour(model, result, x)
    laws.counts_agree(result, x)
    laws.survives_a_file(model, result, x, tmp_path / "slim.safetensors")
    laws.attributes_are_true(result.model)
    laws.nothing_was_hard_coded(result)
