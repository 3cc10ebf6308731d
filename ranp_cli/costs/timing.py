"""Measured time: of each layer's own op, and of whole networks side by side.

The clock is read in `once` alone. Two networks are timed turn by turn in one loop, so that what else the machine does
hits both; what counts is the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.contexts import labels_on_cpu, seeded
from ..core.copies import copy_on
from ..core.errors import USER_EXCEPTIONS, BadInput, VerificationFailed, in_words
from ..core.example import Example
from ..core.progress import Progress
from ..core.spelling import spelled
from ..core.tensors import map_tensors, tensors_in
from ..graph.graph import Layer
from .runtimes import EXACT, Run, Runtime, Torch, allowed_error, difference, on_threads
from .step_time import Step, way_of_training

T = TypeVar("T")

ROUNDS = 5  # over all layers, so that a slow moment hits no layer in all of them
BURST, BURST_SECONDS = 10, 0.02  # of one layer in one round: at most so many runs, and no further than so long
WARM, WARM_SECONDS = 3, 1.0  # runs of a network that do not count
STEPS = 12  # networks that a search for a budget times, before it makes sure
SECOND_LOOKS = 4  # at larger ones, when the network found is far from the limit
CLOSE = 0.1  # a time so close to the limit is taken again


def once(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that one run takes."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000


@dataclass(frozen=True)
class Ground:
    """What is measured on: a device, a runtime, and how many threads (None: as many as torch has)."""

    device: torch.device
    runtime: Runtime = field(default_factory=Torch)
    threads: int | None = None

    def about(self) -> dict[str, Any]:
        """As the report and the mask have it; torch itself is not named in the mask of what was measured before there were others."""
        with on_threads(self.threads) as threads:
            known = {"device": str(self.device), "threads": threads}
        return known if self.runtime.name == "torch" else {**known, "runtime": self.runtime.name}

    def of(self, kind: str) -> Ground:
        """The same for a kind of budget: a training step runs in torch, whatever runs the forward pass."""
        return replace(self, runtime=way_of_training(self.runtime)) if kind == "step-time" else self


# -- layers


@dataclass
class LayerOp:
    """The op of a layer, to be run on random numbers; `name` is of a layer that calls it so."""

    name: str
    call: Any  # (func, args, kwargs), with tensors on meta
    run: Run | None = None  # in another runtime than torch

    def on(self, device: torch.device) -> LayerOp:
        """The same with tensors on `device`."""
        func, *arguments = self.call
        return LayerOp(self.name, (func, *map_tensors(arguments, lambda t: random_like(t, device))))

    def inside(self, ground: Ground) -> LayerOp:
        """The same, ready to run there."""
        op = self.on(ground.device)
        if ground.runtime.name == "torch":
            return op
        func, args, kwargs = op.call
        at = INPUT_AT.get(func.overloadpacket, 0)
        network = OpNetwork(func, args, kwargs, at)
        with on_threads(ground.threads) as threads:
            return replace(op, run=ground.runtime.prepare(network, Example((args[at],)), ground.device, threads))

    def __call__(self) -> Any:
        if self.run is not None:
            return self.run()
        func, args, kwargs = self.call
        return func(*args, **kwargs)

    @property
    def key(self) -> str:
        func, *arguments = self.call
        return f"{func} {map_tensors(arguments, lambda t: (tuple(t.shape), t.stride(), t.dtype))}"


INPUT_AT = {  # which argument of an op is the input; the first one of the others
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}


class OpNetwork(nn.Module):
    """An op as a network: one argument is its input, its other tensors are weights, which a runtime may turn round first."""

    def __init__(self, func: Any, args: Any, kwargs: Any, at: int) -> None:
        super().__init__()
        self.func, self.given, self.named, self.at = func, list(args), kwargs, at
        self.weights = nn.ParameterList(
            nn.Parameter(t, requires_grad=False)
            for t in tensors_in([a for k, a in enumerate(args) if k != at])
            if t.is_floating_point()
        )

    def forward(self, x: Tensor) -> Any:
        held = iter(self.weights)
        args = [
            x if k == self.at else map_tensors(a, lambda t: next(held) if t.is_floating_point() else t)
            for k, a in enumerate(self.given)
        ]
        if torch.is_autocast_enabled(x.device.type) and self.func is torch.ops.aten.convolution.default:
            # what autocast casts is the call that users make (`conv3d`), not this op
            args = [map_tensors(a, lambda t: t.to(torch.get_autocast_dtype(x.device.type))) for a in args]
        return self.func(*args, **self.named)


def random_like(t: Tensor, device: torch.device) -> Tensor:
    """Seeded Gaussian noise of the shape, strides and dtype of `t`; zeros where its dtype has no fractions."""
    made = torch.empty_like(t, device=device)
    return made.normal_(generator=torch.Generator(device).manual_seed(0)) if t.is_floating_point() else made.zero_()


@labels_on_cpu
def time_layers(layers: Sequence[Layer], ground: Ground | torch.device, progress: Progress) -> None:
    """Set `seconds` of every layer: the time of its own op on one sample in inference, its uses added up.

    It is the median of a few runs, in the best of several rounds over all layers: what else the machine does only ever
    adds to it. Layers that call an op with the same shapes share its time. Raises BadInput when one does not run.
    """
    ops: dict[str, LayerOp] = {}
    for layer in layers:
        for call, _ in layer.calls:
            op = LayerOp(layer.name, call)
            ops.setdefault(op.key, op)
    seconds = time_ops(ops, ground if isinstance(ground, Ground) else Ground(ground), progress)
    for layer in layers:
        layer.seconds = sum(seconds[LayerOp("", call).key] * share for call, share in layer.calls)


def time_ops(ops: Mapping[str, LayerOp], ground: Ground, progress: Progress, rounds: int = 0) -> dict[str, float]:
    """Key -> seconds of each op: the median of a few runs, in the best of several rounds over all ops.

    Ops of torch are made anew for each run of a round; those of other runtimes are made ready once.
    """
    seen: dict[str, list[float]] = {key: [] for key in ops}
    ready: dict[str, LayerOp] = {}
    rounds = rounds or ROUNDS
    with progress("timing layers", rounds * len(ops)) as advance, torch.no_grad(), on_threads(ground.threads):
        for _ in range(rounds):
            for key, op in ops.items():
                try:
                    prepared = ready.get(key) or op.inside(ground)
                    if prepared.run is not None:
                        ready[key] = prepared
                    seen[key].append(statistics.median(burst(prepared, ground.device)))
                except BadInput:
                    raise
                except USER_EXCEPTIONS as error:
                    text = " ".join(str(error).split())[:200]
                    raise BadInput(
                        f"layer {op.name} cannot be timed on {ground.device}: {type(error).__name__}: {text}; "
                        f"give another {spelled('resource')}, or {spelled('latencies')} of a machine that runs it"
                    ) from error
                advance()
    return {key: min(times) for key, times in seen.items()}


def burst(op: LayerOp, device: torch.device) -> list[float]:
    """The times of a few runs on end, after one that does not count."""
    once(op, device)
    times: list[float] = []
    while not times or (len(times) < BURST and sum(times) < BURST_SECONDS):
        times.append(once(op, device))
    return times


def use_latencies(layers: Sequence[Layer], given: Mapping[str, Any]) -> None:
    """Set `seconds` of every layer from what was measured before. Raises BadInput for other layers or no times."""
    for layer in layers:
        value = given.get(layer.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            have = "it is missing" if value is None else f"it is {value!r}"
            raise BadInput(
                f"{spelled('latencies')}: layer {layer.name} wants the seconds that it takes, {have}; give what a mask of "
                f"{spelled('resource', 'latency')} recorded for this network"
            )
        layer.seconds = float(value)


# -- networks


@dataclass
class Forward:
    """A forward pass in inference, with `half` under autocast in bf16; `run` does it in another runtime than torch."""

    module: nn.Module
    example: Example
    run: Run | None = None
    half: bool = False

    def __call__(self) -> None:
        if self.run is not None:
            self.run()
            return
        with torch.no_grad(), torch.autocast(self.kind, torch.bfloat16) if self.half else nullcontext():
            self.module(*self.example.args, **self.example.kwargs)

    @property
    def kind(self) -> str:
        return next((p.device.type for p in self.module.parameters()), "cpu")


Work = Forward | Step


@dataclass(frozen=True)
class Timings:
    """Median seconds of each of some networks, from `repeats` rounds of one loop; `runs` has the seconds of each round."""

    seconds: tuple[float, ...]
    repeats: int
    runs: tuple[tuple[float, ...], ...] = ()

    def gain(self, base: int, other: int) -> tuple[float, float]:
        """How many times as fast the network `other` is as `base`, turn by turn: the median, and the least that it may be.

        The second is the lower end of the median's 95 % interval, by rank alone: of five turns it is the worst one.
        """
        gains = sorted(a / b for a, b in zip(self.runs[base], self.runs[other], strict=True))
        return statistics.median(gains), gains[max(0, int((len(gains) - 1.96 * len(gains) ** 0.5) / 2))]


def race(works: Sequence[Work], device: torch.device, sure: bool = True) -> Timings:
    """Time them turn by turn. `sure` takes at least five rounds, and up to 30 in half a second; else three, up to 10.

    Raises BadInput when a network does not run.
    """
    least, most, enough = (5, 30, 0.5) if sure else (3, 10, 0.2)
    times: list[list[float]] = [[] for _ in works]
    with seeded():
        try:
            for work in works:
                warm(work, device)
            while len(times[0]) < least or (len(times[0]) < most and sum(map(sum, times)) < enough * len(works)):
                turn = list(zip(works, times, strict=True))
                for work, seen in turn if len(times[0]) % 2 else turn[::-1]:
                    seen.append(once(work, device))
        except USER_EXCEPTIONS as error:
            raise BadInput(
                f"the time of {'a training step' if isinstance(works[0], Step) else 'a forward pass'} on {works[0].example} "
                f"cannot be measured on {device}: {in_words(error)}; "
                f"give {spelled('batch_size')} or {spelled('inputs')} that it can run, or another {spelled('device')}"
            ) from error
    return Timings(tuple(statistics.median(seen) for seen in times), len(times[0]), tuple(map(tuple, times)))


def warm(work: Work, device: torch.device) -> None:
    spent = 0.0
    for _ in range(WARM):
        spent += once(work, device)
        if spent > WARM_SECONDS:
            return


class Benchmark:
    """Where networks are timed on the same input: that of `example`, noise where it has no numbers.

    Forward passes run in the runtime of the `ground`, training steps in torch in any case, with the `optimizer`'s own step
    where one is named.
    """

    def __init__(self, example: Example, ground: Ground | torch.device, optimizer: str | None = None) -> None:
        self.ground = ground if isinstance(ground, Ground) else Ground(ground)
        device = self.device = self.ground.device
        self.optimizer, self.way = optimizer, way_of_training(self.ground.runtime)

        def real(t: Tensor) -> Tensor:
            return random_like(t, device) if t.device.type == "meta" else t.detach().to(device)

        self.example = Example(*map_tensors((example.args, example.kwargs), real))
        self.error = 0.0  # the furthest that outputs of the runtime were from the module's, of their scale
        self._first: tuple[nn.Module, Forward] | None = None  # the dense network, which every race has again

    def forward(self, *models: nn.Module, sure: bool = True) -> Timings:
        with on_threads(self.ground.threads) as threads:
            return race([self._ready(m, threads, m is models[0]) for m in models], self.device, sure)

    def _ready(self, model: nn.Module, threads: int, first: bool) -> Forward:
        if self._first is not None and self._first[0] is model:
            return self._first[1]
        copy = copy_on(model, self.device, dict(model.named_parameters())).eval()
        work = Forward(copy, self.example)
        runtime = self.ground.runtime
        if runtime.name != "torch":
            try:
                work.run = runtime.prepare(copy, self.example, self.device, threads)
                outputs = work.run()
            except BadInput:
                raise
            except USER_EXCEPTIONS as error:
                raise BadInput(
                    f"{spelled('runtime', runtime.name)} does not run this network: {in_words(error)}; give {spelled('runtime', 'torch')}"
                ) from error
            plain = copy_on(model, self.device, dict(model.named_parameters())).eval()
            far = difference(plain, self.example, outputs)
            self.error = max(self.error, far)
            if (
                runtime.exact
                and not far <= EXACT
                and not far <= (allowed := allowed_error(plain, self.example, self.device))
            ):
                raise VerificationFailed(
                    f"{spelled('runtime', runtime.name)} computes something else than the network: its outputs differ by {far:.1e} "
                    f"of their scale, where {allowed:.0e} is allowed; give {spelled('runtime', 'torch')}"
                )
            if first:
                self._first = model, work
        return work

    def step(self, *models: nn.Module, sure: bool = True) -> Timings:
        with on_threads(self.ground.threads):
            return race([self.step_of(m, self.way) for m in models], self.device, sure)

    def step_of(self, model: nn.Module, way: Torch) -> Step:
        copy = copy_on(model, self.device, dict(model.named_parameters()))
        return Step.of(copy, self.example, way, self.optimizer)

    def race(self, kind: str, *models: nn.Module, sure: bool = True) -> Timings:
        """The times of a kind of budget: "latency" or "step-time"."""
        return (self.step if kind == "step-time" else self.forward)(*models, sure=sure)

    def speed(self, found: Timings, *sides: str) -> dict[str, Any]:
        """The `speed` of the report; `sides` names the networks "before" or "after"."""
        return self.about(found.repeats) | times(found, sides)

    def about(self, repeats: int) -> dict[str, Any]:
        """What forward passes were timed on, as the report has it."""
        runtime = self.ground.runtime
        about = {**self.ground.about(), "runtime": runtime.name, "runtime_version": runtime.version()}
        if runtime.name != "torch":
            about["max_rel_error"] = self.error
        return about | {"samples": self.example.samples, "repeats": repeats}

    def pair(
        self, model: nn.Module, slim: nn.Module, races: Mapping[str, Timings], macs: Sequence[int], training: bool
    ) -> dict[str, Any]:
        """Likewise of both networks, of which some kinds may be raced already; `train_error` where no training step is possible."""
        out = self.speed(races.get("latency") or self.forward(model, slim), "before", "after")
        out["theoretical_speedup"] = macs[0] / max(1, macs[1])
        step = races.get("step-time")
        try:
            if step is None and training:
                step = self.step(model, slim)
        except BadInput as error:
            return {**out, "train_error": str(error)}
        return out if step is None else {**out, **self.training_speed(step, "before", "after")}

    def training_speed(self, step: Timings, *sides: str) -> dict[str, Any]:
        """The keys of a training step in the `speed` of the report."""
        about: dict[str, Any] = {"train_repeats": step.repeats}
        if self.optimizer is not None:
            about["train_optimizer"] = self.optimizer
        if self.way.name != self.ground.runtime.name:
            about["train_runtime"] = self.way.name
        return about | times(step, sides, "train_")


def times(found: Timings, sides: Sequence[str], prefix: str = "") -> dict[str, float]:
    out = {f"{prefix}{side}_s": seconds for side, seconds in zip(sides, found.seconds, strict=True)}
    if len(sides) == 2:
        out[f"{prefix}speedup"] = found.seconds[0] / found.seconds[1]
    return out
