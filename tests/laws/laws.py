"""The laws of ranp_cli/README.md as functions that raise AssertionError. test_laws.py holds networks to them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ranp_cli as ranp
from ranp_cli.api.results import Pruned
from ranp_cli.core.contexts import NoDropout, seeded
from ranp_cli.core.copies import replicate
from ranp_cli.core.example import Example
from ranp_cli.core.tensors import map_tensors, tensors_in
from ranp_cli.graph.analyse import analyse
from ranp_cli.graph.graph import Graph
from ranp_cli.pruning.verify import WithoutStatistics, masked_model

aten = torch.ops.aten
UNKNOWN_TO_TORCH = {  # its counter has no formula for these and counts nothing: spectral norms have them
    aten.mv: lambda matrix, vector, out_shape: 2 * matrix[0] * matrix[1],
    aten.dot: lambda a, b, out_shape: 2 * a[0],
    aten.vdot: lambda a, b, out_shape: 2 * a[0],
}
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-10}


def run(model: nn.Module, x: Any, training: bool, plain: bool = True) -> list[torch.Tensor]:
    """All outputs; dropout off, norms over channels left out unless `plain`."""
    model.train(training)
    for m in model.modules():
        if isinstance(m, nn.modules.dropout._DropoutNd):
            m.eval()
    with torch.no_grad(), NoDropout(), seeded():
        if plain:
            return tensors_in(call(model, x))
        with WithoutStatistics():
            return tensors_in(call(model, x))


def call(model: nn.Module, x: Any) -> Any:
    """A tuple is passed as positional arguments, a dict as keyword arguments."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def example(x: Any) -> Example:
    if isinstance(x, dict):
        return Example((), x)
    return Example(x if isinstance(x, tuple) else (x,))


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return replicate(model, lambda _, t: t.to(dtype) if t.is_floating_point() else t.clone())


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest difference, as a fraction of the scale of a."""
    assert [t.shape for t in a] == [t.shape for t in b]
    scale = max(float(t.abs().max()) for t in a)
    assert scale > 0, "the output is zero: nothing is compared"
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) / scale


def stays(graph: Graph, pruned: Pruned) -> np.ndarray:
    return graph.flags(pruned.mask.units(graph))


def slim_is_masked(model: nn.Module, pruned: Pruned, x: Any, statistics: bool = False) -> None:
    """Law 1, in both modes and both precisions, and: what is masked cannot be felt at the output."""
    graph = analyse(model, example(x))
    alive = stays(graph, pruned)
    for dtype in (torch.float64, torch.float32):
        masked = masked_model(model, graph, alive, dtype)
        slim = cast(pruned.model, dtype)
        shaken = shake(masked, graph, alive)
        y = map_tensors(x, partial(torch.Tensor.to, dtype=dtype))
        for training in (False, True):
            want = run(masked, y, training, not statistics)
            assert distance(want, run(slim, y, training, not statistics)) <= LIMIT[dtype]
            assert distance(want, run(shaken, y, training, not statistics)) <= LIMIT[dtype]


def shake(model: nn.Module, graph: Graph, alive: np.ndarray) -> nn.Module:
    """The same network with noise in every slice of a removed unit that is not summed over: its own weights, norms."""
    consumed = graph.ties.consumed()
    g = torch.Generator().manual_seed(1)

    def noise(name: str, t: torch.Tensor) -> torch.Tensor:
        t = t.clone()
        for axis, ids in enumerate(graph.slots[name].ids if name in graph.slots else ()):
            if ids is not None:
                gone = torch.from_numpy(np.flatnonzero(~alive[ids.numpy()] & ~consumed[ids.numpy()]))
                shape = [len(gone) if a == axis else n for a, n in enumerate(t.shape)]
                t.index_add_(axis, gone, torch.rand(shape, generator=g, dtype=torch.float64).to(t.dtype))
        return t

    shaken = replicate(model, noise)
    for (_, a), (_, b) in zip(shaken.named_parameters(), model.named_parameters(), strict=True):
        a.data[b.data == 0] = 0  # what was masked stays masked
    return shaken


def same_behaviour(model: nn.Module, pruned: Pruned, x: Any) -> None:
    """Law 2: output shapes in both modes, gradients wherever there were some, nothing fixed gone, no layer empty."""
    slim = copy.deepcopy(pruned.model)
    for training in (False, True):
        assert [t.shape for t in run(model, x, training)] == [t.shape for t in run(slim, x, training)]
    reached = [{n for n, p in m.named_parameters() if p.grad is not None} for m in map(backward, (model, slim), (x, x))]
    assert reached[0] == reached[1]
    mask = pruned.mask.to_dict()
    assert all(layer["kept"] for layer in mask["layers"].values())
    kept = sum(len(layer["kept"]) for layer in mask["layers"].values())
    assert mask["neurons"]["kept"] == kept
    total = mask["neurons"]["total"]
    assert abs(mask["sparsity"]["achieved"] - (1 - kept / total)) < 1e-6
    found = {layer.name: len(layer.neurons) for layer in analyse(slim, example(x)).layers}
    sizes = {name: tuple(p.shape) for name, p in slim.named_parameters()}
    for name, layer in mask["layers"].items():
        if name not in found:  # an einsum over a single channel is a multiplication, and its weight no layer any more
            assert 1 in sizes[name], name
        else:
            assert found[name] == len(layer["kept"]), name


def backward(model: nn.Module, x: Any) -> nn.Module:
    twin = copy.deepcopy(model).train()
    sum(t.sum() for t in tensors_in(call(twin, x))).backward()
    return twin


def counts_agree(pruned: Pruned, x: Any) -> None:
    """Law 3: against torch's own counter with the formulas that it lacks, and numel."""
    after = pruned.report.to_dict()["after"]
    counter = FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH)
    with counter:
        run(copy.deepcopy(pruned.model), map_tensors(x, lambda t: t[:1]), False)
    assert after["flops"] == counter.get_total_flops()
    assert after["params"] == sum(p.numel() for p in pruned.model.parameters())


