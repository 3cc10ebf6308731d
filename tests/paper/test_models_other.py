"""PSMNet, VGG16 and the recurrent C3D have the structure, the sizes and the outputs of their sources, and can be pruned."""

import doctest
import sys
from collections import Counter
from functools import cache
from itertools import pairwise

import laws
import pytest
import torch
import zoo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ranp_cli as ranp
from ranp_cli.models.c3d_rnn import c3d_rnn
from ranp_cli.models.psmnet import cost_volume, psmnet
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
EACH = pytest.mark.parametrize("name", TINY)


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


# -- PSMNet


def views(n, h, w):
    return (n, 3, h, w), (n, 3, h, w)


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (2, 256, 512)), ({"max_disparity": 16, "width": 4}, (2, 32, 64)), ({"max_disparity": 96}, (2, 48, 16))],
    ids=["scene flow", "small", "wider than the view"],
)
@pytest.mark.parametrize("training", [True, False])
def test_psmnet_gives_one_disparity_per_pixel(options, size, training):
    assert on_meta(psmnet, views(*size), training, **options) == ([size] * 3 if training else size)
    assert on_meta(psmnet, views(*size), training, variant="basic", **options) == size


def test_psmnet_basic_takes_any_size():
    assert on_meta(psmnet, views(2, 37, 50), False, max_disparity=20, variant="basic") == (2, 37, 50)


def norms(*channels):
    return 2 * sum(channels)


def test_psmnet_parameters():
    def conv(i, o, taps=9):  # and its batch norm
        return i * o * taps + 2 * o

    stem = conv(3, 32) + 2 * conv(32, 32)
    stages = [
        6 * conv(32, 32),
        conv(32, 64) + 31 * conv(64, 64) + conv(32, 64, 1),
        conv(64, 128) + 5 * conv(128, 128) + conv(64, 128, 1),
        6 * conv(128, 128),
    ]
    features = stem + sum(stages) + 4 * conv(128, 32, 1) + conv(64 + 128 + 4 * 32, 128) + 128 * 32
    enter = conv(64, 32, 27) + conv(32, 32, 27)
    residual = 2 * conv(32, 32, 27)
    hourglass = conv(32, 64, 27) + 4 * conv(64, 64, 27) + conv(64, 32, 27)
    head = conv(32, 32, 27) + 32 * 27
    assert parameters(psmnet) == features + enter + residual + 3 * hourglass + 3 * head == 5_224_768
    assert parameters(psmnet, variant="basic") == features + enter + 4 * residual + head == 3_672_896
    assert parameters(psmnet, max_disparity=32) == 5_224_768


@pytest.mark.parametrize(
    ("size", "pooled"),
    [((256, 512), [(1, 2), (2, 4), (4, 8), (8, 16)]), ((32, 128), [(1, 1), (1, 1), (1, 2), (1, 4)])],
)
def test_psmnet_pools_over_windows_that_fit(size, pooled):
    seen = []
    with torch.device("meta"):
        features = psmnet(width=4).features
        for branch in features.branches:
            branch.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
        assert features(torch.empty(2, 3, *size)).shape == (2, 4, size[0] // 4, size[1] // 4)
    assert seen == pooled


def test_cost_volume_lays_shifted_views_over_each_other():
    left, right = torch.arange(1.0, 9).view(1, 2, 1, 4), torch.arange(11.0, 19).view(1, 2, 1, 4)
    volume = cost_volume(left, right, 5)
    assert volume.shape == (1, 4, 5, 1, 4)
    assert volume[0, 0, :, 0].tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 0, 3, 4], [0, 0, 0, 4], [0, 0, 0, 0]]
    assert volume[0, 3, :, 0].tolist() == [[15, 16, 17, 18], [0, 15, 16, 17], [0, 0, 15, 16], [0, 0, 0, 15], [0] * 4]
    assert cost_volume(left.double()[:, :1], right.double()[:, :1], 2).dtype == torch.float64


def test_psmnet_regresses_to_the_expectation():
    model = tiny_psmnet()
    flat = model.regress(torch.zeros(1, 1, 4, 2, 2), torch.Size([8, 8]))
    torch.testing.assert_close(flat, torch.full((1, 8, 8), 7.5))
    scores = torch.tensor([0.0, 1.0, -2.0, 3.0])
    places = ((torch.arange(16) + 0.5) / 4 - 0.5).clamp(0, 3)  # of the 16 disparities among the 4 scores
    below, share = places.floor().int().clamp(max=2), places % 1 + (places == 3)
    likely = (scores[below] * (1 - share) + scores[below + 1] * share).softmax(0)
    found = model.regress(scores.view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2), torch.Size([8, 8]))
    torch.testing.assert_close(found, (likely * torch.arange(16)).sum().expand(1, 8, 8))


