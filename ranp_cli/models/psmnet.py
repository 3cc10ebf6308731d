"""PSMNet (Chang & Chen, CVPR 2018): depth from two views, by spatial pyramid pooling and a 3D CNN over a cost volume."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOWS = (64, 32, 16, 8)  # of the pyramid pooling, in pixels of the features
KINDS = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


def conv(
    dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, its batch norm, and a ReLU unless told otherwise."""
    convolution, norm = KINDS[dims]
    padding = dilation * (kernel // 2)
    layers = [convolution(inputs, outputs, kernel, stride, padding, dilation, bias=False), norm(outputs)]
    return nn.Sequential(*layers, *[nn.ReLU(inplace=True)] * relu)


def upconv(inputs: int, outputs: int) -> nn.Sequential:
    """Twice the size: (N, inputs, D, H, W) -> (N, outputs, 2D, 2H, 2W)."""
    weight = nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(weight, nn.BatchNorm3d(outputs))


def pair(width: int) -> nn.Sequential:
    """Two convolutions over the cost volume, for a residual connection around them."""
    return nn.Sequential(conv(3, width, width), conv(3, width, width, relu=False))


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is a 1x1 convolution where the shape changes; no ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = conv(2, inputs, outputs, stride=stride, dilation=dilation)
        self.conv2 = conv(2, outputs, outputs, dilation=dilation, relu=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else conv(2, inputs, outputs, kernel=1, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + (x if self.shortcut is None else self.shortcut(x))


def stage(inputs: int, outputs: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = Residual(inputs, outputs, stride, dilation)
    return nn.Sequential(first, *(Residual(outputs, outputs, 1, dilation) for _ in range(blocks - 1)))


class Features(nn.Module):
    """What both views go through: (N, 3, H, W) -> (N, width, H/4, W/4).

    The pyramid averages over windows of 64, 32, 16 and 8 pixels, or over the whole of an axis that is shorter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(2, 3, width, stride=2), conv(2, width, width), conv(2, width, width))
        self.stage1 = stage(width, width, blocks=3)
        self.stage2 = stage(width, 2 * width, blocks=16, stride=2)
        self.stage3 = stage(2 * width, 4 * width, blocks=3)
        self.stage4 = stage(4 * width, 4 * width, blocks=3, dilation=2)
        self.branches = nn.ModuleList(conv(2, 4 * width, width, kernel=1) for _ in WINDOWS)
        joined = 2 * width + 4 * width + len(WINDOWS) * width
        self.fuse = nn.Sequential(conv(2, joined, 4 * width), nn.Conv2d(4 * width, width, kernel_size=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        middle = self.stage2(self.stage1(self.stem(x)))
        deep = self.stage4(self.stage3(middle))
        size = deep.shape[2:]
        parts = [middle, deep]
        for window, branch in zip(WINDOWS, self.branches, strict=True):
            pooled = F.avg_pool2d(deep, [min(window, length) for length in size])
            parts.append(F.interpolate(branch(pooled), size=size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(parts, dim=1))


def cost_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Lay each pixel of `left` over the one of `right` that is d pixels to its left, for every disparity d.

    Two tensors of shape (N, C, H, W) -> (N, 2C, disparities, H, W), zero where the right view has no such pixel.
    """
    n, c, h, w = left.shape
    volume = left.new_zeros(n, 2 * c, disparities, h, w)
    for d in range(min(disparities, w)):
        volume[:, :c, d, :, d:] = left[..., d:]
        volume[:, c:, d, :, d:] = right[..., : w - d]
    return volume


class Hourglass(nn.Module):
    """Down to a quarter of the size and up again: (N, width, D, H, W) of sizes divisible by 4 -> the same shape.

    At half the size it reads what earlier hourglasses had there: on the way down, the last one's way up; on the way
    up, the first one's way down.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv(3, width, 2 * width, stride=2), conv(3, 2 * width, 2 * width, relu=False))
        self.down2 = nn.Sequential(conv(3, 2 * width, 2 * width, stride=2), conv(3, 2 * width, 2 * width))
        self.up1 = upconv(2 * width, 2 * width)
        self.up2 = upconv(2 * width, width)

    def forward(
        self, x: Tensor, first_down: Tensor | None = None, last_up: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns: the output, and the tensors at half the size on the way down and on the way up."""
        down = self.down1(x)
        down = F.relu(down if last_up is None else down + last_up)
        up = F.relu(self.up1(self.down2(down)) + (down if first_down is None else first_down))
        return self.up2(up), down, up


class PSMNet(nn.Module):
    """Disparities of the left view, in pixels.

    Two inputs of shape (N, 3, H, W), the rectified left and right view. Output of shape (N, H, W), each value between 0
    and max_disparity - 1; from stacked hourglasses in training mode, a list of three of them, the last the best.

    H and W are multiples of 16 with stacked hourglasses. In training mode a batch norm sees one value per sample where
    a pooling window covers the image: give at least two samples.

    Args:
        max_disparity: number of disparities told apart, a multiple of 16 (of 4 without hourglasses).
        width: channels of the first layers, and of the 3D CNN.
        stacked: three hourglasses over the cost volume, or four residual pairs of convolutions.

    Source: Chang & Chen, "Pyramid Stereo Matching Network", CVPR 2018, with the dilations of the authors' code (1 and 2
    in the last two stages; the article has 2 and 4).
    """

    def __init__(self, max_disparity: int, width: int, stacked: bool) -> None:
        super().__init__()
        self.max_disparity = max_disparity
        self.features = Features(width)
        self.enter = nn.Sequential(conv(3, 2 * width, width), conv(3, width, width))
        self.residuals = nn.ModuleList(pair(width) for _ in range(1 if stacked else 4))
        self.hourglasses = nn.ModuleList(Hourglass(width) for _ in range(3 if stacked else 0))
        self.heads = nn.ModuleList(
            nn.Sequential(conv(3, width, width), nn.Conv3d(width, 1, kernel_size=3, padding=1, bias=False))
            for _ in range(max(1, len(self.hourglasses)))
        )

    def forward(self, left: Tensor, right: Tensor) -> Tensor | list[Tensor]:
        height, width = size = left.shape[2:]
        if self.hourglasses and (height % 16 or width % 16):
            raise ValueError(f"views of {height} x {width} pixels: hourglasses need multiples of 16; pad or crop them")
        x = self.enter(cost_volume(self.features(left), self.features(right), self.max_disparity // 4))
        for residual in self.residuals:
            x = x + residual(x)
        if not self.hourglasses:
            return self.regress(self.heads[0](x), size)
        volume, first_down, up = x, None, None
        scores: list[Tensor] = []
        for hourglass, head in zip(self.hourglasses, self.heads, strict=True):
            x, down, up = hourglass(x, first_down, up)
            first_down = down if first_down is None else first_down
            x = x + volume
            scores.append(head(x) + scores[-1] if scores else head(x))
        if self.training:
            return [self.regress(each, size) for each in scores]
        return self.regress(scores[-1], size)

    def regress(self, scores: Tensor, size: torch.Size) -> Tensor:
        """The expected disparity: (N, 1, max_disparity/4, H/4, W/4) -> (N, H, W)."""
        scores = F.interpolate(scores, size=(self.max_disparity, *size), mode="trilinear", align_corners=False)
        disparities = torch.arange(self.max_disparity, dtype=scores.dtype, device=scores.device)
        return (scores.squeeze(1).softmax(dim=1) * disparities.view(-1, 1, 1)).sum(dim=1)


def psmnet(max_disparity: int = 192, width: int = 32, variant: str = "stacked") -> PSMNet:
    """PSMNet; as it stands, the one for Scene Flow and KITTI, of 5,224,768 parameters.

    Args:
        max_disparity: number of disparities told apart, a multiple of 16 (of 4 for "basic").
        width: channels of the first layers and of the 3D CNN; the deeper stages have 2 and 4 times as many.
        variant: "stacked" for three stacked hourglasses over the cost volume, "basic" for 12 convolutions.

    Returns: a network from two views of shape (N, 3, H, W) to disparities of shape (N, H, W); "stacked" gives a list of
        three of them in training mode.
    Raises: ValueError for an unknown variant, a width below 1 or a number of disparities that does not divide.

    Example:
        >>> model = psmnet(max_disparity=16, width=4).eval()
        >>> model(torch.zeros(1, 3, 32, 64), torch.zeros(1, 3, 32, 64)).shape
        torch.Size([1, 32, 64])
    """
    multiples = {"stacked": 16, "basic": 4}
    if variant not in multiples:
        raise ValueError(f"variant={variant!r}: PSMNet comes as {', '.join(multiples)}")
    if max_disparity < 1 or max_disparity % multiples[variant]:
        raise ValueError(
            f"max_disparity={max_disparity!r}: a {variant} PSMNet needs a positive multiple of {multiples[variant]}"
        )
    if width < 1:
        raise ValueError(f"width={width!r}: a layer has at least 1 channel")
    return PSMNet(max_disparity, width, stacked=variant == "stacked")
