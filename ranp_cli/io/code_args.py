"""Arguments of a model that are code: classes and functions, and what MONAI, hydra and nnU-Net write for them.

Only arguments that the user gave come here, on the command line, in a config file or in Python. Those that a slim file
records name code just as well, so they are looked at only where the user trusts that file.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..core.errors import USER_EXCEPTIONS, BadInput, one_line
from ..core.spelling import spelled
from .user_code import is_code, meant, named, own_command_line, user_error

PREFIX = "code:"
TARGET = "_target_"
FINDERS = ("hydra.utils.get_class", "hydra.utils.get_method", "hydra.utils.get_object")
KNOWN = {"_args_", "_partial_", "_mode_", "_convert_", "_recursive_", "_desc_", "_requires_", "_disabled_"}
IMPORTED = "_kw_requires_import"  # nnU-Net's plans: the names of the arguments that are dotted names of code
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def with_code(args: Mapping[str, Any], factory: Any, what: str) -> dict[str, Any]:
    """The arguments for `factory`, with the code that they name in place of its names.

    Code is named by `code:torch.nn.Conv3d`, by a mapping with a `_target_` (called with the other keys; with `_partial_:
    true`, or MONAI's `_mode_: callable`, it is what will be called), by nnU-Net's `_kw_requires_import`, and by a dotted
    name for a parameter whose annotation or default is a class or a function. All other text stays text.
    """
    args = dict(args)
    listed = args.pop(IMPORTED, None) if isinstance(args.get(IMPORTED), list) else None
    wanting = {*(listed or ()), *_takes_code(factory)}
    resolved = {}
    for name, value in args.items():
        about = f"{what}, argument {name}"
        if name in wanting and isinstance(value, str) and (DOTTED.fullmatch(value) or is_code(value)):
            resolved[name] = _code(value, about)
        else:
            resolved[name] = _resolved(value, about)
    return resolved


def recorded(args: Any) -> Any:
    """Arguments as a file can hold them: classes and functions by their names, `code:torch.nn:Conv3d`."""
    if isinstance(args, Mapping):
        return {str(name): recorded(value) for name, value in args.items()}
    if isinstance(args, (list, tuple)):
        return [recorded(value) for value in args]
    if args is None or isinstance(args, (str, bool, int, float)):
        return args
    if hasattr(args, "__qualname__") and hasattr(args, "__module__"):
        return f"{PREFIX}{args.__module__}:{args.__qualname__}"
    return repr(args)


def text_for_code(args: Mapping[str, Any]) -> str:
    """What to type where a factory failed that got the name of a class or function as text; else nothing."""
    for name, value in args.items():
        if isinstance(value, str) and DOTTED.fullmatch(value) and meant(value):
            option = spelled("model_args", {name: f"{PREFIX}{value}"})
            return f"; {name} is text here: for {value} itself give {option}"
    return ""


def _takes_code(factory: Any) -> Iterator[str]:
    """The parameters that take a class or a function, by their annotation or default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    for parameter in parameters:
        default, annotation = parameter.default, parameter.annotation
        words = annotation if isinstance(annotation, str) else f"{getattr(annotation, '__name__', '')} {annotation}"
        takes_text = re.search(r"\bstr\b", words)
        takes_code = (
            re.search(r"\b([Tt]ype\[|[Tt]ype\b(?! )|Callable)", words) if annotation is not parameter.empty else None
        )
        is_code_by_default = default is not parameter.empty and (
            isinstance(default, type) or inspect.isroutine(default)
        )
        if not takes_text and (takes_code or is_code_by_default):
            yield parameter.name


def _resolved(value: Any, what: str) -> Any:
    if isinstance(value, str) and value.startswith(PREFIX):
        return _code(value.removeprefix(PREFIX).strip(), what)
    if isinstance(value, Mapping):
        return _built(value, what) if TARGET in value else {k: _resolved(v, what) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(one, what) for one in value]
    return value


def built_target(mapping: Mapping[str, Any], what: str) -> Any:
    """What a mapping with a `_target_` makes, with all that it holds."""
    return _built(mapping, what)


def _built(mapping: Mapping[str, Any], what: str) -> Any:
    """What a mapping with `_target_` stands for."""
    strange = [key for key in mapping if str(key).startswith("_") and key != TARGET and key not in KNOWN]
    if strange:
        raise BadInput(f"{what}: ranp does not know {strange[0]}; beside {TARGET} it takes {', '.join(sorted(KNOWN))}")
    if mapping.get("_disabled_"):
        return None
    deep = mapping.get("_recursive_", True)
    parts = {k: _resolved(v, what) if deep else v for k, v in mapping.items() if k not in KNOWN and k != TARGET}
    places = [_resolved(v, what) if deep else v for v in mapping.get("_args_") or ()]
    for value in (*parts.values(), *places):
        if isinstance(value, str) and value[:1] in ("$", "@"):
            raise BadInput(
                f"{what}: {value!r} is an expression of MONAI, which ranp does not evaluate; write its value"
            )
    name = str(mapping[TARGET])
    if name in FINDERS and isinstance(parts.get("path"), str):
        return _code(parts["path"], what)
    target, mode = _code(name, what), mapping.get("_mode_", "default")
    if mode not in ("default", "callable"):
        raise BadInput(f"{what}: _mode_ is {mode!r}; wants default, to call {name}, or callable, for {name} itself")
    if not callable(target):
        return target
    if mode == "callable" or mapping.get("_partial_"):
        return functools.partial(target, *places, **parts) if places or parts else target
    return _called(target, places, parts, f"{what}: {name}")


def _called(target: Callable[..., Any], places: list[Any], parts: dict[str, Any], what: str) -> Any:
    try:
        with own_command_line():
            return target(*places, **parts)
    except USER_EXCEPTIONS as error:
        raise user_error(what, error) from error


def _code(name: str, what: str) -> Any:
    """The class or function behind `torch.nn.Conv3d`, `torch.nn:Conv3d` or `file.py:Name`."""
    try:
        spec = name if is_code(name) else meant(name)
    except USER_EXCEPTIONS as error:
        raise BadInput(f"{what}: {name}: {one_line(error)}; mend it there") from error
    if not spec:
        raise BadInput(
            f"{what}: there is no {name}; wants package.module.Name or file.py:Name, installed or beside you"
        )
    return named(spec, f"{what}: {name}")
