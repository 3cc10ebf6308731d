"""The code that the user names: import it, find the name in it, and say in one line what goes wrong."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..core.errors import USER_EXCEPTIONS, BadInput, is_out_of_memory, memory_advice, nearest, one_line, user_line
from ..core.reading import readable
from ..core.spelling import Word, spelled


class ParsedArguments(SystemExit):
    """What argparse complained of while the user's code ran inside ranp, where its own arguments are not there."""


def user_error(what: str, error: BaseException) -> BadInput:
    """The one line for an exception out of the user's code: `what: ValueError: message (file.py:3)`."""
    if is_out_of_memory(error):
        return BadInput(f"{what}: {memory_advice(error)}")
    line = user_line(error)
    advice = "mend it there" if line else "check what it is given"
    if isinstance(error, ParsedArguments):
        where = f" ({line})" if line else ""
        return BadInput(
            f"{what}: the code parses arguments of its own, which are not there in ranp{where}: {error}; give them "
            "defaults there, or parse them only below: if __name__ == '__main__'",
            whole=True,
        )
    if isinstance(error, ModuleNotFoundError):
        advice = f"install {error.name}, or mend the import"
    return BadInput(f"{what}: {one_line(error)}{f' ({line})' if line else ''}; {advice}")


@contextlib.contextmanager
def own_command_line(*name: str) -> Iterator[None]:
    """While the user's code runs, `sys.argv` is `name` alone (else the program's): the arguments of ranp are not its own.

    What argparse complains of then is raised as `ParsedArguments`; it prints nothing.
    """

    def complain(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise ParsedArguments(message)

    argv, error = sys.argv, argparse.ArgumentParser.error
    sys.argv = [*(name or argv[:1])]
    parser: Any = (
        argparse.ArgumentParser
    )  # the user's parser is made by the user's code: its class is all that can be reached
    parser.error = complain
    try:
        yield
    finally:
        sys.argv, parser.error = argv, error


@contextlib.contextmanager
def _importable(*folders: str) -> Iterator[None]:
    """`folders` are first on the import path, and afterwards last, for imports inside the user's functions."""
    importlib.invalidate_caches()
    sys.path[:0] = folders
    try:
        yield
    finally:
        for folder in folders:
            if folder in sys.path:
                sys.path.remove(folder)
        sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]


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
_importing = threading.RLock()


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
    loader = importlib.machinery.SourceFileLoader("", str(path))
    source = loader.get_data(str(path))
    parents = _package_of(path, source)
    folder = parents[0] if parents else path.parent
    # Another folder may hold another `blocks.py`; those of this folder stay, as long as none has changed.
    shared = {sibling for other in _imports.values() for sibling in other.siblings}
    stamps = {file: stamp for other in _imports.values() for file, stamp in other.stamps.items()}
    stay = _siblings(shared, folder)
    if any(_stamp(file) != stamps.get(file) for file in stay.values()):
        stay = {}
    for sibling in shared - stay.keys():
        sys.modules.pop(sibling, None)
    before, stamp = set(sys.modules), _stamp(str(path))
    try:
        with _importable(str(path.parent), str(folder.parent) if parents else os.getcwd()), own_command_line(str(path)):
            # Compiled here, as cached bytecode is not noticed to be old within the same second.
            code = loader.source_to_code(source, str(path))
            module = _run_in_package(path, parents, code) if parents else _run(_private_name(path), path, code)
    except USER_EXCEPTIONS as error:
        raise user_error(what, error) from error
    siblings = _siblings((set(sys.modules) - before - {module.__name__}) | shared, folder)
    _imports.pop(path, None)  # so that the latest import is the last one
    _imports[path] = _Import(
        module, tuple(siblings), {str(path): stamp, **{file: _stamp(file) for file in siblings.values()}}
    )
    return module


