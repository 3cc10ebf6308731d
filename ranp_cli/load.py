"""What the user hands over: a model, its weights, mini-batches and a loss, each from a file, a name or Python.

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
import math
import os
import re
import sys
import sysconfig
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .errors import BadInput, nearest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

TORCHSCRIPT = (".pt", ".ts", ".pth")


# ------------------------------------------------------------------------------------------------ files and user code


def _file(path: str | os.PathLike[str], what: str) -> Path:
    """`path` as a file that can be opened, or one line that says why not."""
    path = Path(path).expanduser()
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise BadInput(f"{what}: no such file (looked in {path.resolve().parent}); check the path") from None
    except OSError as error:
        raise BadInput(f"{what}: cannot be read ({error.strerror}); give a readable file") from None
    return path


def _one_line(error: BaseException) -> str:
    """`ValueError: the message`, on one line and not endless."""
    text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    text = f"{text[:300]}..." if len(text) > 300 else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _user_line(error: BaseException) -> str:
    """` (file.py:3)`, the deepest line of the user's own code behind `error`; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    ours = ("<", os.path.join(os.path.dirname(__file__), ""))
    libraries = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    frames = [frame for frame in frames if not frame.filename.startswith(libraries)] or frames
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def user_error(what: str, error: BaseException) -> BadInput:
    """The one line for an exception out of the user's code: `what: ValueError: message (file.py:3)`."""
    line = _user_line(error)
    advice = "mend it there" if line else "check what it is given"
    if isinstance(error, ModuleNotFoundError):
        advice = f"install {error.name}, or mend the import"
    return BadInput(f"{what}: {_one_line(error)}{line}; {advice}")


# What the user's code may raise: a `sys.exit()` in it must not end ranp without a word, Ctrl-C must.
_USER_EXCEPTIONS = (Exception, SystemExit)


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
    path = _file(path, what).resolve()
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
    except _USER_EXCEPTIONS as error:
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
    except _USER_EXCEPTIONS as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{package}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{what}: no module '{error.name}' is installed or in {os.getcwd()}; "
                f"install it, or name a file: path/to/file.py:Name"
            ) from None
        raise user_error(what, error) from error


def is_code(spec: str) -> bool:
    """Whether `spec` names Python code, `file.py`, `file.py:Name` or `package.module:Name`, rather than a data file."""
    return bool(re.fullmatch(r".+\.py|(.+\.py|[A-Za-z_][\w.]*):[\w.]*", spec))


def _import(spec: str, what: str) -> tuple[ModuleType, str]:
    """The module and the name that `spec` speaks of; the name is empty when `spec` is a bare file."""
    target, name = (spec, "") if spec.endswith(".py") else spec.rsplit(":", 1)
    module = _import_file(Path(target), what) if target.endswith(".py") else _import_package(target, what)
    return module, name


def _offers(module: ModuleType) -> dict[str, Any]:
    """The public callables that `module` defines, and its module instances."""
    from torch import nn

    root = module.__name__.split(".")[0]
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_")
        if isinstance(value, nn.Module) or str(getattr(value, "__module__", "")).split(".")[0] == root
    }


def _attribute(module: ModuleType, name: str, what: str, offers: Iterable[str]) -> Any:
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


def _named(spec: str, what: str) -> Any:
    """The object that `file.py:Name` or `package.module:Name` names."""
    module, name = _import(spec, what)
    if not name:
        offers = ", ".join(sorted(_offers(module))[:8]) or "nothing yet"
        raise BadInput(f"{what}: which name in that file? Say {spec.rstrip(':')}:NAME (it offers: {offers})")
    return _attribute(module, name, what, _offers(module))


# -------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class LoadedModel:
    """A network, and how it was asked for."""

    module: nn.Module
    spec: str
    args: dict[str, Any]
    kind: Literal["factory", "torchscript"]


