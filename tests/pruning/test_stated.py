"""Channel counts that modules state are true of the slim network, where what they count can be told; others are listed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import ranp_cli as ranp

X = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = [(X, torch.zeros(2, 8, 8, 8, dtype=torch.long))]


class Block(nn.Module):
    def __init__(self, i: int, o: int, config: Any = None) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = i, o, 3
        self.config = config
        self.conv = nn.Conv3d(i, o, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class Encoder(nn.Module):
    """As others build decoders by it: `output_channels`, a tuple."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.output_channels = (8, 16)
        self.blocks = nn.ModuleList([Block(1, 8, config), Block(8, 16, config)])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


class Net(nn.Module):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.head = nn.Conv3d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat(self.encoder(x), 1))


class Scaled(Block):
    """What it states enters what it computes, as a number: it runs with any."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() / self.out_channels**0.5


def pruned(net: nn.Module) -> ranp.Pruned:
    found = ranp.prune(net, BATCH, sparsity=0.5, device="cpu")
    assert found.report.to_dict()["verified"]["max_rel_error_fp64"] < 1e-10
    return found


def built(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return make()


def test_counts_are_true(tmp_path: Path) -> None:
    net = built(Net)
    found = pruned(net)
    found.save(tmp_path / "slim.safetensors")
    for slim in (found.model, ranp.load(tmp_path / "slim.safetensors", built(Net))):
        first, second = slim.encoder.blocks
        assert slim.encoder.output_channels == (len(first.conv.weight), len(second.conv.weight))
        assert (first.in_channels, first.out_channels) == (1, len(first.conv.weight))
        assert (second.in_channels, second.out_channels) == tuple(reversed(second.conv.weight.shape[:2]))
        assert first.kernel_size == 3
    assert len(first.conv.weight) < 8
    assert net.encoder.output_channels == (8, 16)
    report = found.report.to_dict()
    assert {
        "module": "encoder",
        "attribute": "output_channels",
        "value": list(found.model.encoder.output_channels),
    } in report["stated"]
    assert "followed" not in report
    assert "not_followed" not in report


def test_a_count_that_is_computed_with_stays() -> None:
    net = built(lambda: nn.Sequential(Scaled(1, 8), Block(8, 16), nn.Conv3d(16, 2, 1)))
    found = pruned(net)
    assert found.model[0].out_channels == 8
    assert found.model[1].out_channels == len(found.model[1].conv.weight) < 16
    left = [(row["module"], row["attribute"], row["value"]) for row in found.report.to_dict()["not_followed"]]
    assert left == [("0", "out_channels", 8)]


def test_an_object_that_several_modules_share_cannot_state_several_counts() -> None:
    config = SimpleNamespace(width=8, depth=2)
    net = built(lambda: nn.Sequential(Block(1, 8, config), Block(8, 8, config), nn.Conv3d(8, 2, 1)))
    with torch.no_grad():
        net[0].conv.weight[:5] *= 1e-3  # the two blocks lose differently many
    found = pruned(net)
    assert len(found.model[0].conv.weight) != len(found.model[1].conv.weight)
    assert vars(found.model[0].config) == {"width": 8, "depth": 2}
    assert {row["attribute"] for row in found.report.to_dict()["not_followed"]} == {"config.width"}
