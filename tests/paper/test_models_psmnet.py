"""PSMNet as the paper describes it."""

from __future__ import annotations

import pytest
import torch
from other_models import (
    build,
    noise,
    on_meta,
    parameters,
    tiny_psmnet,
)
from torch import nn

from ranp_cli.models.psmnet import cost_volume, psmnet


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
