"""From a model to its units: trace it in eval and in training mode, unite the ties, list who lives and dies together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import rules
from ..core.contexts import labels_on_cpu, seeded
from ..core.copies import meta_copy
from ..core.errors import USER_EXCEPTIONS, BadInput, RuleFailure, in_words
from ..core.example import Example
from ..core.no_compiler import without_compiler
from ..core.reading import physical_memory
from ..core.spelling import spelled
from ..core.tensors import map_tensors, tensors_in, to_meta, to_real
from ..rules.labels import Labels, Ties
from .counting import PaperCounting, costs
from .graph import Graph, LabelledParameter, Layer, TraceResult
from .layers import find_layers, make_slot
from .trace import Tracer, all_fixed

LONGEST = 1 << 26  # elements of an axis of an input


@labels_on_cpu
def analyse(model: nn.Module, example: Example) -> Graph:
    """Trace `model` on an input and find its units.

    The model is not changed; nothing of it is run but a shadow on meta tensors (on copies of the real ones where its
    code needs numbers). Raises BadInput when the model cannot take the input.
    """
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    eval_run, train_run = (run_any_batch(model, example, ties, slots, training) for training in (False, True))
    for each in (eval_run, train_run):
        for t in tensors_in(each.output):
            ties.fix(each.tracer.labels(t).ids(), "network output", "")
    layers = find_layers(ties, slots, eval_run, train_run)
    if not layers:
        raise BadInput(
            "the model has no convolution or linear layer on its way from input to output; nothing can be pruned"
        )
    graph = Graph(slots, layers, ties, eval_run, train_run, example)
    graph.settle()
    return graph


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers under their first name."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        first.setdefault(id(t), (name, t))
    return list(first.values())


def run_any_batch(
    model: nn.Module, example: Example, ties: Ties, slots: dict[str, LabelledParameter], training: bool
) -> TraceResult:
    """One shadow run: of one sample, two in training mode, or as many as the code insists on; the given number is tried."""
    failure: BadInput | None = None
    for samples in dict.fromkeys((2 if training else 1, example.samples, 1)):
        mark = ties.mark()
        try:
            return run(model, example.with_batch(samples), ties, slots, training)
        except BadInput as error:
            ties.take_back(mark)
            if failure is None or samples == example.samples:
                failure = error
    assert failure is not None
    raise failure


def run(
    model: nn.Module, example: Example, ties: Ties, slots: dict[str, LabelledParameter], training: bool
) -> TraceResult:
    """One shadow run, on meta tensors if the model's code allows, else on copies of the real ones."""
    mark = ties.mark()
    longest = max((n for t in tensors_in((example.args, example.kwargs)) for n in t.shape), default=0)
    if longest > LONGEST:  # its labels alone would take more than that many numbers
        raise BadInput(
            f"an input of shape {example} has an axis of {longest}, and at most {LONGEST} are traced; give {spelled('batches')} "
            f"or {spelled('inputs')} of the shape that the model takes"
        )
    try:
        return trace_once(new_tracer(ties), model, example, slots, training)
    except (RuleFailure, BadInput):  # ours
        raise
    except USER_EXCEPTIONS as error:  # what the user's code cannot do with meta tensors it may do with real ones
        ties.take_back(mark)
        if example.bytes > physical_memory() // 4:  # but not with more than there is room for
            raise failing(error, example, training) from error
    try:
        return trace_once(new_tracer(ties), model, example, slots, training, real=True)
    except (RuleFailure, BadInput):  # which say themselves what is wrong
        raise
    except USER_EXCEPTIONS as error:
        raise failing(error, example, training) from error


def failing(error: BaseException, example: Example, training: bool) -> BadInput:
    return BadInput(
        f"the model fails in {'training' if training else 'eval'} mode on an input of shape {example}: "
        f"{in_words(error, 300)}; give {spelled('batches')} or {spelled('inputs')} of the shape and dtype that it takes"
    )


def new_tracer(ties: Ties) -> Tracer:
    return Tracer(ties, rules.find, rules.is_free)


def trace_once(
    tracer: Tracer,
    model: nn.Module,
    example: Example,
    slots: dict[str, LabelledParameter],
    training: bool,
    real: bool = False,
) -> TraceResult:
    """A shadow run under `tracer`, in training mode with gradients on, as in a training step.

    Raises whatever the model's code raises; the tracer then holds the ops so far.
    """
    without_compiler()
    copy = meta_copy(model, real)
    copy.train(training)
    for p in copy.parameters():
        p.requires_grad_(False)
    tracer.names = {id(m): name for name, m in copy.named_modules()}
    tracer.owned = {p.untyped_storage()._cdata: name for name, p in copy.named_parameters()}
    for name, t in named_tensors(copy):
        tracer.put(t, slots[name].labels if name in slots else Labels(tuple(t.shape), (), frozenset([name])))
    tracer.live_bytes = tracer.peak_bytes = 0
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    given = (example.args, example.kwargs)
    args, kwargs = map_tensors(given, lambda t: to_real(t, place)) if real else to_meta(given)
    for t in tensors_in((args, kwargs)):
        planes = tuple(p for p in all_fixed(t.shape) if p.shape[0] == 1 or t.ndim == 1)
        tracer.put(t, Labels(tuple(t.shape), planes, None))
    features: dict[str, Labels] = {}
    paper: PaperCounting | None = None
    watch_features(copy, tracer, features)
    if not any(isinstance(m, torch.jit.ScriptModule) for m in copy.modules()):
        paper = PaperCounting.watching(copy)
    with seeded(), torch.set_grad_enabled(training), tracer:
        output = copy(*args, **kwargs)
    return TraceResult(tracer, output, example.samples, real, features, paper)


def watch_features(model: nn.Module, tracer: Tracer, found: dict[str, Labels]) -> None:
    """Note what enters the modules that know a channel count but own no parameter (an instance norm, say)."""
    for name, module in model.named_modules():
        counts = any(hasattr(module, a) for a in ("num_features", "num_channels", "normalized_shape"))
        watched = not isinstance(module, torch.jit.ScriptModule)  # it takes no hooks
        if counts and watched and not [*module.parameters(False)]:

            def hook(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and args[0].ndim > 1:
                    found[name] = tracer.labels(args[0])

            module.register_forward_pre_hook(hook)


@dataclass(frozen=True)
class TracedCosts:
    """A shadow run in eval mode, its layers by parameter and axis, and the costs of one sample as the report has them."""

    run: TraceResult
    layers: dict[tuple[str, int], Layer]
    costs: dict[str, Any]


@labels_on_cpu
def trace_costs(model: nn.Module, example: Example, both_modes: bool = False) -> TracedCosts:
    """Count a network on meta tensors, one sample in eval mode.

    Args:
        both_modes: the layers are those of eval and training mode, as a Graph has them.
    """
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    modes = (False, True) if both_modes else (False,)
    runs = [run_any_batch(model, example, ties, slots, training) for training in modes]
    layers = {(layer.slot, layer.axis): layer for layer in find_layers(ties, slots, *runs)}
    return TracedCosts(runs[0], layers, cost_of(model, runs[0]))


def cost_of(model: nn.Module, run: TraceResult) -> dict[str, Any]:
    """The costs of one sample, as the report has them."""
    return costs(model, run.tracer, run.paper, run.samples).to_dict()
