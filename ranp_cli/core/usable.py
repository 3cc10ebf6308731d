"""Models that gradients cannot be taken of: BadInput that says why, before anything runs."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .copies import replicate
from .errors import BadInput

QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.nn.quantized",
    "torch.ao.nn.quantizable",
)


def usable(model: nn.Module) -> nn.Module:
    """`model`, or a copy of one whose tensors were made in inference mode; BadInput where gradients cannot be taken."""
    if torch.is_inference_mode_enabled():
        raise BadInput("this is called inside torch.inference_mode(), where nothing has gradients; call it outside")
    for name, module in model.named_modules():
        if type(module).__module__.startswith(QUANTISED):
            _refuse_quantised(name, type(module).__name__)
    is_of_inference = False
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):  # has no shape yet; running the model says so
            continue
        if tensor.is_meta:
            raise BadInput(
                f"'{name}' of the model is on the meta device and has no values; make the model on a real one, or, after "
                "model.to_empty, load its weights or initialise them"
            )
        if tensor.is_quantized:
            _refuse_quantised(name, str(tensor.dtype))
        is_of_inference |= tensor.is_inference()
    return replicate(model, lambda _, t: t.clone()) if is_of_inference else model


def _refuse_quantised(name: str, kind: str) -> None:
    raise BadInput(
        f"'{name or 'the model'}' is quantised ({kind}): its weights have no gradients; prune the model before it is "
        "quantised, and quantise the slim one"
    )
