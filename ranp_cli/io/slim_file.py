"""Files that ranp writes and reads back: slim networks and scores, in safetensors; whole or not at all."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.documents import parse_json
from ..core.errors import BadInput
from .slim_document import REWRITE, check_scores, check_slim
from .tensor_file import DIGEST, TensorFile, digest_of

if TYPE_CHECKING:
    from torch import Tensor, nn


SLIM, SCORES, VERSION = "ranp-slim", "ranp-scores", 1
_MADE_BY = {SLIM: "ranp prune or ranp refine", SCORES: "ranp score"}


def read_document(path: str | Path, kind: str) -> dict[str, Any]:
    """The JSON document of kind `ranp-slim` or `ranp-scores` in a file's metadata. Needs no torch."""
    return document_of(TensorFile.read(path), kind)


def document_of(file: TensorFile, kind: str) -> dict[str, Any]:
    """The document of that kind in a file that is open, checked; BadInput for another file."""
    text = file.metadata.get("ranp")
    document = None if text is None else parse_json(text, f"{file.what}: its document", REWRITE)
    if not isinstance(document, dict) or document.get("format") != kind:
        raise BadInput(
            f"{file.what} was not written by {_MADE_BY[kind]}: its metadata holds no '{kind}' document; give a file that was"
        )
    if document.get("version") != VERSION:
        raise BadInput(
            f"{file.what} has version {str(document.get('version'))[:20]!r} of '{kind}', not {VERSION}; write it anew with this ranp"
        )
    {SLIM: check_slim, SCORES: check_scores}[kind](document, file.what)
    return document


def to_bytes(tensors: Mapping[str, Tensor], document: dict[str, Any]) -> bytes:
    """A safetensors file with the document in its metadata; the same content gives the same bytes."""
    from safetensors.torch import save

    return with_document(save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}), document)


def with_document(data: bytes, document: dict[str, Any]) -> bytes:
    """A safetensors file with this document, and the digest over the tensors in it; keys in order, as the library has none."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    document = {**document, DIGEST: digest_of(header, io.BytesIO(data[8 + length :]))}
    metadata = {"format": "pt", "ranp": json.dumps(document)}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that ranp wrote; BadInput when they are not those that were written."""
    from .readers import read_safetensors

    return read_safetensors(Path(path), str(path))


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
