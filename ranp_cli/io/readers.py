"""Read files of tensors and TorchScript safely, with one line for whatever goes wrong.

Wherever Python code is meant, it is named `file.py:Name` or `package.module:Name`. The folder of the file, or the
current directory, is importable. A file is run again when it, or a file that it imported from its folder, has changed.

Nothing is read that may run code without being Python source: pickles are read with `weights_only=True`.
torch is imported inside the functions, so that `ranp --help` need not wait for it.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import BadInput, one_line
from ..core.spelling import spelled

if TYPE_CHECKING:
    from torch import Tensor, nn


def readable(path: str | os.PathLike[str], what: str) -> Path:
    """`path` as a file that can be opened, or one line that says why not."""
    path = Path(os.path.expanduser(path))
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise BadInput(f"{what}: no such file (looked in {path.resolve().parent}); check the path") from None
    except OSError as error:
        raise BadInput(f"{what}: cannot be read ({error.strerror}); give a readable file") from None
    return path


def _container(path: Path) -> Literal["torchscript", "pickle", "plain", "truncated", "other"]:
    """What a `.pt` file is, told by its bytes: nothing in it is run."""
    with path.open("rb") as file:
        start = file.read(2)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        return "torchscript" if "constants.pkl" in names else "pickle" if "data.pkl" in names else "other"
    if start == b"\x80\x02":
        return "pickle"  # torch.save before 1.6
    return "truncated" if start in (b"PK", b"") else "plain" if start[:1] == b"\x80" else "other"


_UNREADABLE = {
    "plain": "is a plain pickle, which may run code, and is refused; write it with torch.save",
    "truncated": "is empty or cut off in the middle; write or copy it again",
    "other": "is not a file that torch.save wrote; check the path and the suffix",
}


def read_torchscript(path: Path, what: str) -> nn.Module:
    import torch

    from ..core.contexts import ignoring

    kind = _container(path)
    if kind == "pickle":
        refused = "pickled modules run code when they are read and are refused"
        if holds := pickled_class(path):
            target = path.with_name(f"{path.stem}.state.pt")
            raise BadInput(
                f"{what}: holds a pickled object ({holds}), not TorchScript; {refused}; where you trust it, run torch.save("
                f"torch.load({str(path)!r}, weights_only=False).state_dict(), {str(target)!r}) in Python once, then give the "
                f"source and the state dict: file.py:Name with {spelled('weights', target)}"
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
        except RuntimeError as error:
            raise BadInput(f"{what}: is not readable TorchScript ({one_line(error)}); save it again") from None


def pickled_class(path: Path) -> str:
    """`net.Net`: the class of the object that `torch.save` wrote; nothing for a dict, a list or a tensor. Nothing is run."""
    with path.open("rb") as file:
        data: bytes = file.read()
    starts = [data]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            starts = [archive.read(name) for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    try:
        for start in starts:
            for op, value, _ in pickletools.genops(start):
                if op.name == "GLOBAL":
                    name = str(value).replace(" ", ".")
                    return "" if name.startswith(("torch._utils.", "collections.")) else name
                if op.name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK"):
                    return ""
    except ValueError:  # a damaged pickle, which reading it will tell
        return ""
    return ""


def read_torch(path: Path, what: str, advice: str | None = None) -> Any:
    """What `torch.save` wrote, tensors and plain containers only.

    Args:
        advice: what to do with a file that holds more.
    """
    import torch

    from ..core.contexts import ignoring

    kind = _container(path)
    if kind == "torchscript":
        raise BadInput(f"{what}: is a TorchScript model; give it as the model")
    if kind != "pickle":
        raise BadInput(f"{what}: {_UNREADABLE[kind]}")
    with ignoring((Warning, "")):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # broken bytes make the unpickler raise nearly anything
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not wanted:
                raise BadInput(f"{what}: is damaged ({type(error).__name__}); write or copy it again") from None
            advice = advice or "save tensors, dicts and lists only: torch.save((input, target), ...)"
            raise BadInput(
                f"{what}: is a pickle that wants to run code ({wanted[1]}) and is refused; {advice}"
            ) from None


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{what}: is not safetensors, or cut off ({error}); write or copy it again") from None


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