@contextmanager
def op_by_op() -> Iterator[None]:
    """torch without its fused layers, for which its counter has no formula: attention and LSTMs as matrix products."""
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = True
        torch.backends.mha.set_fastpath_enabled(True)


def survives_a_file(model: nn.Module, pruned: Pruned, x: Any, path: Any) -> None:
    """Law 4: saved and loaded, the same outputs bit for bit, the same class and attributes."""
    pruned.save(path)
    loaded = ranp.load(path, model)
    assert type(loaded) is type(model)
    for a, b in zip(run(loaded, x, False), run(copy.deepcopy(pruned.model), x, False), strict=True):
        assert torch.equal(a, b)
    for (name, m), (_, k) in zip(loaded.named_modules(), pruned.model.named_modules(), strict=True):
        assert m.extra_repr() == k.extra_repr(), name
    first = path.read_bytes()
    pruned.save(path)
    assert path.read_bytes() == first


def snapshot(model: nn.Module) -> tuple:
    """All that a call must leave as it was: state, modes, gradients, and the global RNG."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = {n: (p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    return state, [m.training for m in model.modules()], grads, torch.get_rng_state()


def unchanged(model: nn.Module, before: tuple) -> None:
    """Law 5."""
    state, modes, grads, rng = before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    for n, p in model.named_parameters():
        required, grad = grads[n]
        assert p.requires_grad == required
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)
    assert torch.equal(torch.get_rng_state(), rng)


def attributes_are_true(model: nn.Module) -> None:
    """What modules say of their channels is what their tensors show, and repr can be read as the network."""
    for name, m in model.named_modules():
        if isinstance(m, nn.modules.conv._ConvNd):
            shape = (
                (m.in_channels, m.out_channels // m.groups)
                if m.transposed
                else (m.out_channels, m.in_channels // m.groups)
            )
            assert tuple(m.weight.shape[:2]) == shape, name
        elif isinstance(m, nn.Linear):
            assert tuple(m.weight.shape) == (m.out_features, m.in_features), name
        elif isinstance(m, nn.modules.batchnorm._NormBase) and m.weight is not None:
            assert len(m.weight) == m.num_features, name
        elif isinstance(m, nn.GroupNorm):
            assert len(m.weight) == m.num_channels, name
        elif isinstance(m, nn.PReLU):
            assert len(m.weight) == m.num_parameters, name


def nothing_was_hard_coded(pruned: Pruned) -> None:
    """The ties estimated every shape: refining never had to fix what the code insists on."""
    reasons = [row["reason"] for row in pruned.report.to_dict().get("not_pruned", [])] + list(
        pruned.mask.fixed.values()
    )
    assert not [r for r in reasons if "in the code" in r]


def as_file(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()
