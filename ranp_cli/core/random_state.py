"""Seeds that no other thread sees.

torch, numpy and Python have one global generator each. While no other thread is alive, these are seeded and put back
afterwards. Beside other threads they are not touched: torch's random ops get a generator of this thread's own, which draws
the same numbers. What is drawn from numpy's or Python's global generator is then not seeded, as there is no other one to
give; code that draws from its own generator (`np.random.default_rng(seed)`) is the same in any case.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .threads import is_alone

aten = torch.ops.aten
DEFAULT = torch.default_generator  # the process's


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """What is drawn inside is drawn from `seed`; the global generators (torch, numpy, random) come out as they went in."""
    with globally_seeded(seed) if is_alone() else private(Private(seed)):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is drawn next does not depend on what is drawn inside from torch's generator."""
    own = current()
    if own is None and is_alone():
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with private(own.copy() if own is not None else Private(torch.initial_seed(), torch.get_rng_state())):
        yield


@contextmanager
def globally_seeded(seed: int = 0) -> Iterator[None]:
    """`seeded`, of the global generators even beside other threads: torch's tracing for exports bears no dispatch mode."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # the same on a CPU, without the stack of calls that torch formats for a GPU to come: half a millisecond
            DEFAULT.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class Private(TorchDispatchMode):
    """Random ops of this thread draw from generators that it has to itself, one for each device."""

    def __init__(self, seed: int, state: Tensor | None = None) -> None:
        super().__init__()
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}
        if state is not None:
            self.on(torch.device("cpu")).set_state(state)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def on(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def reseed(self, seed: int) -> None:
        self.seed = seed
        self.generators.clear()

    def copy(self) -> Private:
        """What draws the same numbers from here on."""
        other = Private(self.seed)
        for device, generator in self.generators.items():
            other.on(device).set_state(generator.get_state())
        return other

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        given = kwargs.get("generator")
        if device.type == "meta" or not (given is None or _is_global(given)):
            return func(*args, **kwargs)
        drawing = _drawing(func)
        if drawing is None:
            return _fill(func, args, kwargs, self.on(device))
        return drawing(*args, **{**kwargs, "generator": self.on(device)})


def _is_global(generator: Any) -> bool:
    """Whether it is one of the process's generators. (The dispatcher wraps them anew: they are not the same objects.)"""
    known: tuple[Any, ...] = (DEFAULT, *torch.cuda.default_generators)
    return generator._cdata in {each._cdata for each in known}


@cache
def _drawing(func: Any) -> Any:
    """The overload of a random op that takes a generator; None where there is none."""
    if any(a.name == "generator" for a in func._schema.arguments):
        return func
    wanted = [a.name for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        if [a.name for a in other._schema.arguments if a.name != "generator"] == wanted and other is not func:
            return other
    return None


def _fill(func: Any, args: Any, kwargs: Any, generator: torch.Generator) -> Any:
    """Random ops that take no generator: `rand_like` and its like (in older versions of torch), and dropout."""
    name = func.overloadpacket.__name__
    if name == "native_dropout" and args[2] is not False:
        x, p = args[0], args[1]
        kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
        return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept
    if name not in ("rand_like", "randn_like", "randint_like"):
        return func(*args, **kwargs)
    out = torch.empty_like(args[0], **kwargs)
    if name == "randint_like":
        return out.random_(*((0, args[1]) if len(args) == 2 else args[1:3]), generator=generator)
    return out.uniform_(generator=generator) if name == "rand_like" else out.normal_(generator=generator)


def _device(args: Any, kwargs: Any) -> torch.device:
    tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    device = kwargs.get("device") or (tensor.device if tensor is not None else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


# -- torch.manual_seed and its like, in user code

_private: ContextVar[Private | None] = ContextVar("private", default=None)
_patching = threading.Lock()


def current() -> Private | None:
    """The generators of this thread, where it has some."""
    return _private.get()


@contextmanager
def private(own: Private) -> Iterator[None]:
    """This thread draws from its own generators inside, and `torch.manual_seed` is about them."""
    _make_thread_aware()
    token = _private.set(own)
    try:
        with own:
            yield
    finally:
        _private.reset(token)


def _make_thread_aware() -> None:
    """Once for the process: let torch's functions of the global generator speak of a thread's own one, where it has one.

    For all other threads they do what they did, at all times.
    """
    with _patching:
        if hasattr(torch.manual_seed, "_of_ranp"):
            return
        cpu = torch.device("cpu")
        _replace("manual_seed", lambda own, seed: (own.reseed(int(seed) % 2**64), own.on(cpu))[1])
        _replace("get_rng_state", lambda own: own.on(cpu).get_state())
        _replace("set_rng_state", lambda own, new_state: own.on(cpu).set_state(new_state) and None)
        _replace("initial_seed", lambda own: own.seed)
        for module in (torch, torch.random):
            module.__class__ = _WithGenerator


class _WithGenerator(ModuleType):
    """A module of torch whose `default_generator` is a thread's own one, where it has one: code calls its methods, too."""

    @property
    def default_generator(self) -> torch.Generator:
        own = _private.get()
        return DEFAULT if own is None else own.on(torch.device("cpu"))


def _replace(name: str, in_private: Any) -> None:
    original = getattr(torch.random, name)

    @wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        own = _private.get()
        return original(*args, **kwargs) if own is None else in_private(own, *args, **kwargs)

    vars(function)["_of_ranp"] = True
    setattr(torch.random, name, function)
    setattr(torch, name, function)
