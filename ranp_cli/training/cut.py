"""Cut a network in place: parameters, buffers, gradients, the state of its optimisers, and copies of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import BadInput
from ..graph.analyse import named_tensors
from ..graph.graph import Graph
from .optimizer_state import cut_state
from .slices import Indices, cut_tensor


@dataclass(frozen=True)
class Cut:
    """Which indices stay of the tensors of a model that lose some, by name, and of each axis; with their shapes before."""

    indices: dict[str, Indices]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, graph: Graph, stays: np.ndarray) -> Cut:
        """The cut that removes the labels which are not flagged in `stays`."""
        found = {name: graph.kept_indices(slot, stays) for name, slot in graph.slots.items()}
        found = {name: axes for name, axes in found.items() if any(index is not None for index in axes)}
        return cls(dict(found), {name: graph.slots[name].shape for name in found})

    def tensor(self, name: str, t: Tensor) -> Tensor:
        """What stays of a tensor of this name; in its layout in memory."""
        return cut_tensor(t, self.indices[name])


def cut_in_place(
    model: nn.Module, cut: Cut, optimizers: Sequence[torch.optim.Optimizer], copies: Sequence[Any] = ()
) -> None:
    """Remove from `model`, and from all that follows it, what does not stay; every parameter remains the same object.

    All is checked and made before anything changes, so that an error leaves the network as it was.

    Args:
        optimizers: those whose state is cut with the parameters; groups and settings stay as they are.
        copies: modules with the same parameters under the same names (an average of the weights, say), or dicts of tensors.

    Raises: BadInput for a state or a copy that cannot be followed.
    """
    tensors = dict(named_tensors(model))
    names = {id(t): name for name, t in tensors.items()}
    ready: list[Callable[[], None]] = []
    for name in cut.indices:
        t = tensors[name]
        grad = None if t.grad is None else cut.tensor(name, t.grad.to_dense() if t.grad.is_sparse else t.grad)
        ready.append(_replacing(t, cut.tensor(name, t.detach()), grad))
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            name = names.get(id(p), "")
            if name in cut.indices:
                ready.append(cut_state(optimizer, name, state, cut.shapes[name], cut.indices[name]))
    for copy in copies:
        ready += _cut_copy(copy, cut)
    for step in ready:
        step()


def _replacing(t: Tensor, new: Tensor, grad: Tensor | None) -> Callable[[], None]:
    def replace() -> None:
        t.grad = None
        # autograd keeps what it knows of the shape while an old loss is alive; another dtype makes it forget
        t.data = torch.empty(0, dtype=torch.float64 if t.dtype != torch.float64 else torch.float32, device=t.device)
        t.data = new
        t.grad = grad

    return replace


def network_in(copy: nn.Module) -> nn.Module:
    """The network in what keeps an average of it, as torch's AveragedModel and timm's ModelEma do; else the module itself."""
    inner = getattr(copy, "module", None)
    return inner if isinstance(inner, nn.Module) else copy


def named_copies(copy: Any) -> Mapping[str, Tensor]:
    """The tensors of a copy of a network under the names that the network has for them."""
    if isinstance(copy, Mapping):
        return copy
    if not isinstance(copy, nn.Module):
        raise BadInput(
            f"also: a {type(copy).__name__} is no copy of the network; give modules, or dicts of tensors by parameter name"
        )
    return dict(named_tensors(network_in(copy)))


def _cut_copy(copy: Any, cut: Cut) -> Iterable[Callable[[], None]]:
    tensors, ready = named_copies(copy), []
    for name, shape in cut.shapes.items():
        t = tensors.get(name)
        if t is None:
            continue  # a buffer, which an average of the weights may leave out
        if tuple(t.shape) != shape:
            raise BadInput(
                f"also: {name} has the shape {tuple(t.shape)}, in the network {shape}; give a copy that the Pruner has known from its start"
            )
        ready.append(_replacing(t, cut.tensor(name, t.detach()), None))
    if not ready and cut.shapes:
        raise BadInput(f"also: a {type(copy).__name__} has none of the network's parameters; give a copy of it")
    return ready
