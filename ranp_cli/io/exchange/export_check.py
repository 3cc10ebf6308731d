"""Shared by the exports: a copy of the network, samples to compare on, and the most dynamic form that agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ...core.errors import USER_EXCEPTIONS, BadInput, VerificationFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...core.example import Example


Made = TypeVar("Made")

TOLERANCE = 1e-4  # of the output's scale, what was exported against the module
LEVELS = ("batch+spatial", "batch", "none")  # which axes of the inputs are to be dynamic


class ExportCandidate:
    """A copy of the model in eval mode on the CPU, and noise to run it on."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        import torch

        from ...core.copies import replicate, script_copy
        from ...core.tensors import map_tensors, tensors_in

        self.script = isinstance(model, torch.jit.ScriptModule)
        own = (
            script_copy(model, "cpu")
            if isinstance(model, torch.jit.ScriptModule)
            else replicate(model, lambda _, t: t.cpu())
        )
        self.model: Any = own.eval()
        for p in self.model.parameters():
            p.requires_grad_(False)
        noise = torch.Generator().manual_seed(0)

        def draw(t: Tensor) -> Tensor:
            return torch.randn(t.shape, generator=noise).to(t.dtype) if t.is_floating_point() else t.detach().cpu()

        self.make: Callable[[Any], Any] = partial(map_tensors, make=draw)
        self.example = self._in_order(example)
        self.names = self._names()
        try:
            self.outputs = len(self.run(self.sample(1)))
        except USER_EXCEPTIONS as error:
            raise BadInput(
                f"the model fails on an input of shape {example}: {first_words(error)}; give the shape that it takes"
            ) from error
        leading = {t.shape[0] for t in tensors_in((example.args, example.kwargs)) if t.ndim > 1}
        self.levels = LEVELS if len(leading) == 1 else LEVELS[-1:]

    def sample(self, batch: int, resize: Callable[[int], int] | None = None, axes: Sequence[set[int]] = ()) -> Example:
        """Noise of the example's shape for `batch` samples; of other spatial sizes with `resize` on `axes` of each input."""
        import torch

        from ...core.example import Example
        from ...core.tensors import map_tensors

        given = self.example.with_batch(batch)
        at = iter(axes)

        def other(t: Tensor) -> Tensor:
            mine = next(at)
            if not mine:
                return t
            shape = [resize(n) if axis in mine and resize else n for axis, n in enumerate(t.shape)]
            return torch.zeros(shape, dtype=t.dtype)

        values = (given.args, given.kwargs)
        return Example(*self.make(map_tensors(values, other) if resize else values))

    def run(self, sample: Example) -> list[np.ndarray]:
        """All tensors that the module returns."""
        return outputs_of(self.model, sample)

    def _in_order(self, example: Example) -> Example:
        """The keyword arguments in the order in which the module declares them, as exporters take them."""
        from ...core.example import Example

        declared = [k for k in self.arguments(example) if k in example.kwargs]
        return Example(example.args, {k: example.kwargs[k] for k in [*declared, *example.kwargs]})

    def _names(self) -> list[str]:
        """One name for each input tensor: the argument's."""
        from ...core.tensors import tensors_in

        names = []
        for key, value in self.arguments(self.example).items():
            count = len(tensors_in(value))
            names += [key] if count == 1 else [f"{key}_{k}" for k in range(count)]
        return names

    def arguments(self, example: Example) -> dict[str, Any]:
        """Argument name -> value, in the order of the call."""
        import inspect

        if self.script:
            declared = [a.name for a in self.model.forward.schema.arguments[1:]]
            return {**dict(zip(declared, example.args, strict=False)), **example.kwargs}
        try:
            bound = inspect.signature(self.model.forward).bind(*example.args, **example.kwargs)
        except TypeError as error:
            raise BadInput(f"the model does not take the input: {error}; give the arguments of its forward") from error
        return dict(bound.arguments)


