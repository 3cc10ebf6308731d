"""Files that ranp writes and reads back: slim networks and scores, in safetensors; whole or not at all."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn


SLIM, SCORES, VERSION = "ranp-slim", "ranp-scores", 1
MAX_HEADER = 100_000_000  # as the safetensors library bounds it


def read_header(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensor name -> {dtype, shape, data_offsets}, metadata) of a safetensors file, without torch.

    Raises BadInput for a file that is missing, truncated or no safetensors.
    """
    path = Path(path)
    wanted = "give a .safetensors file written by ranp"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            if length > min(MAX_HEADER, size):
                raise BadInput(f"{path} is not a safetensors file, or is truncated; {wanted}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; {wanted}") from error
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is not a safetensors file: its header is no JSON; {wanted}") from error
    if not isinstance(header, dict):
        raise BadInput(f"{path} is not a safetensors file: its header is no object; {wanted}")
    metadata = header.pop("__metadata__", {})
    try:
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise BadInput(f"{path} is not a safetensors file: its header describes no tensors; {wanted}") from error
    if size < 8 + length + end:
        raise BadInput(f"{path} is truncated: {size} bytes of {8 + length + end}; copy or write it again")
    return header, metadata


def read_document(path: str | Path, kind: str) -> dict[str, Any]:
    """The JSON document of kind `ranp-slim` or `ranp-scores` in a file's metadata. Needs no torch."""
    metadata = read_header(path)[1]
    made_by = {SLIM: "ranp prune or ranp refine", SCORES: "ranp score"}[kind]
    try:
        document = json.loads(metadata["ranp"])
    except (KeyError, ValueError):
        document = {}
    if not isinstance(document, dict) or document.get("format") != kind:
        raise BadInput(
            f"{path} was not written by {made_by}: its metadata holds no '{kind}' document; give a file that was"
        )
    if document.get("version") != VERSION:
        raise BadInput(
            f"{path} has version {document.get('version')!r} of '{kind}', not {VERSION}; write it anew with this ranp"
        )
    return document


def to_bytes(tensors: Mapping[str, Tensor], document: dict[str, Any]) -> bytes:
    """A safetensors file with the document in its metadata; the same content gives the same bytes."""
    from safetensors.torch import save

    metadata = {"format": "pt", "ranp": json.dumps(document)}
    return canonical(save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, metadata=metadata))


def canonical(data: bytes) -> bytes:
    """The same file with the keys of its header in order: the library writes the metadata in hash order."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"cannot read {path}: {error}; copy or write it again") from error


# -- slim networks


def slim_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """(tensors by state-dict name, each once; alias -> name of tied ones; names of buffers outside the state dict)."""
    state = dict(model.state_dict(keep_vars=True))
    extra = {name: t for name, t in model.named_buffers(remove_duplicate=False) if name not in state}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, t in {**state, **extra}.items():
        if not hasattr(t, "untyped_storage"):
            raise BadInput(
                f"'{name}' of the model's state dict is a {type(t).__name__}, no tensor; a slim file holds tensors only"
            )
        if id(t) in first:
            aliases[name] = first[id(t)]
        else:
            first[id(t)] = name
            tensors[name] = t.detach().clone()
    return tensors, aliases, list(extra)


def load(path: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """A slim network, ready to use, of the user's own class.

    Args:
        path: a file written by `prune` or `refine`.
        model: the dense `nn.Module` (not changed), or a spec such as `model.py:UNet3D`; without it the recorded spec
            and arguments build one, which runs that code.

    Returns: a module with the slim weights, shapes and attributes, in the mode (training or eval) of the dense one.

    Raises: BadInput when the file is no slim file or `model` is another network.

    Example:
        slim = ranp_cli.load("slim.safetensors", UNet3D())
    """
    from ..core.contexts import seeded
    from ..core.copies import replicate, uncompiled
    from ..core.fingerprint import fingerprint
    from ..pruning.slim import apply_attributes
    from .model import load_model

    document = read_document(path, SLIM)
    about = document["model"]
    if model is None:
        if not about.get("spec"):
            raise BadInput(
                f"{path} records no model spec: it was made from a model in memory; give the dense model: load(path, model)"
            )
        model = about["spec"]
    if isinstance(model, str):
        with seeded():
            model = load_model(model, about.get("args") or {}, code_in_args=False).module
    model = uncompiled(model)
    if fingerprint(model) != about["fingerprint"]:
        raise BadInput(
            f"{path} was made from another network: {_difference(model, document)}; give the dense model it was made from"
        )
    tensors = read_tensors(path)
    names = document["aliases"]

    def take(name: str, t: Tensor) -> Tensor:
        saved = tensors.get(names.get(name, name))
        return (t if saved is None else saved.to(device=t.device, dtype=t.dtype)).clone()

    slim = replicate(model, take)
    apply_attributes(slim, document["attributes"])
    return slim


def _difference(model: nn.Module, document: dict[str, Any]) -> str:
    """What sets the parameters of a model apart from those that a file was made from, in a few words."""
    dense = document["model"].get("parameters", {})
    mine = {name: list(p.shape) for name, p in model.named_parameters()}
    for name, shape in mine.items():
        if name not in dense:
            return f"it has no {name}"
        if dense[name] != shape:
            return f"{name} was {tuple(dense[name])}, is {tuple(shape)}"
    missing = [name for name in dense if name not in mine]
    return f"it also had {missing[0]}" if missing else "its parameters differ"