def test_psmnet_dilates_the_last_stage():
    features = tiny_psmnet().features
    found = [
        {m.dilation for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
        for stage in (features.stage1, features.stage2, features.stage3, features.stage4)
    ]
    assert found == [{(1, 1)}, {(1, 1)}, {(1, 1)}, {(2, 2)}]


def test_an_hourglass_adds_what_earlier_ones_had():
    hourglass = tiny_psmnet().hourglasses[0].eval()
    x = torch.randn(1, 8, 4, 8, 8)
    earlier, last = torch.randn(2, 1, 16, 2, 4, 4)
    with torch.no_grad():
        hourglass.up1[1].weight.zero_()
        _, alone, up = hourglass(x)
        assert torch.equal(up, alone)
        _, down, up = hourglass(x, earlier, last)
        assert torch.equal(up, earlier.relu())
        torch.testing.assert_close(down, (hourglass.down1(x) + last).relu())


def test_psmnet_stacks_hourglasses_and_adds_up_their_scores():
    model = build("psmnet").eval()
    seen = []
    for hourglass in model.hourglasses:
        hourglass.register_forward_hook(lambda _, args, out: seen.append((args, out)))
    model.training = True  # its norms stay in eval mode
    with torch.no_grad():
        for head in model.heads[1:]:
            head[1].weight.zero_()
        first, second, third = model(*noise("psmnet"))
    (volume, *nothing), (out1, down1, up1) = seen[0]
    (x2, *before2), (out2, _, up2) = seen[1]
    (x3, *before3), _ = seen[2]
    assert nothing == [None, None]
    assert torch.equal(x2, out1 + volume)
    assert torch.equal(x3, out2 + volume)
    assert [id(t) for t in (*before2, *before3)] == [id(t) for t in (down1, up1, down1, up2)]
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_psmnet_in_eval_mode_gives_the_last_of_its_disparities():
    model = build("psmnet").eval()
    with torch.no_grad():
        last = model(*noise("psmnet"))
        model.training = True  # its norms stay in eval mode
        three = model(*noise("psmnet"))
    assert torch.equal(last, three[-1])
    assert not torch.equal(three[0], three[1])
    assert not torch.equal(three[1], three[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "hourglass"}, "variant='hourglass': PSMNet comes as stacked, basic"),
        ({"max_disparity": 40}, "max_disparity=40: a stacked PSMNet needs a positive multiple of 16"),
        ({"max_disparity": 42, "variant": "basic"}, "max_disparity=42: a basic PSMNet needs a positive multiple of 4"),
        ({"max_disparity": 0}, "max_disparity=0: a stacked PSMNet needs a positive multiple of 16"),
        ({"width": 0}, "width=0: a layer has at least 1 channel"),
    ],
)
def test_psmnet_says_what_it_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        psmnet(**options)


@pytest.mark.parametrize("size", [(40, 64), (64, 40)])
def test_psmnet_says_what_it_cannot_see(size):
    with pytest.raises(ValueError, match=f"views of {size[0]} x {size[1]} pixels: hourglasses need multiples of 16"):
        on_meta(psmnet, views(2, *size), False, max_disparity=16)


# -- VGG16


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


# -- the recurrent C3D


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


# -- all of them


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
PRUNINGS = [
    pytest.param(name, *setting, id=f"{name}-{setting[0]}-{setting[1]}", marks=() if first else pytest.mark.slow)
    for name in TINY
    for setting in ([*SETTINGS, PAPERS] if name.endswith("psmnet") else SETTINGS)
    for first in [setting in (SETTINGS[0], PAPERS) or not name.endswith("psmnet")]
]


@cache
def pruned(name, sparsity, resource):
    model = build(name)
    options = {"loss": zoo.loss, "sparsity": sparsity, "resource": resource, "allow_less": True}
    return model, ranp.prune(model, zoo.batches(TINY[name])[:1], **options)


@pytest.mark.parametrize(("name", "sparsity", "resource"), PRUNINGS)
def test_what_is_pruned(name, sparsity, resource):
    _, result = pruned(name, sparsity, resource)
    report = result.report.to_dict()
    assert sparsity - 0.05 < report["sparsity"]["achieved"] <= sparsity + 0.01
    assert set(result.mask.fixed.values()) <= {"network output", "its only neuron"}
    assert not report.get("unruled_ops")


@pytest.mark.parametrize(("name", "sparsity", "resource"), PRUNINGS)
def test_slim_is_masked(name, sparsity, resource):
    laws.slim_is_masked(*pruned(name, sparsity, resource), noise(name))


@pytest.mark.parametrize(("name", "sparsity", "resource"), PRUNINGS)
def test_the_other_laws(name, sparsity, resource, tmp_path):
    model, result = pruned(name, sparsity, resource)
    x = noise(name)
    laws.same_behaviour(model, result, x)
    laws.counts_agree(result, x)
    laws.survives_a_file(model, result, x, tmp_path / "slim.safetensors")
    laws.attributes_are_true(result.model)
    laws.nothing_was_hard_coded(result)
