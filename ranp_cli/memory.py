"""What a training step and a forward pass hold at their peak, from one pass on meta tensors, without running the network.

Every storage is counted from its birth to its death, as an allocator would: what autograd saves is alive because
autograd holds it, in-place ops and checkpointing are as they are in the code. What ops allocate and free inside
themselves (a convolution's workspace) is no tensor, so it is not counted; it is stated as an allowance.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import USER_EXCEPTIONS, BadInput, nearest
from .example import Example
from .schema import op_name
from .shadow import labels_on_cpu, seeded, shadow, tensors_in, to_meta
from .trace import batch_norm_on_meta, locate
from .units import named_tensors, user_line
from .workspace import CONVOLUTIONS, convolution_workspace

STATES = {
    "sgd": 0,
    "sgd-momentum": 1,
    "adam": 2,
    "adamw": 2,
}  # tensors of the parameters' size that the optimiser keeps


@dataclass
class Meter(TorchDispatchMode):
    """Counts the bytes of every storage that is made while it is on."""

    names: Mapping[int, str] = field(default_factory=dict)  # id(module) -> its path
    live: int = 0
    peak: int = 0
    peak_at: tuple[str, str, int] = ("", "", 0)  # op, module, number of the op
    timeline: list[int] = field(default_factory=list)  # live bytes after each op
    on_cpu: bool = True  # workspaces are known there, and counted
    workspace: int = 0  # the largest

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__init__()
        self._known: dict[int, Any] = {}

    def know(self, t: Tensor) -> None:
        """A tensor that was there before: it is not counted."""
        self._known[t.untyped_storage()._cdata] = None

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.live += size

        def dead(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, dead)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm.default and args[0].device.type == "meta":
            out = batch_norm_on_meta(*args)
        else:
            out = func(*args, **(kwargs or {}))
        out = as_laid_out(op_name(func), args, out)
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self._watch(t.untyped_storage())
        name = op_name(func)
        inside = convolution_workspace(name, args, out) if name in CONVOLUTIONS else 0
        self.workspace = max(self.workspace, inside)
        now = self.live + (inside if self.on_cpu else 0)
        self.timeline.append(now)
        if now > self.peak:
            self.peak, self.peak_at = now, (name, locate(self.names)[0], len(self.timeline) - 1)
        return out


def as_laid_out(name: str, args: Any, out: Any) -> Any:
    """The result on meta in the layout that it has elsewhere, where torch's meta tensors lose `channels_last`."""
    if name not in ("aten.convolution", "aten.native_batch_norm_backward"):
        return out
    x = args[0] if name == "aten.convolution" else args[1]
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if layout is None or x.is_contiguous() or not x.is_contiguous(memory_format=layout):
        return out
    if isinstance(out, Tensor):
        return torch.empty_like(out, memory_format=layout)
    return (None if out[0] is None else torch.empty_like(out[0], memory_format=layout), *out[1:])


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step (batch of `samples`), or of a forward pass in inference.

    `peak` = the parts that are always there (parameters, buffers, input, optimiser state) + `working`, the most that
    was alive besides: activations, gradients, transients. `allowance`: for workspaces inside convolutions, not in `peak`.
    """

    samples: int
    peak: int
    parameters: int
    buffers: int
    inputs: int
    optimizer: int
    gradients: int
    saved: int  # alive when the forward pass has ended: what autograd saved, and the outputs
    outputs: int
    working: int
    allowance: int
    at: str
    timeline: list[int]  # live bytes after each op, without what is always there
    forward_ops: int  # how many of them the forward pass has


@labels_on_cpu
def training_memory(
    model: nn.Module, example: Example, optimizer: str = "sgd", loss: Callable[[Any], Tensor] | None = None
) -> Memory:
    """The peak of a training step with the batch of `example`.

    Args:
        optimizer: `sgd`, `sgd-momentum`, `adam` or `adamw`; its state is there from the second step on.
        loss: from what the model returns to a scalar; by default cross-entropy where an output has several channels,
            the mean of squares elsewhere.

    Raises: BadInput.
    """
    check_optimizer(optimizer)
    return _measured(model, example, loss or plain_loss, STATES[optimizer])


def check_optimizer(name: str) -> None:
    """BadInput for one that is not known."""
    if name not in STATES:
        raise BadInput(f"unknown optimizer '{name}'{nearest(name, STATES)}")


@labels_on_cpu
def forward_memory(model: nn.Module, example: Example) -> Memory:
    """The peak of a forward pass in inference with the batch of `example`. Raises BadInput."""
    return _measured(model, example, None, 0)


def _measured(model: nn.Module, example: Example, loss: Callable[[Any], Tensor] | None, states: int) -> Memory:
    training = loss is not None
    try:
        copy = shadow(model, False).train(training)
    except USER_EXCEPTIONS as error:  # a TorchScript file with constants that meta tensors cannot hold
        raise not_foretold(error, training, example) from error
    for (_, new), (_, old) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
        new.requires_grad_(training and new.is_floating_point() and old.requires_grad)
    args, kwargs = to_meta((example.args, example.kwargs))
    meter = Meter({id(m): name for name, m in copy.named_modules()})
    held = [t for _, t in named_tensors(copy)]
    for t in (*held, *tensors_in((args, kwargs))):
        meter.know(t)
    saved = outputs = forward_ops = 0
    try:
        with seeded(), torch.set_grad_enabled(training), meter:
            output = copy(*args, **kwargs)
            outputs = sum(_bytes(t) for t in {t.untyped_storage()._cdata: t for t in tensors_in(output)}.values())
            saved, forward_ops = meter.live, len(meter.timeline)
            if loss is not None:
                value = loss(output)
                del output
                value.backward()
                del value
    except USER_EXCEPTIONS as error:
        raise not_foretold(error, training, example) from error
    parameters = sum(_bytes(p) for p in copy.parameters())
    trained = sum(_bytes(p) for p in copy.parameters() if p.requires_grad)
    buffers = sum(_bytes(b) for b in copy.buffers())
    inputs = sum(_bytes(t) for t in tensors_in((args, kwargs)))
    op, module, _ = meter.peak_at
    always = parameters + buffers + inputs + states * trained
    return Memory(
        samples=example.samples, peak=always + meter.peak, parameters=parameters, buffers=buffers, inputs=inputs,
        optimizer=states * trained, gradients=trained if training else 0, saved=saved, outputs=outputs, working=meter.peak,
        allowance=meter.workspace, at=f"{op} in {module}" if module else op, timeline=meter.timeline, forward_ops=forward_ops,
    )  # fmt: skip


def not_foretold(error: BaseException, training: bool, example: Example) -> BadInput:
    where = user_line(error)
    return BadInput(
        f"the memory of {'a training step' if training else 'a forward pass'} cannot be foretold on {example}: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{f' (at {where})' if where else ''}"
    )


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def plain_loss(output: Any) -> Tensor:
    """Cross-entropy over axis 1 of each output that has several channels, the mean of squares of any other."""
    total: Tensor | None = None
    for t in tensors_in(output):
        if t.is_floating_point() and t.requires_grad:
            if t.ndim > 1 and t.shape[1] > 1:
                target = torch.zeros((t.shape[0], *t.shape[2:]), dtype=torch.int64, device=t.device)
                value = nn.functional.cross_entropy(t, target)
            else:
                value = t.square().mean()
            total = value if total is None else total + value
    if total is None:
        raise RuntimeError("no output of the model needs a gradient")
    return total


def memory_of(model: nn.Module, example: Example, optimizer: str = "sgd") -> dict[str, Any]:
    """Both peaks as the report has them; `error` in their place where the code cannot be run on meta tensors."""
    about: dict[str, Any] = {"samples": example.samples, "optimizer": optimizer}
    try:
        forward, step = forward_memory(model, example), training_memory(model, example, optimizer)
    except BadInput as error:
        return {**about, "error": str(error)}
    parts = {
        k: getattr(step, k) for k in ("parameters", "buffers", "inputs", "optimizer", "gradients", "saved", "outputs")
    }
    return {
        **about,
        "forward_peak_bytes": forward.peak,
        "forward_peak_at": forward.at,
        "train_peak_bytes": step.peak,
        "train_peak_at": step.at,
        "train_parts": {**parts, "working": step.working},
        "allowance_bytes": step.allowance,
        **binned(step),
    }


def binned(step: Memory, most: int = 240) -> dict[str, Any]:
    """The timeline in at most `most` bins, the peak of each, and the bin where the backward pass begins."""
    n = len(step.timeline)
    width = max(1, -(-n // most))
    always = step.peak - step.working
    line = [always + max(step.timeline[k : k + width]) for k in range(0, n, width)]
    return {"timeline": line, "timeline_backward": step.forward_ops // width}
