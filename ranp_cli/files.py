"""Files and user code: what may be read, what may run, and one line for whatever goes wrong.

Wherever Python code is meant, it is named `file.py:Name` or `package.module:Name`. The folder of the file, or the
current directory, is importable. A file is run again when it, or a file that it imported from its folder, has changed.

Nothing is read that may run code without being Python source: pickles are read with `weights_only=True`.
torch is imported inside the functions, so that `ranp --help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .errors import USER_EXCEPTIONS, BadInput, nearest, one_line, user_line

if TYPE_CHECKING:
    from torch import Tensor, nn


def readable(path: str | os.PathLike[str], what: str) -> Path:
    """`path` as a file that can be opened, or one line that says why not."""
    path = Path(path).expanduser()
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise BadInput(f"{what}: no such file (looked in {path.resolve().parent}); check the path") from None
    except OSError as error:
        raise BadInput(f"{what}: cannot be read ({error.strerror}); give a readable file") from None
    return path


def user_error(what: str, error: BaseException) -> BadInput:
    """The one line for an exception out of the user's code: `what: ValueError: message (file.py:3)`."""
    line = user_line(error)
    advice = "mend it there" if line else "check what it is given"
    if isinstance(error, ModuleNotFoundError):
        advice = f"install {error.name}, or mend the import"
    return BadInput(f"{what}: {one_line(error)}{f' ({line})' if line else ''}; {advice}")


# What the user's code may raise: a `sys.exit()` in it must not end ranp without a word, Ctrl-C must.


@contextlib.contextmanager
def _importable(folder: str) -> Iterator[None]:
    """`folder` is first on the import path, and afterwards last, for imports inside the user's functions."""
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


@dataclass(frozen=True)
class _Import:
    """A user's file that has been run: its module, the siblings it imported, and what the files looked like then."""

    module: ModuleType
    siblings: tuple[str, ...]
    stamps: dict[str, tuple[int, int] | None]

    @property
    def fresh(self) -> bool:
        return all(_stamp(path) == stamp for path, stamp in self.stamps.items())


_imports: dict[Path, _Import] = {}


def _stamp(path: str) -> tuple[int, int] | None:
    """Changes when the file does; None when it is gone."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _siblings(names: Iterable[str], folder: Path) -> dict[str, str]:
    """Module name -> file, for those of the loaded `names` that are the user's own files below `folder`."""
    files = {name: getattr(sys.modules[name], "__file__", None) for name in names if name in sys.modules}
    return {
        name: file
        for name, file in files.items()
        if file and folder in Path(file).parents and "site-packages" not in file and not name.startswith("ranp_cli")
    }


def _import_file(path: Path, what: str) -> ModuleType:
    """Run the user's file as a module, or return the module of the last time when nothing has changed since."""
    path = readable(path, what).resolve()
    known = _imports.get(path)
    if known and known.fresh:
        return known.module
    # Another folder may hold another `blocks.py`; those of this folder stay, as long as none has changed.
    shared = {sibling for other in _imports.values() for sibling in other.siblings}
    stamps = {file: stamp for other in _imports.values() for file, stamp in other.stamps.items()}
    stay = _siblings(shared, path.parent)
    if any(_stamp(file) != stamps.get(file) for file in stay.values()):
        stay = {}
    for sibling in shared - stay.keys():
        sys.modules.pop(sibling, None)
    name = f"_ranp_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before, stamp = set(sys.modules), _stamp(str(path))
    sys.modules[name] = module
    try:
        with _importable(str(path.parent)):
            # Compiled here, as cached bytecode is not noticed to be old within the same second.
            exec(loader.source_to_code(loader.get_data(str(path)), str(path)), module.__dict__)
    except USER_EXCEPTIONS as error:
        del sys.modules[name]
        raise user_error(what, error) from error
    siblings = _siblings((set(sys.modules) - before - {name}) | shared, path.parent)
    _imports.pop(path, None)  # so that the latest import is the last one
    _imports[path] = _Import(
        module, tuple(siblings), {str(path): stamp, **{file: _stamp(file) for file in siblings.values()}}
    )
    return module