def _private_name(path: Path) -> str:
    return f"_ranp_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def _run(name: str, path: Path, code: Any) -> ModuleType:
    """The module that a file makes, called `name`; when it raises, nothing of it stays."""
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(path)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_of(path: Path, source: bytes) -> list[Path]:
    """The folders of the package that a file with relative imports is a module of, the outermost first; else none.

    A package reaches up as far as there is an `__init__.py`, and at least as far as the imports do.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # which running the file will tell
        return []
    levels = max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)
    if not levels:
        return []
    folders = [path.parent]
    for folder in path.parent.parents:
        if len(folders) >= levels and not (folder / "__init__.py").exists():
            break
        folders.insert(0, folder)
    return folders


def _run_in_package(path: Path, parents: list[Path], code: Any) -> ModuleType:
    """The module of a file in a package, by the name that imports within the package have for it.

    Where that name is taken by another package (a folder called `test`), the package gets a name of its own.
    """
    top = parents[0].name
    loaded = sys.modules.get(top)
    if not top.isidentifier() or (loaded and str(parents[0]) not in map(str, getattr(loaded, "__path__", ()))):
        top = _private_name(parents[0])
    name = ""
    for folder in parents:
        name = f"{name}.{folder.name}" if name else top
        if name not in sys.modules:
            _run_package(name, folder)
    if path.name == "__init__.py":
        return sys.modules[name]
    name = f"{name}.{path.stem}"
    return sys.modules[name] if name in sys.modules else _run(name, path, code)


def _run_package(name: str, folder: Path) -> None:
    """Import a folder as the package `name`; one without an `__init__.py` too."""
    init = folder / "__init__.py"
    places = [str(folder)]
    if init.exists():
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=places)
    else:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = places
    assert spec is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    try:
        if init.exists():
            assert spec.loader is not None
            spec.loader.exec_module(package)
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _import_package(package: str, what: str) -> ModuleType:
    try:
        with _importable(os.getcwd()), own_command_line(package):
            return importlib.import_module(package)
    except USER_EXCEPTIONS as error:
        file = Path(*package.split(".")).with_suffix(".py")
        if isinstance(error, ImportError) and "no known parent package" in str(error) and file.is_file():
            return _import_file(file, what)  # of a package whose folder we stand in
        if isinstance(error, ModuleNotFoundError) and error.name and f"{package}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what}: no module '{error.name}' is installed or in {os.getcwd()}; "
                f"install it, or name a file: path/to/file.py:Name"
            ) from None
        raise user_error(what, error) from error


def is_code(spec: str) -> bool:
    """Whether `spec` names Python code, `file.py`, `file.py:Name` or `package.module:Name`, rather than a data file."""
    return bool(re.fullmatch(r".+\.py|(.+\.py|[A-Za-z_][\w.]*):[\w.]*", spec))


def meant(spec: str) -> str:
    """The spec that somebody meant who wrote `package.module.Name` or `folder/file:Name`; nothing when that is not there."""
    path, _, name = spec.partition(":")
    if name.strip(":").isidentifier() and Path(f"{path.removesuffix('.py')}.py").is_file():
        return f"{path.removesuffix('.py')}.py:{name.strip(':')}"
    words = re.split(r"[.:/]+", spec.removesuffix(".py"))
    if len(words) < 2 or not all(word.isidentifier() for word in words) or "/" in words[-1]:
        return ""
    with _importable(os.getcwd()), own_command_line(spec):
        for cut in range(len(words) - 1, 0, -1):
            try:
                module = importlib.import_module(".".join(words[:cut]))
            except USER_EXCEPTIONS:
                continue  # a shorter one may be there; when none is, the caller says what is wanted
            value: Any = module
            for word in words[cut:]:
                value = getattr(value, word, _MISSING)
            return "" if value is _MISSING else f"{'.'.join(words[:cut])}:{'.'.join(words[cut:])}"
    return ""


def import_named(spec: str, what: str) -> tuple[ModuleType, str]:
    """The module and the name that `spec` speaks of; the name is empty when `spec` is a bare file.

    The global generator is as before, so that what is drawn next does not depend on whether the import was the first.
    One thread imports at a time: the import path and the loaded modules are those of the process.
    """
    from ..core.random_state import undisturbed

    target, name = (spec, "") if spec.endswith(".py") else spec.rsplit(":", 1)
    with _importing, undisturbed():
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


def check_names(factory: Callable[..., Any], args: Mapping[str, Any], what: str) -> None:
    """BadInput for an argument that a function or class does not take."""
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in args:
        if name not in known:
            tail = nearest(name, known) if known else "; it takes none"
            raise BadInput(f"{what}: takes no argument '{name}'{tail}")


def check_args(factory: Callable[..., Any], args: dict[str, Any], what: str, option: str | None = "model_args") -> None:
    """Hold the given arguments against the factory's signature, where it has one; `option` is what gives them."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    check_names(factory, args, what)
    missing = [p.name for p in named if p.default is p.empty and p.name not in args]
    if missing:
        way = "name a function that calls it with them"
        if option is not None:
            way = f"give {spelled(option, dict.fromkeys(missing, Word('VALUE')))}"
        raise BadInput(f"{what}: needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}; {way}")
    if any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in parameters):
        raise BadInput(f"{what}: needs an argument that cannot be given by name; wrap it in a function without it")
