"""Guess the shape of an input from the first layer, for networks that come without one."""

from __future__ import annotations

import torch
from torch import nn

from ..core.errors import USER_EXCEPTIONS, BadInput, RuleFailure
from ..core.example import Example
from ..core.spelling import spelled
from ..rules.labels import Ties
from .analyse import named_tensors, new_tracer, trace_once
from .layers import make_slot, owner_of


def guess_example(model: nn.Module) -> Example:
    """An input that the model takes, judged by its first convolution or linear layer; BadInput when none is found."""
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    for name, p in model.named_parameters():
        if p.ndim < 2:
            continue
        owner = dict(model.named_modules()).get(owner_of(name))
        channels = p.shape[1] * getattr(owner, "groups", 1) if p.ndim > 2 else p.shape[1]
        for size in (32, 64, 96, 128, 224, 16, 8) if p.ndim > 2 else (1,):
            example = Example((torch.empty((1, channels, *[size] * (p.ndim - 2)), device="meta"),))
            try:
                for training in (False, True):
                    trace_once(new_tracer(ties), model, example.with_batch(2 if training else 1), slots, training)
            except RuleFailure:
                raise
            except USER_EXCEPTIONS:  # not this size
                continue
            return example
        break
    raise BadInput(
        f"the shape of the model's input is not known and could not be guessed; give {spelled('inputs')}, as in {spelled('inputs', (1, 1, 64, 64, 64))}"
    )
