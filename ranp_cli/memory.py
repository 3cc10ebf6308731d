"""What a training step and a forward pass hold at their peak, from one pass on meta tensors, without running the network.

Every storage is counted from its birth to its death, as an allocator would: what autograd saves is alive because
autograd holds it, in-place ops and checkpointing are as they are in the code. What ops allocate and free inside
themselves (a convolution's workspace) is no tensor; on a CPU it is modelled, elsewhere stated as an allowance. Each
storage belongs to the module in whose code it was born; what a backward op makes, to the module whose forward made the
op's node in the autograd graph. The same pass counts the FLOPs of the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import _get_sequence_nr
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from .autocast import DTYPE, Autocast
from .errors import USER_EXCEPTIONS, BadInput, nearest
from .example import Example
from .flops import flops_of
from .schema import op_name
from .shadow import labels_on_cpu, seeded, shadow, tensors_in, to_meta
from .trace import batch_norm_on_meta
from .units import named_tensors, user_line
from .workspace import CONVOLUTIONS, workspace

STATES = {
    "sgd": 0,
    "sgd-momentum": 1,
    "adam": 2,
    "adamw": 2,
}  # tensors of the parameters' size that the optimiser keeps
STEPPING = {"sgd": 0, "sgd-momentum": 0, "adam": 2, "adamw": 2}  # of the largest parameter's size, while it steps (CPU)
STEPPING_AT_ONCE = {"sgd": 0, "sgd-momentum": 0, "adam": 1, "adamw": 1}  # of all parameters' (CUDA: `foreach`)
ONE_VALUE = "Expected more than 1 value per channel"  # what torch says of a batch norm over one
LOSS = "(loss)"  # what is born outside of the model's code
Loss = Callable[[Any], Tensor]


@dataclass
class Birth:
    """A storage: the module that it belongs to, its bytes, and the ops between which it lived."""

    module: str
    size: int
    born: int
    died: int | None = None
    output: bool = False  # of the model


@dataclass
class Meter(TorchDispatchMode):
    """Counts the bytes of every storage that is made while it is on."""

    names: Mapping[int, str] = field(default_factory=dict)  # id(module) -> its path
    owners: Mapping[int, str] = field(default_factory=dict)  # id(parameter) -> the path of its module
    live: int = 0
    peak: int = 0
    peak_at: tuple[str, str, int] = ("", "", 0)  # op, module, number of the op
    timeline: list[int] = field(default_factory=list)  # live bytes after each op
    on_cpu: bool = True  # workspaces are known there, and counted
    workspace: int = 0  # the largest
    flops: dict[str, int] = field(default_factory=dict)  # by module
    births: list[Birth] = field(default_factory=list)
    outside: str = ""  # the module of what is not made by one

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__init__()
        self._calls: list[str] = []  # the modules that are running, the innermost last
        self._known: dict[int, Any] = {}
        self._births: dict[int, Birth] = {}  # of what is alive
        self._nodes: dict[int, str] = {}  # sequence number of an autograd node -> the module that made it

    def __enter__(self) -> Meter:
        """Follow the calls of modules by global hooks: they keep no tensor alive, as a look at the frames' locals would."""

        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self.names:
                self._calls.append(self.names[id(module)])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in self.names:
                self._calls.pop()

        self._hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for hook in self._hooks:
            hook.remove()

    def know(self, t: Tensor) -> None:
        """A tensor that was there before: it is not counted."""
        self._known[t.untyped_storage()._cdata] = None

    def note_outputs(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            if t.untyped_storage()._cdata in self._births:
                self._births[t.untyped_storage()._cdata].output = True

    def held(self) -> dict[str, int]:
        """The bytes now alive, by module, the most first."""
        sums: dict[str, int] = {}
        for birth in self._births.values():
            sums[birth.module] = sums.get(birth.module, 0) + birth.size
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))

    def most_fixed(self) -> int:
        """The most bytes that the model's outputs and the loss over them held at once."""
        steps = [0] * (len(self.timeline) + 1)
        for birth in self.births:
            if birth.output or birth.module == LOSS:
                steps[birth.born] += birth.size
                if birth.died is not None:
                    steps[birth.died] -= birth.size
        return max(accumulate(steps))

    def _watch(self, storage: torch.UntypedStorage, module: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.live += size
        birth = Birth(module, size, len(self.timeline))
        self.births.append(birth)

        def dead(_: Any) -> None:
            self.live -= size
            birth.died = len(self.timeline)
            self._known.pop(key, None)
            self._births.pop(key, None)

        self._known[key], self._births[key] = weakref.ref(storage, dead), birth

    def _module(self) -> str:
        """The module that the running op belongs to."""
        node = torch._C._current_autograd_node()
        if node is None or self._calls:  # forward; or a checkpoint runs it again
            module = self._calls[-1] if self._calls else self.outside
            self._nodes.setdefault(_get_sequence_nr() - 1, module)  # an op's node is made just before it runs
            return module
        if hasattr(node, "variable"):  # a gradient arrives at its parameter
            return self.owners.get(id(node.variable), self.outside)
        return self._nodes.get(node._sequence_nr(), self.outside)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # no op, but a question that a fake tensor is asked
            return func(*args)
        if func is torch.ops.aten.native_batch_norm.default and args[0].device.type == "meta":
            out = batch_norm_on_meta(*args)
        else:
            out = func(*args, **(kwargs or {}))
        out = as_laid_out(op_name(func), args, out)
        module = self._module()
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self._watch(t.untyped_storage(), module)
        if flops := flops_of(func, args, kwargs, out):
            self.flops[module] = self.flops.get(module, 0) + flops
        name = op_name(func)
        inside = workspace(func, args, out)
        if name in CONVOLUTIONS:
            self.workspace = max(self.workspace, inside)
        self.note(name, module, self.live + (inside if self.on_cpu else 0))
        return out

    def note(self, name: str, module: str, now: int) -> None:
        """So many bytes are alive at an op."""
        self.timeline.append(now)
        if now > self.peak:
            self.peak, self.peak_at = now, (name, module, len(self.timeline) - 1)


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
    stepping: int  # what the optimiser allocates and frees while it steps
    fixed: int  # the most that the outputs and the loss over them held at once: pruning does not touch it
    by_module: dict[str, int]  # `saved`, by the module in whose code it was born
    flops: dict[str, int]  # of all samples, by module
    fake: bool  # told on fake tensors of the device, for meta tensors tell another story


@labels_on_cpu
def training_memory(
    model: nn.Module,
    example: Example,
    optimizer: str = "sgd",
    loss: Callable[[Any], Tensor] | None = None,
    amp: str | None = None,
    fake: bool | None = None,
) -> Memory:
    """The peak of a training step with the batch of `example`.

    Args:
        optimizer: `sgd`, `sgd-momentum`, `adam` or `adamw`; its state is there from the second step on.
        loss: from what the model returns to a scalar; by default cross-entropy where an output has several channels,
            the mean of squares elsewhere.
        amp: the device under whose autocast (16 bits) forward and loss run, `cpu` or `cuda`; None: without.
        fake: see `forward_memory`.

    Raises: BadInput.
    """
    check_optimizer(optimizer)
    return _either(model, example, loss or plain_loss, optimizer, amp, fake)


def check_optimizer(name: str) -> None:
    """BadInput for one that is not known."""
    if name not in STATES:
        raise BadInput(f"unknown optimizer '{name}'{nearest(name, STATES)}")


@labels_on_cpu
def forward_memory(model: nn.Module, example: Example, amp: str | None = None, fake: bool | None = None) -> Memory:
    """The peak of a forward pass in inference with the batch of `example`. Raises BadInput.

    Some ops (attention, recurrent cells) fall apart on meta tensors and not on a CPU, and some code takes tensors of a CPU
    only. Fake tensors stand for such, at several times the time. `fake` says which to take; None tries both.
    """
    return _either(model, example, None, "sgd", amp, fake)


def _either(
    model: nn.Module, example: Example, loss: Loss | None, optimizer: str, amp: str | None, fake: bool | None
) -> Memory:
    if amp is not None or fake is not None:
        return _measured(model, example, loss, optimizer, amp, amp is not None or bool(fake))
    told: list[Memory] = []
    errors: list[BadInput] = []
    for on_fake in (False, True):
        try:
            told.append(_measured(model, example, loss, optimizer, None, on_fake))
        except BadInput as error:
            errors.append(error)
    if not told:
        raise errors[0]
    return told[0] if told[0].timeline == told[-1].timeline else told[-1]


def _measured(
    model: nn.Module, example: Example, loss: Loss | None, optimizer: str, amp: str | None, fake: bool
) -> Memory:
    training = loss is not None
    cast = Autocast(amp or "cpu", amp is not None) if fake else None
    try:
        copy = (shadow(model, False) if cast is None else cast.model(model)).train(training)
    except USER_EXCEPTIONS as error:  # a TorchScript file with constants that meta tensors cannot hold
        raise not_foretold(error, training, example) from error
    for (_, new), (_, old) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
        wanted = training or amp is not None  # autocast caches its casts of what wants a gradient
        new.requires_grad_(wanted and new.is_floating_point() and old.requires_grad)
    args, kwargs = (to_meta if cast is None else cast.inputs)((example.args, example.kwargs))
    owners = {id(p): name for name, m in copy.named_modules() for p in m.parameters(False)}
    meter = Meter({id(m): name for name, m in copy.named_modules()}, owners, on_cpu=amp in (None, "cpu"))
    held = [t for _, t in named_tensors(copy)]
    for t in (*held, *tensors_in((args, kwargs))):
        meter.know(t)
    outputs = forward_ops = 0
    by_module: dict[str, int] = {}
    trained = [_bytes(p) for p in copy.parameters() if p.requires_grad]
    stepping = STEPPING[optimizer] * max(trained, default=0)
    if not meter.on_cpu:
        stepping = STEPPING_AT_ONCE[optimizer] * sum(trained)
    casting = ExitStack()
    try:
        with seeded(), torch.set_grad_enabled(training), nullcontext() if cast is None else cast.mode, meter, casting:
            if cast is not None:
                casting.enter_context(cast.casting())
            output = copy(*args, **kwargs)
            outputs = sum(_bytes(t) for t in {t.untyped_storage()._cdata: t for t in tensors_in(output)}.values())
            meter.note_outputs(tensors_in(output))
            by_module, forward_ops = meter.held(), len(meter.timeline)
            meter.outside = LOSS
            if loss is not None:
                value = loss(output)
                del output
                casting.close()  # the casts of weights go, but for those that autograd saved
                value.backward()
                del value
                meter.note("optimizer.step()", "", meter.live + stepping)
    except USER_EXCEPTIONS as error:
        raise not_foretold(error, training, example) from error
    parameters = sum(_bytes(p) for p in copy.parameters())
    buffers = sum(_bytes(b) for b in copy.buffers())
    inputs = sum(_bytes(t) for t in tensors_in((args, kwargs)))
    op, module, _ = meter.peak_at
    state = STATES[optimizer] * sum(trained)
    always = parameters + buffers + inputs + state
    return Memory(
        samples=example.samples, peak=always + meter.peak, parameters=parameters, buffers=buffers, inputs=inputs,
        optimizer=state, gradients=sum(trained), saved=sum(by_module.values()), outputs=outputs, working=meter.peak,
        allowance=meter.workspace, at=place(op, module), timeline=meter.timeline, forward_ops=forward_ops, stepping=stepping,
        fixed=meter.most_fixed(), by_module=by_module, flops=meter.flops, fake=fake,
    )  # fmt: skip


def not_foretold(error: BaseException, training: bool, example: Example) -> BadInput:
    where, text = user_line(error), " ".join(str(error).split())
    return BadInput(
        f"the memory of {'a training step' if training else 'a forward pass'} cannot be foretold on {example}: "
        f"{type(error).__name__}: {text[:200]}{f' (at {where})' if where else ''}"
        + ("; a batch norm needs more samples: give --batch-size 2" if ONE_VALUE in text else "")
    )


def place(op: str, module: str) -> str:
    return f"{op} in the loss" if module == LOSS else f"{op} in {module}" if module else op


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


def memory_of(model: nn.Module, example: Example, optimizer: str = "sgd", amp: str | None = None) -> dict[str, Any]:
    """Both peaks as the report has them; `error` or `train_error` in the place of one that cannot be foretold.

    `train_macs` and `train_flops` are of one sample of the step: `with_training` lays them beside the other counts.
    """
    about: dict[str, Any] = {"samples": example.samples, "optimizer": optimizer}
    if amp is not None:
        about["amp"] = {"dtype": str(DTYPE).removeprefix("torch."), "device": amp}
    try:
        forward = forward_memory(model, example, amp)
        about |= {"forward_peak_bytes": forward.peak, "forward_peak_at": forward.at}
    except BadInput as error:
        about["error"] = str(error)
    try:
        step = training_memory(model, example, optimizer, amp=amp)
    except BadInput as error:
        return {**about, "train_error": str(error)}
    parts = {
        k: getattr(step, k) for k in ("parameters", "buffers", "inputs", "optimizer", "gradients", "saved", "outputs")
    }
    flops = sum(step.flops.values()) // example.samples
    return {
        **about,
        "train_peak_bytes": step.peak,
        "train_peak_at": step.at,
        "train_parts": {**parts, "stepping": step.stepping, "working": step.working},
        "by_module": [{"module": module, "bytes": size} for module, size in step.by_module.items()],
        "unprunable_bytes": step.inputs + step.fixed,
        "allowance_bytes": step.allowance,
        "train_macs": flops // 2,
        "train_flops": flops // 2 * 2,
        **binned(step),
    }


def with_training(costs: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    """The costs of a forward pass, and those of a training step that were found with its memory."""
    return {**costs, **{key: memory.pop(key) for key in ("train_macs", "train_flops") if key in memory}}


def binned(step: Memory, most: int = 240) -> dict[str, Any]:
    """The timeline in at most `most` bins, the peak of each, and the bin where the backward pass begins."""
    n = len(step.timeline)
    width = max(1, -(-n // most))
    always = step.peak - step.working
    line = [always + max(step.timeline[k : k + width]) for k in range(0, n, width)]
    return {"timeline": line, "timeline_backward": step.forward_ops // width}
