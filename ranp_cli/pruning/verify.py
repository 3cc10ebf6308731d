"""Check law 1: slim(x) equals masked(x), the dense network with the removed units' slices zeroed in every consumer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..core.aten import op_name
from ..core.contexts import NoDropout, each, products, seeded
from ..core.copies import compacted, meta_copy, replicate
from ..core.default_dtype import default_dtype
from ..core.errors import USER_EXCEPTIONS, RuleFailure, VerificationFailed, in_words
from ..core.example import Example
from ..core.in_precision import InPrecision
from ..core.tensors import has_fractions, in_dtype, map_tensors, tensors_in, to_meta, to_real
from ..graph.analyse import new_tracer, trace_once
from ..graph.graph import Graph, TraceResult
from ..graph.trace import Tracer
from ..rules.labels import Ties

NORMS = ("group norm", "layer norm")
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}  # as a fraction of the output's scale
SMALL_ENOUGH = 2e8  # multiply-adds of a sample up to which networks are compared at its own size
HOPELESS = 1e-5  # beyond this, ten times what one rounding does proves nothing


def masked_model(model: nn.Module, graph: Graph, stays: np.ndarray, dtype: torch.dtype | None = None) -> nn.Module:
    """The dense network with the removed units' slices zeroed in every consumer (law 1); other weights are shared."""
    consumed = graph.ties.consumed()

    def mask(name: str, t: Tensor) -> Tensor:
        given = t
        t = t.clone() if name in graph.written else t
        t = t if dtype is None else in_dtype(t, dtype)
        for axis, ids in enumerate(graph.slots[name].ids if name in graph.slots else ()):
            if ids is not None:
                gone = torch.from_numpy(np.flatnonzero(consumed[ids.numpy()] & ~stays[ids.numpy()])).to(t.device)
                if gone.numel():
                    t = (t.clone() if t is given else t).index_fill_(axis, gone, 0)
        return t

    return replicate(model, mask)


class WithoutStatistics(TorchDispatchMode):
    """Norms as their affine part alone, and other statistics as ones: what remains is the wiring, which can be compared.

    Group and layer norms are known by their op; `calls` names the others: {op: which of its calls in a forward pass}.
    """

    def __init__(self, calls: Mapping[str, set[int]] | None = None) -> None:
        super().__init__()
        self.calls = calls or {}
        self.seen: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = op_name(func)
        self.seen[name] += 1
        if self.seen[name] - 1 in self.calls.get(name, ()):
            whole = isinstance(out, tuple) and out[0].shape == args[0].shape  # a norm: its input stands for its output
            return (args[0].clone(), *out[1:]) if whole else map_tensors(out, torch.ones_like)
        if name in ("aten.native_group_norm", "aten.native_layer_norm"):
            x, weight, bias = (
                (args[0], args[1], args[2]) if name == "aten.native_group_norm" else (args[0], args[2], args[3])
            )
            shape = (1, -1, *[1] * (x.ndim - 2)) if name == "aten.native_group_norm" else None
            y = x if weight is None else x * (weight.view(shape) if shape else weight)
            y = y.clone() if bias is None else y + (bias.view(shape) if shape else bias)
            return (y, *out[1:])
        return out


def statistic_calls(graph: Graph, training: bool, gone: np.ndarray) -> dict[str, set[int]]:
    """{op: which of its calls in a forward pass take a statistic over channels of which some are gone}."""
    tracer = (graph.train_run if training else graph.eval_run).tracer
    steps = graph.ties.changed_steps(gone, id(tracer))
    calls: dict[str, set[int]] = {}
    seen: Counter[str] = Counter()
    for number, op in enumerate(tracer.ops):
        if number in steps:
            calls.setdefault(op.name, set()).add(seen[op.name])
        seen[op.name] += 1
    return {name: of for name, of in calls.items() if name not in ("aten.native_group_norm", "aten.native_layer_norm")}


OTHER_PATH = "where its code branches on chance or on the values of a tensor, one path alone is pruned right: that of the first mini-batch"


