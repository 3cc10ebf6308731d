"""Scoring below the memory of a training step: modules whose activations are computed twice instead of kept.

Which ones is found on meta tensors, where a pass with checkpoints costs next to nothing: each plan is a set of modules
that do not lie in each other, and its peak is what memory.Meter counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .budget import shown
from .errors import USER_EXCEPTIONS, BadInput, Infeasible
from .example import Example
from .memory import Meter, plain_loss
from .precision import Convolutions, channels_last
from .shadow import NoDropout, labels_on_cpu, seeded, shadow, tensors_in, to_meta
from .units import Graph, named_tensors, user_line

MOST_PLANS = 12  # sizes of modules that are tried
NEAR = 1.02  # a peak within 2 % of the least is as good


@contextmanager
def recomputing(model: nn.Module, names: Sequence[str], layout: bool = False, half: bool = False) -> Iterator[None]:
    """Within, a forward pass of `model` keeps the inputs of these modules only, and a backward pass computes the rest anew."""
    own = [(module, module.__dict__.get("forward")) for module in map(model.get_submodule, names)]
    for module, _ in own:
        again = partial(checkpoint, module.forward, use_reentrant=False, context_fn=partial(_contexts, layout, half))
        module.__dict__["forward"] = again
    try:
        yield
    finally:
        for module, forward in own:
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _contexts(layout: bool, half: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Of the first run, and of the second one, which is in the backward pass, maybe in another thread."""
    return nullcontext(), _second_run(layout, half)


@contextmanager
def _second_run(layout: bool, half: bool) -> Iterator[None]:
    with Convolutions(layout, half), NoDropout():
        yield


@dataclass(frozen=True)
class Plan:
    """Modules to compute twice, and the peak in bytes that scoring then has."""

    names: tuple[str, ...]
    peak: int


@dataclass
class Seen:
    """What one called module does in a forward pass."""

    inside: int = 0  # bytes that are born in it and kept for the backward pass, without its output
    layers: int = 0
    safe: bool = True  # called once or more with inputs that nobody overwrites


