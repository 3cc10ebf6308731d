"""What a training step and a forward pass hold at their peak, from one pass on meta tensors, without running the network.

Every storage is counted from its birth to its death, as an allocator would: what autograd saves is alive because
autograd holds it, in-place ops and checkpointing are as they are in the code. What ops allocate and free inside
themselves (a convolution's workspace) is no tensor; on a CPU it is modelled, elsewhere stated as an allowance. Each
storage belongs to the module in whose code it was born; what a backward op makes, to the module whose forward made the
op's node in the autograd graph. The same pass counts the FLOPs of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contexts import labels_on_cpu, seeded
from ..core.copies import meta_copy
from ..core.errors import USER_EXCEPTIONS, BadInput, in_words, nearest
from ..core.example import Example
from ..core.spelling import spelled
from ..core.tensors import tensors_in, to_meta
from ..graph.analyse import named_tensors
from .fake_autocast import DTYPE, Autocast
from .memory_meter import LOSS, Meter

STATES = {
    "sgd": 0,
    "sgd-momentum": 1,
    "adam": 2,
    "adamw": 2,
}  # tensors of the parameters' size that the optimiser keeps
STEPPING = {"sgd": 0, "sgd-momentum": 0, "adam": 2, "adamw": 2}  # of the largest parameter's size, while it steps (CPU)
STEPPING_AT_ONCE = {"sgd": 0, "sgd-momentum": 0, "adam": 1, "adamw": 1}  # of all parameters' (CUDA: `foreach`)
ONE_VALUE = "Expected more than 1 value per channel"  # what torch says of a batch norm over one
Loss = Callable[[Any], Tensor]


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
    multiplies_matrices: bool = False


@labels_on_cpu
def training_memory(
    model: nn.Module,
    example: Example,
    optimizer: str = "sgd",
    loss: Callable[[Any], Tensor] | None = None,
    device: str = "cpu",
    amp: bool = False,
    fake: bool | None = None,
) -> Memory:
    """The peak of a training step with the batch of `example`.

    Args:
        optimizer: `sgd`, `sgd-momentum`, `adam` or `adamw`; its state is there from the second step on.
        loss: from what the model returns to a scalar; by default cross-entropy where an output has several channels,
            the mean of squares elsewhere.
        device: `cpu` or `cuda`: whose optimiser, and whose workspace: counted on a CPU, an allowance on CUDA.
        amp: forward and loss run under the device's own autocast (16 bits).
        fake: see `forward_memory`.

    Raises: BadInput.
    """
    check_optimizer(optimizer)
    return _either(model, example, loss or plain_loss, optimizer, device, amp, fake)


def check_optimizer(name: str) -> None:
    """BadInput for one that is not known."""
    if name not in STATES:
        raise BadInput(f"unknown optimizer '{name}'{nearest(name, STATES)}")


@labels_on_cpu
def forward_memory(
    model: nn.Module, example: Example, device: str = "cpu", amp: bool = False, fake: bool | None = None
) -> Memory:
    """The peak of a forward pass in inference with the batch of `example`. Raises BadInput. See `training_memory`.

    Some ops (attention, recurrent cells) fall apart on meta tensors and not on a CPU, and some code takes tensors of a CPU
    only. Fake tensors stand for such, at several times the time. `fake` says which to take; None tries both, on a CPU only
    where matrices are multiplied, as all ops do that fall apart.
    """
    return _either(model, example, None, "sgd", device, amp, fake)


def _either(
    model: nn.Module,
    example: Example,
    loss: Loss | None,
    optimizer: str,
    device: str,
    amp: bool,
    fake: bool | None,
) -> Memory:
    if amp or fake is not None:
        return _measured(model, example, loss, optimizer, device, amp, amp or bool(fake))
    told: list[Memory] = []
    errors: list[BadInput] = []
    for on_fake in (False, True):
        try:
            told.append(_measured(model, example, loss, optimizer, device, amp, on_fake))
        except BadInput as error:
            errors.append(error)
        if told and device == "cpu" and not told[0].multiplies_matrices:
            return told[0]
    if not told:
        raise errors[0]
    return told[0] if told[0].timeline == told[-1].timeline else told[-1]


def _copy_of(model: nn.Module, cast: Autocast | None, training: bool, amp: bool) -> nn.Module:
    """A copy on meta or fake tensors whose parameters want gradients where those of the model do."""
    copy: nn.Module = (meta_copy(model, False) if cast is None else cast.model(model)).train(training)
    for (_, new), (_, old) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
        wanted = training or amp  # autocast caches its casts of what wants a gradient
        new.requires_grad_(wanted and new.is_floating_point() and old.requires_grad)
    return copy


def _meter_of(network: nn.Module, inputs: Iterable[Tensor], on_cpu: bool) -> Meter:
    """A meter that knows what is there before the network runs."""
    owners = {id(p): name for name, m in network.named_modules() for p in m.parameters(False)}
    meter = Meter({id(m): name for name, m in network.named_modules()}, owners, on_cpu=on_cpu, known={})
    for t in (*(t for _, t in named_tensors(network)), *inputs):
        meter.know(t)
    return meter


def _measured(
    model: nn.Module, example: Example, loss: Loss | None, optimizer: str, device: str, amp: bool, fake: bool
) -> Memory:
    training = loss is not None
    cast = Autocast(device, amp) if fake else None
    try:
        copy = _copy_of(model, cast, training, amp)
    except USER_EXCEPTIONS as error:  # a TorchScript file with constants that meta tensors cannot hold
        raise not_estimated(error, training, example) from error
    args, kwargs = (to_meta if cast is None else cast.inputs)((example.args, example.kwargs))
    meter = _meter_of(copy, tensors_in((args, kwargs)), on_cpu=device == "cpu")
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
        raise not_estimated(error, training, example) from error
    parameters, buffers, inputs = (
        sum(map(_bytes, some)) for some in (copy.parameters(), copy.buffers(), tensors_in((args, kwargs)))
    )
    state = STATES[optimizer] * sum(trained)
    return Memory(
        samples=example.samples,
        peak=parameters + buffers + inputs + state + meter.peak,
        parameters=parameters,
        buffers=buffers,
        inputs=inputs,
        optimizer=state,
        gradients=sum(trained),
        saved=sum(by_module.values()),
        outputs=outputs,
        working=meter.peak,
        allowance=meter.workspace,
        at=place(*meter.peak_at[:2]),
        timeline=meter.timeline,
        forward_ops=forward_ops,
        stepping=stepping,
        fixed=meter.most_fixed(),
        by_module=by_module,
        flops=meter.flops,
        fake=fake,
        multiplies_matrices=meter.multiplies_matrices,
    )


def not_estimated(error: BaseException, training: bool, example: Example) -> BadInput:
    return BadInput(
        f"the memory of {'a training step' if training else 'a forward pass'} cannot be estimated on {example}: "
        f"{in_words(error)}"
        + (f"; a batch norm needs more samples: give {spelled('batch_size', 2)}" if ONE_VALUE in str(error) else "")
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


@dataclass
class Grounds:
    """Whether the forward pass and the step are estimated on fake tensors; None: not yet known. The slim network reuses the choice made for the dense one."""

    forward: bool | None = None
    training: bool | None = None


def memory_of(
    model: nn.Module,
    example: Example,
    optimizer: str = "sgd",
    device: str = "cpu",
    amp: bool = False,
    grounds: Grounds | None = None,
) -> dict[str, Any]:
    """Both peaks as the report has them; `error` or `train_error` in the place of one that cannot be estimated.

    `train_macs` and `train_flops` are of one sample of the step: `with_training` lays them beside the other counts.
    """
    about: dict[str, Any] = {"samples": example.samples, "optimizer": optimizer, "device": device}
    if amp:
        about["amp"] = {"dtype": str(DTYPE).removeprefix("torch."), "device": device}
    grounds = grounds or Grounds()
    try:
        forward = forward_memory(model, example, device, amp, grounds.forward)
        grounds.forward = forward.fake
        about |= {"forward_peak_bytes": forward.peak, "forward_peak_at": forward.at}
    except BadInput as error:
        about["error"] = str(error)
    try:
        step = training_memory(model, example, optimizer, None, device, amp, grounds.training)
        grounds.training = step.fake
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
