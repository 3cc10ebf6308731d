"""Contexts that restore what they change, and that other threads do not see: dropout, the default device, warnings, checkpoints."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from . import random_state
from .random_state import seeded as seeded

P = ParamSpec("P")
R = TypeVar("R")


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

    NAMES = frozenset(
        {
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
            "feature_dropout",
            "dropout_",
            "alpha_dropout_",
            "feature_dropout_",
        }
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


During = Callable[[], AbstractContextManager[Any]]
_during: ContextVar[During | None] = ContextVar("during", default=None)
_hooking = threading.Lock()


@contextmanager
def in_checkpoints(during: During) -> Iterator[None]:
    """What torch.utils.checkpoint runs again in the backward pass runs under `during`: torch's function modes do not get there.

    It is noted at the forward pass of each checkpoint, as the backward pass may be in another thread.
    """
    _hook_checkpoints()
    token = _during.set(during)
    try:
        yield
    finally:
        _during.reset(token)


def _hook_checkpoints() -> None:
    """Once for the process: checkpoints that are made inside of `in_checkpoints` know what to run again under.

    Those that are made outside, by other threads too, are as they were.
    """
    with _hooking:
        module: Any = checkpoint
        if hasattr(module, "_hooked_by_ranp"):
            return
        frame, function, hook = module._CheckpointFrame, module.CheckpointFunction, module._recomputation_hook
        make, forward, backward = frame.__init__, function.forward, function.backward

        def made(self: Any, *given: Any, **named: Any) -> None:
            make(self, *given, **named)
            self.again = _as_now()

        def first(ctx: Any, *given: Any) -> Any:
            ctx.again = _as_now()
            return forward(ctx, *given)

        def second(ctx: Any, *grads: Any) -> Any:
            with getattr(ctx, "again", nullcontext)():  # a checkpoint that is older than these hooks has none
                return backward(ctx, *grads)

        @contextmanager
        def recomputation(target: Any, *given: Any) -> Iterator[None]:
            of = target()
            with getattr(of, "again", nullcontext)(), hook(target, *given):
                yield

        frame.__init__ = made
        function.forward, function.backward = staticmethod(first), staticmethod(second)
        module._recomputation_hook = recomputation
        module._hooked_by_ranp = True


def _as_now() -> During:
    """What enters again the contexts of now, and draws again what is drawn from now on."""
    during, own = _during.get(), random_state.current()
    if during is None and own is None:
        return nullcontext
    drawn = None if own is None else own.copy()

    @contextmanager
    def again() -> Iterator[None]:
        with nullcontext() if drawn is None else random_state.private(drawn.copy()), (during or nullcontext)():
            yield

    return again


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without the caller's `torch.autocast`: the precision is that of its own options."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return inside


def labels_on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with the CPU as torch's default device: labels are tensors, and live there."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            return function(*args, **kwargs)

    return inside


class SharedFlag:
    """A flag of the whole process that calls in several threads want set: the first one sets it, the last one restores it."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self.read, self.write = read, write
        self.users, self.before, self.lock = 0, None, threading.Lock()

    @contextmanager
    def at(self, value: Any) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.before = self.read()
                self.write(value)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.write(self.before)


def _short_products() -> tuple[Any, ...]:
    """What the process allows fp32 convolutions and matrix products to be computed in."""
    try:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer names, which the older ones cannot read
        return tuple(part.fp32_precision for part in _parts())


def _allow_short_products(value: tuple[Any, ...]) -> None:
    if len(value) == 2:
        torch.backends.cudnn.allow_tf32 = value[0]
        torch.set_float32_matmul_precision(value[1])
    else:
        for part, precision in zip(_parts(), value, strict=True):
            part.fp32_precision = precision


def _parts() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


_products = SharedFlag(_short_products, _allow_short_products)


def products(device: torch.device, short: bool = False) -> AbstractContextManager[None]:
    """fp32 products on a GPU are computed in fp32, or (`short`) in TF32; other threads' are too meanwhile. A CPU's are as ever."""
    if device.type != "cuda":
        return nullcontext()
    if len(_short_products()) == 2:
        return _products.at((short, "high" if short else "highest"))
    return _products.at(("tf32" if short else "ieee",) * len(_parts()))


def in_tf32(device: torch.device) -> bool:
    """Whether fp32 convolutions or matrix products may be computed in TF32 there; for convolutions that is torch's default."""
    return device.type == "cuda" and not set(_short_products()) <= {False, "highest", "ieee"}


_filters = threading.Lock()


@contextmanager
def ignoring(*known: tuple[type[Warning], str]) -> Iterator[None]:
    """Without these warnings: (category, how the message begins, as a regular expression).

    Filters are one list for the process. Other threads lose nothing but these warnings, and what they add to it stays.
    """
    added = [("ignore", re.compile(start, re.I) if start else None, category, None, 0) for category, start in known]
    with _filters:
        _filter_list()[:0] = added
    try:
        yield
    finally:
        with _filters:
            _filter_list()[:] = [each for each in warnings.filters if not any(each is own for own in added)]


def _filter_list() -> list[Any]:
    """The filters of warnings as they now stand, which are a list whatever their annotation says."""
    return cast(list[Any], warnings.filters)
