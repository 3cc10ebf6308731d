"""Contexts that restore what they change: the random state, dropout, the default device, and modes that hold inside checkpoints."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """What is drawn inside is drawn from `seed`; the global generators (torch, numpy, random) come out as they went in."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def each(kind: type, *values: Any) -> Iterator[Any]:
    """All objects of a kind in nested lists, tuples and dicts."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from each(kind, *value)
        elif isinstance(value, dict):
            yield from each(kind, *value.values())


class NoDropout(TorchFunctionMode):
    """Functional dropout passes its input on."""

    NAMES = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
                       "feature_dropout", "dropout_", "alpha_dropout_", "feature_dropout_"})  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@contextmanager
def in_checkpoints(during: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """What torch.utils.checkpoint runs again in the backward pass runs under `during`: torch's function modes do not get there."""
    from unittest.mock import patch  # not before it is needed: it brings asyncio

    hook, again = checkpoint._recomputation_hook, checkpoint.CheckpointFunction.backward

    @contextmanager
    def recomputation(*given: Any) -> Iterator[None]:
        with during(), hook(*given):
            yield

    def backward(ctx: Any, *grads: Any) -> Any:
        with during():
            return again(ctx, *grads)

    with (
        patch.object(checkpoint, "_recomputation_hook", recomputation),
        patch.object(checkpoint.CheckpointFunction, "backward", staticmethod(backward)),
    ):
        yield


def labels_on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with the CPU as torch's default device: labels are tensors, and live there."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            return function(*args, **kwargs)

    return inside
