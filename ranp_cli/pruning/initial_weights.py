"""What a slim network starts from: its surviving weights, or weights drawn anew."""

from __future__ import annotations

import torch
from torch import nn

from ..graph.layers import owner_of

INITS = ("keep", "factory", "glorot", "orthogonal")


# -- weights after refining


def initialise(model: nn.Module, init: str, layers: list[str]) -> None:
    """Draw the weights of a slim network anew, as the paper does before training from scratch.

    `glorot` (uniform) and `orthogonal` draw the layers' weights and zero their biases, and reset norms;
    `factory` calls each module's own `reset_parameters`. Uses the global generator: seed it before.
    """
    if init == "keep":
        return
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "reset_parameters") and callable(module.reset_parameters):
                module.reset_parameters()
        if init == "factory":
            return
        draw = nn.init.xavier_uniform_ if init == "glorot" else nn.init.orthogonal_
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in layers:
            weight = parameters[name]
            if weight.ndim > 1:
                draw(weight)
            owner = owner_of(name)
            bias = parameters.get(f"{owner}.bias" if owner else "bias")
            if bias is not None:
                nn.init.zeros_(bias)
