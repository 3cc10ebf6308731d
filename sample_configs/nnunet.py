"""A plain nnU-Net (package `dynamic_network_architectures`), its classes filled in: what an option cannot say, Python can."""

from collections.abc import Sequence

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn


def plain_unet(
    input_channels: int = 1,
    num_classes: int = 2,
    features: Sequence[int] = (32, 64, 128, 256, 320),
    deep_supervision: bool = True,
) -> PlainConvUNet:
    """The 3D network that nnU-Net plans: instance norm, leaky ReLU, two convolutions per stage.

    Args:
        input_channels: channels of the input, one per modality.
        num_classes: channels of the output.
        features: channels of each stage; every stage but the first halves the resolution.
        deep_supervision: return an output of every decoder stage, the finest first.

    Returns: a network from (N, input_channels, D, H, W) to (N, num_classes, D, H, W), or to a list of such outputs; D, H
        and W are multiples of 2 ** (stages - 1).
    """
    return PlainConvUNet(
        input_channels,
        n_stages=len(features),
        features_per_stage=tuple(features),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=(1, *[2] * (len(features) - 1)),
        n_conv_per_stage=2,
        num_classes=num_classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )
