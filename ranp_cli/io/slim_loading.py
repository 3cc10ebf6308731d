"""Load a slim network from its file, whole or not at all, into the user's own class."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.documents import shown
from ..core.errors import MESSAGE, BadInput
from ..core.spelling import spelled
from .readers import read_safetensors, some_of
from .slim_document import REWRITE
from .slim_file import SLIM, document_of
from .tensor_file import TensorFile

if TYPE_CHECKING:
    from torch import Tensor, nn


def load(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    trust: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A slim network, ready to use, of the user's own class.

    A file never leads to code by itself: the model spec that it records is a note for people. It is loaded whole or not
    at all: every tensor of the network comes from the file, none is left over, and the bytes are those that were written.

    Args:
        path: a file written by `prune` or `refine`.
        model: the dense `nn.Module` (not changed), or a spec such as `model.py:UNet3D`, which runs that code.
        trust: build the dense model from the spec and arguments that the file records, which runs what they name.
        model_args: keyword arguments for the spec.

    Returns: a module with the slim weights, shapes and attributes, in the mode (training or eval) of the dense one.

    Raises: BadInput when the file is no slim file, is damaged, or `model` is another network.

    Example:
        slim = ranp_cli.load("slim.safetensors", UNet3D())
    """
    from torch import nn

    from ..core.contexts import seeded
    from ..core.copies import replicate, uncompiled
    from ..core.fingerprint import fingerprint
    from ..pruning.mask import Mask
    from ..pruning.slim import apply_attributes, check_attributes
    from .model import load_model

    file = TensorFile.read(path)
    document = document_of(file, SLIM)
    about = document["model"]
    mask = Mask.of(document["mask"])
    if model is None:
        if not trust:
            raise BadInput(without_model(path, about), whole=True)
        if not about["spec"]:
            raise BadInput(
                f"{path} records no model spec: it was made from a model in memory; give the dense model: load(path, model)"
            )
        model, model_args = about["spec"], about.get("args")
    if isinstance(model, str):
        with seeded():
            model = load_model(model, dict(model_args or {})).module
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"the model is a {type(model).__name__}; give the dense nn.Module that {path} was made from, or a spec such as model.py:Net"
        )
    model = uncompiled(model)
    if fingerprint(model) != about["fingerprint"]:
        note = "" if model_args or not about.get("args") else f" (it records the arguments {shown_args(about['args'])})"
        raise BadInput(
            f"{path} was made from another network: {_difference(model, document)}; give the dense model it was made from{note}"
        )
    tensors = read_safetensors(file.path, file.what)
    aliases = document["aliases"]
    check_tensors(model, tensors, aliases, mask.layers, file.what)

    def take(name: str, t: Tensor) -> Tensor:
        saved = tensors.get(aliases.get(name, name))  # None: a plain attribute, which is not in a state dict
        return (t if saved is None else saved.to(t.device)).clone()

    slim = replicate(model, take)
    check_attributes(slim, document["attributes"], file.what)
    apply_attributes(slim, document["attributes"])
    return slim


def check_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], layers: Mapping[str, Any], what: str
) -> None:
    """BadInput unless these are the tensors of a slim form of `model`: all of them, no others, each of a shape within its own."""
    own = {**model.state_dict(keep_vars=True), **dict(model.named_buffers(remove_duplicate=False))}
    names = {name: aliases.get(name, name) for name in own}
    for label, some in (
        ("lacks the tensors", names.values() - tensors.keys()),
        ("holds tensors that the model has not", tensors.keys() - names.values()),
        ("holds aliases that the model has not", aliases.keys() - names.keys()),
    ):
        if some:
            raise BadInput(f"{what}: {label}: {some_of(some)}; {REWRITE}")
    for name, stored in names.items():
        dense, t = own[name], tensors[stored]
        if t.ndim != dense.ndim or any(n > most for n, most in zip(t.shape, dense.shape, strict=True)):
            raise BadInput(
                f"{what}: {name} has the shape {tuple(t.shape)}, which is no part of the dense {tuple(dense.shape)}; {REWRITE}"
            )
        if t.is_floating_point() != dense.is_floating_point() or t.is_complex() != dense.is_complex():
            raise BadInput(f"{what}: {name} is {t.dtype}, in the model {dense.dtype}; {REWRITE}")
    for name, layer in layers.items():
        bias = names.get(f"{name}.bias")
        if bias is not None and tensors[bias].ndim == 1 and len(tensors[bias]) != len(layer["kept"]):
            raise BadInput(
                f"{what}: {name}.bias has {len(tensors[bias])} numbers for {len(layer['kept'])} neurons; {REWRITE}"
            )


def without_model(path: Any, about: Mapping[str, Any], call: str = "load") -> str:
    """The message where a slim file is not enough: which model it records, and the command or call to type.

    Args:
        call: the function that needs the model, `load` or `profile`.
    """
    spec, args = about["spec"], about.get("args") or {}
    if not spec:
        how = "--model file.py:Name" if on_command_line() else "model="
        return f"{path} holds no code and records no model spec (it was made from a model in memory); give the dense model: {how}"
    note = f"{path} holds no code, and the model that it records, {shown(spec, 60)}, is a note; if you trust it"
    if on_command_line():
        words = [
            f"--model {shlex.quote(spec)}",
            *(f"--model-arg {shlex.quote(f'{k}={_yaml(v)}')}" for k, v in args.items()),
        ]
        text = f"{note}, type ranp {call} {shlex.quote(str(path))} {' '.join(words)}, and the options that you gave"
        return (
            text
            if len(text) <= MESSAGE
            else f"{note}, name it with --model and --model-arg (its arguments: {shown_args([*args])})"
        )
    with_args = f", model_args={shown_args(args)}" if args else ""
    return f"{note}, call ranp.{call}(path, model={shown(spec, 60)}{with_args}), or give trust=True"


def on_command_line() -> bool:
    """Whether messages spell options as flags."""
    return spelled("tree", True).startswith("--")


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def shown_args(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _difference(model: nn.Module, document: dict[str, Any]) -> str:
    """What sets the parameters of a model apart from those that a file was made from, in a few words."""
    dense = document["model"]["parameters"]
    mine = {name: list(p.shape) for name, p in model.named_parameters()}
    for name, shape in mine.items():
        if name not in dense:
            return f"it has no {name}"
        if dense[name] != shape:
            return f"{name} was {tuple(dense[name])}, is {tuple(shape)}"
    missing = [name for name in dense if name not in mine]
    return f"it also had {missing[0]}" if missing else "its parameters differ"
