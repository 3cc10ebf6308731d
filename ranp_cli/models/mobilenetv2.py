"""MobileNetV2 in 3D: the smaller of the two video networks of the paper (Xu et al., "RANP", 3DV 2020)."""

from torch import Tensor, nn

Stride = tuple[int, int, int]  # of time, height and width

# times wider inside, channels, blocks, stride of the first block
STAGES: list[tuple[int, int, int, Stride]] = [
    (1, 16, 1, (1, 1, 1)),
    (6, 24, 2, (2, 2, 2)),
    (6, 32, 3, (2, 2, 2)),
    (6, 64, 4, (2, 2, 2)),
    (6, 96, 3, (1, 1, 1)),
    (6, 160, 3, (2, 2, 2)),
    (6, 320, 1, (1, 1, 1)),
]
FIRST, LAST = 32, 1280  # channels before the stages and after them


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and, if wanted, ReLU6; at stride 1 it keeps D, H and W."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: Stride = (1, 1, 1), groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU6(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.relu is None else self.relu(x)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; the input is added where it has the shape of the output.

    (N, inputs, D, H, W) -> (N, inputs * times, D, H, W) -> (N, inputs * times, D', H', W') -> (N, outputs, D', H', W')
    """

    def __init__(self, inputs: int, outputs: int, times: int, stride: Stride) -> None:
        super().__init__()
        inside = inputs * times
        self.widen = ConvNorm(inputs, inside, kernel=1) if times > 1 else None
        self.filter = ConvNorm(inside, inside, kernel=3, stride=stride, groups=inside)
        self.narrow = ConvNorm(inside, outputs, kernel=1, relu=False)
        self.residual = stride == (1, 1, 1) and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.widen is None else self.widen(x)
        y = self.narrow(self.filter(y))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """A convolution, 17 inverted residuals, a convolution, the average over all positions, and a linear layer.

    Input of shape (N, in_channels, D, H, W), output of shape (N, num_classes): one score per class. D, H and W are
    divided by 16, 32 and 32, rounded up, so any size will do.

    Source: Köpüklü et al., "Resource Efficient 3D Convolutional Neural Networks", ICCV Workshops 2019, after Sandler
    et al., "MobileNetV2", CVPR 2018.
    """

    def __init__(self, num_classes: int, width: float, in_channels: int, dropout: float) -> None:
        super().__init__()
        channels = max(1, int(FIRST * width))
        self.first = ConvNorm(in_channels, channels, kernel=3, stride=(1, 2, 2))
        self.blocks = nn.ModuleList()
        for times, full_width, count, first_stride in STAGES:
            for stride in [first_stride] + [(1, 1, 1)] * (count - 1):
                outputs = max(1, int(full_width * width))
                self.blocks.append(InvertedResidual(channels, outputs, times, stride))
                channels = outputs
        last = int(LAST * max(1.0, width))
        self.last = ConvNorm(channels, last, kernel=1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        x = self.last(x).mean(dim=(2, 3, 4))
        return self.head(self.dropout(x))


def mobilenetv2_3d(
    num_classes: int = 101, width: float = 1.0, in_channels: int = 3, dropout: float = 0.2
) -> MobileNetV2:
    """The paper's MobileNetV2; as it stands, the one for UCF101.

    In the paper's counting, for one clip of shape (1, 3, 16, 112, 112): 9.47 MB of parameters, 0.58 GFLOPs and 157.47 MB
    of memory. That counting has two oddities. Only 0.52 of the 0.58 are multiply-adds, nearly all the rest being the 4 per
    element of a batch norm. And 49.32 MB are outputs of ReLU6, which work in place and take no memory of their own.

    Args:
        num_classes: length of the output: 101 for UCF101.
        width: factor on the channels of every layer; the last convolution has 1280 or more.
        in_channels: channels of the input: 3 for colour.
        dropout: probability of dropping a feature before the linear layer, in training mode.

    Returns: a network from (N, in_channels, D, H, W) to (N, num_classes).
    Raises: ValueError if a number of channels, the width or the dropout is out of range.

    Example:
        >>> model = mobilenetv2_3d(width=0.25)
        >>> model(torch.zeros(2, 3, 8, 32, 32)).shape
        torch.Size([2, 101])
    """
    if num_classes < 1 or in_channels < 1:
        raise ValueError(f"num_classes={num_classes!r}, in_channels={in_channels!r}: each must be 1 or more")
    if not width > 0:
        raise ValueError(f"width={width!r}: the factor on the channels must be more than 0")
    return MobileNetV2(num_classes, width, in_channels, dropout)
