"""Law 1 on the spot: slim(x) is masked(x), the dense network with the removed units' slices zeroed in every consumer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import USER_EXCEPTIONS, RuleFailure, VerificationFailed
from .example import Example
from .labels import Ties
from .shadow import NoDropout, each, map_tensors, replicate, seeded, tensors_in
from .trace import op_name
from .units import Graph, attempt, new_tracer

NORMS = ("group norm", "layer norm")
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}  # as a fraction of the output's scale


def masked_model(model: nn.Module, graph: Graph, stays: np.ndarray, dtype: torch.dtype | None = None) -> nn.Module:
    """The dense network with the removed units' slices zeroed in every consumer (law 1); other weights are shared."""
    consumed = graph.ties.consumed()

    def mask(name: str, t: Tensor) -> Tensor:
        given = t
        t = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        for axis, ids in enumerate(graph.slots[name].ids if name in graph.slots else ()):
            if ids is not None:
                gone = torch.from_numpy(np.flatnonzero(consumed[ids.numpy()] & ~stays[ids.numpy()])).to(t.device)
                if gone.numel():
                    t = (t.clone() if t is given else t).index_fill_(axis, gone, 0)
        return t

    return replicate(model, mask)


class WithoutStatistics(TorchDispatchMode):
    """Group and layer norms as their affine part alone: what remains is the wiring, which can be compared."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = op_name(func)
        if name in ("aten.native_group_norm", "aten.native_layer_norm"):
            x, weight, bias = (
                (args[0], args[1], args[2]) if name == "aten.native_group_norm" else (args[0], args[2], args[3])
            )
            shape = (1, -1, *[1] * (x.ndim - 2)) if name == "aten.native_group_norm" else None
            y = x if weight is None else x * (weight.view(shape) if shape else weight)
            y = y.clone() if bias is None else y + (bias.view(shape) if shape else bias)
            return (y, *out[1:])
        return out


def verify(model: nn.Module, slim: nn.Module, graph: Graph, stays: np.ndarray) -> dict[str, Any]:
    """Compare slim(x) with masked(x) on noise: in fp64 in eval and in training mode, in fp32 in eval mode.

    Returns the `verified` part of the report. Raises VerificationFailed beyond the bounds of law 1. Statistics over
    pruned channels (group and layer norm) change by nature: they are named, and the rest is compared without them.
    """
    changed = graph.ties.changed_statistics(~stays)
    norms = any(r.what in NORMS for r in changed)
    binding = all(r.what in NORMS for r in changed)  # a mean over a weight cannot be left out: shapes are all there is
    example = verification_example(graph, slim)
    report: dict[str, Any] = {"against": "masked", "input": str(example.with_batch(1))}
    if changed:
        report["not_comparable"] = sorted({str(r) for r in changed})
    exact: list[Tensor] | None = None  # the masked network's output in fp64: what fp32 loses by rounding is no fault
    for dtype, modes in ((torch.float64, (False, True)), (torch.float32, (False,))):
        masked = masked_model(model, graph, stays, dtype)
        twin = replicate(slim, partial(_cast_named, dtype))
        worst, allowed = 0.0, LIMITS[dtype]
        for training in modes:
            samples = example if training else example.with_batch(1)
            try:
                want, got = (_outputs(m, samples, dtype, training, norms) for m in (masked, twin))
            except (RuntimeError, TypeError) as failure:
                text = " ".join(str(failure).split())[:200]
                if dtype is torch.float32:
                    raise VerificationFailed(f"the slim network does not run: {text}; nothing was written") from failure
                report["fp64"] = f"the model does not run in fp64: {text}"
                break
            scale = max((float(t.abs().max()) for t in want if t.numel()), default=0.0)
            error = _distance(want, got)
            worst = max(worst, error / scale if scale else math.inf if error else 0.0)
            if dtype is torch.float64 and not training:
                exact = want
            elif exact is not None and not training and scale:
                allowed = max(allowed, 10 * _distance(exact, want) / scale)
            if not training:
                report["max_abs_error"] = error
            if (
                scale and dtype is torch.float64 and worst > allowed
            ):  # an ill-conditioned network: what one rounding does
                shaken = Example(*map_tensors((samples.args, samples.kwargs), _nudged))
                allowed = max(allowed, 10 * _distance(want, _outputs(masked, shaken, dtype, training, norms)) / scale)
            if training and binding and not worst <= allowed and scale:
                other = _outputs(masked, samples, dtype, training, norms, seed=1)
                if _distance(want, other) / scale > allowed:  # it draws random numbers, so there is nothing to compare
                    report.setdefault("not_comparable", []).append("training mode: the forward draws random numbers")
                    worst = report[f"max_rel_error_fp{torch.finfo(dtype).bits}"]
            if binding and not worst <= allowed:
                raise VerificationFailed(
                    f"slim(x) differs from masked(x) by {worst:.1e} of the output's scale in {str(dtype)[6:]} "
                    f"({'training' if training else 'eval'} mode), where {allowed:.0e} is allowed; nothing was written. "
                    "This is a defect of ranp: please report the model"
                )
            report[f"max_rel_error_fp{torch.finfo(dtype).bits}"] = worst
    return report


def verification_example(graph: Graph, slim: nn.Module) -> Example:
    """Two samples of noise, of the smallest spatial size that takes the network through the same ops, one step above where cheap."""
    full = graph.example.with_batch(1)
    macs = max(1, sum(op.flops for op in graph.eval_run.tracer.ops) // 2 // graph.eval_run.samples)
    names = [op.name for op in graph.eval_run.tracer.ops]
    chosen = full
    feasible: list[tuple[float, Example]] = []
    for shift in range(6, 0, -1) if macs > 2e8 else ():
        small = shrink(full, 2**shift)
        if small is None or (feasible and macs / 2 ** (3 * shift) > 1e9):
            continue
        if feasible and shift < 6 and len(feasible) == 2:
            break
        tracers = [new_tracer(Ties()) for _ in range(2)]
        try:
            for tracer, training in zip(tracers, (False, True), strict=True):
                attempt(tracer, slim, small.with_batch(2 if training else 1), {}, training, graph.eval_run.real)
        except RuleFailure:
            raise
        except USER_EXCEPTIONS:  # too small for the network's strides
            continue
        if [op.name for op in tracers[0].ops] == names:
            feasible.append((2.0**-shift, small))
    if feasible:
        chosen = feasible[-1][1]
    noise = torch.Generator().manual_seed(0)

    def draw(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=noise, dtype=torch.float64) if t.is_floating_point() else t.cpu()

    chosen = chosen.with_batch(2)
    return Example(*map_tensors((chosen.args, chosen.kwargs), draw))


def shrink(example: Example, factor: int) -> Example | None:
    """The example with its spatial axes (from axis 2 on, of tensors of rank 4 and 5) divided; None where one is too short."""
    sizes = [n for t in each(Tensor, example.args, example.kwargs) if t.ndim > 3 for n in t.shape[2:]]
    if not sizes or min(sizes) < factor:
        return None

    def cut(t: Tensor) -> Tensor:
        if t.ndim < 4:
            return t
        return t[(slice(None),) * 2 + tuple(slice(0, n // factor) for n in t.shape[2:])]

    return Example(*map_tensors((example.args, example.kwargs), cut))


def _outputs(
    model: nn.Module, example: Example, dtype: torch.dtype, training: bool, without: bool, seed: int = 0
) -> list[Tensor]:
    """All tensors that the model returns, on the CPU; dropout off."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = map_tensors((example.args, example.kwargs), lambda t: _cast(t, dtype).to(device))
    with (
        seeded(seed),
        torch.no_grad(),
        _default_dtype(dtype),
        NoDropout(),
        WithoutStatistics() if without else nullcontext(),
    ):
        out = model(*args, **kwargs)
    return [t.double().cpu() for t in tensors_in(out)]


def _nudged(t: Tensor) -> Tensor:
    return t * (1 + torch.finfo(t.dtype).eps * torch.sign(t)) if t.is_floating_point() else t


def _cast_named(dtype: torch.dtype, name: str, t: Tensor) -> Tensor:
    return _cast(t, dtype)


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) if t.is_floating_point() else t


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    if [t.shape for t in a] != [t.shape for t in b]:
        raise VerificationFailed(f"the slim network returns shapes {[tuple(t.shape) for t in b]}, the dense one "
                                 f"{[tuple(t.shape) for t in a]}")  # fmt: skip
    return max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Constants that the model's code makes are of `dtype` inside."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)
