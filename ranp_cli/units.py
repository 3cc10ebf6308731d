"""From a model to its units: trace it in eval and in training mode, unite the ties, list who lives and dies together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import rules
from .costs import Paper, costs
from .errors import USER_EXCEPTIONS, BadInput, RuleFailure, in_words
from .example import Example
from .labels import Labels, Reason, Ties
from .shadow import labels_on_cpu, map_tensors, seeded, shadow, tensors_in, to_meta, to_real
from .trace import Tracer, all_fixed


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer and the labels along its axes (None where an axis carries none)."""

    name: str
    shape: tuple[int, ...]
    ids: tuple[Tensor | None, ...]

    @property
    def labels(self) -> Labels:
        planes = []
        for axis, ids in enumerate(self.ids):
            if ids is not None:
                planes.append(ids.view([-1 if a == axis else 1 for a in range(len(self.shape))]))
        return Labels(self.shape, tuple(planes), frozenset([self.name]))


@dataclass
class Layer:
    """One parameter used as the weight of a convolution, transposed convolution or linear op."""

    name: str
    slot: str
    axis: int  # of the parameter, along which its neurons lie
    op: str
    neurons: np.ndarray  # (N,) one label a neuron
    kernel: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    bias: bool = False
    weights: int = 0
    macs: int = 0  # true multiply-adds of one sample
    output_elements: int = 0  # of one sample
    calls: list[tuple[Any, float]] = field(default_factory=list)  # of its op, and its share of each for one sample
    seconds: float = 0.0  # measured, of one sample; 0 where nobody did

    @property
    def bias_adds(self) -> int:
        return self.output_elements if self.bias and self.op != "linear" else 0


@dataclass
class Run:
    """What one shadow run showed."""

    tracer: Tracer
    output: Any
    samples: int
    real: bool
    features: dict[str, Labels]  # the input of modules that count channels without owning a parameter
    paper: Paper | None  # None with TorchScript, whose modules cannot be watched


@dataclass
class Graph:
    """A model's layers, units and costs.

    `root[label]` names the unit of a label; `fixed[root]` says why a unit may not go; `unit` gives for each of the n
    neurons (layer after layer, in forward order) the index of its unit, and `reasons[unit]` why it is fixed or None.
    """

    slots: dict[str, Slot]
    layers: list[Layer]
    ties: Ties
    eval_run: Run
    train_run: Run
    example: Example
    root: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit: np.ndarray = field(default_factory=lambda: np.empty(0))
    unit_roots: np.ndarray = field(default_factory=lambda: np.empty(0))
    reasons: list[Reason | None] = field(default_factory=list)
    unranked: frozenset[str] = frozenset()  # layers without scores

    def settle(self) -> None:
        """Work out the units; again after more labels were fixed."""
        self.root = self.ties.roots()
        fixed = self.ties.fixed(self.root)
        consumed = set(np.unique(self.root[self.ties.consumed()]).tolist())
        neurons = np.concatenate([layer.neurons for layer in self.layers])
        self.unit_roots, self.unit = np.unique(self.root[neurons], return_inverse=True)
        self.reasons = []
        for root in self.unit_roots.tolist():
            unused = None if root in consumed else Reason("no layer uses its output")
            self.reasons.append(fixed.get(root) or unused)

    @property
    def written(self) -> set[str]:
        """Parameters that the forward writes: a copy that runs must have them to itself."""
        return self.eval_run.tracer.written | self.train_run.tracer.written

    @property
    def sizes(self) -> list[int]:
        return [len(layer.neurons) for layer in self.layers]

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def by_layer(self, values: np.ndarray) -> list[np.ndarray]:
        """A vector of n values, cut into one piece a layer."""
        return np.split(values, np.cumsum(self.sizes)[:-1])

    def units_of(self, labels: np.ndarray) -> np.ndarray:
        """The index of the unit of each label, -1 for one that belongs to no neuron."""
        root = self.root[labels]
        at = np.minimum(np.searchsorted(self.unit_roots, root), len(self.unit_roots) - 1)
        return np.where(self.unit_roots[at] == root, at, -1)

    @property
    def fixed_units(self) -> np.ndarray:
        return np.array([r is not None for r in self.reasons])

    @property
    def ranked(self) -> np.ndarray:
        """One flag per neuron: its layer has scores."""
        return np.repeat([layer.name not in self.unranked for layer in self.layers], self.sizes)

    @property
    def unranked_units(self) -> np.ndarray:
        """One flag per unit: none of its layers has scores."""
        return np.bincount(self.unit[self.ranked], minlength=len(self.unit_roots)) == 0

    def flags(self, keep_units: np.ndarray) -> np.ndarray:
        """One flag per label: does it stay? Labels without a neuron always do."""
        root_stays = np.ones(self.ties.size, dtype=bool)
        root_stays[self.unit_roots] = keep_units
        return root_stays[self.root]

    def kept_indices(self, slot: Slot, stays: np.ndarray) -> list[Tensor | None]:
        """For each axis of a parameter the indices that stay; None where all do."""
        out: list[Tensor | None] = []
        for ids in slot.ids:
            flags = None if ids is None else stays[ids.numpy()]
            out.append(None if flags is None or flags.all() else torch.from_numpy(np.flatnonzero(flags)))
        return out

    def fix_layers(self, keep: Iterable[str], only: Iterable[str]) -> None:
        """`--keep` and `--only`: globs on layer names. Raises BadInput when a glob meets no layer."""
        keep, only = list(keep), list(only)
        names = [layer.name for layer in self.layers]
        for glob in (*keep, *only):
            if not any(fnmatchcase(name, glob) for name in names):
                raise BadInput(
                    f"no layer matches '{glob}'; the layers are {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
                )
        for layer in self.layers:
            if any(fnmatchcase(layer.name, g) for g in keep):
                self.ties.fix(layer.neurons, "kept by --keep")
            elif only and not any(fnmatchcase(layer.name, g) for g in only):
                self.ties.fix(layer.neurons, "not named by --only")
        self.settle()


