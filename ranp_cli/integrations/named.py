"""Tell MODEL by its content: nnU-Net's plans, or a bundle's config of MONAI, or else one of ranp's own forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core.documents import parse_json, parse_yaml
from ..core.errors import BadInput
from ..core.reading import read_bytes
from ..core.spelling import spelled
from .common import Choice, Project, no_arguments

DATASET = re.compile(r"(Dataset\d{3}_[^:/]+|\d{1,3}):([^:/]+)")  # of nnU-Net: a data set and a configuration
MEND = "copy it again"


def read(path: str) -> Any:
    """What a .json or .yaml file holds, bounded."""
    what = f"model {path}"
    data = read_bytes(path, what)
    return parse_json(data, what, MEND) if path.lower().endswith(".json") else parse_yaml(data, what)


def kind_of(spec: str) -> str | None:
    """The framework whose file MODEL is, "nnunet"; None where it is another model. BadInput for a file of neither kind."""
    if DATASET.fullmatch(spec):
        return "nnunet"
    if not spec.lower().endswith(".json"):
        return None
    content = read(spec)
    if isinstance(content, dict) and isinstance(content.get("configurations"), dict) and "plans_name" in content:
        return "nnunet"
    raise BadInput(f"model {spec}: holds no plans of nnU-Net's; wants file.py:Name, package.module:Name or such plans")


def open_project(model: Any, choice: Choice, model_args: Any = None) -> Project | None:
    """What a framework's file says; None where MODEL is no such file."""
    kind = kind_of(str(model)) if isinstance(model, (str, Path)) else None
    if kind is None:
        if name := choice.first_given:
            raise BadInput(f"{spelled(name)} is of nnU-Net's plans, and MODEL is none; leave it out")
        return None
    no_arguments(model_args, f"model {model}")
    from .nnunet_plans import Plans

    return Plans.open(str(model), choice)


def output_suffixes(spec: Any) -> tuple[str, ...]:
    """The suffixes of the files that MODEL's framework reads: what ranp writes beside its own."""
    return {"nnunet": (".json", ".pth"), None: ()}[kind_of(spec) if isinstance(spec, str) else None]
