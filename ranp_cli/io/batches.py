"""Mini-batches, from a file, a name or Python: checked, and in one form."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import USER_EXCEPTIONS, BadInput
from ..core.reading import readable
from ..core.spelling import spelled
from .batch_keys import Keys
from .npz import read_npz
from .readers import found_instead, read_safetensors, read_torch, some_of
from .user_code import is_code, meant, named, own_command_line, user_error

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One mini-batch: the network is called as `model(*args, **kwargs)`, and the loss gets `target`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any

    def to(self, device: Any) -> Batch:
        """The same mini-batch with every tensor on `device`; gradients do not reach the caller's."""
        from torch import Tensor

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.detach().to(device).requires_grad_() if leaf.requires_grad else leaf.to(device)

        args, kwargs, target = (_map(own, part) for part in (self.args, self.kwargs, self.target))
        return Batch(args, kwargs, target)


@dataclass(eq=False)
class Batches:
    """Mini-batches, checked and ready for the network; iterate as often as you like.

    A generator or DataLoader is streamed: one mini-batch is in memory at a time, and each is checked as it comes. An
    iterator that exists already (a generator object) can be gone through once; a second time is a `BadInput`. Of such
    a one the first `hold` mini-batches stay in `held` as they go by.
    """

    name: str
    source: Any  # an iterable of raw mini-batches, or a callable that returns one
    limit: int | None = None
    hold: int = 0
    keys: Keys = field(default_factory=Keys)
    held: list[Batch] = field(default_factory=list, init=False, repr=False)
    _spent: bool = field(default=False, init=False, repr=False)

    @property
    def length(self) -> int | None:
        """The number of mini-batches, where it is known beforehand."""
        try:
            length = len(self.source)
        except TypeError:  # a generator, a callable, a DataLoader over an IterableDataset
            return None
        return length if self.limit is None else min(length, self.limit)

    @property
    def most(self) -> int | None:
        """No more mini-batches than this will come; None when nobody knows."""
        return self.limit if self.length is None else self.length

    @cached_property
    def first(self) -> Batch:
        """The first mini-batch; a later iteration still begins with it."""
        return next(self._stream())

    def __iter__(self) -> Iterator[Batch]:
        if not isinstance(self.source, Iterator):
            yield from self._stream()
            return
        if self._spent:
            raise BadInput(f"{self.name}: this iterator is used up; give a list, or a function that returns a new one")
        self._spent = True
        for index, batch in enumerate(chain((self.first,), self._stream(start=1))):
            if index < self.hold:
                self.held.append(batch)
            yield batch

    def _stream(self, start: int = 0) -> Iterator[Batch]:
        raws = self._open()
        index = start
        while self.limit is None or index < self.limit:
            where = f"{self.name}, mini-batch {index}"
            try:
                raw = next(raws)
            except StopIteration:
                break
            except USER_EXCEPTIONS as error:
                raise user_error(where, error) from error
            yield _batch(raw, where, self.keys)
            index += 1
        if index == 0:
            raise BadInput(f"{self.name}: gives no mini-batch at all; wants at least one (input, target)")

    def _open(self) -> Iterator[Any]:
        source = self.source
        try:
            if callable(source):
                with own_command_line():
                    source = source()
        except USER_EXCEPTIONS as error:
            raise user_error(self.name, error) from error
        if isinstance(source, (tuple, list, Mapping)):
            source = _split(source, self.name, self.keys)
        _check_iterable(source, self.name)
        try:
            return iter(source)
        except USER_EXCEPTIONS as error:
            raise user_error(self.name, error) from error


_FORMS = "wants (input, target), {'input': ..., 'target': ...} or a list of them"


