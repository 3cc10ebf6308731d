"""Import the packages whose networks are tested: MONAI, nnU-Net and timm, without the warnings of their own affairs."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn


@contextmanager
def quietly() -> Any:
    """Importing and building others' networks warns of others' affairs: what they use is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


_declared: list[torch.library.Library] = []  # lives as long as the process


def declare_torchvision_ops() -> None:
    """torchvision cannot be imported when its C extension does not fit torch: it wants two schemas. Give it those."""
    found = None if hasattr(torch.ops.torchvision, "nms") else find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return
    for library in Path(found.submodule_search_locations[0]).glob("_C*.*"):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:  # made for another build of torch
            continue
    ops = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        ops.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(ops)


def monai(name: str, *args: Any, **options: Any) -> nn.Module:
    with quietly():
        import monai.networks.nets as nets

        return getattr(nets, name)(*args, **options)


def nnunet(name: str, **options: Any) -> nn.Module:
    with quietly():
        from dynamic_network_architectures.architectures import unet

        return getattr(unet, name)(
            1, 3, (4, 8, 16), nn.Conv3d, 3, (1, 2, 2), num_classes=2, conv_bias=True, norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, **options,
        )  # fmt: skip


def timm(name: str, **options: Any) -> nn.Module:
    declare_torchvision_ops()
    with quietly():
        import timm

        return timm.create_model(name, pretrained=False, num_classes=5, **options)


# -- MONAI