def _import_package(package: str, what: str) -> ModuleType:
    try:
        with _importable(os.getcwd()):
            return importlib.import_module(package)
    except USER_EXCEPTIONS as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{package}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what}: no module '{error.name}' is installed or in {os.getcwd()}; "
                f"install it, or name a file: path/to/file.py:Name"
            ) from None
        raise user_error(what, error) from error


def is_code(spec: str) -> bool:
    """Whether `spec` names Python code, `file.py`, `file.py:Name` or `package.module:Name`, rather than a data file."""
    return bool(re.fullmatch(r".+\.py|(.+\.py|[A-Za-z_][\w.]*):[\w.]*", spec))


def import_named(spec: str, what: str) -> tuple[ModuleType, str]:
    """The module and the name that `spec` speaks of; the name is empty when `spec` is a bare file.

    The global generator is as before, so that what is drawn next does not depend on whether the import was the first.
    """
    import torch

    target, name = (spec, "") if spec.endswith(".py") else spec.rsplit(":", 1)
    with torch.random.fork_rng(devices=[]):
        module = _import_file(Path(target), what) if target.endswith(".py") else _import_package(target, what)
    return module, name


def offered(module: ModuleType) -> dict[str, Any]:
    """The public callables that `module` defines, and its module instances."""
    from torch import nn

    root = module.__name__.split(".")[0]
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_")
        if isinstance(value, nn.Module) or str(getattr(value, "__module__", "")).split(".")[0] == root
    }


def attribute(module: ModuleType, name: str, what: str, offers: Iterable[str]) -> Any:
    """`module.name`; the error lists the names that are on offer (the eight nearest of many)."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, _MISSING)
        if value is _MISSING:
            known = difflib.get_close_matches(name, list(offers), n=8, cutoff=0.0)
            tail = nearest(name, sorted(known)) if known else "; define it there"
            raise BadInput(f"{what}: there is no '{name}' in it{tail}")
    return value


_MISSING = object()


def named(spec: str, what: str) -> Any:
    """The object that `file.py:Name` or `package.module:Name` names."""
    module, name = import_named(spec, what)
    if not name:
        offers = ", ".join(sorted(offered(module))[:8]) or "nothing yet"
        raise BadInput(f"{what}: which name in that file? Say {spec.rstrip(':')}:NAME (it offers: {offers})")
    return attribute(module, name, what, offered(module))


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

    kind = _container(path)
    if kind == "pickle":
        raise BadInput(
            f"{what}: holds a pickled module or a state dict, not TorchScript; pickled modules run code when they are "
            f"read and are refused; give the source and the state dict: file.py:Name --weights {path}"
        )
    if kind != "torchscript":
        raise BadInput(f"{what}: {_UNREADABLE[kind]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole: we know
        try:
            return torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise BadInput(f"{what}: is not readable TorchScript ({one_line(error)}); save it again") from None


def read_torch(path: Path, what: str) -> Any:
    """What `torch.save` wrote, tensors and plain containers only."""
    import torch

    kind = _container(path)
    if kind == "torchscript":
        raise BadInput(f"{what}: is a TorchScript model; give it as MODEL")
    if kind != "pickle":
        raise BadInput(f"{what}: {_UNREADABLE[kind]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # broken bytes make the unpickler raise nearly anything
            wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
            if not wanted:
                raise BadInput(f"{what}: is damaged ({type(error).__name__}); write or copy it again") from None
            raise BadInput(
                f"{what}: is a pickle that wants to run code ({wanted[1]}) and is refused; save tensors, dicts and "
                f"lists only: torch.save(model.state_dict(), ...) or torch.save((input, target), ...)"
            ) from None


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{what}: is not safetensors, or cut off ({error}); write or copy it again") from None


def check_args(factory: Callable[..., Any], args: dict[str, Any], what: str) -> None:
    """Hold the given arguments against the factory's signature, where it has one."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for given in args:
        if not open_ended and given not in {p.name for p in named}:
            tail = nearest(given, [p.name for p in named]) if named else "; it takes none"
            raise BadInput(f"{what}: takes no argument '{given}'{tail}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in args]
    if missing:
        flags = " ".join(f"--model-arg {name}=VALUE" for name in missing)
        raise BadInput(f"{what}: needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}; give {flags}")
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise BadInput(f"{what}: needs an argument that cannot be given by name; wrap it in a function without it")


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
