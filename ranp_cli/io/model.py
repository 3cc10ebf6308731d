"""The model that the user names, and the state dict that goes into it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.documents import NotYaml, parse_yaml
from ..core.errors import USER_EXCEPTIONS, BadInput, is_out_of_memory, shortened
from ..core.reading import readable
from ..core.spelling import spelled
from .code_args import recorded, text_for_code, with_code
from .readers import found_instead, pickled_class, read_safetensors, read_torch, read_torchscript, some_of
from .user_code import attribute, check_args, import_named, is_code, meant, offered, own_command_line, user_error

if TYPE_CHECKING:
    from torch import nn


TORCHSCRIPT = (".pt", ".ts", ".pth")
TORCHSCRIPT_NOTE = "TorchScript is deprecated by PyTorch, and such a file is code: load only what you trust"


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
        return LoadedModel(built(factory_of(spec, what), args, what), spec, recorded(args), "factory")
    suffix = Path(spec).suffix.lower()
    if suffix in TORCHSCRIPT:
        if args:
            raise BadInput(f"{what}: a TorchScript file takes no arguments; leave out {spelled('model_args')}")
        return LoadedModel(read_torchscript(readable(spec, what), what), spec, args, "torchscript")
    if suffix in (".safetensors", ".onnx"):
        raise BadInput(
            f"{what}: a {suffix} file can only be profiled; here give the source, file.py:Name"
            + (f" with {spelled('weights', spec)}" if suffix == ".safetensors" else "")
        )
    if suffix == ".pt2":
        raise BadInput(
            f"{what}: ranp writes .pt2 files, but reads none (pickle may run code); give the source, file.py:Name, or, to "
            "profile it, the slim .safetensors"
        )
    if better := meant(spec):
        raise BadInput(f"{what}: a name stands behind a colon; give {better}")
    raise BadInput(f"{what}: wants file.py:Name, package.module:Name or a TorchScript file ({', '.join(TORCHSCRIPT)})")


def factory_of(spec: str, what: str) -> Any:
    """The class or function that `spec` names, or the ready `nn.Module`; not called yet."""
    from torch import nn

    module, name = import_named(spec, what)
    offers = {k: v for k, v in offered(module).items() if not isinstance(v, type) or issubclass(v, nn.Module)}
    if not name:
        classes = sorted(k for k, v in offers.items() if isinstance(v, type))
        if len(classes) != 1:
            found = f"{len(classes)} nn.Module classes" if classes else "no nn.Module class"
            choices = ", ".join(classes or sorted(offers)) or "nothing that returns one"
            raise BadInput(f"{what}: the file defines {found}; say {spec.rstrip(':')}:NAME (it offers: {choices})")
        name = classes[0]
    return attribute(module, name, what, offers)


def built(factory: Any, args: dict[str, Any], what: str) -> nn.Module:
    """The network that a factory makes of `args`; a ready `nn.Module` is returned as it is. BadInput says what is wrong."""
    from torch import nn

    from ..core.copies import uncompiled

    if isinstance(factory, nn.Module):
        if args:
            raise BadInput(
                f"{what}: is a ready module and takes no arguments; name its class to use {spelled('model_args')}"
            )
        return uncompiled(factory)
    if not callable(factory):
        raise BadInput(f"{what}: is {found_instead(factory)}; wants a class or function that returns an nn.Module")
    args = with_code(args, factory, what)
    check_args(factory, args, what)
    try:
        with own_command_line():
            network = factory(**args)
    except USER_EXCEPTIONS as error:
        told = user_error(what, error)
        raise (BadInput(f"{told}{hint}") if (hint := text_for_code(args)) else told) from error
    if not isinstance(network, nn.Module):
        raise BadInput(f"{what}: returned {found_instead(network)}; wants an nn.Module, so return one")
    return uncompiled(network)


def parse_args(pairs: Iterable[str] | Mapping[str, Any], option: str = "model_args") -> dict[str, Any]:
    """The `--model-arg key=value` of a command line, or those of another option, as keyword arguments.

    Each value is read as YAML.

    >>> parse_args(["classes=4", "widths=[8, 16]", "norm=null", "eps=1e-5"])
    {'classes': 4, 'widths': [8, 16], 'norm': None, 'eps': 1e-05}
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        what = spelled(option, shortened(pair, 60))
        if not equals or not key.isidentifier():
            raise BadInput(f"{what}: wants name=value, for example {spelled(option, {'classes': 4})}")
        if key in args:
            raise BadInput(f"{what}: '{key}' is given twice; leave one out")
        # YAML 1.1 takes 1e-5 for a string, as it has no dot.
        is_number = re.fullmatch(r"[-+]?\d{1,20}[eE][-+]?\d{1,4}", text)
        try:
            args[key] = float(text) if is_number else parse_yaml(text, what)
        except NotYaml as error:
            problem = error.problem or "bad value"
            raise BadInput(f"{what}: the value is not YAML ({problem}); quote it: {key[:40]}='...'") from None
    return args


