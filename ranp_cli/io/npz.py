"""Read an .npz file whose arrays hold what their headers declare, no more and no less."""

from __future__ import annotations

import math
import tokenize
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..core.errors import BadInput, is_out_of_memory, shortened
from ..core.reading import opened
from .readers import ZIP_ERRORS, zip_members

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 22  # bytes that are read at once


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    with opened(path, what) as (file, size):
        if file.read(2) != b"PK":
            raise BadInput(f"{what}: is not an .npz file; write it with numpy.savez")
        members = zip_members(file, size, what)
        arrays = {}
        try:
            with zipfile.ZipFile(file) as archive:
                for name, member in members.items():
                    if not name.endswith(".npy"):
                        continue
                    with archive.open(name) as stream:
                        arrays[name.removesuffix(".npy")] = _read_npy(stream, member.file_size, what)
        except ZIP_ERRORS as error:
            if isinstance(error, BadInput) or is_out_of_memory(error):
                raise
            raise BadInput(f"{what}: is damaged or cut off ({shortened(error, 60)}); write or copy it again") from None
    return arrays


def _read_npy(stream: IO[bytes], size: int, what: str) -> np.ndarray:
    """One array of an .npz file, whose header must declare what the member of `size` bytes holds, no more and no less."""
    import numpy as np
    from numpy.lib import format as npy

    from ..core.contexts import ignoring

    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the .npy format")
    try:
        with ignoring((Warning, "")):  # of the header as a Python literal
            shape, fortran_order, dtype = read_header(stream)
    except (SyntaxError, TypeError, RecursionError, MemoryError, OverflowError, tokenize.TokenError) as error:
        raise ValueError(shortened(error, 60)) from None
    if dtype.hasobject:
        raise BadInput(f"{what}: holds Python objects, which are pickles; save arrays of numbers only")
    declared = math.prod(shape) * dtype.itemsize
    left = size - stream.tell()
    if declared != left or min(shape, default=1) < 0:
        raise BadInput(f"{what}: an array of {declared:,} bytes is declared where {left:,} are; write or copy it again")
    data = np.empty(math.prod(shape), dtype)
    rest = memoryview(data.view(np.uint8).data) if left else memoryview(b"")
    while len(rest):
        chunk = stream.read(min(CHUNK, len(rest)))
        if not chunk:
            raise EOFError("the data ends early")
        rest[: len(chunk)] = chunk
        rest = rest[len(chunk) :]
    return data.reshape(shape[::-1]).T if fortran_order else data.reshape(shape)
