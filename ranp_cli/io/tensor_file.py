"""A safetensors file: its header read and checked without torch, and the digest over its tensors."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..core.documents import parse_json
from ..core.errors import BadInput, shortened
from ..core.reading import DOCUMENT, bound, opened

WANTED = "give a .safetensors file that is whole"
CHUNK = 1 << 20
DIGEST = "digest"  # in the document that ranp writes; files of version 0.1 have none


@dataclass(frozen=True)
class TensorFile:
    """What the header of a safetensors file says, and what the file holds by it: every byte belongs to one tensor."""

    path: Path
    what: str
    tensors: dict[str, dict[str, Any]]  # name -> {dtype, shape, data_offsets}
    metadata: dict[str, str]
    start: int  # where the tensors' bytes begin

    @classmethod
    def read(cls, path: str | os.PathLike[str], what: str | None = None) -> TensorFile:
        """Read and check the header; BadInput for a file that is missing, damaged, cut off or no safetensors.

        Args:
            what: what it is to the user, such as `batch calib.safetensors`; by default a file of ranp's, called by its path.
        """
        from safetensors import SafetensorError, safe_open

        flaw = (
            f"{path} is not a safetensors file, or is truncated"
            if what is None
            else f"{what}: is not safetensors, or cut off"
        )
        what = what or os.fspath(path)
        with opened(path, what, wanted=WANTED) as (file, size):
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > size - 8:
                raise BadInput(f"{flaw} ({size} bytes); {WANTED}")
            if length > bound(DOCUMENT):
                raise BadInput(
                    f"{what}: has a header of {length >> 20} MiB, and {bound(DOCUMENT) >> 20} MiB are read; {WANTED}"
                )
            header = parse_json(file.read(length), f"{flaw}: its header", WANTED)
        place = Path(os.path.expanduser(path))
        try:
            with safe_open(place, "numpy") as checked:
                names = list(checked.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(f"{flaw} ({shortened(error, 100)}); {WANTED}") from None
        metadata = header.pop("__metadata__", None) or {}
        assert names.sort() is None
        assert names == sorted(header)  # the library read the same header
        return cls(place, what, header, metadata, 8 + length)

    def check_digest(self) -> None:
        """BadInput when the tensors are not those that ranp wrote; a file without a digest passes."""
        try:
            recorded = json.loads(self.metadata.get("ranp", "{}")).get(DIGEST)
        except (ValueError, AttributeError, RecursionError):  # no document of ranp's
            recorded = None
        if recorded is None:
            return
        with opened(self.path, self.what) as (file, _):
            file.seek(self.start)
            found = digest_of(self.tensors, file)
        if found != recorded:
            raise BadInput(
                f"{self.what}: is damaged: its tensors are not those that were written (their digest differs); "
                "copy or write it again"
            )


def digest_of(tensors: dict[str, Any], data: BinaryIO) -> str:
    """sha256 over the header's tensors (names, dtypes, shapes, places) and the bytes behind it."""
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True, separators=(",", ":")).encode())
    while chunk := data.read(CHUNK):
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