def outputs_of(model: Any, sample: Example) -> list[np.ndarray]:
    """All tensors that a module on the CPU returns, without gradients; the sample and the global RNG are left as they are."""
    import torch

    from ...core.contexts import seeded
    from ...core.tensors import map_tensors, tensors_in

    args, kwargs = map_tensors((sample.args, sample.kwargs), lambda t: t.clone())
    with seeded(), torch.no_grad():
        out = model(*args, **kwargs)
    return [t.detach().float().numpy() if t.dtype == torch.bfloat16 else t.detach().numpy() for t in tensors_in(out)]


# -- the most dynamic export


@dataclass(frozen=True)
class ExportForm(Generic[Made]):
    """An exporter: what it makes of a module, a sample and a level, and the levels that are tried, in this order."""

    name: str
    make: Callable[[ExportCandidate, Example, str], Made]
    levels: Sequence[str]


class Refused(Exception):
    """No exporter takes the network; `reasons` has one for each that was tried."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(reasons[0])
        self.reasons = reasons


def most_dynamic(
    twin: ExportCandidate, ways: Sequence[ExportForm[Made]], verify: Callable[[Made], dict[str, Any]]
) -> tuple[Made, str, dict[str, Any]]:
    """The most dynamic export that says what the module says, the name of its way, and what `verify` found.

    Raises: Refused; VerificationFailed when `verify` does so even without dynamic axes.
    """
    from ...core.silence import silence

    reasons = []
    for way in ways:
        for level in way.levels:
            sample = twin.sample(1 if level == "none" else 2)  # of one sample, the batch would be taken for a constant
            try:
                with silence():
                    made = way.make(twin, sample, level)
            except USER_EXCEPTIONS as error:
                reasons.append(f"{way.name}, {level}: {first_words(error)}")
                continue
            try:
                return made, way.name, verify(made)
            except VerificationFailed as failure:
                if level == "none":
                    raise
                reasons.append(f"{way.name}, {level}: {failure}")
    raise Refused(reasons)


def axes_at(rank: int, level: str) -> list[int]:
    """The axes of an input that count samples or places: 0, and 2 and up."""
    batch = [0] if rank > 1 and level != "none" else []
    return batch + (list(range(2, rank)) if level == "batch+spatial" else [])


def dynamic_shapes(twin: ExportCandidate, sample: Example, level: str) -> dict[str, Any] | None:
    """What `torch.export` is told of the axes of each argument."""
    import torch

    auto = torch.export.Dim.AUTO

    def axes(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {axis: auto for axis in axes_at(value.ndim, level) if value.shape[axis] > 1}
        if isinstance(value, (list, tuple)):
            return type(value)(axes(v) for v in value)
        if isinstance(value, dict):
            return {k: axes(v) for k, v in value.items()}
        return None

    return None if level == "none" else {k: axes(v) for k, v in twin.arguments(sample).items()}


def axis_names(inputs: Mapping[str, Sequence[int | str]]) -> dict[str, str]:
    """Symbol of the exporter -> batch, depth, height, width or length."""
    places = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
    names: dict[str, str] = {}
    for argument, dims in inputs.items():
        words = ("batch", "", *places.get(len(dims), ()))
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and dim not in names:
                word = words[axis] if axis < len(words) and words[axis] else f"{argument}_{axis}"
                names[dim] = word if word not in set(names.values()) or word == "batch" else f"{word}_{argument}"
    return names


def dynamic_of(inputs: Mapping[str, Sequence[int | str]]) -> str:
    """Which axes of the inputs are free: `batch+spatial`, `batch`, `spatial` or `none`."""
    free = {
        ("batch" if axis == 0 else "spatial")
        for dims in inputs.values()
        for axis, n in enumerate(dims)
        if isinstance(n, str)
    }
    return "+".join(sorted(free)) or "none"


# -- what is exported, held against the module


Trial = tuple["Example", list[np.ndarray]]  # a sample, and what the module says on it


def trials(twin: ExportCandidate, inputs: Sequence[Sequence[int | str]]) -> list[Trial]:
    """One sample, and three of another spatial size where the axes of the `inputs` are dynamic."""
    axes = [{k for k, n in enumerate(dims) if isinstance(n, str) and k > 0} for dims in inputs]
    batch = any(isinstance(dims[0], str) for dims in inputs if dims)
    samples = [twin.sample(1)]
    if any(axes):
        found = _another_size(twin, 3 if batch else 1, axes)
        if found is None:
            raise VerificationFailed("no other spatial size was found that the model takes")
        return [(samples[0], twin.run(samples[0])), found]
    samples += [twin.sample(3)] * batch
    return [(sample, twin.run(sample)) for sample in samples]


def compared(tried: Sequence[Trial], run: Callable[[Example], list[np.ndarray]], what: str) -> dict[str, Any]:
    """The largest errors of `run` over the trials; VerificationFailed where it fails or says something else."""
    absolute = relative = 0.0
    for sample, want in tried:
        try:
            got = run(sample)
        except Exception as error:
            raise VerificationFailed(
                f"{what} fails on an input of shape {sample}: {first_words(error)}; nothing was written"
            ) from error
        far, part = _difference(want, got, what)
        absolute, relative = max(absolute, far), max(relative, part)
        if not part <= TOLERANCE:
            raise VerificationFailed(
                f"{what} differs from the model by {part:.1e} of the output's scale on an input of shape {sample}, where {TOLERANCE:.0e} is allowed; nothing was written"
            )
    return {"input": [str(sample) for sample, _ in tried], "max_abs_error": absolute, "max_rel_error": relative}


def _another_size(twin: ExportCandidate, batch: int, axes: list[set[int]]) -> tuple[Example, list[np.ndarray]] | None:
    """A sample of other spatial sizes that the module takes, the cheap ones tried first, and what it says on it."""
    from ...core.tensors import tensors_in

    def size(e: Example) -> int:
        return sum(t.numel() for t in tensors_in((e.args, e.kwargs)))

    whole = size(twin.sample(1))
    steps: tuple[Callable[[int], int], ...] = (
        lambda n: n // 2,
        lambda n: 3 * n // 4,
        lambda n: n - 32,
        lambda n: n - 16,
        lambda n: 3 * n // 2,
        lambda n: 2 * n,
    )
    sizes = [
        t.shape[k]
        for t, mine in zip(tensors_in((twin.example.args, twin.example.kwargs)), axes, strict=True)
        for k in mine
    ]
    for step in steps:
        if min(step(n) for n in sizes) < 2 or all(step(n) == n for n in sizes):
            continue
        sample = twin.sample(batch, step, axes)
        if size(sample) > max(3 * whole, 1 << 22):
            continue
        try:
            return sample, twin.run(sample)
        except USER_EXCEPTIONS:  # not this size
            continue
    return None


def _difference(want: list[np.ndarray], got: list[np.ndarray], what: str) -> tuple[float, float]:
    """(largest difference, the same as a fraction of the output's scale); of integer outputs the share that differs."""
    if [a.shape for a in want] != [b.shape for b in got]:
        raise VerificationFailed(
            f"{what} returns shapes {[b.shape for b in got]}, the model {[a.shape for a in want]}; nothing was written"
        )
    floats = [k for k, a in enumerate(want) if a.dtype.kind == "f" and a.size]
    scale = max((float(np.abs(want[k]).max()) for k in floats), default=0.0)
    error = max((float(np.abs(want[k].astype(float) - got[k].astype(float)).max()) for k in floats), default=0.0)
    part = error / scale if scale else math.inf if error else 0.0
    whole = [float((a != b).mean()) for a, b in zip(want, got, strict=True) if a.dtype.kind != "f" and a.size]
    if max(whole, default=0.0) > 1e-3:  # a near tie of an argmax may fall either way, no more
        part = math.inf
    return error, math.inf if math.isnan(error) else part


def first_words(error: BaseException) -> str:
    """The first words of an exception."""
    cause = error
    while cause.__cause__ is not None and type(cause).__name__ in ("TorchExportError", "ConversionError"):
        cause = cause.__cause__
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text[:200]}".rstrip(": ")
