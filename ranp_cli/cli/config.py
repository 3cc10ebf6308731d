"""`--config FILE.yaml`: the options of a command, written down.

The keys are the options' names, with dashes or underscores. An option on the command line beats the file, the file
beats the default. Paths of *inputs* (model, batch, weights, scores, mask, a loss of your own) are meant from the folder
of the config file, so that a folder with config, model and data can be used from anywhere; *outputs* are written
relative to the current directory, like those of the command line.

    model: model.py:UNet3D        # beside this file
    model-arg: {classes: 50}      # a repeatable option: a mapping, or a list [classes=50]
    batch: calib.pt
    sparsity: 0.78
    output: slim.safetensors      # where you stand
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.documents import NotYaml, parse_yaml
from ..core.errors import BadInput, nearest, shortened
from ..core.reading import YAML, read_bytes

INPUTS = frozenset(
    {
        "model",
        "model2",
        "dense",
        "batch",
        "weights",
        "scores",
        "resume",
        "mask",
        "loss",
        "latencies",
        "fit",
        "oracle_scores",
    }
)


def read_config(
    path: str | os.PathLike[str], known: Iterable[str], *, inputs: Iterable[str] = INPUTS
) -> dict[str, Any]:
    """The options in a YAML file, under the names of `known`.

    A key without a value is as if it were not there. A mapping becomes the list of a repeatable option:
    `{classes: 4}` -> `["classes=4"]`; a `model` may be a mapping with a `_target_`.

    Args:
        known: the options' names; dashes, underscores and a trailing underscore (`lambda_`) make no difference.
        inputs: the options whose relative paths are meant from the folder of the file. (`mask` is an input of refine,
            but an output of prune: prune leaves it out.)
    """
    what = f"config {os.fspath(path)}"
    options = {_plain(name): name for name in known}
    anchored = {_plain(name) for name in inputs}
    path = os.path.expanduser(path)
    folder = Path(path).parent
    config: dict[str, Any] = {}
    for key, value in _without_target(_read_mapping(Path(path), what), what).items():
        plain = _plain(str(key))
        if plain not in options:
            raise BadInput(
                f"{what}: no option '{shortened(key, 60)}'{nearest(plain.replace('_', '-'), _shown(options))}"
            )
        if options[plain] in config:
            raise BadInput(f"{what}: '{key}' is given twice; leave one out")
        if isinstance(value, Mapping):
            value = [f"{name}={_text(part)}" for name, part in value.items()]
        if value is not None:
            config[options[plain]] = _anchor(value, folder, f"{what}: {key}") if plain in anchored else value
    return config


def _without_target(content: Mapping[Any, Any], what: str) -> Mapping[Any, Any]:
    """A `model` written as MONAI and hydra do, `{_target_: package.Name, width: 8}`, as the name and its arguments."""
    model = content.get("model")
    if not isinstance(model, Mapping):
        return content
    target = model.get("_target_")
    strange = [str(key) for key in model if str(key).startswith("_") and key not in ("_target_", "_desc_")]
    if not isinstance(target, str) or strange:
        raise BadInput(
            f"{what}: model: {f'ranp does not know {strange[0][:40]} there' if strange else 'has no _target_'}; give a spec such as "
            "package.module:Name, or a mapping of _target_ and the arguments of what it names"
        )
    place = next((key for key in content if _plain(str(key)) == "model_arg"), "model-arg")
    given = content.get(place) or {}
    if not isinstance(given, Mapping):
        raise BadInput(f"{what}: {place}: is a {type(given).__name__}; beside a model with a _target_ give a mapping")
    arguments = {key: value for key, value in model.items() if not str(key).startswith("_")}
    if ":" not in target and "." in target:
        target = ":".join(target.rsplit(".", 1))  # package.Name: no path
    return {**content, "model": target, place: {**arguments, **given}}


def merge(options: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Option beats file beats default; an option that is None or an empty list was not given.

    One value in the file for an option whose default is a list becomes a list of one.

    >>> merge({"seed": 1, "keep": []}, {"seed": 2, "keep": "head*"}, {"seed": 0, "keep": [], "quiet": False})
    {'seed': 1, 'keep': ['head*'], 'quiet': False}
    """
    given = {name: value for name, value in options.items() if value is not None and value not in ([], ())}
    lists = {name for name, value in defaults.items() if isinstance(value, (list, tuple))}
    listed = {
        name: [value] if name in lists and not isinstance(value, (list, tuple)) else value
        for name, value in config.items()
    }
    return {**dict.fromkeys(options), **defaults, **listed, **given}


def _plain(name: str) -> str:
    """`--round-to`, `round_to` and `round-to` are one option, `lambda` and `lambda_` too."""
    return name.replace("-", "_").strip("_")


def _shown(names: Iterable[str]) -> list[str]:
    return sorted(name.replace("_", "-") for name in names)


def _read_mapping(path: Path, what: str) -> Mapping[Any, Any]:
    try:
        content = parse_yaml(read_bytes(path, what, YAML), what)
    except NotYaml as error:
        if error.line is None:
            raise BadInput(f"{what}: is not YAML text; give a file of `option: value` lines") from None
        raise BadInput(f"{what}: is not YAML; line {error.line}: {error.problem}; mend that line") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise BadInput(f"{what}: holds a {type(content).__name__}; wants `option: value` lines")
    return content


def _text(value: Any) -> str:
    """`value` as one writes it behind `key=` on the command line, where it is read as YAML."""
    with contextlib.suppress(BadInput):  # no YAML as it stands
        if isinstance(value, str) and parse_yaml(value, "") == value:
            return value
    return json.dumps(value, default=str)


def _anchor(value: Any, folder: Path, what: str) -> Any:
    """A path, or the path in `file.py:Name`, meant from `folder`; names (`dice`, `package.module:Name`) stay."""
    if isinstance(value, list):
        return [_anchor(one, folder, what) for one in value]
    if not isinstance(value, str):
        raise BadInput(f"{what}: is a {type(value).__name__}; wants a path or a name")
    target, _, name = value.partition(":")
    is_name = not target.endswith(".py") if name else not Path(target).suffix
    return value if is_name else str(folder / os.path.expanduser(value))