@dataclass
class OutputDifference:
    """How far two networks are apart, relative to the output's scale, and how far rounding alone may take them."""

    absolute: float
    relative: float
    allowed: float
    reason: str = ""  # why they cannot be compared
    rounding: float = 0.0  # how far fp32 takes the masked network from its own output in fp64, of the scale

    @property
    def holds(self) -> bool:
        return self.relative <= self.allowed


def verify(model: nn.Module, slim: nn.Module, graph: Graph, stays: np.ndarray) -> dict[str, Any]:
    """Compare slim(x) with masked(x) on noise: in fp64 in eval and in training mode, in fp32 in eval mode.

    Returns the `verified` part of the report. Raises VerificationFailed beyond the bounds of law 1. What cannot be
    compared is named: statistics over pruned channels (as of group and layer norms), whose wiring alone is compared; a forward
    that draws random numbers; one in which a single rounding of the input shows beyond any bound.
    """
    changed = graph.ties.changed_statistics(~stays)
    binding = all(
        r.what in NORMS for r in changed
    )  # others are left out call by call, which may fail: then shapes are all
    left_out = {training: statistic_calls(graph, training, ~stays) for training in (False, True)} if changed else {}
    example = verification_example(graph, slim)
    report: dict[str, Any] = {"against": "masked", "input": str(example.with_batch(graph.eval_run.samples))}
    apart = sorted({str(r) for r in changed})
    known: list[Tensor] | None = None
    exact: list[Tensor] | None = None  # the masked network's output in fp64: what fp32 loses by rounding is no fault
    for dtype in LIMITS:
        bits = torch.finfo(dtype).bits
        pair = masked_model(model, graph, stays, dtype), _cast_model(slim, dtype, graph.written)
        for training in (False, True) if dtype is torch.float64 else (False,):
            try:
                inputs = _inputs(graph, example, training)
                run = partial(_outputs, dtype=dtype, training=training, without=left_out.get(training))
                found, want = _compare(*pair, inputs, run, LIMITS[dtype], exact)
            except (RuntimeError, TypeError) as failure:
                text = " ".join(str(failure).split())[:200]
                if dtype is torch.float32:
                    raise VerificationFailed(
                        f"the network does not run on noise of the shape {example}: {text}; nothing was written"
                    ) from failure
                report["fp64"] = f"the model does not run in fp64: {text}"
                break
            if binding and not found.holds:
                raise VerificationFailed(
                    f"slim(x) differs from masked(x) by {found.relative:.1e} of the output's scale in fp{bits} "
                    f"({'training' if training else 'eval'} mode), where {found.allowed:.0e} is allowed"
                    f"{evidence(found, report)}; nothing was written. This is a defect of ranp: please report the model"
                )
            if found.reason:
                apart.append(f"{'training' if training else 'eval'} mode: {found.reason}")
                continue
            if not found.holds:  # the numbers differ by nature: shapes are all that was compared
                continue
            if (
                found.relative > LIMITS[dtype] and found.rounding
            ):  # conditioning, not an error: the proof is that in fp64
                report["rounding_fp32"] = found.rounding
            report[f"max_rel_error_fp{bits}"] = max(found.relative, report.get(f"max_rel_error_fp{bits}", 0.0))
            if not training:
                report["max_abs_error"] = found.absolute
                known = want
        exact = known
    check_training_step(model, slim, graph.train_run, graph.example)
    if apart:
        report["not_comparable"] = apart
    return report


def evidence(found: OutputDifference, report: dict[str, Any]) -> str:
    """What else is known where two networks differ in fp32: whether it can be rounding."""
    if "fp64" in report:
        return f" (whether that is rounding is not known: {report['fp64']})"
    if found.rounding:
        return f" (no rounding: in fp64 they agree to {report['max_rel_error_fp64']:.0e}, and rounding moves the dense one by {found.rounding:.0e})"
    return ""


def _inputs(graph: Graph, example: Example, training: bool) -> list[Example]:
    """Noise to compare two networks on; in training mode again with more samples, where a batch norm sees too few."""
    samples = (graph.train_run if training else graph.eval_run).samples
    return [noise(example.with_batch(n)) for n in ((2, 16) if training and samples == 2 else (samples,))]