def load_batches(source: Any, limit: int | None = None, keys: str | Sequence[str] | None = None) -> Batches:
    """The calibration batch, in whatever form it is given.

    One mini-batch is `(input, target)` or `{"input"|"x": ..., "target"|"y": ...}` (further keys are left alone).
    Several are a list of those. Two tensors are one mini-batch; two pairs, or a list of two dicts, are two mini-batches.

    An input that is a tuple is passed as positional arguments, a dict as keyword arguments, anything else as the one
    argument. numpy arrays become tensors, and float64 arrays float32 (float64 *tensors* stay as they are). Integer
    targets of every width become int64.

    Args:
        source: a `.pt` (read with `weights_only=True`), `.safetensors` or `.npz` file; the last two hold the keys
            `input` (or `x`) and `target` (or `y`), or `input.0`, `target.0`, `input.1`, ... for several mini-batches.
            Or `file.py:Name` / `package.module:Name`: a callable without arguments that returns an iterable of
            mini-batches, or an iterable (a DataLoader). Or such a thing itself.
        limit: use the first `limit` mini-batches only.
        keys: what dicts call input and target instead, such as `image,label` in MONAI, or a pair of names.

    Raises:
        BadInput: for what can be seen now; a streamed mini-batch is checked when its turn comes.
    """
    if isinstance(source, Batches):
        return source if limit is None else Batches(source.name, source.source, limit, keys=source.keys)
    if limit is not None and limit < 1:
        raise BadInput(f"{spelled('batch_limit', limit)}: wants at least 1; leave it out to use all")
    name, names = "batch", Keys.of(keys)
    if isinstance(source, (str, os.PathLike)):
        name = f"batch {os.fspath(source)}"
        source = _read_batches(os.fspath(source), name, names)
    if isinstance(source, (tuple, list, Mapping, Batch)):  # all there: check all of it now
        raws = _split(source, name, names)[:limit]
        return Batches(name, [_batch(raw, f"{name}, mini-batch {index}", names) for index, raw in enumerate(raws)])
    if not callable(source):
        _check_iterable(source, name)
    return Batches(name, source, limit, keys=names)


def _read_batches(spec: str, name: str, keys: Keys) -> Any:
    if is_code(spec):
        return named(spec, name)
    readers: dict[str, Callable[[Path, str], Any]] = {
        ".pt": read_torch,
        ".pth": read_torch,
        ".safetensors": read_safetensors,
        ".npz": read_npz,
    }
    reader = readers.get(Path(spec).suffix.lower())
    if reader is None and not Path(spec).exists() and (better := meant(spec)):
        raise BadInput(f"{name}: a name stands behind a colon; give {better}")
    path = readable(spec, name)
    if reader is None:
        raise BadInput(f"{name}: wants a .pt, .safetensors or .npz file, or file.py:Name")
    content = reader(path, name)
    if reader is not read_torch:
        return _by_key(content, name, keys)
    if not isinstance(content, (tuple, list, Mapping)):
        raise BadInput(f"{name}: holds {found_instead(content)}; {_FORMS}")
    return content


