"""VGG16 (Simonyan & Zisserman, ICLR 2015): a 2D network, for what is said of pruning images."""

from torch import Tensor, nn

BLOCKS = [(1, 2), (2, 2), (4, 3), (8, 3), (8, 3)]  # channels, in widths of the first, and number of convolutions


class VGG16(nn.Module):
    """Five blocks of 3x3 convolutions, each halved by max pooling, and three fully connected layers.

    Input of shape (N, in_channels, image_size, image_size), output of shape (N, num_classes): logits.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the input.
        batch_norm: a batch norm after each convolution.
        image_size: height and width of the input, a multiple of 32.
        width: channels of the first block; the blocks have 1, 2, 4, 8 and 8 times as many.
        hidden: neurons of each hidden fully connected layer.

    Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
    configuration D.
    """

    def __init__(
        self, num_classes: int, in_channels: int, batch_norm: bool, image_size: int, width: int, hidden: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = in_channels
        for times, convolutions in BLOCKS:
            for _ in range(convolutions):
                layers.append(nn.Conv2d(inputs, times * width, kernel_size=3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(times * width))
                layers.append(nn.ReLU(inplace=True))
                inputs = times * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = image_size // 2 ** len(BLOCKS)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(inputs * side * side, hidden), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def vgg16(
    num_classes: int = 1000,
    in_channels: int = 3,
    batch_norm: bool = True,
    image_size: int = 224,
    width: int = 64,
    hidden: int = 4096,
) -> VGG16:
    """VGG16; as it stands, the one for ImageNet, with batch norm (138,365,992 parameters; 138,357,544 without).

    Args:
        num_classes: number of outputs: 1000 for ImageNet, 200 for Birds-200.
        in_channels: channels of the input.
        batch_norm: a batch norm after each convolution.
        image_size: height and width of the input, a multiple of 32.
        width: channels of the first block; the blocks have 1, 2, 4, 8 and 8 times as many.
        hidden: neurons of each hidden fully connected layer.

    Returns: a network from (N, in_channels, image_size, image_size) to logits of shape (N, num_classes).
    Raises: ValueError if the image cannot be halved five times.

    Example:
        >>> model = vgg16(num_classes=10, image_size=32, width=8, hidden=64)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if image_size < 32 or image_size % 32:
        raise ValueError(f"image_size={image_size!r}: VGG16 halves its input five times; give a multiple of 32")
    return VGG16(num_classes, in_channels, batch_norm, image_size, width, hidden)