def _compare(
    masked: nn.Module,
    slim: nn.Module,
    inputs: list[Example],
    run: Callable[..., list[Tensor]],
    limit: float,
    exact: list[Tensor] | None,
) -> tuple[OutputDifference, list[Tensor]]:
    """The comparison of two networks, and the output of the first, on the first of the inputs on which it holds."""
    for given in inputs:
        want = run(masked, given)
        try:
            got = run(slim, given)
        except USER_EXCEPTIONS as failure:
            raise VerificationFailed(
                f"the slim network fails on noise, where the dense one runs: {in_words(failure, 200)}; {OTHER_PATH}; nothing was written"
            ) from failure
        scale = max((float(t.abs().max()) for t in want if t.numel()), default=0.0)
        error = _distance(want, got)
        found = OutputDifference(error, error / scale if scale else math.inf if error else 0.0, limit)
        if exact is not None and scale:
            found.rounding = _distance(exact, want) / scale
            found.allowed = max(limit, 10 * found.rounding)
        if found.holds or not scale:
            return found, want
    shaken = Example(*map_tensors((given.args, given.kwargs), _nudged))
    moved = 10 * _distance(want, run(masked, shaken)) / scale
    if _distance(want, run(masked, given, seed=1)) / scale > found.allowed:
        found.reason = "the forward draws random numbers"
    elif moved > HOPELESS:
        found.reason = f"one rounding of the input moves the output by {moved / 10:.0e} of its scale"
    found.allowed = math.inf if found.reason else max(found.allowed, moved)
    return found, want


def check_training_step(dense: nn.Module, slim: nn.Module, run: TraceResult, example: Example) -> None:
    """Raise VerificationFailed where a forward and backward pass in training mode fails in the slim network alone.

    The gradients have to reach the same parameters in both. It runs on meta tensors, or on real ones where the code needs
    them, as the trace `run` of the dense network did.
    """
    given = example.with_batch(run.samples)
    try:
        wanted = _trained(dense, given, run.real)
    except USER_EXCEPTIONS:  # what the dense network cannot do is not asked of the slim one
        return
    try:
        reached = _trained(slim, given, run.real)
    except USER_EXCEPTIONS as failure:
        raise VerificationFailed(
            "the slim network fails in a training step, where the dense one does not: "
            f"{in_words(failure, 200)}; nothing was written. This is a defect of ranp: please report the model"
        ) from failure
    if lost := sorted(wanted ^ reached):
        raise VerificationFailed(
            f"in a training step gradients reach {'no ' if lost[0] in wanted else ''}{lost[0]} in the slim network, other "
            "than in the dense one; nothing was written. This is a defect of ranp: please report the model"
        )


def _trained(model: nn.Module, given: Example, real: bool) -> set[str]:
    """A forward and a backward pass of a copy in training mode; the names of the parameters that have gradients then."""
    copy = meta_copy(model, real).train()
    value = (given.args, given.kwargs)
    args, kwargs = map_tensors(value, lambda t: to_real(t, torch.device("cpu"))) if real else to_meta(value)
    with seeded(), torch.enable_grad(), NoDropout():
        outputs = [t for t in tensors_in(copy(*args, **kwargs)) if t.requires_grad]
        if outputs:
            torch.stack([t.abs().sum() for t in outputs]).sum().backward()
    return {name for name, p in copy.named_parameters() if p.grad is not None}