def load_model(spec: str, args: dict[str, Any] | None = None) -> LoadedModel:
    """Build or read the network that `spec` names.

    Random weights are drawn from the global generator; whoever wants them the same every time seeds it before.

    Args:
        spec: `file.py:Name` or `package.module:Name`, where Name is a class or function that returns an `nn.Module`, or
            an `nn.Module` (used as it is, not copied); a bare `file.py` that defines one `nn.Module` class; or a
            TorchScript file (.pt, .ts, .pth), which is read onto the CPU.
        args: keyword arguments for the class or function.

    Raises:
        BadInput: says which of the many ways this can go wrong it was, and what to do.
    """
    args = dict(args or {})
    what = f"model {spec}"
    if is_code(spec):
        return LoadedModel(_build(spec, args, what), spec, args, "factory")
    suffix = Path(spec).suffix.lower()
    if suffix in TORCHSCRIPT:
        if args:
            raise BadInput(f"{what}: a TorchScript file takes no arguments; leave out --model-arg")
        return LoadedModel(_read_torchscript(_file(spec, what), what), spec, args, "torchscript")
    if suffix in (".safetensors", ".onnx"):
        raise BadInput(
            f"{what}: a {suffix} file can only be profiled; here give the source, file.py:Name"
            + (f" --weights {spec}" if suffix == ".safetensors" else "")
        )
    raise BadInput(f"{what}: wants file.py:Name, package.module:Name or a TorchScript file ({', '.join(TORCHSCRIPT)})")


def _build(spec: str, args: dict[str, Any], what: str) -> nn.Module:
    from torch import nn

    module, name = _import(spec, what)
    offers = {k: v for k, v in _offers(module).items() if not isinstance(v, type) or issubclass(v, nn.Module)}
    if not name:
        classes = sorted(k for k, v in offers.items() if isinstance(v, type))
        if len(classes) != 1:
            found = f"{len(classes)} nn.Module classes" if classes else "no nn.Module class"
            choices = ", ".join(classes or sorted(offers)) or "nothing that returns one"
            raise BadInput(f"{what}: the file defines {found}; say {spec.rstrip(':')}:NAME (it offers: {choices})")
        name = classes[0]
    factory = _attribute(module, name, what, offers)
    if isinstance(factory, nn.Module):
        if args:
            raise BadInput(f"{what}: is a ready module and takes no arguments; name its class to use --model-arg")
        return factory
    if not callable(factory):
        raise BadInput(f"{what}: is {_found(factory)}; wants a class or function that returns an nn.Module")
    _check_args(factory, args, what)
    try:
        built = factory(**args)
    except _USER_EXCEPTIONS as error:
        raise user_error(what, error) from error
    if not isinstance(built, nn.Module):
        raise BadInput(f"{what}: returned {_found(built)}; wants an nn.Module, so return one")
    return built


def _check_args(factory: Callable[..., Any], args: dict[str, Any], what: str) -> None:
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