class Planner:
    """Foretells the peak of scoring one mini-batch of `example` with any set of modules computed twice."""

    @labels_on_cpu
    def __init__(self, model: nn.Module, graph: Graph, example: Example, layout: bool = False):
        if isinstance(model, torch.jit.ScriptModule):
            raise BadInput("--low-memory needs the Python model: the modules of TorchScript cannot be run twice")
        self.copy = shadow(model).train()
        inputs = to_meta((example.args, example.kwargs))
        self.inputs, self.layout = channels_last(inputs) if layout else inputs, layout
        tensors = dict(named_tensors(self.copy))
        self.held = list(tensors.values())
        for p in self.copy.parameters():
            p.requires_grad_(False)
        self.weights = [tensors[layer.slot].requires_grad_(True) for layer in graph.layers]
        self.always = sum(t.numel() * t.element_size() for t in {id(t): t for t in (*self.held, *tensors_in(self.inputs))}.values())  # fmt: skip
        self.owners = {layer.slot for layer in graph.layers}
        self.seen = self._look()

    @labels_on_cpu
    def peak(self, names: Sequence[str]) -> int:
        """Bytes at the peak: weights, the mini-batch, and what lives of a forward and backward pass."""
        meter, hooks = Meter(), [w.register_post_accumulate_grad_hook(_forget) for w in self.weights]
        for t in (*self.held, *tensors_in(self.inputs)):
            meter.know(t)
        args, kwargs = self.inputs
        try:
            with (
                seeded(),
                torch.enable_grad(),
                recomputing(self.copy, names, self.layout),
                Convolutions(self.layout),
                NoDropout(),
                meter,
            ):
                plain_loss(self.copy(*args, **kwargs)).backward()
        finally:
            for hook in hooks:
                hook.remove()
        return self.always + meter.peak

    def _look(self) -> dict[str, Seen]:
        """Every called module that holds layers, but for the whole: what it keeps, and whether it may run twice."""
        found: dict[str, Seen] = {}
        meter, kept, stack, hooks = Meter(), [], [], []  # type: Meter, list[tuple[str, Tensor, int]], list[Any], list[Any]
        for t in (*self.held, *tensors_in(self.inputs)):
            meter.know(t)

        def enter(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            given = tensors_in((args, kwargs))
            kept.extend((name, t, t._version) for t in given)
            stack.append(meter.live)

        def leave(name: str, _: nn.Module, __: Any, ___: Any, out: Any) -> None:
            size = meter.live - stack.pop()
            outputs = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_in(out)}
            seen = found.setdefault(name, Seen())
            seen.inside += size - sum(outputs.values())

        for name, module in self.copy.named_modules():
            layers = sum(1 for slot in self.owners if slot.startswith(f"{name}."))
            if name and layers and not isinstance(module, torch.jit.ScriptModule):
                found[name] = Seen(layers=layers)
                hooks += [module.register_forward_pre_hook(partial(enter, name), with_kwargs=True),
                          module.register_forward_hook(partial(leave, name), with_kwargs=True)]  # fmt: skip
        args, kwargs = self.inputs
        try:
            with seeded(), torch.enable_grad(), NoDropout(), meter:
                output = self.copy(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        for name, t, version in kept:
            found[name].safe &= t._version == version
        del output
        return found

    def nested(self, most: int) -> list[str]:
        """The largest modules that keep at most so many bytes, none within another."""
        fit = [name for name, seen in self.seen.items() if seen.safe and 0 < seen.inside <= most]
        return [name for name in fit if not any(name.startswith(f"{other}.") for other in fit)]

    def plan(self, limit: int | None) -> Plan:
        """The plan that computes the least twice among those that keep to `limit` (without: among the lowest peaks).

        Raises Infeasible, naming the closest, when none does.
        """
        sizes = sorted({seen.inside for seen in self.seen.values() if seen.safe and seen.inside > 0})
        steps = sizes if len(sizes) <= MOST_PLANS else [sizes[k * (len(sizes) - 1) // (MOST_PLANS - 1)] for k in range(MOST_PLANS)]  # fmt: skip
        plans = [Plan((), self.peak(()))]
        if limit is not None and plans[0].peak <= limit:
            return plans[0]
        for names in dict.fromkeys(tuple(self.nested(most)) for most in steps):
            plans.append(Plan(names, self.peak(names)))
        best = min(plans, key=lambda plan: plan.peak)
        bound = int(best.peak * NEAR) if limit is None else limit
        if best.peak > bound:
            raise Infeasible(
                f"a memory limit of {shown('train-mem', bound)} cannot be kept: scoring this mini-batch needs at least "
                f"{shown('train-mem', best.peak)}; give that, or a smaller mini-batch"
            )
        return self._sparing(best, bound)

    def _sparing(self, plan: Plan, bound: int) -> Plan:
        """The plan without the modules that save the least and are not needed for the bound."""
        names = sorted(plan.names, key=lambda name: self.seen[name].inside)
        low, high = 0, len(names)  # so many of the smallest are left out
        best = plan
        while low < high:
            middle = (low + high + 1) // 2
            fewer = tuple(n for n in plan.names if n not in names[:middle])
            peak = self.peak(fewer)
            if peak <= bound:
                low, best = middle, Plan(fewer, peak)
            else:
                high = middle - 1
        return best


def plan(model: nn.Module, graph: Graph, example: Example, limit: int | None, layout: bool = False) -> Plan:
    """What to compute twice when a mini-batch of `example` is scored; see Planner.plan. Raises BadInput, Infeasible."""
    try:
        return Planner(model, graph, example, layout).plan(limit)
    except (BadInput, Infeasible):
        raise
    except USER_EXCEPTIONS as error:
        where = user_line(error)
        raise BadInput(
            f"--low-memory: the memory of this model cannot be foretold on meta tensors ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}{f' (at {where})' if where else ''}); leave it out"
        ) from error


def _forget(p: Tensor) -> None:
    p.grad = None