def load_weights(module: nn.Module, path: str, key: str | None = None) -> None:
    """Load a state dict into `module`, in place; every parameter and buffer must be there and fit.

    The prefix `module.` (DataParallel) is dropped where all names carry it, `_orig_mod.` (torch.compile) anywhere. A tensor
    that is tied to a loaded one may be absent, as in files by `safetensors.torch.save_model`.

    Args:
        path: `.safetensors`, or `.pt`, `.pth`, `.ckpt` with tensors and plain containers only.
        key: the dotted path to the state dict in a checkpoint (`state_dict`, `ema.model`); it may end in a prefix of
            the names (`state_dict.net` for Lightning's `state_dict` with `net.conv.weight`).
            Without, the file must be a state dict; the error names the key of one that fits.
    """
    what = f"weights {path}"
    file = readable(path, what)
    suffix = file.suffix.lower()
    if suffix not in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        raise BadInput(f"{what}: wants a .safetensors, .pt, .pth or .ckpt file")
    found = read_safetensors(file, what) if suffix == ".safetensors" else read_torch(file, what, _state_advice(file))
    own = module.state_dict()
    picked = _pick(found, key, own, what)
    state = _bare(picked, own)

    differing = [
        f"{name} ({tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model)"
        for name in own.keys() & state.keys()
        if getattr(own[name], "shape", None) != getattr(state[name], "shape", None)
    ]
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if not differing:
        # strict=False, because torch's hooks for old files may rename or add names: what is left is held to be strict.
        try:
            result = module.load_state_dict(state, strict=False)
        except Exception as error:  # torch raises nearly anything for what it cannot copy, as a sparse tensor
            if is_out_of_memory(error):
                raise
            raise BadInput(
                f"{what}: cannot be loaded into the model ({shortened(error, 120)}); save plain tensors"
            ) from error
        loaded = {_address(tensor) for name, tensor in own.items() if name in state}
        missing = {name for name in result.missing_keys if name not in own or _address(own[name]) not in loaded}
        unexpected = set(result.unexpected_keys)
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": differing}
    problems = [f"{len(names)} {label}: {some_of(names)}" for label, names in lists.items() if names]
    if problems:
        advice = f"check {spelled('model_args')} and {spelled('weights_key')}"
        if prefixes := _prefixes(picked, own):
            advice = _give([_join(key or "", prefix) for prefix in prefixes])
        raise BadInput(f"{what}: does not fit the model; {'; '.join(problems)}; {advice}")


def _state_advice(path: Path) -> str:
    """How to make a state dict of a file that holds more than tensors."""
    holds = pickled_class(path)
    pick = ".state_dict()" if holds else '["state_dict"]'
    target = path.with_name(f"{path.stem}.state.pt")
    command = f"torch.save(torch.load({str(path)!r}, weights_only=False){pick}, {str(target)!r})"
    return f"{'of a whole module, ' * bool(holds)}if you trust it, run {command} in Python once and give {spelled('weights', target)}"


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
    """`state` without `_orig_mod.` in its names, and without `module.` where all carry it and the model's names do not."""
    bare = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    if all(name.startswith("module.") for name in bare) and not all(name.startswith("module.") for name in own):
        bare = {name.removeprefix("module."): value for name, value in bare.items()}
    return bare


def _prefixes(state: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """The prefixes below which `state` has every name of the model: `net` for Lightning's `net.conv.weight`."""
    first = next(iter(own), None)
    found = [name.removesuffix(f".{first}") for name in state if name.endswith(f".{first}")]
    return [prefix for prefix in found if all(f"{prefix}.{name}" in state for name in own)]


def _join(path: str, prefix: str) -> str:
    return f"{path}.{prefix}".lstrip(".")


def _give(places: Iterable[str]) -> str:
    return f"give {' or '.join(spelled('weights_key', place) for place in list(places)[:3])}"


def _pick(tree: Any, key: str | None, own: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The state dict under `key`; without a key the file must be one."""
    chosen = _below(tree, key.split(".")) if key else tree
    if _is_state(chosen):
        return chosen
    states = list(_states(tree))
    fitting = [path for path, state in states if path and _bare(state, own).keys() == own.keys()]
    fitting += [
        _join(path, prefix) for path, state in states if path not in fitting for prefix in _prefixes(state, own)
    ]
    if fitting:
        advice = _give(dict.fromkeys(fitting))
    elif key and _is_state(tree):
        advice = f"the file is a state dict itself, leave out {spelled('weights_key')}"
    elif states:
        advice = f"it holds state dicts under {some_of([path for path, _ in states], 5)}, give one as {spelled('weights_key')}"
    else:
        advice = "save model.state_dict() in it"
    problem = f"nothing that is a state dict under '{key}'" if key else f"holds {found_instead(tree)}, not a state dict"
    raise BadInput(f"{what}: {problem}; {advice}")


def _below(tree: Any, parts: list[str]) -> Any:
    """`tree` at a dotted path, whose last parts may be a prefix of the names of a flat dict."""
    if not parts or not isinstance(tree, Mapping):
        return None if parts else tree
    if isinstance(tree.get(parts[0]), Mapping):
        return _below(tree[parts[0]], parts[1:])
    prefix = ".".join(parts) + "."
    return {n.removeprefix(prefix): v for n, v in tree.items() if isinstance(n, str) and n.startswith(prefix)}
