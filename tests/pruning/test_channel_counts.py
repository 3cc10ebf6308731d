"""What modules of the user's say of the channels that enter and leave them is true of the slim network."""

from __future__ import annotations

import torch
from torch import nn

import ranp_cli as ranp


class Block(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.input_channels, self.output_channels = i, o
        self.in_planes, self.out_channels = o, 77  # neither is true, so neither is touched
        self.conv = nn.Conv3d(i, o, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(x))


class Encoder(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.output_channels = widths
        self.stages = nn.ModuleList(Block(i, o) for i, o in zip([1, *widths], widths, strict=False))

    def forward(self, x):
        found = []
        for stage in self.stages:
            found.append(x := stage(x))
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.widths = [12, 16]
        self.encoder = Encoder(self.widths)
        self.head = nn.Conv3d(28, 2, 1)

    def forward(self, x):
        return self.head(torch.cat(self.encoder(x), 1))


def test_counts_are_those_of_the_slim_network(tmp_path):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 1, 8, 8, 8, generator=generator), torch.randint(2, (2, 8, 8, 8), generator=generator)
    result = ranp.prune(Net(), batch, sparsity=0.5, min_neurons=1)
    result.save(tmp_path / "slim.safetensors")
    for slim in (
        result.model,
        ranp.load(tmp_path / "slim.safetensors", Net()),
        ranp.build(result.header, Net()),
    ):
        first, second = slim.encoder.stages
        widths = [first.conv.out_channels, second.conv.out_channels]
        assert widths < [12, 16]
        assert slim.encoder.output_channels == widths
        assert type(slim.encoder.output_channels) is list
        assert (first.input_channels, first.output_channels) == (1, widths[0])
        assert (second.input_channels, second.output_channels) == tuple(widths)
        assert (first.in_planes, first.out_channels) == (12, 77)
        assert slim.widths == [12, 16]  # a list that two share is not changed through the other