@labels_on_cpu
def analyse(model: nn.Module, example: Example) -> Graph:
    """Trace `model` on an input and find its units.

    The model is not changed; nothing of it is run but a shadow on meta tensors (on copies of the real ones where its
    code needs numbers). Raises BadInput when the model cannot take the input.
    """
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    eval_run = run(model, example.with_batch(1), ties, slots, training=False)
    train_run = run(model, example.with_batch(2), ties, slots, training=True)
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


def make_slot(ties: Ties, name: str, shape: tuple[int, ...]) -> Slot:
    """Fresh labels for the axes that may carry channels: all of size > 1, but the window axes of a kernel."""
    kernel = len(shape) > 2 and shape[0] > 1 and shape[1] > 1
    return Slot(
        name, shape, tuple(ties.new(n) if n > 1 and not (kernel and axis > 1) else None for axis, n in enumerate(shape))
    )


def run(model: nn.Module, example: Example, ties: Ties, slots: dict[str, Slot], training: bool) -> Run:
    """One shadow run, on meta tensors if the model's code allows, else on copies of the real ones."""
    known = len(ties.uses)
    try:
        return attempt(new_tracer(ties), model, example, slots, training)
    except RuleFailure:
        raise
    except USER_EXCEPTIONS:  # what the user's code cannot do with meta tensors it may do with real ones
        del ties.uses[known:]
    try:
        return attempt(new_tracer(ties), model, example, slots, training, real=True)
    except RuleFailure:
        raise
    except USER_EXCEPTIONS as error:
        raise BadInput(
            f"the model fails in {'training' if training else 'eval'} mode on an input of shape {example}: "
            f"{in_words(error, 300)}; give a --batch or --input of the shape and dtype that it takes"
        ) from error


def new_tracer(ties: Ties) -> Tracer:
    return Tracer(ties, rules.find, rules.is_free)


def attempt(tracer: Tracer, model: nn.Module, example: Example, slots: dict[str, Slot], training: bool,
            real: bool = False) -> Run:  # fmt: skip
    """A shadow run under `tracer`. Raises whatever the model's code raises; the tracer then holds the ops so far."""
    copy = shadow(model, real)
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
    paper: Paper | None = None
    watch_features(copy, tracer, features)
    if not any(isinstance(m, torch.jit.ScriptModule) for m in copy.modules()):
        paper = Paper.watching(copy)
    with seeded(), torch.no_grad(), tracer:
        output = copy(*args, **kwargs)
    return Run(tracer, output, example.samples, real, features, paper)


def watch_features(model: nn.Module, tracer: Tracer, found: dict[str, Labels]) -> None:
    """Note what enters the modules that know a channel count but own no parameter (an instance norm, say)."""
    for name, module in model.named_modules():
        counts = any(hasattr(module, a) for a in ("num_features", "num_channels", "normalized_shape"))
        watched = not isinstance(module, torch.jit.ScriptModule)  # it takes no hooks
        if counts and watched and not [*module.parameters(False)]:

            def hook(_: nn.Module, args: tuple, name: str = name) -> None:
                if args and isinstance(args[0], Tensor) and args[0].ndim > 1:
                    found[name] = tracer.labels(args[0])

            module.register_forward_pre_hook(hook)


