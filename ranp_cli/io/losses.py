"""The loss that gradients come from, by name or by the user's own code."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import USER_EXCEPTIONS, BadInput, nearest
from ..core.spelling import spelled
from .code_args import recorded, with_code
from .readers import found_instead
from .user_code import check_args, check_names, is_code, meant, named, user_error

if TYPE_CHECKING:
    from torch import Tensor


DEFAULT = "cross_entropy"  # of integer targets; others have none
IGNORE = -100  # torch's default, and how every ignored place is marked from `_classes` on
OF_CLASSES = ("cross_entropy", "dice", "dice_ce")  # losses whose target may be classes
IGNORE_TOO = 255  # what uint8 label maps use, ShapeNet's empty voxels among them


def load_loss(
    spec: str | Callable[[Any, Any], Any] | None,
    ignore_index: int | None = None,
    loss_args: Mapping[str, Any] | None = None,
) -> Callable[[Any, Any], Tensor]:
    """The loss, called as `loss(output, target)`; it returns a scalar tensor.

    For the named losses the output may be a tensor, a dict with one tensor or with the key `out` or `logits`, or a list
    (deep supervision; or one tensor of shape (N, heads, C, *S), as MONAI's DynUNet returns in training): then the loss is the
    sum over the outputs, and the target is resized to each by nearest neighbour. A list of targets is taken pair by pair, as in nnU-Net: output i with target i, weighted 1, 1/2, 1/4, ...,
    the weights divided by their sum. None entries are skipped. A loss of your own gets output and target as they are.

    Args:
        spec: `cross_entropy` (targets: classes of shape (N, *S) or (N, 1, *S), or probabilities of the output's shape),
            `mse`, `l1`, `smooth_l1`, `bce` (on logits), `dice` (1 - soft Dice over softmax, or sigmoid for one channel,
            summed over batch and space, mean over classes), `dice_ce` (dice + cross_entropy; one channel: dice + bce),
            `file.py:Name`, `package.module:Name` (a function, or a class), or a callable.
            None: `cross_entropy` for classes (integers, or whole numbers as floats), and an error for others, as nobody can guess.
        ignore_index: places with this target do not count. None: -100, as in torch, and also 255 when that is no class.
            For `mse`, `l1`, `smooth_l1` and float targets nothing is ignored unless it is given.
        loss_args: keyword arguments of a loss of your own: a class is made with them, a function called with them.
    """
    args = dict(loss_args or {})
    if spec is None or (isinstance(spec, str) and spec in _LOSSES):
        if args:
            raise BadInput(
                f"{spelled('loss_args', args)}: {spelled('loss', spec or DEFAULT)} takes no arguments; leave it out, "
                f"or give a loss of your own: {spelled('loss', 'file.py:Name')}"
            )
        return _NamedLoss(spec, ignore_index)
    if isinstance(spec, str) and not is_code(spec):
        if better := meant(spec):
            raise BadInput(f"{spelled('loss', spec)}: a name stands behind a colon; give {spelled('loss', better)}")
        raise BadInput(f"{spelled('loss', spec)}: no such loss{nearest(spec, [*_LOSSES, 'file.py:Name'])}")
    what = spelled("loss", spec)
    if ignore_index is not None:
        raise BadInput(
            f"{what}: {spelled('ignore_index')} is for the named losses; leave it out, and ignore inside the loss"
        )
    function = named(spec, what) if isinstance(spec, str) else spec
    if not callable(function):
        raise BadInput(f"{what}: is {found_instead(function)}; wants a function loss(output, target)")
    args = with_code(args, function, what)
    if isinstance(function, type):
        check_args(function, args, what, option="loss_args")
        try:
            function = function(**args)
        except USER_EXCEPTIONS as error:
            raise user_error(what, error) from error
    elif args:
        if not inspect.isroutine(function):
            raise BadInput(
                f"{what}: is made already and takes no arguments; name its class to use {spelled('loss_args')}"
            )
        check_names(function, args, what)
        function = functools.partial(function, **args)
    return _OwnLoss(what, _own_copy(function))


def _own_copy(function: Any) -> Any:
    """A loss that is a module has parameters and buffers of the caller's: a copy of it, which may change."""
    from torch import nn

    from ..core.copies import replicate

    return replicate(function, lambda _, t: t.clone()) if isinstance(function, nn.Module) else function


def loss_name(spec: Any, loss_args: Mapping[str, Any] | None = None) -> str:
    """What a loss is called where scores say how they were taken; two of the same name are held to be the same."""
    if spec is None or isinstance(spec, str):
        name = spec or DEFAULT
    else:
        named = spec if hasattr(spec, "__qualname__") else type(spec)
        name = f"{named.__module__}.{named.__qualname__}"
    if loss_args:
        name += f"({', '.join(f'{key}={value}' for key, value in recorded(loss_args).items())})"
    return name


@dataclass(frozen=True)
class _OwnLoss:
    what: str
    function: Callable[[Any, Any], Any]

    def __call__(self, output: Any, target: Any) -> Tensor:
        from torch import OutOfMemoryError, Tensor

        try:
            value = self.function(output, target)
        except OutOfMemoryError:  # scoring goes on with less
            raise
        except USER_EXCEPTIONS as error:
            raise user_error(self.what, error) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise BadInput(
                f"{self.what}: returned {found_instead(value)}; wants a scalar float tensor: take the mean or sum"
            )
        return value.reshape(())


@dataclass(frozen=True)
class _NamedLoss:
    name: str | None
    ignore_index: int | None

    def __call__(self, output: Any, target: Any) -> Tensor:
        from torch import Tensor

        outputs = list(_outputs(output))
        if not outputs:
            raise BadInput(
                f"the model returned {found_instead(output)}; wants a tensor, or a loss of your own: {spelled('loss', 'file.py:Name')}"
            )
        listed = isinstance(target, (tuple, list))
        targets = [one for one in target if one is not None] if listed else [target]
        if not targets or not all(isinstance(one, Tensor) for one in targets):
            raise BadInput(
                f"the target is {found_instead(target)}; wants a tensor, or a loss of your own: "
                f"{spelled('loss', 'file.py:Name')}"
            )
        name = self.name
        if not listed and len(outputs) == 1:
            outputs = _heads(outputs[0], target)
        if name in (None, *OF_CLASSES):
            targets = [_class_numbers(one, outputs[0]) for one in targets]
            target = targets if listed else targets[0]
        if name is None:
            if real := [one.dtype for one in targets if one.is_floating_point() or one.is_complex()]:
                choices = ", ".join(_LOSSES)
                raise BadInput(
                    f"a {real[0]} target has no default loss; give {spelled('loss')}: {choices} or file.py:Name"
                )
            name = DEFAULT
        loss = _LOSSES[name]
        if not listed:
            task = _Task(self.ignore_index, resize=len(outputs) > 1)
            terms = [loss(one, target, task) for one in outputs]
            return sum(terms[1:], start=terms[0])
        if len(targets) != len(outputs):
            raise BadInput(
                f"the target is {found_instead(target)}, and the model returned {found_instead(output)}; wants a target for each "
                "output, or one tensor, which is resized to each"
            )
        task = _Task(self.ignore_index, one_of_many=len(targets) > 1)
        terms = [
            weight * loss(one, its_target, task)
            for weight, one, its_target in zip(deep_weights(len(outputs)), outputs, targets, strict=True)
        ]
        return sum(terms[1:], start=terms[0])


def _heads(output: Tensor, target: Tensor) -> list[Tensor]:
    """The outputs of deep supervision that are stacked on axis 1, (N, heads, C, *S) beside a target of (N, *S) or (N, 1, *S)."""
    if output.ndim < 5:
        return [output]
    size, space = tuple(target.shape), (output.shape[0], *output.shape[3:])
    has_channel = len(size) == output.ndim - 1 and size[1] == 1 != output.shape[2]
    return list(output.unbind(1)) if space == (size[:1] + size[2:] if has_channel else size) else [output]


def _class_numbers(target: Tensor, output: Tensor) -> Tensor:
    """A target of whole numbers as float, (N, *S) or (N, 1, *S) beside an output of more channels, as integers: MONAI reads labels so."""
    if not target.is_floating_point() or output.ndim < 2 or output.shape[1] == 1:
        return target
    has_classes = target.ndim == output.ndim - 1 or (target.ndim == output.ndim and target.shape[1] == 1)
    return target.long() if has_classes and bool((target == target.round()).all()) else target


def deep_weights(outputs: int) -> list[float]:
    """The weight of each output where each has its own target, as in nnU-Net: 1, 1/2, 1/4, ..., divided by their sum.

    >>> deep_weights(2)
    [0.6666666666666666, 0.3333333333333333]
    """
    halves = [0.5**index for index in range(outputs)]
    return [half / sum(halves) for half in halves]


def _outputs(output: Any) -> Iterator[Tensor]:
    """The tensors to put a loss on."""
    from torch import Tensor

    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        main = next((output[key] for key in ("out", "logits") if key in output), None)
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if main is None and len(tensors) > 1:
            raise BadInput(
                f"the model returned {found_instead(output)}; name one of them 'out', or give {spelled('loss', 'file.py:Name')}"
            )
        yield from _outputs(tensors if main is None else main)
    elif isinstance(output, (tuple, list)):
        for one in output:
            yield from _outputs(one)


@dataclass(frozen=True)
class _Task:
    """What every named loss needs besides output and target."""

    ignore_index: int | None
    resize: bool = False  # deep supervision: the target may have another size than the output
    one_of_many: bool = False  # one of a list of targets: all of it may be ignored


def _fit(target: Tensor, output: Tensor, shape: tuple[int, ...], task: _Task) -> Tensor:
    """`target` in the wanted `shape`: an axis of one channel comes or goes, space is resized where that is allowed."""
    space = tuple(output.shape[2:])
    fitted = target
    if target.ndim == len(shape) + 1 and target.shape[1] == 1:
        fitted = target.squeeze(1)
    elif target.ndim == len(shape) - 1 > 0 and shape[1] == 1:
        fitted = target.unsqueeze(1)
    if task.resize and space and fitted.ndim == len(shape):
        fitted = _nearest(fitted, space)
    if tuple(fitted.shape) != shape:
        raise BadInput(
            f"a target of shape {tuple(target.shape)} does not fit an output of shape {tuple(output.shape)}; "
            f"wants {shape}, so mend the batch, or give {spelled('loss', 'file.py:Name')}"
        )
    return fitted


def _nearest(tensor: Tensor, space: tuple[int, ...]) -> Tensor:
    """The last axes resized to `space`, as `interpolate(mode="nearest")` does, for any dtype and any number of axes."""
    import torch

    for axis, size in enumerate(space, start=tensor.ndim - len(space)):
        if tensor.shape[axis] != size:
            source = torch.arange(size, device=tensor.device) * tensor.shape[axis] // size
            tensor = tensor.index_select(axis, source)
    return tensor


def _is_dense(output: Tensor, target: Tensor) -> bool:
    """Whether the target gives a number for every channel of the output, rather than a class."""
    return target.is_floating_point() or (output.ndim > 1 and output.shape[1] > 1 and target.shape == output.shape)


def _classes(target: Tensor, classes: int, task: _Task) -> Tensor:
    """The classes as int64, with `IGNORE` in every ignored place; all others are in [0, classes)."""
    target, ignore_index = target.long(), task.ignore_index
    ignored = target == (IGNORE if ignore_index is None else ignore_index)
    if ignore_index is None and classes <= IGNORE_TOO:
        ignored = ignored | (target == IGNORE_TOO)
    if ignored.all() and not task.one_of_many:
        raise BadInput(f"every place of the target is ignored; check the labels and {spelled('ignore_index')}")
    outside = target[~ignored & ((target < 0) | (target >= classes))]
    if outside.numel():
        value = int(outside[0])
        raise BadInput(
            f"the target has class {value}, but there are {classes} classes, 0 to {classes - 1}; "
            f"mend the labels or the model, or give {spelled('ignore_index', value)}"
        )
    return target.masked_fill(ignored, IGNORE)


def _class_map(output: Tensor, target: Tensor, task: _Task, classes: int) -> Tensor:
    """(N, C, *S) and class targets -> (N, *S), checked."""
    shape = (output.shape[0], *output.shape[2:])
    return _fit(_classes(target, classes, task), output, shape, task)


def _cross_entropy(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if output.ndim < 2 or output.shape[1] == 1:
        shape = tuple(output.shape)
        raise BadInput(
            f"cross_entropy wants two or more channels, and the output's shape is {shape}; give {spelled('loss')} bce or dice"
        )
    if _is_dense(output, target):
        return functional.cross_entropy(output, _fit(target, output, tuple(output.shape), task).to(output.dtype))
    labels = _class_map(output, target, task, output.shape[1])
    if (labels == IGNORE).all():  # of a coarse output or target only, else it was an error
        return output.sum() * 0
    return functional.cross_entropy(output, labels, ignore_index=IGNORE)


def _pointwise(output: Tensor, target: Tensor, task: _Task, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of an element-wise loss over the places that are not ignored."""
    target = _fit(target, output, tuple(output.shape), task)
    if task.ignore_index is None:
        return function(output, target.to(output.dtype))
    keep = target != task.ignore_index
    if not keep.any() and not task.resize and not task.one_of_many:
        raise BadInput(f"every place of the target is ignored; check the labels and {spelled('ignore_index')}")
    return function(output[keep], target[keep].to(output.dtype)) if keep.any() else output.sum() * 0


def _mse(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.mse_loss)


def _l1(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.l1_loss)


def _smooth_l1(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.smooth_l1_loss)


def _bce(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if not target.is_floating_point():
        target, task = _classes(target, 2, task), replace(task, ignore_index=IGNORE)
    elif task.ignore_index is None and bool(((target < 0) | (target > 1)).any()):
        raise BadInput(
            f"bce wants targets in [0, 1], and this one has others; scale it, or give {spelled('loss', 'mse')}"
        )
    return _pointwise(output, target, task, functional.binary_cross_entropy_with_logits)


def _dice(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if output.ndim < 2:
        raise BadInput(
            f"dice wants an output of shape (N, C, ...), not {tuple(output.shape)}; give another {spelled('loss')}"
        )
    channels = output.shape[1]
    guess = output.sigmoid() if channels == 1 else output.softmax(1)
    if _is_dense(output, target):
        truth = _fit(target, output, tuple(output.shape), task)
        keep = truth != (math.nan if task.ignore_index is None else task.ignore_index)
    else:
        labels = _class_map(output, target, task, max(channels, 2))
        keep = (labels != IGNORE).unsqueeze(1)
        truth = labels.clamp(min=0)
        truth = truth.unsqueeze(1) if channels == 1 else functional.one_hot(truth, channels).movedim(-1, 1)
    guess, truth = guess * keep, truth.to(guess.dtype) * keep
    axes = [axis for axis in range(output.ndim) if axis != 1]
    overlap, total = (guess * truth).sum(axes), (guess + truth).sum(axes)
    return 1 - ((2 * overlap + 1e-5) / (total + 1e-5)).mean()


def _dice_ce(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    entropy = _bce if output.ndim > 1 and output.shape[1] == 1 else _cross_entropy
    return _dice(output, target, task) + entropy(output, target, task)


_LOSSES: dict[str, Callable[[Tensor, Tensor, _Task], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "l1": _l1,
    "smooth_l1": _smooth_l1,
    "bce": _bce,
    "dice": _dice,
    "dice_ce": _dice_ce,
}
