"""Real networks, small: of MONAI, nnU-Net and timm, and the video networks that are seldom installed, written small here.

Every factory can be loaded by the command line (`tests/laws/packages.py:monai_unet`) and imports its package only then; a
package that is not installed raises ImportError there. As in zoo.py, a network is a factory and the shape of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from package_imports import monai, nnunet, timm
from torch import nn
from zoo import Net

VOLUME = (2, 1, 16, 16, 16)
LARGE = (2, 1, 32, 32, 32)
CLIP = (2, 3, 8, 16, 16)
PHOTO = (2, 3, 64, 64)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    package: str = ""  # that it imports
    statistics: bool = False  # group or layer norm over pruned channels: law 1 holds for the rest
    attention: bool = False  # what attention touches stays: the share that goes is counted outside of it
    loss: bool = True  # zoo.loss takes its output
    fast: bool = False  # in the default run, one network of each package; the others are slow

    @property
    def name(self) -> str:
        return self.make.__name__


CASES: list[Case] = []


def case(shape: tuple[int, ...], package: str = "", **more: Any) -> Callable:
    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(Case(make, shape, package, **more))
        return make

    return add


@case(VOLUME, "monai", fast=True)
def monai_unet() -> nn.Module:  # residual units
    return monai("UNet", 3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, norm="batch")


@case(VOLUME, "monai")
def monai_basic_unet() -> nn.Module:
    return monai("BasicUNet", 3, 1, 2, (4, 4, 8, 16, 16, 4), norm="batch")


@case(LARGE, "monai")
def monai_basic_unet_instance() -> nn.Module:  # MONAI's default norm
    return monai("BasicUNet", 3, 1, 2, (4, 4, 8, 16, 16, 4))


@case(VOLUME, "monai")
def monai_basic_unet_plus_plus() -> nn.Module:
    return monai("BasicUNetPlusPlus", 3, 1, 2, (4, 4, 8, 16, 16, 4), deep_supervision=True, norm="batch")


@case(VOLUME, "monai", statistics=True)
def monai_segresnet() -> nn.Module:
    return monai("SegResNet", 3, 8, 1, 2, norm=("group", {"num_groups": 2}))


@case(VOLUME, "monai")
def monai_segresnet_batch() -> nn.Module:
    return monai("SegResNet", 3, 8, 1, 2, norm="batch")


@case(VOLUME, "monai")
def monai_segresnet_ds() -> nn.Module:
    return monai("SegResNetDS", 3, 8, 1, 2, blocks_down=(1, 2, 2), dsdepth=2)


@case(VOLUME, "monai")
def monai_vnet() -> nn.Module:
    return monai("VNet", 3, 1, 2)


def dynunet(**options: Any) -> nn.Module:
    return monai("DynUNet", 3, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[4, 8, 16, 16], **options)


@case(LARGE, "monai")
def monai_dynunet() -> nn.Module:
    return dynunet()


@case(VOLUME, "monai")
def monai_dynunet_residual() -> nn.Module:
    return dynunet(norm_name="batch", res_block=True)


@case(LARGE, "monai")
def monai_dynunet_supervised() -> nn.Module:
    return dynunet(res_block=True, deep_supervision=True, deep_supr_num=2)


@case(VOLUME, "monai")
def monai_attention_unet() -> nn.Module:
    return monai("AttentionUnet", 3, 1, 2, (4, 8, 16), (2, 2))


@case((2, 1, 8, 8, 8), "monai")
def monai_highresnet() -> nn.Module:  # shortcuts are padded by a count in the code: what meets the padding stays
    return monai("HighResNet", 3, 1, 2)


@case((2, 1, 64, 64, 64), "monai")
def monai_densenet121() -> nn.Module:
    return monai("DenseNet121", 3, 1, 3, init_features=8, growth_rate=4)


@case(LARGE, "monai")
def monai_se_resnet50() -> nn.Module:
    return monai("SEResNet50", spatial_dims=3, in_channels=1, num_classes=3, inplanes=16, layers=(1, 1, 1, 1))


def resnet18(shortcut: str) -> nn.Module:
    return monai("ResNet", "basic", [2, 2, 2, 2], [4, 8, 16, 32], 3, 1, num_classes=3, shortcut_type=shortcut)


@case(LARGE, "monai")
def monai_resnet18_a() -> nn.Module:  # a shortcut padded up to a count in the code
    return resnet18("A")


@case(LARGE, "monai")
def monai_resnet18_b() -> nn.Module:
    return resnet18("B")


@case(LARGE, "monai")
def monai_efficientnet() -> nn.Module:
    return monai("EfficientNetBN", "efficientnet-b0", spatial_dims=3, in_channels=1, num_classes=3, pretrained=False)


@case(LARGE, "monai", statistics=True, attention=True)
def monai_unetr() -> nn.Module:
    return monai("UNETR", 1, 2, 32, feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4)


@case((2, 1, 64, 64, 64), "monai", statistics=True, attention=True)
def monai_swin_unetr() -> nn.Module:
    options = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "feature_size": 12, "window_size": 3}
    return monai("SwinUNETR", 1, 2, patch_size=2, **options)


# -- nnU-Net


def plain(supervised: bool) -> nn.Module:
    return nnunet("PlainConvUNet", n_conv_per_stage=2, n_conv_per_stage_decoder=2, deep_supervision=supervised)


def encoder(supervised: bool) -> nn.Module:
    blocks = {"n_blocks_per_stage": (1, 2, 2), "n_conv_per_stage_decoder": 1}
    return nnunet("ResidualEncoderUNet", deep_supervision=supervised, **blocks)


@case(VOLUME, "dynamic_network_architectures")
def nnunet_plain() -> nn.Module:
    return plain(False)


@case(VOLUME, "dynamic_network_architectures")
def nnunet_plain_supervised() -> nn.Module:
    return plain(True)


@case(VOLUME, "dynamic_network_architectures")
def nnunet_residual_encoder() -> nn.Module:
    return encoder(False)


@case(VOLUME, "dynamic_network_architectures", fast=True)
def nnunet_residual_encoder_supervised() -> nn.Module:
    return encoder(True)


# -- timm


@case(PHOTO, "timm")
def timm_resnet50() -> nn.Module:
    return timm("resnet50")


@case(PHOTO, "timm")
def timm_mobilenetv3() -> nn.Module:
    return timm("mobilenetv3_small_100")


@case(PHOTO, "timm")
def timm_densenet121() -> nn.Module:
    return timm("densenet121", growth_rate=8)


@case(PHOTO, "timm", statistics=True)
def timm_convnext() -> nn.Module:
    return timm("convnext_atto")


@case(PHOTO, "timm")
def timm_hrnet() -> nn.Module:
    return timm("hrnet_w18_small")


# -- written here, of convolution, norm and ReLU


def conv(i: int, o: int, kernel: Any = 3, stride: Any = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
    padding = tuple(k // 2 for k in kernel)
    weight = nn.Conv3d(i, o, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(weight, nn.BatchNorm3d(o), *[nn.ReLU(inplace=True)] * relu)


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, classes))


def residual(body: nn.Module, i: int, o: int, stride: int = 1) -> nn.Module:
    """relu(body(x) + shortcut(x)); the shortcut is a convolution where shapes differ."""
    short = nn.Identity() if i == o and stride == 1 else conv(i, o, 1, stride, relu=False)
    return Net(lambda m, x: F.relu(m.body(x).add_(m.short(x))), body=body, short=short)


@case(CLIP, fast=True)
def r3d_18() -> nn.Module:
    def block(i: int, o: int, stride: int) -> nn.Module:
        return residual(nn.Sequential(conv(i, o, 3, stride), conv(o, o, relu=False)), i, o, stride)

    plan = ((8, 8, 1), (8, 16, 2), (16, 32, 2), (32, 64, 2))
    blocks = [b for i, o, stride in plan for b in (block(i, o, stride), block(o, o, 1))]
    return nn.Sequential(conv(3, 8, (3, 7, 7), (1, 2, 2)), *blocks, head(64))


@case(CLIP)
def r2plus1d_18() -> nn.Module:
    def factored(i: int, o: int, stride: int, relu: bool) -> nn.Module:
        middle = i * o * 27 // (i * 9 + o * 3)
        return nn.Sequential(
            conv(i, middle, (1, 3, 3), (1, stride, stride)), conv(middle, o, (3, 1, 1), (stride, 1, 1), relu=relu)
        )

    def block(i: int, o: int, stride: int) -> nn.Module:
        return residual(nn.Sequential(factored(i, o, stride, True), factored(o, o, 1, False)), i, o, stride)

    plan = ((8, 8, 1), (8, 16, 2), (16, 32, 2))
    blocks = [b for i, o, stride in plan for b in (block(i, o, stride), block(o, o, 1))]
    return nn.Sequential(conv(3, 8), *blocks, head(32))


@case((2, 3, 16, 16, 16))
def slowfast() -> nn.Module:  # the slow path sees every fourth frame, and laterally the fast one
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        slow, fast = m.slow1(x[:, :, ::4]), m.fast1(x)
        slow = m.slow2(torch.cat([slow, m.lateral1(fast)], 1))
        fast = m.fast2(fast)
        slow = m.slow3(torch.cat([slow, m.lateral2(fast)], 1))
        return m.fc(m.drop(torch.cat([slow.mean((2, 3, 4)), m.fast3(fast).mean((2, 3, 4))], 1)))

    def stage(i: int, o: int, time: int) -> nn.Module:
        body = nn.Sequential(
            conv(i, o // 2, (time, 1, 1)), conv(o // 2, o // 2, (1, 3, 3)), conv(o // 2, o, 1, relu=False)
        )
        return residual(body, i, o)

    return Net(run, slow1=conv(3, 16, (1, 7, 7), (1, 2, 2)), fast1=conv(3, 4, (5, 7, 7), (1, 2, 2)),
               lateral1=conv(4, 8, (5, 1, 1), (4, 1, 1)), slow2=stage(24, 32, 1), fast2=stage(4, 8, 3),
               lateral2=conv(8, 16, (5, 1, 1), (4, 1, 1)), slow3=stage(48, 64, 3), fast3=stage(8, 16, 3),
               drop=nn.Dropout(0.5), fc=nn.Linear(80, 5))  # fmt: skip


@case(CLIP)
def s3d() -> nn.Module:  # Inception blocks of separable convolutions; the classifier is a convolution
    def separable(i: int, o: int) -> nn.Module:
        return nn.Sequential(conv(i, o, (1, 3, 3)), conv(o, o, (3, 1, 1)))

    def inception(i: int, a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> nn.Module:
        branches = nn.ModuleList([
            conv(i, a, 1), nn.Sequential(conv(i, b[0], 1), separable(*b)), nn.Sequential(conv(i, c[0], 1), separable(*c)),
            nn.Sequential(nn.MaxPool3d(3, 1, 1), conv(i, d, 1)),
        ])  # fmt: skip
        return Net(lambda m, x: torch.cat([branch(x) for branch in m.branches], 1), branches=branches)

    return nn.Sequential(
        separable(3, 8), nn.MaxPool3d((1, 2, 2)), inception(8, 8, (6, 12), (2, 4), 4), nn.MaxPool3d(2),
        inception(28, 16, (8, 16), (4, 8), 8), nn.Conv3d(48, 5, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
    )  # fmt: skip


@case(CLIP)
def shufflenetv2_3d() -> nn.Module:
    def shuffle(x: torch.Tensor) -> torch.Tensor:
        n, c, *space = x.shape
        return x.view(n, 2, c // 2, *space).transpose(1, 2).reshape(n, c, *space)

    def branch(i: int, o: int, stride: int) -> nn.Module:
        return nn.Sequential(conv(i, o, 1), conv(o, o, 3, stride, groups=o, relu=False), conv(o, o, 1))

    def unit(c: int) -> nn.Module:
        def run(m: Any, x: torch.Tensor) -> torch.Tensor:
            left, right = x.chunk(2, 1)
            return shuffle(torch.cat([left, m.branch(right)], 1))

        return Net(run, branch=branch(c // 2, c // 2, 1))

    def down(i: int, o: int) -> nn.Module:
        short = nn.Sequential(conv(i, i, 3, 2, groups=i, relu=False), conv(i, o // 2, 1))
        return Net(
            lambda m, x: shuffle(torch.cat([m.short(x), m.branch(x)], 1)), short=short, branch=branch(i, o // 2, 2)
        )

    return nn.Sequential(conv(3, 8, 3, (1, 2, 2)), down(8, 24), unit(24), unit(24), down(24, 48), unit(48), conv(48, 64, 1), head(64))  # fmt: skip


@case(CLIP)
def resnext_3d() -> nn.Module:
    def block(i: int, width: int, o: int, stride: int = 1) -> nn.Module:
        body = nn.Sequential(conv(i, width, 1), conv(width, width, 3, stride, groups=4), conv(width, o, 1, relu=False))
        return residual(body, i, o, stride)

    return nn.Sequential(conv(3, 8), block(8, 16, 32), block(32, 16, 32), block(32, 32, 64, 2), block(64, 32, 64), head(64))  # fmt: skip


@case(CLIP)
def cnn_gru() -> nn.Module:  # features of every frame, read in turn by a recurrent layer
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        frames, _ = m.gru(m.cnn(x).mean((3, 4)).transpose(1, 2))
        return m.fc(frames[:, -1])

    cnn = nn.Sequential(conv(3, 8, 3, (1, 2, 2)), conv(8, 16), conv(16, 32, 3, (1, 2, 2)), conv(32, 32), conv(32, 24))
    return Net(run, cnn=cnn, gru=nn.GRU(24, 16, batch_first=True), fc=nn.Linear(16, 5))


@case((2, 6, 32, 32), fast=True)
def psmnet() -> nn.Module:  # two views of three channels; pyramid pooling, a cost volume, an hourglass, a regression
    disparities = 4

    def conv2(i: int, o: int, stride: int = 1, relu: bool = True) -> nn.Module:
        weight = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        return nn.Sequential(weight, nn.BatchNorm2d(o), *[nn.ReLU(inplace=True)] * relu)

    def features(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x)
        y = y + m.second(y)
        pools = [F.interpolate(m.pool(F.avg_pool2d(y, k)), y.shape[2:], mode="bilinear") for k in (2, 4)]
        return m.last(torch.cat([y, *pools], 1))

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        left, right = m.features(x[:, :3]), m.features(x[:, 3:])
        n, c, h, w = left.shape
        cost = left.new_zeros(n, 2 * c, disparities, h, w)
        for i in range(disparities):
            cost[:, :c, i, :, i:] = left[..., i:]
            cost[:, c:, i, :, i:] = right[..., : w - i]
        cost = m.enter(cost)
        up = m.up(m.middle(m.down(cost)))
        scores = m.classify(F.relu(up + cost))
        scores = F.interpolate(scores, (4 * disparities, 4 * h, 4 * w), mode="trilinear").squeeze(1)
        places = torch.arange(4 * disparities, dtype=x.dtype, device=x.device)
        return (F.softmax(scores, 1) * places.view(1, -1, 1, 1)).sum(1)

    tower = Net(features, first=nn.Sequential(conv2(3, 12, 2), conv2(12, 12, 2)), second=nn.Sequential(conv2(12, 12), conv2(12, 12, relu=False)),
                pool=conv2(12, 6), last=nn.Sequential(conv2(24, 16), nn.Conv2d(16, 8, 1, bias=False)))  # fmt: skip
    up = nn.Sequential(nn.ConvTranspose3d(16, 12, 3, 2, 1, 1, bias=False), nn.BatchNorm3d(12))
    return Net(run, features=tower, enter=nn.Sequential(conv(16, 12), conv(12, 12)), down=conv(12, 16, 3, 2), middle=conv(16, 16), up=up,
               classify=nn.Sequential(conv(12, 8), nn.Conv3d(8, 1, 3, padding=1, bias=False)))  # fmt: skip