def parse_model_args(pairs: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The `--model-arg key=value` of a command line as keyword arguments; each value is read as YAML.

    >>> parse_model_args(["classes=4", "widths=[8, 16]", "norm=null", "eps=1e-5"])
    {'classes': 4, 'widths': [8, 16], 'norm': None, 'eps': 1e-05}
    """
    import yaml

    if isinstance(pairs, Mapping):
        return dict(pairs)
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier():
            raise BadInput(f"--model-arg {pair}: wants name=value, for example --model-arg classes=4")
        if key in args:
            raise BadInput(f"--model-arg {pair}: '{key}' is given twice; leave one out")
        try:
            # YAML 1.1 takes 1e-5 for a string, as it has no dot.
            args[key] = float(text) if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", text) else yaml.safe_load(text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "bad value"
            raise BadInput(f"--model-arg {pair}: the value is not YAML ({problem}); quote it: {key}='...'") from None
    return args


# -------------------------------------------------------------------------------------------------------- torch files


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


def _read_torchscript(path: Path, what: str) -> nn.Module:
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
            raise BadInput(f"{what}: is not readable TorchScript ({_one_line(error)}); save it again") from None


def _read_torch(path: Path, what: str) -> Any:
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


def _read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{what}: is not safetensors, or cut off ({error}); write or copy it again") from None


# ------------------------------------------------------------------------------------------------------------ weights


def load_weights(module: nn.Module, path: str, key: str | None = None) -> None:
    """Load a state dict into `module`, in place; every parameter and buffer must be there and fit.

    The prefix `module.` (DataParallel) or `_orig_mod.` (torch.compile) is dropped where all names carry it. A tensor
    that is tied to a loaded one may be absent, as in files by `safetensors.torch.save_model`.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.ckpt` with tensors and plain containers only.
        key: the dotted path to the state dict in a checkpoint (`state_dict`, `ema.model`); it may end in a prefix of
            the names (`state_dict.net` for Lightning's `state_dict` with `net.conv.weight`).
    """
    what = f"weights {path}"
    file = _file(path, what)
    suffix = file.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        raise BadInput(f"{what}: wants a .safetensors, .pt, .pth or .ckpt file")
    found = _read_safetensors(file, what) if suffix == ".safetensors" else _read_torch(file, what)
    own = module.state_dict()
    state = _bare(_pick(found, key, own, what), own)

    differing = [
        f"{name} ({tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model)"
        for name in own.keys() & state.keys()
        if getattr(own[name], "shape", None) != getattr(state[name], "shape", None)
    ]
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if not differing:
        # strict=False, because torch's hooks for old files may rename or add names: what is left is held to be strict.
        result = module.load_state_dict(state, strict=False)
        loaded = {_address(tensor) for name, tensor in own.items() if name in state}
        missing = {name for name in result.missing_keys if name not in own or _address(own[name]) not in loaded}
        unexpected = set(result.unexpected_keys)
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": differing}
    problems = [f"{len(names)} {label}: {_some(names)}" for label, names in lists.items() if names]
    if problems:
        raise BadInput(f"{what}: does not fit the model; {'; '.join(problems)}; check --model-arg and --weights-key")


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _address(tensor: Any) -> tuple[Any, ...]:
    """Equal for tied tensors only."""
    pointer = tensor.data_ptr() if hasattr(tensor, "data_ptr") else 0
    return (pointer, tuple(tensor.shape), tensor.stride()) if pointer else (id(tensor),)


def _is_state(tree: Any) -> bool:
    from torch import Tensor

    if not isinstance(tree, Mapping) or not tree or not all(isinstance(name, str) for name in tree):
        return False
    return all(isinstance(value, Tensor) or name.endswith("_extra_state") for name, value in tree.items())


def _states(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every state dict in nested dicts, with its dotted path."""
    if _is_state(tree):
        yield path, tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _states(value, f"{path}.{name}".lstrip("."))


def _bare(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`state` without a prefix that all its names carry and the model's names do not."""
    bare = dict(state)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):  # compiled outside or inside
        if all(name.startswith(prefix) for name in bare) and not all(name.startswith(prefix) for name in own):
            bare = {name.removeprefix(prefix): value for name, value in bare.items()}
    return bare


def _pick(tree: Any, key: str | None, own: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The state dict under `key`; without a key the file must be one."""
    chosen = _below(tree, key.split(".")) if key else tree
    if _is_state(chosen):
        return chosen
    states = [(path, state) for path, state in _states(tree) if path]
    fitting = [path for path, state in states if _bare(state, own).keys() == own.keys()]
    if fitting:
        advice = f"give --weights-key {fitting[0]}"
    elif states:
        advice = f"it holds state dicts under {_some([path for path, _ in states], 5)}, give one as --weights-key"
    elif key and _is_state(tree):
        advice = "the file is a state dict itself, leave out --weights-key"
    else:
        advice = "save model.state_dict() in it"
    problem = f"nothing that is a state dict under '{key}'" if key else f"holds {_found(tree)}, not a state dict"
    raise BadInput(f"{what}: {problem}; {advice}")


def _below(tree: Any, parts: list[str]) -> Any:
    """`tree` at a dotted path, whose last parts may be a prefix of the names of a flat dict."""
    if not parts or not isinstance(tree, Mapping):
        return None if parts else tree
    if isinstance(tree.get(parts[0]), Mapping):
        return _below(tree[parts[0]], parts[1:])
    prefix = ".".join(parts) + "."
    return {n.removeprefix(prefix): v for n, v in tree.items() if isinstance(n, str) and n.startswith(prefix)}


# ------------------------------------------------------------------------------------------------------- mini-batches


@dataclass(frozen=True)
class Batch:
    """One mini-batch: the network is called as `model(*args, **kwargs)`, and the loss gets `target`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any

    def to(self, device: Any) -> Batch:
        """The same mini-batch with every tensor on `device`."""
        from torch import Tensor

        args, kwargs, target = (
            _map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, part)
            for part in (self.args, self.kwargs, self.target)
        )
        return Batch(args, kwargs, target)


@dataclass(eq=False)
class Batches:
    """Mini-batches, checked and ready for the network; iterate as often as you like.

    A generator or DataLoader is streamed: one mini-batch is in memory at a time, and each is checked as it comes. An
    iterator that exists already (a generator object) can be gone through once; a second time is a `BadInput`.
    """

    name: str
    source: Any  # an iterable of raw mini-batches, or a callable that returns one
    limit: int | None = None
    _spent: bool = field(default=False, init=False, repr=False)

    @property
    def length(self) -> int | None:
        """The number of mini-batches, where it is known beforehand."""
        try:
            length = len(self.source)
        except TypeError:  # a generator, a callable, a DataLoader over an IterableDataset
            return None
        return length if self.limit is None else min(length, self.limit)

    @cached_property
    def first(self) -> Batch:
        """The first mini-batch; a later iteration still begins with it."""
        return next(self._stream())

    def __iter__(self) -> Iterator[Batch]:
        if not isinstance(self.source, Iterator):
            yield from self._stream()
            return
        if self._spent:
            raise BadInput(f"{self.name}: this iterator is used up; give a list, or a function that returns a new one")
        self._spent = True
        yield self.first
        yield from self._stream(start=1)

    def _stream(self, start: int = 0) -> Iterator[Batch]:
        raws = self._open()
        index = start
        while self.limit is None or index < self.limit:
            where = f"{self.name}, mini-batch {index}"
            try:
                raw = next(raws)
            except StopIteration:
                break
            except _USER_EXCEPTIONS as error:
                raise user_error(where, error) from error
            yield _batch(raw, where)
            index += 1
        if index == 0:
            raise BadInput(f"{self.name}: gives no mini-batch at all; wants at least one (input, target)")

    def _open(self) -> Iterator[Any]:
        source = self.source
        try:
            source = source() if callable(source) else source
        except _USER_EXCEPTIONS as error:
            raise user_error(self.name, error) from error
        if isinstance(source, (tuple, list, Mapping)):
            source = _split(source, self.name)
        _check_iterable(source, self.name)
        try:
            return iter(source)
        except _USER_EXCEPTIONS as error:
            raise user_error(self.name, error) from error


_FORMS = "wants (input, target), {'input': ..., 'target': ...} or a list of them"


def load_batches(source: Any, limit: int | None = None) -> Batches:
    """The calibration batch, in whatever form it is given.

    One mini-batch is `(input, target)` or `{"input"|"x": ..., "target"|"y": ...}` (further keys are left alone).
    Several are a list of those. Two tensors are one mini-batch; two pairs, or two such dicts, are two mini-batches.

    An input that is a tuple is passed as positional arguments, a dict as keyword arguments, anything else as the one
    argument. numpy arrays become tensors, and float64 arrays float32 (float64 *tensors* stay as they are). Integer
    targets of every width become int64.

    Args:
        source: a `.pt` (read with `weights_only=True`), `.safetensors` or `.npz` file; the last two hold the keys
            `input` (or `x`) and `target` (or `y`), or `input.0`, `target.0`, `input.1`, ... for several mini-batches.
            Or `file.py:Name` / `package.module:Name`: a callable without arguments that returns an iterable of
            mini-batches, or an iterable (a DataLoader). Or such a thing itself.
        limit: use the first `limit` mini-batches only.

    Raises:
        BadInput: for what can be seen now; a streamed mini-batch is checked when its turn comes.
    """
    if isinstance(source, Batches):
        return source if limit is None else Batches(source.name, source.source, limit)
    if limit is not None and limit < 1:
        raise BadInput(f"--batches {limit}: wants at least 1; leave it out to use all")
    name = "batch"
    if isinstance(source, (str, os.PathLike)):
        name = f"batch {os.fspath(source)}"
        source = _read_batches(os.fspath(source), name)
    if isinstance(source, (tuple, list, Mapping, Batch)):  # all there: check all of it now
        raws = _split(source, name)[:limit]
        return Batches(name, [_batch(raw, f"{name}, mini-batch {index}") for index, raw in enumerate(raws)])
    if not callable(source):
        _check_iterable(source, name)
    return Batches(name, source, limit)


def _read_batches(spec: str, name: str) -> Any:
    if is_code(spec):
        return _named(spec, name)
    path = _file(spec, name)
    readers = {".pt": _read_torch, ".pth": _read_torch, ".safetensors": _read_safetensors, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"{name}: wants a .pt, .safetensors or .npz file, or file.py:Name")
    content = reader(path, name)
    if reader is not _read_torch:
        return _by_key(content, name)
    if not isinstance(content, (tuple, list, Mapping)):
        raise BadInput(f"{name}: holds {_found(content)}; {_FORMS}")
    return content


def _read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    import numpy as np

    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise BadInput(f"{what}: is not an .npz file; write it with numpy.savez")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except ValueError:
            raise BadInput(f"{what}: holds Python objects, which are pickles; save arrays of numbers only") from None
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise BadInput(f"{what}: is damaged or cut off ({error}); write or copy it again") from None


def _by_key(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """`input.0`, `target.0`, `input.1`, ... -> a dict for each mini-batch, in order; one where there are no numbers."""
    found: dict[int, dict[str, Any]] = {}
    for key, value in content.items():
        match = re.fullmatch(r"(input|x|target|y)(?:\.(\d+))?", key)
        if match:
            found.setdefault(int(match[2] or -1), {})[match[1]] = value
    if not found:
        keys = _some(content, 5) or "none"
        raise BadInput(f"{name}: wants the keys input and target, or input.0, target.0, input.1, ...; it has {keys}")
    if -1 in found and len(found) > 1:
        raise BadInput(f"{name}: has keys with and without numbers; number all: input.0, target.0, input.1, ...")
    return [found[index] for index in sorted(found)]


def _check_iterable(source: Any, name: str) -> None:
    from torch import Tensor
    from torch.utils.data import Dataset

    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        raise BadInput(f"{name}: is a Dataset of single samples; wrap it: DataLoader(dataset, batch_size=2)")
    if isinstance(source, (Tensor, str)) or not isinstance(source, Iterable):
        raise BadInput(f"{name}: is {_found(source)}; {_FORMS}, or an iterable of them")


def _split(source: Any, name: str) -> list[Any]:
    """The mini-batches in a tuple, list or dict that may itself be one."""
    if isinstance(source, (Mapping, Batch)):
        return [source]
    if not source:
        raise BadInput(f"{name}: is an empty {type(source).__name__}; {_FORMS}")
    batches = [isinstance(raw, (tuple, list, Batch)) or _keys(raw) for raw in source]
    if len(source) == 2 and not all(batches):
        return [source]
    if not any(batches):
        raise BadInput(f"{name}: is {_found(source)}; {_FORMS}")
    return list(source)


def _keys(raw: Any) -> bool:
    return isinstance(raw, Mapping) and not raw.keys().isdisjoint(("input", "x", "target", "y"))


def _batch(raw: Any, where: str) -> Batch:
    """One mini-batch in any of its forms, checked."""
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Mapping):
        data, target = raw.get("input", raw.get("x")), raw.get("target", raw.get("y"))
        if data is None:
            raise BadInput(f"{where}: is {_found(raw)}; wants {{'input': ..., 'target': ...}} or (input, target)")
    elif isinstance(raw, (tuple, list)) and len(raw) == 2:
        data, target = raw
    elif isinstance(raw, (tuple, list)) and len(raw) == 1:
        data, target = raw[0], None
    else:
        raise BadInput(f"{where}: is {_found(raw)}; wants (input, target) or {{'input': ..., 'target': ...}}")
    if target is None:
        raise BadInput(f"{where}: has no target; wants (input, target) or {{'input': ..., 'target': ...}}")
    data = _map(lambda leaf: _tensor(leaf, f"{where}: the input"), data)
    target = _map(lambda leaf: _target(leaf, f"{where}: the target"), target)
    _check_input(data, where)
    for part, tree in (("input", data), ("target", target)):
        _check_values(_tensors(tree), f"{where}: the {part}")
    _check_sizes(_tensors(data), target, where)
    if isinstance(data, tuple):
        return Batch(data, {}, target)
    return Batch((), dict(data), target) if isinstance(data, Mapping) else Batch((data,), {}, target)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with its leaves replaced; tuples (named ones too), lists and dicts are inner nodes."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(function, value) for value in tree)
    return function(tree)


def _tensors(tree: Any) -> list[Tensor]:
    from torch import Tensor

    found: list[Tensor] = []
    _map(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, tree)
    return found


def _tensor(leaf: Any, where: str) -> Any:
    """A numpy array as a tensor (float64 as float32; foreign byte order, views and read-only arrays too)."""
    import numpy as np
    import torch

    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    if leaf.dtype.kind not in "biufc":
        raise BadInput(f"{where} is an array of {leaf.dtype}; wants numbers")
    dtype = np.float32 if leaf.dtype.kind == "f" and leaf.dtype.itemsize >= 8 else leaf.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(leaf, dtype, ["C", "W"]))


def _target(leaf: Any, where: str) -> Any:
    import torch

    leaf = _tensor(leaf, where)
    if not isinstance(leaf, torch.Tensor) or leaf.dtype == torch.bool or leaf.is_floating_point() or leaf.is_complex():
        return leaf
    return leaf.long()


def _check_input(data: Any, where: str) -> None:
    from torch import Tensor

    strange: list[Any] = []
    plain = (Tensor, bool, int, float, str, type(None))
    _map(lambda leaf: None if isinstance(leaf, plain) else strange.append(leaf), data)
    if strange or not _tensors(data):
        found = _found(strange[0] if strange else data)
        raise BadInput(f"{where}: the input is {found}; wants a tensor, or a tuple, list or dict with tensors")


def _check_values(tensors: list[Tensor], where: str) -> None:
    for tensor in tensors:
        if tensor.numel() == 0:
            raise BadInput(f"{where} is empty: its shape is {tuple(tensor.shape)}; give at least one sample")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise BadInput(f"{where} has {count} NaN or infinite values of {tensor.numel()}; clean the data")


def _check_sizes(inputs: list[Tensor], target: Any, where: str) -> None:
    from torch import Tensor

    sizes = {tensor.shape[0] for tensor in inputs if tensor.ndim}
    if isinstance(target, Tensor) and target.ndim and sizes and target.shape[0] not in sizes:
        size = next(tensor.shape[0] for tensor in inputs if tensor.ndim)
        raise BadInput(f"{where}: {size} samples in the input, {target.shape[0]} in the target; make axis 0 agree")


def _found(value: Any) -> str:
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


# --------------------------------------------------------------------------------------------------------------- loss

IGNORE = -100  # torch's default, and how every ignored place is marked from `_classes` on
IGNORE_TOO = 255  # what uint8 label maps use, ShapeNet's empty voxels among them


def load_loss(
    spec: str | Callable[[Any, Any], Any] | None, ignore_index: int | None = None
) -> Callable[[Any, Any], Tensor]:
    """The loss, called as `loss(output, target)`; it returns a scalar tensor.

    For the named losses the output may be a tensor, a dict with one tensor or with the key `out` or `logits`, or a list
    (deep supervision): then the loss is the sum over the outputs, and the target is resized to each by nearest
    neighbour. None entries are skipped. A loss of your own gets output and target as they are.

    Args:
        spec: `cross_entropy` (targets: classes of shape (N, *S) or (N, 1, *S), or probabilities of the output's shape),
            `mse`, `l1`, `smooth_l1`, `bce` (on logits), `dice` (1 - soft Dice over softmax, or sigmoid for one channel,
            summed over batch and space, mean over classes), `dice_ce` (dice + cross_entropy; one channel: dice + bce),
            `file.py:Name`, `package.module:Name` (a function, or a class that takes no arguments), or a callable.
            None: `cross_entropy` for integer targets, and an error for others, as nobody can guess.
        ignore_index: places with this target do not count. None: -100, as in torch, and also 255 when that is no class.
            For `mse`, `l1`, `smooth_l1` and float targets nothing is ignored unless it is given.
    """
    if spec is None or (isinstance(spec, str) and spec in _LOSSES):
        return _NamedLoss(spec, ignore_index)
    if isinstance(spec, str) and not is_code(spec):
        raise BadInput(f"--loss {spec}: no such loss{nearest(spec, [*_LOSSES, 'file.py:Name'])}")
    what = f"--loss {spec if isinstance(spec, str) else getattr(spec, '__name__', type(spec).__name__)}"
    if ignore_index is not None:
        raise BadInput(f"{what}: --ignore-index is for the named losses; leave it out, and ignore inside the loss")
    function = _named(spec, what) if isinstance(spec, str) else spec
    if isinstance(function, type):
        _check_args(function, {}, what)
        try:
            function = function()
        except _USER_EXCEPTIONS as error:
            raise user_error(what, error) from error
    if not callable(function):
        raise BadInput(f"{what}: is {_found(function)}; wants a function loss(output, target)")
    return _OwnLoss(what, function)


def check_loss(value: Tensor) -> None:
    """Raise `BadInput` when no gradient can come from `value`: it is NaN or infinite, or not tied to the network."""
    number = value.item()
    if not math.isfinite(number):
        raise BadInput(f"the loss is {number}; check the data, its scale, and --loss")
    if not value.requires_grad:
        raise BadInput(
            "the loss has no gradient; let the parameters require one, and detach nothing in the model or the loss"
        )


@dataclass(frozen=True)
class _OwnLoss:
    what: str
    function: Callable[[Any, Any], Any]

    def __call__(self, output: Any, target: Any) -> Tensor:
        from torch import Tensor

        try:
            value = self.function(output, target)
        except _USER_EXCEPTIONS as error:
            raise user_error(self.what, error) from error
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise BadInput(f"{self.what}: returned {_found(value)}; wants a scalar float tensor: take the mean or sum")
        return value.reshape(())


@dataclass(frozen=True)
class _NamedLoss:
    name: str | None
    ignore_index: int | None

    def __call__(self, output: Any, target: Any) -> Tensor:
        from torch import Tensor

        outputs = list(_outputs(output))
        if not outputs:
            raise BadInput(
                f"the model returned {_found(output)}; wants a tensor, or a loss of your own: --loss file.py:Name"
            )
        if not isinstance(target, Tensor):
            raise BadInput(
                f"the target is {_found(target)}; wants a tensor, or a loss of your own: --loss file.py:Name"
            )
        name = self.name
        if name is None:
            if target.is_floating_point() or target.is_complex():
                choices = ", ".join(_LOSSES)
                raise BadInput(f"a {target.dtype} target has no default loss; give --loss: {choices} or file.py:Name")
            name = "cross_entropy"
        task = _Task(self.ignore_index, resize=len(outputs) > 1)
        terms = [_LOSSES[name](one, target, task) for one in outputs]
        return sum(terms[1:], start=terms[0])


def _outputs(output: Any) -> Iterator[Tensor]:
    """The tensors to put a loss on."""
    from torch import Tensor

    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        main = next((output[key] for key in ("out", "logits") if key in output), None)
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        if main is None and len(tensors) > 1:
            raise BadInput(f"the model returned {_found(output)}; name one of them 'out', or give --loss file.py:Name")
        yield from _outputs(tensors if main is None else main)
    elif isinstance(output, (tuple, list)):
        for one in output:
            yield from _outputs(one)


@dataclass(frozen=True)
class _Task:
    """What every named loss needs besides output and target."""

    ignore_index: int | None
    resize: bool  # deep supervision: the target may have another size than the output


def _fit(target: Tensor, output: Tensor, shape: tuple[int, ...], task: _Task) -> Tensor:
    """`target` in the wanted `shape`: an axis of one channel comes or goes, space is resized where that is allowed."""
    space = tuple(output.shape[2:])
    fitted = target
    if target.ndim == len(shape) + 1 and target.shape[1] == 1:
        fitted = target.squeeze(1)
    elif target.ndim == len(shape) - 1 > 0 and shape[1] == 1:
        fitted = target.unsqueeze(1)
    if task.resize and space and fitted.ndim == len(shape):
        fitted = _nearest(fitted, space)
    if tuple(fitted.shape) != shape:
        raise BadInput(
            f"a target of shape {tuple(target.shape)} does not fit an output of shape {tuple(output.shape)}; "
            f"wants {shape}, so mend the batch, or give --loss file.py:Name"
        )
    return fitted


def _nearest(tensor: Tensor, space: tuple[int, ...]) -> Tensor:
    """The last axes resized to `space`, as `interpolate(mode="nearest")` does, for any dtype and any number of axes."""
    import torch

    for axis, size in enumerate(space, start=tensor.ndim - len(space)):
        if tensor.shape[axis] != size:
            source = torch.arange(size, device=tensor.device) * tensor.shape[axis] // size
            tensor = tensor.index_select(axis, source)
    return tensor


def _is_dense(output: Tensor, target: Tensor) -> bool:
    """Whether the target gives a number for every channel of the output, rather than a class."""
    return target.is_floating_point() or (output.ndim > 1 and output.shape[1] > 1 and target.shape == output.shape)


def _classes(target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """The classes as int64, with `IGNORE` in every ignored place; all others are in [0, classes)."""
    target = target.long()
    ignored = target == (IGNORE if ignore_index is None else ignore_index)
    if ignore_index is None and classes <= IGNORE_TOO:
        ignored = ignored | (target == IGNORE_TOO)
    if ignored.all():
        raise BadInput("every place of the target is ignored; check the labels and --ignore-index")
    outside = target[~ignored & ((target < 0) | (target >= classes))]
    if outside.numel():
        value = int(outside[0])
        raise BadInput(
            f"the target has class {value}, but there are {classes} classes, 0 to {classes - 1}; "
            f"mend the labels or the model, or give --ignore-index {value}"
        )
    return target.masked_fill(ignored, IGNORE)


def _class_map(output: Tensor, target: Tensor, task: _Task, classes: int) -> Tensor:
    """(N, C, *S) and class targets -> (N, *S), checked."""
    shape = (output.shape[0], *output.shape[2:])
    return _fit(_classes(target, classes, task.ignore_index), output, shape, task)


def _cross_entropy(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if output.ndim < 2 or output.shape[1] == 1:
        shape = tuple(output.shape)
        raise BadInput(
            f"cross_entropy wants two or more channels, and the output's shape is {shape}; give --loss bce or dice"
        )
    if _is_dense(output, target):
        return functional.cross_entropy(output, _fit(target, output, tuple(output.shape), task).to(output.dtype))
    labels = _class_map(output, target, task, output.shape[1])
    if (labels == IGNORE).all():  # of a coarse output only, else it was an error
        return output.sum() * 0
    return functional.cross_entropy(output, labels, ignore_index=IGNORE)


def _pointwise(output: Tensor, target: Tensor, task: _Task, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The mean of an element-wise loss over the places that are not ignored."""
    target = _fit(target, output, tuple(output.shape), task)
    if task.ignore_index is None:
        return function(output, target.to(output.dtype))
    keep = target != task.ignore_index
    if not keep.any() and not task.resize:
        raise BadInput("every place of the target is ignored; check the labels and --ignore-index")
    return function(output[keep], target[keep].to(output.dtype)) if keep.any() else output.sum() * 0


def _mse(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.mse_loss)


def _l1(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.l1_loss)


def _smooth_l1(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    return _pointwise(output, target, task, functional.smooth_l1_loss)


def _bce(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if not target.is_floating_point():
        target, task = _classes(target, 2, task.ignore_index), _Task(IGNORE, task.resize)
    elif task.ignore_index is None and bool(((target < 0) | (target > 1)).any()):
        raise BadInput("bce wants targets in [0, 1], and this one has others; scale it, or give --loss mse")
    return _pointwise(output, target, task, functional.binary_cross_entropy_with_logits)


def _dice(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    from torch.nn import functional

    if output.ndim < 2:
        raise BadInput(f"dice wants an output of shape (N, C, ...), not {tuple(output.shape)}; give another --loss")
    channels = output.shape[1]
    guess = output.sigmoid() if channels == 1 else output.softmax(1)
    if _is_dense(output, target):
        truth = _fit(target, output, tuple(output.shape), task)
        keep = truth != (math.nan if task.ignore_index is None else task.ignore_index)
    else:
        labels = _class_map(output, target, task, max(channels, 2))
        keep = (labels != IGNORE).unsqueeze(1)
        truth = labels.clamp(min=0)
        truth = truth.unsqueeze(1) if channels == 1 else functional.one_hot(truth, channels).movedim(-1, 1)
    guess, truth = guess * keep, truth.to(guess.dtype) * keep
    axes = [axis for axis in range(output.ndim) if axis != 1]
    overlap, total = (guess * truth).sum(axes), (guess + truth).sum(axes)
    return 1 - ((2 * overlap + 1e-5) / (total + 1e-5)).mean()


def _dice_ce(output: Tensor, target: Tensor, task: _Task) -> Tensor:
    entropy = _bce if output.ndim > 1 and output.shape[1] == 1 else _cross_entropy
    return _dice(output, target, task) + entropy(output, target, task)


_LOSSES: dict[str, Callable[[Tensor, Tensor, _Task], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "l1": _l1,
    "smooth_l1": _smooth_l1,
    "bce": _bce,
    "dice": _dice,
    "dice_ce": _dice_ce,
}