def _by_key(content: Mapping[str, Any], name: str, names: Keys) -> list[dict[str, Any]]:
    """`input.0`, `target.0`, `input.1`, ... -> a dict for each mini-batch, in order; one where there are no numbers."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in content.items():
        match = re.fullmatch(r"(.+?)(?:\.(\d{1,9}))?", key)
        if match and match[1] in (*names.input, *names.target):
            found.setdefault(int(match[2] or -1), {})[match[1]] = value
    if not found:
        keys = some_of(content, 5) or "none"
        first, second = names.input[0], names.target[0]
        raise BadInput(
            f"{name}: wants the keys {first} and {second}, or {first}.0, {second}.0, {first}.1, ...; it has {keys}; write it so, "
            f"{names.advice(content)}"
        )
    if -1 in found and len(found) > 1:
        raise BadInput(f"{name}: has keys with and without numbers; number all: input.0, target.0, input.1, ...")
    return [found[index] for index in sorted(found)]


def _check_iterable(source: Any, name: str) -> None:
    from torch import Tensor
    from torch.utils.data import Dataset

    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        raise BadInput(f"{name}: is a Dataset of single samples; wrap it: DataLoader(dataset, batch_size=2)")
    if isinstance(source, (Tensor, str, bytes)) or not isinstance(source, Iterable):
        raise BadInput(f"{name}: is {found_instead(source)}; {_FORMS}, or an iterable of them")


def _split(source: Any, name: str, keys: Keys) -> list[Any]:
    """The mini-batches in a tuple, list or dict that may itself be one."""
    if isinstance(source, (Mapping, Batch)):
        return [source]
    if not source:
        raise BadInput(f"{name}: is an empty {type(source).__name__}; {_FORMS}")
    batches = [isinstance(raw, (tuple, list, Batch, Mapping)) for raw in source]
    if len(source) == 2 and not (all(batches) and not _is_pair_of_dicts(source, keys)):
        return [source]
    if not any(batches):
        raise BadInput(f"{name}: is {found_instead(source)}; {_FORMS}")
    return list(source)


def _is_pair_of_dicts(source: Any, keys: Keys) -> bool:
    """Whether a tuple of two is (keyword arguments, targets by name); a list of two dicts is two mini-batches."""
    first, second = source
    both = isinstance(first, Mapping) and isinstance(second, Mapping)
    return (
        both
        and isinstance(source, tuple)
        and first.keys() != second.keys()
        and not (keys.are_in(first) and keys.are_in(second))
    )


def _batch(raw: Any, where: str, keys: Keys) -> Batch:
    """One mini-batch in any of its forms, checked."""
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Mapping):
        data, target = keys.found(raw)
        if raw.keys().isdisjoint(keys.input):
            raise BadInput(
                f"{where}: is {found_instead(raw)}; wants {keys.wanted} or (input, target), {keys.advice(raw)}"
            )
    elif isinstance(raw, (tuple, list)) and len(raw) == 2:
        data, target = raw
    elif isinstance(raw, (tuple, list)) and len(raw) == 1:
        data, target = raw[0], None
    else:
        raise BadInput(f"{where}: is {found_instead(raw)}; wants (input, target) or {keys.wanted}")
    if target is None:
        raise BadInput(f"{where}: has no target; wants (input, target) or {keys.wanted}")
    data = _map(lambda leaf: _tensor(leaf, f"{where}: the input"), data)
    target = _map(lambda leaf: _target(leaf, f"{where}: the target"), target)
    _check_input(data, where)
    for part, tree in (("input", data), ("target", target)):
        _check_values(_tensors(tree), f"{where}: the {part}")
    _check_sizes(_tensors(data), target, where)
    if isinstance(data, tuple):
        return Batch(data, {}, target)
    return Batch((), dict(data), target) if isinstance(data, Mapping) else Batch((data,), {}, target)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with its leaves replaced; tuples (named ones too), lists and dicts are inner nodes."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(function, value) for value in tree)
    return function(tree)


def _tensors(tree: Any) -> list[Tensor]:
    from torch import Tensor

    found: list[Tensor] = []
    _map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, tree)
    return found


def _tensor(leaf: Any, where: str) -> Any:
    """A numpy array as a tensor (float64 as float32; foreign byte order, views and read-only arrays too).

    A tensor that carries more with it, such as MONAI's MetaTensor, becomes a plain one.
    """
    import numpy as np
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if isinstance(leaf, torch.Tensor) and leaf.is_inference():
        leaf = leaf.clone()  # made in inference mode, where autograd cannot save it
    is_more = isinstance(leaf, torch.Tensor) and type(leaf) not in (torch.Tensor, torch.nn.Parameter)
    if is_more and not is_traceable_wrapper_subclass(leaf):
        with torch._C.DisableTorchFunctionSubclass():
            return leaf.as_subclass(torch.Tensor)
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    if leaf.dtype.kind not in "biufc":
        raise BadInput(f"{where} is an array of {leaf.dtype}; wants numbers")
    dtype = np.float32 if leaf.dtype.kind == "f" and leaf.dtype.itemsize >= 8 else leaf.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(leaf, dtype, ["C", "W"]))


def _target(leaf: Any, where: str) -> Any:
    import torch

    leaf = _tensor(leaf, where)
    if not isinstance(leaf, torch.Tensor) or leaf.dtype == torch.bool or leaf.is_floating_point() or leaf.is_complex():
        return leaf
    return leaf.long()


def _check_input(data: Any, where: str) -> None:
    from torch import Tensor

    strange: list[Any] = []
    plain = (Tensor, bool, int, float, str, type(None))
    _map(lambda leaf: None if isinstance(leaf, plain) else strange.append(leaf), data)
    if strange or not _tensors(data):
        found = found_instead(strange[0] if strange else data)
        raise BadInput(f"{where}: the input is {found}; wants a tensor, or a tuple, list or dict with tensors")


def _check_values(tensors: list[Tensor], where: str) -> None:
    import torch

    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise BadInput(f"{where} is a {tensor.layout} tensor; make it dense: tensor.to_dense()")
        if tensor.numel() == 0:
            raise BadInput(f"{where} is empty: its shape is {tuple(tensor.shape)}; give at least one sample")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise BadInput(f"{where} has {count} NaN or infinite values of {tensor.numel()}; clean the data")


def _check_sizes(inputs: list[Tensor], target: Any, where: str) -> None:
    from torch import Tensor

    sizes = {tensor.shape[0] for tensor in inputs if tensor.ndim}
    for one in target if isinstance(target, (tuple, list)) else [target]:
        if isinstance(one, Tensor) and one.ndim and sizes and one.shape[0] not in sizes:
            size = next(tensor.shape[0] for tensor in inputs if tensor.ndim)
            raise BadInput(f"{where}: {size} samples in the input, {one.shape[0]} in the target; make axis 0 agree")
