"""I3D, the inflated Inception: the larger of the two video networks of the paper (Xu et al., "RANP", 3DV 2020)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# channels of each block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind a pooling
STAGES = [
    [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
]
FIRST = (64, 64, 192)  # channels of the three convolutions before the stages


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad D, H and W with zeros as TensorFlow's "SAME" does: n positions become n / stride, rounded up.

    What is missing is shared between both ends, the far one getting the odd zero.

    Example:
        >>> pad_same(torch.ones(1, 1, 1, 1, 4), kernel=(1, 1, 3), stride=(1, 1, 2)).flatten()
        tensor([1., 1., 1., 1., 0.])
    """
    ends: list[int] = []
    for size, window, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        steps = -(-size // step)
        missing = max(0, (steps - 1) * step + window - size)
        ends += [missing // 2, missing - missing // 2]
    return F.pad(x, ends) if any(ends) else x


class ConvNorm(nn.Module):
    """A convolution with batch norm and ReLU: (N, inputs, D, H, W) -> (N, outputs, D', H', W'), D' = ceil(D / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        inside = kernel // 2 if stride == 1 else 0  # then "SAME" is symmetric, and the convolution can pad by itself
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=inside, bias=False)
        self.norm = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0, 0):
            x = pad_same(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(self.conv(x)), inplace=True)


class MaxPool(nn.MaxPool3d):
    """Max pooling with "SAME" padding. It follows a ReLU, so a zero at the border never wins over a feature."""

    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride))


class Inception(nn.Module):
    """Four branches side by side: (N, inputs, D, H, W) -> (N, point + wide + slim + pooled, D, H, W)."""

    def __init__(self, inputs: int, point: int, wide_in: int, wide: int, slim_in: int, slim: int, pooled: int) -> None:
        super().__init__()
        self.point = ConvNorm(inputs, point, kernel=1)
        self.wide = nn.Sequential(ConvNorm(inputs, wide_in, kernel=1), ConvNorm(wide_in, wide, kernel=3))
        self.slim = nn.Sequential(ConvNorm(inputs, slim_in, kernel=1), ConvNorm(slim_in, slim, kernel=3))
        self.pooled = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), ConvNorm(inputs, pooled, kernel=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.point(x), self.wide(x), self.slim(x), self.pooled(x)], dim=1)


class I3D(nn.Module):
    """Three convolutions, nine inception blocks in three stages, the average over all positions, and a convolution.

    Input of shape (N, in_channels, D, H, W), output of shape (N, num_classes): one score per class. D, H and W are
    divided by 8, 32 and 32, rounded up, so any size will do.

    Source: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017 (the RGB stream).
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        first, second, channels = map(scaled, FIRST)
        self.conv1 = ConvNorm(in_channels, first, kernel=7, stride=2)
        self.pool1 = MaxPool((1, 3, 3), (1, 2, 2))
        self.conv2 = ConvNorm(first, second, kernel=1)
        self.conv3 = ConvNorm(second, channels, kernel=3)
        self.pools = nn.ModuleList(
            [MaxPool((1, 3, 3), (1, 2, 2)), MaxPool((3, 3, 3), (2, 2, 2)), MaxPool((2, 2, 2), (2, 2, 2))]
        )
        self.stages = nn.ModuleList()
        for blocks in STAGES:
            stage = nn.Sequential()
            for point, wide_in, wide, slim_in, slim, pooled in (map(scaled, block) for block in blocks):
                stage.append(Inception(channels, point, wide_in, wide, slim_in, slim, pooled))
                channels = point + wide + slim + pooled
            self.stages.append(stage)
        self.average = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv3d(channels, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.pool1(self.conv1(x))))
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(pool(x))
        return self.head(self.dropout(self.average(x))).flatten(1)


def i3d(num_classes: int = 101, in_channels: int = 3, width: float = 1.0, dropout: float = 0.5) -> I3D:
    """The paper's I3D; as it stands, the one for UCF101.

    In the paper's counting, for one clip of shape (1, 3, 16, 224, 224): 47.27 MB of parameters, 27.88 GFLOPs and 201.28 MB
    of memory. That counting has an oddity: a ReLU and a padding cost no memory here, because they are functions and only
    modules are counted. As modules the ReLUs alone would add 84.93 MB; those of MobileNetV2 are modules and do count.

    The last average is over all positions. On clips of 9 to 16 frames of 193 to 224 pixels a side that is the 2x7x7
    average of the source; on longer or larger ones the source slides its window and averages afterwards.

    Args:
        num_classes: length of the output: 101 for UCF101.
        in_channels: channels of the input: 3 for colour, 2 for optical flow.
        width: factor on the channels of every layer.
        dropout: probability of dropping a feature before the last convolution, in training mode.

    Returns: a network from (N, in_channels, D, H, W) to (N, num_classes).
    Raises: ValueError if a number of channels, the width or the dropout is out of range.

    Example:
        >>> model = i3d(width=0.125)
        >>> model(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 101])
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes={num_classes!r}, in_channels={in_channels!r}: each must be 1 or more")
    if not width > 0:
        raise ValueError(f"width={width!r}: the factor on the channels must be more than 0")
    return I3D(num_classes, in_channels, width, dropout)
