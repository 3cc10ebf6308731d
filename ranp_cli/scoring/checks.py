"""Run the user's model and backward pass, and check loss and gradients: BadInput in one line for what fails."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.contexts import each
from ..core.errors import USER_EXCEPTIONS, BadInput, in_words, is_out_of_memory
from ..core.paths import is_ours
from ..core.spelling import spelled
from ..graph.graph import Layer
from .criteria import OF_VALUES, Criterion


def run_model(model: nn.Module, args: Any, kwargs: Any, index: int) -> Any:
    try:
        return model(*args, **kwargs)
    except (torch.OutOfMemoryError, BadInput):
        raise  # mended where it is known how, or told
    except USER_EXCEPTIONS as error:
        if is_out_of_memory(error) or (isinstance(error, (NameError, AttributeError)) and is_ours(_last_file(error))):
            raise  # the latter is a defect of ours: of what is wrong with an input, torch says other things
        shapes = ", ".join(str(tuple(t.shape)) for t in each(Tensor, args, kwargs))
        raise BadInput(
            f"the model fails on mini-batch {index}, of shape {shapes}: {in_words(error, 300)}; "
            "every mini-batch must be of a shape and dtype that the model takes"
        ) from error


def _last_file(error: BaseException) -> str:
    """The source file that raised it."""
    return traceback.extract_tb(error.__traceback__)[-1].filename


def run_backward(value: Tensor, index: int) -> None:
    """BadInput where code of the model's own fails: a function's backward, an op in place on what autograd saved."""
    try:
        value.backward()
    except (torch.OutOfMemoryError, BadInput):
        raise
    except USER_EXCEPTIONS as error:
        if is_out_of_memory(error):
            raise
        if is_ours(_last_file(error)):
            raise  # a defect of ours
        raise BadInput(
            f"the backward pass of the model fails on mini-batch {index}: {in_words(error, 300)}; "
            "it must be one that can be trained"
        ) from error


def second_order(value: Tensor, index: int, inputs: Sequence[Tensor], again: bool = False) -> tuple[Tensor | None, ...]:
    """The gradients of `value`, None for an input that it does not depend on; BadInput where an op has no second derivative."""
    try:
        return torch.autograd.grad(value, inputs, allow_unused=True, create_graph=again, retain_graph=True)
    except torch.OutOfMemoryError:
        raise
    except USER_EXCEPTIONS as error:
        if is_out_of_memory(error):
            raise
        raise BadInput(
            f"criterion 'obd' takes second derivatives, and one fails on mini-batch {index}: {in_words(error, 300)}; "
            "use taylor or another criterion"
        ) from error


def check_differentiable(gradients: Sequence[Tensor], index: int) -> None:
    """BadInput where a backward of the model's own is marked `once_differentiable`: torch says so only to what passes it."""
    nodes = [g.grad_fn for g in gradients if g.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name() == "torch::autograd::Error":
            raise BadInput(
                f"criterion 'obd' takes second derivatives, and on mini-batch {index} the model runs an autograd.Function "
                "that is marked once_differentiable; use taylor or another criterion"
            )
        following = [each for each, _ in node.next_functions if each is not None and each not in seen]
        seen.update(following)
        nodes.extend(following)


def check_finite(loss: Tensor, index: int, layers: Sequence[Layer], weights: dict[str, Tensor]) -> None:
    if not bool(torch.isfinite(loss)):
        bad = next((layer.name for layer in layers if not bool(torch.isfinite(weights[layer.slot]).all())), None)
        where = (
            f"layer {bad} has weights that are not finite"
            if bad
            else f"all weights from layer {layers[0].name} on are finite"
        )
        raise BadInput(
            f"the loss of mini-batch {index} is {loss.item()} ({where}); give a batch and {spelled('loss')} that make it finite"
        )
    if not loss.requires_grad:
        raise BadInput(
            f"the loss of mini-batch {index} has no gradient: it depends on no layer (the first is {layers[0].name}); "
            f"give a {spelled('loss')} that is differentiable in the model's output"
        )


def check_scores(scores: Sequence[np.ndarray], layers: Sequence[Layer], criterion: Criterion) -> None:
    what = {"curvature": "second derivative", **dict.fromkeys(OF_VALUES, "activation")}.get(
        criterion.reduce, "gradient"
    )
    for s, layer in zip(scores, layers, strict=True):
        if not np.isfinite(s).all():
            raise BadInput(
                f"the {what} of layer {layer.name} is not finite; give inputs of a sane scale or another {spelled('loss')}"
            )
    if any(s.any() for s in scores):
        return
    if criterion.of_values:
        raise BadInput(
            f"criterion '{criterion.name}' is zero for every neuron of every layer from {layers[0].name} on; give mini-batches "
            "that are not all the same number, or another criterion"
        )
    if criterion.of_units:
        raise BadInput(
            f"the loss is the same without any unit, from layer {layers[0].name} on; check that the targets are not all "
            "ignored and that the loss depends on the output"
        )
    if criterion.reduce == "curvature":
        raise BadInput(
            f"the loss has no second derivative: it is zero in every layer from {layers[0].name} on, as behind a loss "
            f"such as l1; use taylor or another criterion, or another {spelled('loss')}"
        )
    raise BadInput(
        f"the loss has no gradient: it is zero in every layer from {layers[0].name} on; "
        "check that the targets are not all ignored and that the loss depends on the output"
    )