def find_layers(ties: Ties, slots: dict[str, Slot], *runs: Run) -> list[Layer]:
    """The layers in forward order, with the cost of one sample as the first run that meets them shows it."""
    owner = np.full(ties.size, -1)
    places = [(name, axis) for name, slot in slots.items() for axis, ids in enumerate(slot.ids) if ids is not None]
    for k, (name, axis) in enumerate(places):
        ids = slots[name].ids[axis]
        assert ids is not None
        owner[ids.numpy()] = k
    layers: dict[tuple[str, int], Layer] = {}
    for each in runs:
        seen: dict[tuple[str, int], Layer] = {}
        for op in each.tracer.ops:
            for use in op.uses:
                parts = split_by_owner(use, owner, places, slots, ties)
                whole = sum(len(neurons) for *_, neurons in parts)
                for slot, axis, neurons in parts:
                    layer = seen.get((slot, axis)) or layers.get((slot, axis))
                    if layer is None:
                        layer = Layer("", slot, axis, use.op, neurons)
                        layer.weights = int(np.prod(slots[slot].shape))
                        for key, value in use.how.items():
                            setattr(layer, key, value) if key != "axis" else None
                    if (slot, axis) not in layers or (slot, axis) in seen:
                        layer.macs += op.flops // 2 * len(neurons) // whole // each.samples
                        layer.output_elements += int(np.prod(op.outs[0].shape)) * len(neurons) // whole // each.samples
                        layer.calls.append((op.call, len(neurons) / whole / each.samples))
                        seen[slot, axis] = layer
        layers.update(seen)
    found = list(layers.values())
    owners = [owner_of(layer.slot) for layer in found]
    for layer, module in zip(found, owners, strict=True):
        bias = slots.get(f"{module}.bias" if module else "bias")
        layer.bias = layer.bias or (bias is not None and bias.shape == (len(layer.neurons),))
        layer.name = module if module and owners.count(module) == 1 else layer.slot
        if sum(other.slot == layer.slot for other in found) > 1:  # used along both axes, as in a tied autoencoder
            layer.name = f"{layer.slot}[{layer.axis}]"
    return found


def split_by_owner(use: Any, owner: np.ndarray, places: list, slots: dict[str, Slot], ties: Ties) -> list:
    """(parameter, axis, neuron labels) of a layer's weight; several where it is put together from parameters."""
    if use.neurons is None:  # a single neuron, or neurons that no rule could follow: labels that nothing is tied to
        given = use.how.get("axis", 1 if use.how.get("transposed") else 0)
        count = use.weight.shape[given]
        slot = max(sorted(use.weight.origin), key=lambda name: (np.prod(slots[name].shape), count in slots[name].shape))
        fitting = [a for a, n in enumerate(slots[slot].shape) if n == count]
        if not fitting:  # looked up from a table, say: a neuron is no slice of a parameter
            return []
        axis = given if given in fitting and use.weight.ndim == len(slots[slot].shape) else fitting[0]
        labels = ties.new(count)
        ties.fix(labels, "its only neuron" if count == 1 else "its neurons could not be followed", "")
        return [(slot, axis, labels.numpy())]
    by = owner[ids := use.neurons.numpy()]
    return [(*places[k], ids[by == k]) for k in dict.fromkeys(by.tolist()) if k >= 0]


def owner_of(parameter: str) -> str:
    """The module path of a parameter's owner; a parametrisation belongs to the module that it parametrises."""
    return (
        parameter.partition(".parametrizations.")[0]
        if ".parametrizations." in parameter
        else parameter.rpartition(".")[0]
    )


def guess_example(model: nn.Module) -> Example:
    """An input that the model takes, judged by its first convolution or linear layer; BadInput when none is found."""
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    for name, p in model.named_parameters():
        if p.ndim < 2:
            continue
        owner = dict(model.named_modules()).get(owner_of(name))
        channels = p.shape[1] * getattr(owner, "groups", 1) if p.ndim > 2 else p.shape[1]
        for size in (32, 64, 96, 128, 224, 16, 8) if p.ndim > 2 else (1,):
            example = Example((torch.empty((1, channels, *[size] * (p.ndim - 2)), device="meta"),))
            try:
                for training in (False, True):
                    attempt(new_tracer(ties), model, example.with_batch(2 if training else 1), slots, training)
            except RuleFailure:
                raise
            except USER_EXCEPTIONS:  # not this size
                continue
            return example
        break
    raise BadInput(
        "the shape of the model's input is not known and could not be guessed; give --input, as in --input 1x1x64x64x64"
    )


@labels_on_cpu
def measure(model: nn.Module, example: Example) -> tuple[Run, list[Layer], dict[str, Any]]:
    """One shadow run in eval mode: the run, the layers that it met, and the costs of one sample."""
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    found = run(model, example.with_batch(1), ties, slots, training=False)
    return found, find_layers(ties, slots, found), cost_of(model, found)


@labels_on_cpu
def measure_all(model: nn.Module, example: Example) -> tuple[Run, dict[tuple[str, int], Layer], dict[str, Any]]:
    """As `measure`; the layers, by parameter and axis, are those of both modes, as a Graph has them."""
    ties = Ties()
    slots = {name: make_slot(ties, name, tuple(t.shape)) for name, t in named_tensors(model)}
    runs = [run(model, example.with_batch(n), ties, slots, training) for n, training in ((1, False), (2, True))]
    layers = {(layer.slot, layer.axis): layer for layer in find_layers(ties, slots, *runs)}
    return runs[0], layers, cost_of(model, runs[0])


def cost_of(model: nn.Module, run: Run) -> dict[str, Any]:
    """The costs of one sample, as the report has them."""
    return costs(model, run.tracer, run.paper, run.samples).to_dict()
