"""A plain 3D-UNet, as anyone would write it; `ranp prune` takes it as it is and needs no change to this file."""

import torch
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3x3x3 convolutions, each followed by batch norm and ReLU: (N, in, D, H, W) -> (N, out, D, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(x)))


class UNet3D(nn.Module):
    """Labels every voxel: input (N, in_channels, D, H, W) -> logits (N, num_classes, D, H, W).

    Each level halves D, H and W and doubles the channels, so D, H and W must be multiples of 2 ** (levels - 1).

    Args:
        in_channels: channels of the input; 1 for an occupancy grid.
        num_classes: channels of the output; 6 for the parts in `calib.pt`.
        width: channels of the first level.
        levels: number of resolutions.

    Example:
        >>> UNet3D()(torch.zeros(2, 1, 24, 24, 24)).shape
        torch.Size([2, 6, 24, 24, 24])
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 6, width: int = 32, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]

        self.encoders = nn.ModuleList()
        for channels in widths:
            self.encoders.append(DoubleConv(in_channels, channels))
            in_channels = channels

        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for channels in reversed(widths[:-1]):
            self.ups.append(nn.ConvTranspose3d(2 * channels, channels, kernel_size=2, stride=2))
            self.decoders.append(DoubleConv(2 * channels, channels))

        self.pool = nn.MaxPool3d(kernel_size=2)
        self.head = nn.Conv3d(width, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, encoder in enumerate(self.encoders):
            if level > 0:
                skips.append(x)
                x = self.pool(x)
            x = encoder(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(x)
