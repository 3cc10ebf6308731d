"""What scoring computes twice to keep within a memory limit, estimated on meta tensors.

A pass costs next to nothing there, and meter.Meter counts its peak. The tensors are on meta, or fake ones of the device where
those tell another story: under autocast, and for ops (attention, recurrent cells) that fall apart on meta and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contexts import NoDropout, labels_on_cpu, seeded
from ..core.copies import meta_copy
from ..core.errors import USER_EXCEPTIONS, BadInput, Infeasible, in_words
from ..core.example import Example
from ..core.numbers import shown
from ..core.spelling import spelled
from ..core.tensors import channels_last, tensors_in, to_meta
from ..costs.fake_autocast import Autocast
from ..costs.memory import plain_loss
from ..costs.memory_meter import Meter
from ..graph.analyse import named_tensors
from ..graph.graph import Graph
from .memory_format import ConvolutionOverrides
from .precision import HALF, cast, cast_batch, to_float32
from .recompute import COSTLY, Recompute

Way = tuple[float | None, int]  # what is cheap (None: nothing is computed twice), and costly ops in a recipe at most
PLAIN, FREE = (None, 1), (0.0, 1)  # nothing is computed twice; what multiplies nothing is

LEVELS = 6  # between nothing that multiplies and everything, of what is computed twice
COSTLY_OPS = 1, 2  # costly ops that a recipe has at most
TWICE = 1.0  # of the multiply-adds of a forward pass, at most so many are done again
NEAR = 1.02  # a peak within 2 % of the least is as good
SAME = 0.01  # relative tolerance within which two peak estimates count as equal
WITHIN = 0.7  # of a plain pass without gradients: no pass that computes nothing twice has a lower peak (another layout saves an eighth)
SHARE = 0.5  # of the peak of a plain pass: what is asked for where nobody names a limit


def advice() -> str:
    return f"; leave {spelled('memory_limit')} out"


@dataclass(frozen=True)
class RecomputePlan:
    """What is cheap (None: nothing is computed twice), see Recompute, and the peak in bytes that scoring then has."""

    max_macs_per_element: float | None
    peak: int
    plain: int  # of an unmodified forward and backward pass
    max_costly_ops: int = 1
    again: float = 0.0  # multiply-adds that are done again, as a share of the forward pass
    unknown: str = ""  # why the peaks are not known


@dataclass(frozen=True)
class ScoringSetup:
    """How a mini-batch is scored, as far as its memory goes."""

    layout: bool = False  # channels lie last
    precision: str = "model"
    device: str = "cpu"


class Planner:
    """Estimates the peak of scoring one mini-batch of `example`, on meta tensors or on fake ones."""

    @labels_on_cpu
    def __init__(
        self, model: nn.Module, graph: Graph, example: Example, setting: ScoringSetup, fake: bool = False
    ) -> None:
        self.setting = setting
        self.ground = Autocast(setting.device, setting.precision in HALF) if fake else None
        copy = cast(meta_copy(model), setting.precision)
        self.copy = (copy if self.ground is None else self.ground.model(copy)).train()
        given = (to_meta if self.ground is None else self.ground.inputs)((example.args, example.kwargs))
        with self._grounded():
            self.given = cast_batch(given, setting.precision)
            self.inputs = channels_last(self.given) if setting.layout else self.given
        tensors = dict(named_tensors(self.copy))
        self.held = list(tensors.values())
        for p in self.copy.parameters():
            p.requires_grad_(False)
        self.weights = [tensors[layer.slot].requires_grad_(True) for layer in graph.layers]
        everything = {id(t): t for t in (*self.held, *tensors_in(self.inputs))}
        self.always = sum(t.numel() * t.element_size() for t in everything.values())
        self.prices: list[tuple[float, int]] = []
        self._plans: dict[Way, RecomputePlan] = {}
        self._known: dict[Any, Any] = {}
        plain = self._plain()
        self.plain, self.born = self.always + plain.peak, sum(birth.size for birth in plain.births)
        self.multiplies_matrices = plain.multiplies_matrices

    def _grounded(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.ground is None else self.ground.mode

    def _meter(self, inputs: Any) -> Meter:
        meter = Meter(known=self._known, on_cpu=self.setting.device == "cpu")
        for t in (*self.held, *tensors_in(inputs)):
            meter.know(t)
        return meter

    def is_like(self, other: Planner) -> bool:
        """Does a plain pass allocate the same, but for some counters?"""
        return all(abs(a / b - 1) < SAME for a, b in ((self.plain, other.plain), (self.born, other.born)))

    def _plain(self) -> Meter:
        """Of an unmodified forward and backward pass: no recomputation, casts or layout; the gradients stay."""
        meter = self._meter(self.given)
        args, kwargs = self.given
        with seeded(), torch.enable_grad(), self._grounded(), meter, NoDropout():
            plain_loss(self.copy(*args, **kwargs)).backward()
        for w in self.weights:
            w.grad = None
        return meter

    @labels_on_cpu
    def measure(self, max_macs_per_element: float | None, max_costly_ops: int = 1) -> RecomputePlan:
        """The peak: weights, the mini-batch, and what lives of a forward and backward pass."""
        meter, hooks = self._meter(self.inputs), [w.register_post_accumulate_grad_hook(forget) for w in self.weights]
        args, kwargs = self.inputs
        again = Recompute(max_macs_per_element or 0, self.copy.buffers(), max_costly_ops)
        half = self.setting.precision in HALF
        try:
            with (
                seeded(),
                torch.enable_grad(),
                self._grounded(),
                meter,
                nullcontext() if max_macs_per_element is None else again,
            ):
                with (
                    nullcontext() if max_macs_per_element is None else again.packing(),
                    ConvolutionOverrides(self.setting.layout, half),
                    NoDropout(),
                ):
                    with nullcontext() if self.ground is None else self.ground.casting():
                        output = self.copy(*args, **kwargs)
                    value = plain_loss(to_float32(output))
                    del output
                value.backward()
        finally:
            for hook in hooks:
                hook.remove()
        self.prices = again.prices or self.prices
        return RecomputePlan(
            max_macs_per_element,
            self.always + meter.peak,
            self.plain,
            max_costly_ops,
            again.macs_again / max(1, again.macs),
        )

    def tried(self, way: Way) -> RecomputePlan:
        """The plan of a way, measured once."""
        if way not in self._plans:
            self._plans[way] = self.measure(*way)
        return self._plans[way]

    def ways(self) -> list[Way]:
        """From those that compute little again, if anything, to those that compute much."""
        self.tried(FREE)  # which tells the prices
        levels = steps(self.prices)
        return [PLAIN, FREE, *((most, n) for n in COSTLY_OPS for most in levels if n == 1 or most > COSTLY)]

    def plans(self) -> Iterator[RecomputePlan]:
        """Those of all ways, but for such as compute too much again."""
        return (plan for plan in map(self.tried, self.ways()) if plan.again <= TWICE)

    def first(self, bound: int) -> RecomputePlan | None:
        """The plan that computes least again with a peak of at most `bound`, from few measurements.

        A way that makes so many bytes again can save no more than these, and computing nothing twice little more than the
        gradients: what cannot do is not tried. Beyond that peaks are taken to fall from way to way.
        """
        gradients = sum(w.numel() * w.element_size() for w in self.weights)
        if WITHIN * (self.plain - gradients) <= bound and self.tried(PLAIN).peak <= bound:
            return self.tried(PLAIN)
        if self.tried(FREE).peak <= bound:
            return self.tried(FREE)
        excess, ways = self.tried(FREE).peak - bound, self.ways()[2:]
        ways = [way for way in ways if sum(size for price, size in self.prices if price <= (way[0] or 0)) >= excess]
        found = None
        low, high = 0, len(ways)  # none before `low` will do; that at `high` does, or computes too much again
        known = [at for at, way in enumerate(ways) if way in self._plans]
        probes = [*known, 0, len(ways) - 1]  # most often the first will do, or none
        while low < high:
            at = probes.pop(0) if probes else (low + high) // 2
            if not low <= at < high:
                continue
            plan = self.tried(ways[at])
            if plan.again > TWICE:
                high = at
            elif plan.peak <= bound:
                high, found = at, plan
            else:
                low = at + 1
        return found

    def plan(self, limit: int | None) -> RecomputePlan:
        """The first plan that keeps to the limit.

        Without a limit: to half of a plain pass' peak, or where none does, near the lowest. Raises Infeasible, naming the
        closest, when none keeps to the limit.
        """
        bound = int(SHARE * self.plain) if limit is None else limit
        if found := self.first(bound):
            return found
        if limit is None:
            lowest = min(plan.peak for plan in self._plans.values() if plan.again <= TWICE)
            near = self.first(int(NEAR * lowest))
            assert near is not None  # the lowest itself is near it
            return near
        for plan in self.plans():  # where a peak rose from one way to the next
            if plan.peak <= limit:
                return plan
        raise Infeasible(
            f"a memory limit of {shown('train-mem', limit)} cannot be kept: scoring this mini-batch needs at least "
            f"{shown('train-mem', self.least().peak * 1.001)}; give that, or a smaller mini-batch"
        )

    def least(self) -> RecomputePlan:
        """The plan of the lowest peak."""
        return min(self.plans(), key=lambda plan: plan.peak)


def plan(
    model: nn.Module, graph: Graph, example: Example, limit: int | None, setting: ScoringSetup, least: bool = False
) -> RecomputePlan:
    """What to compute twice when a mini-batch of `example` is scored; see Planner.

    Where nothing can be estimated and no limit is to be kept, what multiplies nothing is computed twice, and the peaks are 0.
    Raises BadInput, Infeasible.
    """
    try:
        found = planner(model, graph, example, setting)
        return found.least() if least else found.plan(limit)
    except Infeasible:
        raise
    except BadInput as error:
        failure = error
    except USER_EXCEPTIONS as error:
        if setting.layout:  # code that wants its tensors in the order of their axes
            return plan(model, graph, example, limit, replace(setting, layout=False), least)
        failure = not_planned(error)
    if limit is None:
        return RecomputePlan(0, 0, 0, unknown=str(failure).removesuffix(advice()))
    raise failure


def planner(model: nn.Module, graph: Graph, example: Example, setting: ScoringSetup) -> Planner:
    """On meta tensors, or on fake ones where those tell another story. Raises BadInput when neither can be had."""
    if setting.precision in HALF:
        with suppress(*USER_EXCEPTIONS):
            return Planner(model, graph, example, setting, fake=True)
    try:
        on_meta = Planner(model, graph, example, setting)
    except USER_EXCEPTIONS as error:
        try:
            return Planner(model, graph, example, setting, fake=True)
        except USER_EXCEPTIONS:
            raise not_planned(error) from error
    if on_meta.multiplies_matrices:
        with suppress(*USER_EXCEPTIONS):
            on_fake = Planner(model, graph, example, setting, fake=True)
            if not on_fake.is_like(on_meta):
                return on_fake
    return on_meta


def not_planned(error: BaseException) -> BadInput:
    return BadInput(f"the memory of this model cannot be estimated ({in_words(error)}){advice()}")


def steps(prices: list[tuple[float, int]]) -> list[float]:
    """Prices, ascending, each of which takes in about as many bytes more; the last takes in all."""
    found: list[float] = []
    taken, total = 0, sum(size for _, size in prices)
    for price, size in sorted(prices):
        taken += size
        if taken * LEVELS >= total * (len(found) + 1):
            found += [price] * (taken * LEVELS // total - len(found))
    return sorted(set(found))


def forget(p: Tensor) -> None:
    p.grad = None
