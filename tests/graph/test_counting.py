"""The counts, worked by hand, and the paper's rows to the last digit."""

from __future__ import annotations

import pytest
import torch
from layers_by_hand import MACS
from torch import nn

import ranp_cli as ranp
from ranp_cli.models.unet3d import unet3d

# layers, arguments, input, (parameters MB, GFLOPs, memory MB)
PAPER = [
    (
        {"layers": 15, "width": 64, "in_channels": 1, "num_classes": 50, "softmax": True},
        (1, 1, 64, 64, 64),
        ("62.26", "237.85", "997.00"),
    ),
    (
        {"layers": 15, "width": 32, "in_channels": 4, "num_classes": 5},
        (1, 4, 128, 128, 128),
        ("15.57", "478.13", "3628.00"),
    ),
    (
        {"layers": 23, "width": 64, "in_channels": 1, "num_classes": 50, "softmax": True},
        (1, 1, 64, 64, 64),
        ("791.31", "259.59", "1005.97"),
    ),
]


@pytest.mark.parametrize(("args", "shape", "row"), PAPER, ids=lambda v: v[0] if isinstance(v, tuple) else None)
def test_paper_rows(args, shape, row):
    with torch.device("meta"):
        model = unet3d(**args)
    paper = ranp.profile(model, shape).to_dict()["before"]["paper"]
    assert tuple(f"{paper[k]:.2f}" for k in ("param_mb", "gflops", "memory_mb")) == row


@pytest.mark.parametrize("name", MACS)
def test_macs_by_hand(name):
    module, shape, macs = MACS[name]
    report = ranp.profile(nn.Sequential(module), shape).to_dict()
    assert report["before"]["macs"] == report["layers"][0]["macs"] == macs
    assert report["before"]["flops"] == 2 * macs


def test_bytes_by_hand():
    """conv (4 maps), ReLU, conv (2 maps) on 8^3: each new tensor counts, the in-place one does not."""
    position = 8**3 * 4  # bytes of one map
    for in_place, relu in ((False, 4), (True, 0)):
        net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(in_place), nn.Conv3d(4, 2, 1))
        held = sum(p.numel() * 4 for p in net.parameters())
        before = ranp.profile(net, (1, 1, 8, 8, 8)).to_dict()["before"]
        assert before["activation_bytes"] == (4 + relu + 2) * position
        assert before["peak_forward_bytes"] == held + (1 + max(4 + relu, 4 + 2)) * position
        assert before["params_bytes"] == held


def test_one_sample_whatever_the_batch():
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU())
    assert (
        ranp.profile(net, (5, 1, 8, 8, 8)).to_dict()["before"] == ranp.profile(net, (1, 1, 8, 8, 8)).to_dict()["before"]
    )


def test_layers_add_up():
    with torch.device("meta"):
        model = unet3d(width=8)
    report = ranp.profile(model, (1, 1, 16, 16, 16)).to_dict()
    assert sum(row["macs"] for row in report["layers"]) == report["before"]["macs"]
    assert len(report["layers"]) == 15


def test_what_is_not_counted_is_listed():
    class Fft(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return torch.fft.fftn(self.conv(x)).real

    report = ranp.profile(Fft(), (1, 1, 4, 4, 4)).to_dict()
    first = report["uncounted_ops"][0]
    assert (first["op"], first["module"], first["count"]) == ("aten._fft_c2c", "", 1)


def test_a_pooling_of_the_users_own_is_counted_as_torchs():
    class Small(nn.AvgPool3d):
        pass

    found = [ranp.profile(nn.Sequential(nn.Conv3d(1, 2, 1), pool(2)), (1, 1, 4, 4, 4)).to_dict()["before"]
             for pool in (nn.AvgPool3d, Small)]  # fmt: skip
    assert found[0] == found[1]


def test_a_network_may_begin_with_a_pixel_shuffle():
    net = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 3, 1))
    assert ranp.profile(net, (1, 4, 6, 6)).to_dict()["before"]["macs"] == 3 * 12 * 12


@pytest.mark.parametrize("device", ["meta"])
def test_another_default_device_makes_no_difference(device):
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))
    batch = torch.randn(2, 1, 6, 6, 6), torch.randint(2, (2, 4, 4, 4))
    plain = ranp.profile(model, (1, 1, 6, 6, 6)).to_dict()["before"], ranp.prune(model, batch, sparsity=0.5).mask.layers
    with torch.device(device):
        assert ranp.profile(model, (1, 1, 6, 6, 6)).to_dict()["before"] == plain[0]
        assert ranp.prune(model, batch, sparsity=0.5).mask.layers == plain[1]