def verification_example(graph: Graph, slim: nn.Module) -> Example:
    """A sample of the smallest spatial size that takes the network through the same ops, one step above where cheap.

    Halves of halves are tried first; where none will do (24 has only 8 that three poolings divide), thirds, fifths and
    sevenths of them, the smallest alone.
    """
    full = graph.example.with_batch(graph.eval_run.samples)
    macs = max(1, sum(op.flops for op in graph.eval_run.tracer.ops) // 2 // graph.eval_run.samples)
    if macs <= SMALL_ENOUGH:
        return full
    feasible: list[Example] = []
    for factor in (2**shift for shift in range(6, 0, -1)):
        if len(feasible) == 2 or (feasible and macs / factor**3 > 1e9):
            break
        feasible += _at_size(graph, slim, full, factor)
    if feasible:
        return feasible[-1]
    odd = sorted((p * 2**k for p in (3, 5, 7) for k in range(6) if p * 2**k <= 64), reverse=True)
    for factor in odd:
        if feasible := _at_size(graph, slim, full, factor, whole=True):
            return feasible[0]
    return full


def _at_size(graph: Graph, slim: nn.Module, full: Example, factor: int, whole: bool = False) -> list[Example]:
    """The sample with its spatial axes divided, if that takes the network through the same ops; `whole`: without a rest."""
    small = shrink(full, factor, whole)
    if small is None:
        return []
    try:
        for known in (graph.eval_run, graph.train_run):
            tracer = new_tracer(Ties())
            trace_once(tracer, slim, small.with_batch(known.samples), {}, known is graph.train_run, known.real)
            if known is graph.eval_run and _way(tracer) != _way(known.tracer):
                return []
    except RuleFailure:
        raise
    except USER_EXCEPTIONS:  # too small for the network's strides
        return []
    return [small]


def _way(tracer: Tracer) -> tuple[list[str], set[str]]:
    """The ops that multiply, in order, and which ops a run met. (How often it padded depends on the size.)"""
    return [op.name for op in tracer.ops if op.flops], {op.name for op in tracer.ops}


def noise(example: Example) -> Example:
    """Seeded Gaussian noise in fp64, or complex of that precision, in the place of every tensor of floating point."""
    generator = torch.Generator().manual_seed(0)

    def draw(t: Tensor) -> Tensor:
        dtype = torch.complex128 if t.is_complex() else torch.float64
        return torch.randn(t.shape, generator=generator, dtype=dtype) if has_fractions(t) else t.cpu()

    return Example(*map_tensors((example.args, example.kwargs), draw))


def shrink(example: Example, factor: int, whole: bool = False) -> Example | None:
    """The example with its spatial axes (from axis 2 on, of tensors of rank 4 and 5) divided; None where one is too short.

    Args:
        whole: None also where one does not divide.
    """
    sizes = [n for t in each(Tensor, example.args, example.kwargs) if t.ndim > 3 for n in t.shape[2:]]
    if not sizes or min(sizes) < factor or (whole and any(n % factor for n in sizes)):
        return None

    def cut(t: Tensor) -> Tensor:
        if t.ndim < 4:
            return t
        return t[(slice(None),) * 2 + tuple(slice(0, n // factor) for n in t.shape[2:])]

    return Example(*map_tensors((example.args, example.kwargs), cut))


def _outputs(
    model: nn.Module,
    example: Example,
    dtype: torch.dtype,
    without: Mapping[str, set[int]] | None,
    training: bool,
    seed: int = 0,
) -> list[Tensor]:
    """All tensors that the model returns, in fp64 on the CPU; dropout off.

    In training mode gradients are on, as in a step, but no parameter needs them: nothing is kept for a backward pass.
    """
    compacted(model).train(training)
    for p in model.parameters():
        p.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = map_tensors((example.args, example.kwargs), lambda t: in_dtype(t, dtype).to(device))
    with (
        seeded(seed),
        torch.set_grad_enabled(training),
        products(device),
        default_dtype(dtype),
        InPrecision(dtype) if dtype is torch.float64 else nullcontext(),
        NoDropout(),
        nullcontext() if without is None else WithoutStatistics(without),
    ):
        out = model(*args, **kwargs)
    return [
        (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).detach().double().cpu() for t in tensors_in(out)
    ]


def _nudged(t: Tensor) -> Tensor:
    return t * (1 + torch.finfo(t.dtype).eps * torch.sgn(t)) if has_fractions(t) else t


def _cast_model(model: nn.Module, dtype: torch.dtype, own: Container[str]) -> nn.Module:
    return replicate(model, lambda name, t: in_dtype(t.clone() if name in own else t, dtype))


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    if [t.shape for t in a] != [t.shape for t in b]:
        raise VerificationFailed(
            f"the slim network returns shapes {[tuple(t.shape) for t in b]}, the dense one "
            f"{[tuple(t.shape) for t in a]}"
        )
    return max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)
