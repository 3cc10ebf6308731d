"""The header of a slim network, its shapes and attributes without its weights, and the empty network that it describes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.documents import check_form
from ..core.errors import BadInput
from .slim_file import SLIM, document_of, slim_tensors
from .slim_loading import check_tensors
from .tensor_file import TensorFile

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..pruning.mask import Mask

VERSION = 1
ADVICE = "take it anew from what ranp prune wrote"
FORM = {
    "version": int,
    "fingerprint": str,
    "shapes": {str: [int]},
    "attributes": {str: {str: (int, [int])}},
    "mask_sha256?": str,
}


def header_of(slim: nn.Module, about: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    """What `build` needs to know of a slim network, as JSON can hold it.

    Args:
        about: the dense network's record (`model`) and the attributes that pruning has set.
    """
    tensors, _, _ = slim_tensors(slim)
    return {
        "version": VERSION,
        "fingerprint": about["model"]["fingerprint"],
        "shapes": {name: list(t.shape) for name, t in tensors.items()},
        "attributes": {module: dict(values) for module, values in about["attributes"].items()},
        "mask_sha256": hashlib.sha256(mask.to_bytes()).hexdigest(),
    }


def build(
    header: Mapping[str, Any] | str | Path, model: nn.Module | str, *, model_args: Mapping[str, Any] | None = None
) -> nn.Module:
    """An empty slim network: the shapes and attributes that a header records, and no weights of it yet.

    Where `load` also reads the weights, `build` is for a program that has them elsewhere, such as in its own checkpoint:
    build, then `load_state_dict`. Until then layers hold what their own `reset_parameters` draws (the same numbers every
    time), and parameters without one are zero. A buffer of unchanged shape is the dense network's. The global random
    state is as before.

    Args:
        header: `result.header` of `prune` or `refine`, as it is or back from JSON, or the path of a slim file.
        model: the dense `nn.Module` (not changed; on `meta` it costs nothing), or a spec such as `model.py:UNet3D`.
        model_args: keyword arguments for the spec.

    Returns: a module of the same class, in the mode of the dense one, on its device; on the CPU where that is on `meta`.

    Raises: BadInput when the header is damaged, or `model` is another network.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> ranp.build(ranp.prune(net, batch, sparsity=0.5).header, net)
        Sequential(
          (0): Conv3d(1, 3, kernel_size=(3, 3, 3), stride=(1, 1, 1))
          (1): ReLU()
          (2): Conv3d(3, 2, kernel_size=(1, 1, 1), stride=(1, 1, 1))
        )
    """
    from torch import nn

    from ..core.contexts import seeded
    from ..core.copies import uncompiled
    from .model import load_model

    known, what = read_header(header)
    if isinstance(model, (str, Path)):
        with seeded():
            model = load_model(str(model), dict(model_args or {})).module
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"the model is a {type(model).__name__}; give the dense nn.Module, or a spec such as model.py:Net"
        )
    return built_from(known, uncompiled(model), what)


def read_header(header: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], str]:
    """A header from its dict, or from a slim file, checked; and what messages call it."""
    if isinstance(header, (str, Path)):
        file = TensorFile.read(header)
        document = document_of(file, SLIM)
        shapes = {name: list(about["shape"]) for name, about in file.tensors.items()}
        return {
            "version": VERSION,
            "fingerprint": document["model"]["fingerprint"],
            "shapes": shapes,
            "attributes": document["attributes"],
        }, file.what
    what = "the header of a slim network"
    if not isinstance(header, Mapping):
        raise BadInput(
            f"{what} is a {type(header).__name__}; give `result.header`, its dict, or the path of a slim file"
        )
    check_form(dict(header), FORM, what, ADVICE)
    if header["version"] != VERSION:
        raise BadInput(f"{what} has version {header['version']}, not {VERSION}; {ADVICE}, with this ranp")
    return dict(header), what


def built_from(header: Mapping[str, Any], model: nn.Module, what: str) -> nn.Module:
    """The empty slim network of a header that was checked for its form, and its dense network."""
    import torch

    from ..core.contexts import seeded
    from ..core.copies import replicate
    from ..core.fingerprint import fingerprint
    from ..pruning.initial_weights import initialise
    from ..pruning.slim import apply_attributes, check_attributes

    tensors, aliases, _ = slim_tensors(model)
    shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
    if fingerprint(model) != header["fingerprint"]:
        raise BadInput(
            f"{what} is of another network: {_difference(tensors, shapes)}; give the dense model that it was made from"
        )
    sliced = {
        name: torch.empty(shape, dtype=tensors[name].dtype if name in tensors else None, device="meta")
        for name, shape in shapes.items()
    }
    check_tensors(model, sliced, aliases, {}, what)
    for name, shape in shapes.items():
        if 0 in shape and 0 not in tensors[name].shape:
            raise BadInput(f"{what}: {name} has the shape {shape}, which is empty; {ADVICE}")
    buffers = dict(model.named_buffers(remove_duplicate=False))
    _refuse_lost_constants(model, what)

    def make(name: str, dense: Tensor) -> Tensor:
        shape = shapes.get(name, tuple(dense.shape))  # without one: a plain attribute, which is in no state dict
        is_constant = name in buffers or name not in shapes
        if is_constant and shape == tuple(dense.shape) and not dense.is_meta:
            return dense.clone()
        return torch.zeros(shape, dtype=dense.dtype, device="cpu" if dense.is_meta else dense.device)

    slim = replicate(model, make)
    check_attributes(slim, header["attributes"], what)
    apply_attributes(slim, header["attributes"])
    with seeded():
        initialise(slim, "factory", [])
    return slim


def _refuse_lost_constants(model: nn.Module, what: str) -> None:
    """BadInput for a network on `meta` whose buffers no module sets anew: their values are nowhere."""
    for prefix, module in model.named_modules():
        if callable(getattr(module, "reset_parameters", None)):
            continue
        lost = [key for key, t in module._buffers.items() if t is not None and t.is_meta]
        if lost:
            raise BadInput(
                f"{what}: the buffer {f'{prefix}.{lost[0]}'.lstrip('.')} of the dense model is on meta, and no module sets it anew; "
                "make the dense model on the CPU"
            )


def _difference(dense: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What sets a model apart from the one that a header was made from, in a few words."""
    for name, t in dense.items():
        slim = shapes.get(name)
        if slim is None:
            return f"the header has no {name}"
        if len(slim) != t.ndim or any(n > most for n, most in zip(slim, t.shape, strict=True)):
            return f"{name} is {tuple(t.shape)} here, {slim} in the slim network"
    missing = [name for name in shapes if name not in dense]
    return f"it has no {missing[0]}" if missing else "its parameters are of other shapes"
