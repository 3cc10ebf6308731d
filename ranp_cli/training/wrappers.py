"""Networks in wrappers: DistributedDataParallel, whose processes must remove the same units, and torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..core.copies import inside_compiled
from ..core.errors import BadInput


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of DistributedDataParallel and torch.compile; BadInput for what is none."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model is a {type(model).__name__}; give an nn.Module")
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else inside_compiled(model)
        if inner is model:
            break
        model = inner
    if isinstance(model, nn.DataParallel):
        raise BadInput(
            "DataParallel copies the network in every step; use DistributedDataParallel, or the model itself"
        )
    for name, p in model.named_parameters():
        if type(p.data) is not torch.Tensor:
            raise BadInput(
                f"'{name}' is a {type(p.data).__name__}: a network whose parameters are spread over processes cannot be cut in place; "
                "prune it before, with ranp.prune"
            )
    return model


def _parallel(model: nn.Module) -> DistributedDataParallel | None:
    while (inner := inside_compiled(model)) is not model:
        model = inner
    return model if isinstance(model, DistributedDataParallel) else None


def all_batches(model: nn.Module, batches: int) -> int:
    """The mini-batches of all processes."""
    parallel = _parallel(model)
    if parallel is None:
        return batches
    total = torch.tensor(batches, device=next(parallel.parameters()).device)
    torch.distributed.all_reduce(total, group=parallel.process_group)
    return int(total)


def average(model: nn.Module, scores: list[np.ndarray], batches: int) -> list[np.ndarray]:
    """The mean of the scores of all processes, each weighted by its mini-batches; the same numbers in every one."""
    parallel = _parallel(model)
    if parallel is None:
        return scores
    group, device = parallel.process_group, next(parallel.parameters()).device
    flat = torch.from_numpy(np.concatenate([*[s.reshape(-1) * batches for s in scores], [float(batches)]])).to(device)
    torch.distributed.all_reduce(flat, group=group)
    torch.distributed.broadcast(flat, torch.distributed.get_global_rank(group, 0), group=group)
    total = flat.cpu().numpy()
    ends = np.cumsum([s.size for s in scores])
    return [
        part.reshape(s.shape) / max(total[-1], 1.0)
        for part, s in zip(np.split(total[:-1], ends[:-1]), scores, strict=True)
    ]


def rewrap(model: nn.Module) -> None:
    """Let DistributedDataParallel see that its parameters have other shapes: it is set up anew, as it was."""
    old = _parallel(model)
    if old is None:
        return
    hooks: Any = list(old._comm_hooks)
    training = old.training
    for p in old.module.parameters():
        p.grad = None if old.gradient_as_bucket_view else p.grad  # a view of a bucket that goes
    DistributedDataParallel.__init__(  # the wrapper that the user's loop calls stays the same object
        old,
        old.module,
        device_ids=old.device_ids,
        output_device=old.output_device,
        dim=old.dim,
        broadcast_buffers=old.broadcast_buffers,
        process_group=old.process_group,
        bucket_cap_mb=old.bucket_bytes_cap / 2**20,
        find_unused_parameters=old.find_unused_parameters,
        gradient_as_bucket_view=old.gradient_as_bucket_view,
        static_graph=old.static_graph,
    )
    old.training = training
    for hook, state in hooks:
        old.register_comm_hook(state, hook)
