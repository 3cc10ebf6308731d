"""C3D with a recurrent head (Molchanov et al., CVPR 2016): gestures in a video, clip by clip."""

from torch import Tensor, nn

BLOCKS = [(1, 1), (2, 1), (4, 2), (8, 2), (8, 2)]  # channels, in widths of the first, and number of convolutions


class C3DRNN(nn.Module):
    """A C3D turns each clip into a vector of features, a recurrent layer reads them in turn.

    Input of shape (N, in_channels, clips * frames, image_size, image_size): any number of clips. Output of shape
    (N, num_classes, clips), logits with the classes where torch's losses look for them; what a clip is taken for
    depends on it and on those before it.

    Args:
        num_classes: classes told apart.
        in_channels: channels of the video.
        frames: frames of one clip.
        image_size: height and width of a frame, a multiple of 16.
        width: channels of the first convolution; the blocks have 1, 2, 4, 8 and 8 times as many.
        features: neurons of each of the two fully connected layers.
        hidden: neurons of the recurrent layer.
        softmax: in eval mode, return class probabilities in place of logits.

    Source: Molchanov et al., "Online Detection and Classification of Dynamic Hand Gestures with Recurrent 3D
    Convolutional Neural Networks", CVPR 2016; the C3D is that of Tran et al., ICCV 2015. The recurrent layer has a plain
    ReLU.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        frames: int,
        image_size: int,
        width: int,
        features: int,
        hidden: int,
        softmax: bool,
    ) -> None:
        super().__init__()
        self.frames = frames
        layers: list[nn.Module] = []
        inputs, length = in_channels, frames
        for block, (times, convolutions) in enumerate(BLOCKS):
            for _ in range(convolutions):
                layers += [nn.Conv3d(inputs, times * width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                inputs = times * width
            step = 1 if block == 0 or length == 1 else 2  # the first pooling, and those of one frame, keep the time
            length //= step
            layers.append(nn.MaxPool3d((step, 2, 2), ceil_mode=block == len(BLOCKS) - 1))
        self.c3d = nn.Sequential(*layers)
        side = (image_size // 16 + 1) // 2
        self.embed = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(inputs * length * side * side, features), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Dropout()),
        )
        self.recurrent = nn.RNN(features, hidden, nonlinearity="relu")
        self.head = nn.Linear(hidden, num_classes)
        self.softmax = nn.Softmax(dim=1) if softmax else None

    def forward(self, x: Tensor) -> Tensor:
        samples, total = len(x), x.shape[2]
        if total % self.frames:
            raise ValueError(f"a video of {total} frames: clips have {self.frames} frames; give a multiple of it")
        clips = x.unflatten(2, (-1, self.frames)).transpose(1, 2).flatten(0, 1)  # (N * clips, C, frames, H, W)
        y = self.embed(self.c3d(clips)).unflatten(0, (samples, -1)).transpose(0, 1)  # (clips, N, features)
        y, _ = self.recurrent(y)
        y = self.head(y).permute(1, 2, 0)
        return y if self.training or self.softmax is None else self.softmax(y)


def c3d_rnn(
    num_classes: int = 25,
    in_channels: int = 1,
    frames: int = 8,
    image_size: int = 112,
    width: int = 64,
    features: int = 4096,
    hidden: int = 256,
    softmax: bool = False,
) -> C3DRNN:
    """The recurrent C3D for gestures; as it stands, of depth videos, in clips of 8 frames of 112x112.

    Args:
        num_classes: classes told apart: 25 gestures.
        in_channels: channels of the video: 1 for depth, 3 for colour.
        frames: frames of one clip; pooling in time stops where one is left.
        image_size: height and width of a frame, a multiple of 16.
        width: channels of the first convolution; the blocks have 1, 2, 4, 8 and 8 times as many.
        features: neurons of each of the two fully connected layers.
        hidden: neurons of the recurrent layer.
        softmax: in eval mode, return class probabilities in place of logits.

    Returns: a network from (N, in_channels, clips * frames, image_size, image_size) to (N, num_classes, clips).
    Raises: ValueError if a clip has no frames, or if the image cannot be halved four times.

    Example:
        >>> model = c3d_rnn(num_classes=5, image_size=16, width=4, features=16, hidden=8)
        >>> model(torch.zeros(2, 1, 24, 16, 16)).shape
        torch.Size([2, 5, 3])
    """
    if frames < 1:
        raise ValueError(f"frames={frames!r}: a clip has at least 1 frame")
    if image_size < 16 or image_size % 16:
        raise ValueError(f"image_size={image_size!r}: C3D halves its input four times; give a multiple of 16")
    return C3DRNN(num_classes, in_channels, frames, image_size, width, features, hidden, softmax)
