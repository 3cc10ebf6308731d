"""Read files of tensors and TorchScript safely, with one line for whatever goes wrong.

Wherever Python code is meant, it is named `file.py:Name` or `package.module:Name`. The folder of the file, or the
current directory, is importable. A file is run again when it, or a file that it imported from its folder, has changed.

Nothing is read that may run code without being Python source: pickles are read with `weights_only=True`.
torch is imported inside the functions, so that `ranp --help` need not wait for it.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ..core.errors import BadInput, is_out_of_memory, one_line, shortened
from ..core.reading import check_tree, check_unfolded, opened
from ..core.spelling import spelled

if TYPE_CHECKING:
    from torch import Tensor, nn


def _container(path: Path, what: str) -> Literal["torchscript", "pickle", "plain", "truncated", "other"]:
    """What a `.pt` file is, told by its bytes: nothing in it is run."""
    with opened(path, what) as (file, size):
        start = file.read(2)
        if is_zip(file):
            members = zip_members(file, size, what)
            names = {name.rpartition("/")[2] for name in members}
            return "torchscript" if "constants.pkl" in names else "pickle" if "data.pkl" in names else "other"
    if start == b"\x80\x02":
        return "pickle"  # torch.save before 1.6
    return "truncated" if start in (b"PK", b"") else "plain" if start[:1] == b"\x80" else "other"


def is_zip(file: BinaryIO) -> bool:
    """Whether it is an archive, damaged ones among them: `zipfile` itself raises for a record that is wrong."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True


def zip_members(file: BinaryIO, size: int, what: str) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip file of `size` bytes; BadInput where it is damaged, or unfolds to far more than it is."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (*ZIP_ERRORS, OverflowError) as error:
        raise BadInput(f"{what}: is damaged or cut off ({shortened(error, 60)}); write or copy it again") from None
    check_unfolded(sum(member.file_size for member in members), size, what, "it declares members")
    file.seek(0)
    return {member.filename: member for member in members}


# what zipfile raises for a damaged archive: bad sums, sizes, names; a RuntimeError for an encrypted member or an unknown method
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    struct.error,
)
START = 1 << 20  # bytes of a pickle in which its first name stands
_UNREADABLE = {
    "plain": "is a plain pickle, which may run code, and is refused; write it with torch.save",
    "truncated": "is empty or cut off in the middle; write or copy it again",
    "other": "is not a file that torch.save wrote; check the path and the suffix",
}


def read_torchscript(path: Path, what: str) -> nn.Module:
    import torch

    from ..core.contexts import ignoring

    kind = _container(path, what)
    if kind == "pickle":
        refused = "pickled modules run code when they are read and are refused"
        if holds := pickled_class(path):
            target = path.with_name(f"{path.stem}.state.pt")
            raise BadInput(
                f"{what}: holds a pickled object ({holds}), not TorchScript; {refused}; if you trust it, run torch.save("
                f"torch.load({str(path)!r}, weights_only=False).state_dict(), {str(target)!r}) in Python once, then give the "
                f"source and the state dict: file.py:Name with {spelled('weights', target)}",
                whole=True,
            )
        raise BadInput(
            f"{what}: holds tensors, not TorchScript; {refused}; give the source and the state dict: file.py:Name with "
            f"{spelled('weights', path)}"
        )
    if kind != "torchscript":
        raise BadInput(f"{what}: {_UNREADABLE[kind]}")
    with ignoring((DeprecationWarning, "")):  # of torch.jit as a whole: we know
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except Exception as error:  # broken bytes make the reader raise nearly anything
            if is_out_of_memory(error):
                raise
            raise BadInput(f"{what}: is not readable TorchScript ({one_line(error)}); save it again") from None


def pickled_class(path: Path) -> str:
    """`net.Net`: the class of the object that `torch.save` wrote; nothing for a dict, a list or a tensor. Nothing is run."""
    try:
        with opened(path, str(path)) as (file, _):
            starts = [file.read(START)]
            if is_zip(file):
                with zipfile.ZipFile(file) as archive:
                    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
                    starts = [archive.open(name).read(START) for name in names]
        for start in starts:
            for op, value, _ in pickletools.genops(start):
                if op.name == "GLOBAL":
                    name = str(value).replace(" ", ".")
                    return "" if name.startswith(("torch._utils.", "collections.")) else shortened(name, 60)
                if op.name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK"):
                    return ""
    except ZIP_ERRORS:  # a damaged file, which reading it will tell
        return ""
    return ""


def read_torch(path: Path, what: str, advice: str | None = None) -> Any:
    """What `torch.save` wrote, tensors and plain containers only.

    Args:
        advice: what to do with a file that holds more.
    """
    import torch

    from ..core.contexts import ignoring

    kind = _container(path, what)
    if kind == "torchscript":
        raise BadInput(f"{what}: is a TorchScript model; give it as the model")
    if kind != "pickle":
        raise BadInput(f"{what}: {_UNREADABLE[kind]}")
    with ignoring((Warning, "")):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # broken bytes make the unpickler raise nearly anything
            if is_out_of_memory(error):
                raise
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not wanted:
                raise BadInput(f"{what}: is damaged ({type(error).__name__}); write or copy it again") from None
            advice = advice or "save tensors, dicts and lists only: torch.save((input, target), ...)"
            raise BadInput(
                f"{what}: is a pickle that wants to run code ({shortened(wanted[1], 35)}) and is refused; {advice}",
                whole=True,
            ) from None
    _check_tensors(content, path, what)
    return content


def _check_tensors(content: Any, path: Path, what: str) -> None:
    """BadInput for tensors that are more than the file holds (views of few elements), and for those without elements."""
    from torch import Tensor

    declared = 0

    def look(leaf: Any) -> None:
        nonlocal declared
        if not isinstance(leaf, Tensor):
            return
        if leaf.is_meta or leaf.is_quantized or leaf.is_nested:
            kind = "on the meta device" if leaf.is_meta else "quantized" if leaf.is_quantized else "nested"
            raise BadInput(f"{what}: holds a tensor that is {kind}; save plain ones (dequantize(), to a real device)")
        declared += leaf.numel() * leaf.element_size()

    check_tree(content, what, look)
    check_unfolded(declared, path.stat().st_size, what, "it declares tensors")


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; of one that ranp wrote the digest is checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .tensor_file import TensorFile

    about = TensorFile.read(path, what)
    try:
        tensors: dict[str, Tensor] = load_file(about.path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadInput(
            f"{what}: is not safetensors of numbers that torch has ({shortened(error, 80)}); write or copy it again"
        ) from None
    about.check_digest()
    return tensors


def found_instead(value: Any) -> str:
    """What a value is, in a few words: `a list of 3 str`, `a tensor of shape (2, 1)`."""
    if isinstance(value, Mapping):
        keys = [repr(key) for key in value]
        return f"a dict with the keys {', '.join(keys[:5])}{', ...' * (len(keys) > 5)}" if keys else "an empty dict"
    if isinstance(value, (tuple, list)):
        kind, items = type(value).__name__, dict.fromkeys(type(item).__name__ for item in value)
        return f"a {kind} of {len(value)} {' and '.join(items)}" if items else f"an empty {kind}"
    if hasattr(value, "shape"):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def some_of(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
