"""The code that the user names: import it, find the name in it, and say in one line what goes wrong."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..core.errors import USER_EXCEPTIONS, BadInput, nearest, one_line, user_line
from ..core.spelling import Word, spelled
from .readers import readable

if TYPE_CHECKING:
    pass


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


def check_args(factory: Callable[..., Any], args: dict[str, Any], what: str, option: str | None = "model_args") -> None:
    """Hold the given arguments against the factory's signature, where it has one; `option` is what gives them."""
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
        way = "name a function that calls it with them"
        if option is not None:
            way = f"give {spelled(option, dict.fromkeys(missing, Word('VALUE')))}"
        raise BadInput(f"{what}: needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}; {way}")
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise BadInput(f"{what}: needs an argument that cannot be given by name; wrap it in a function without it")
