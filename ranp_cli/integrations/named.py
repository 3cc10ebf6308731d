"""Tell MODEL by its content: nnU-Net's plans, a bundle's config of MONAI, a `_target_` in a YAML, or one of ranp's own forms."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.documents import parse_json, parse_yaml
from ..core.errors import BadInput
from ..core.reading import read_bytes
from ..core.spelling import spelled
from .common import Choice, Project, no_arguments
from .monai import SEPARATOR, TARGET, Bundle, at, config_of, is_config, is_plain
from .nnunet_plans import Plans
from .target import Target

DATASET = re.compile(r"(Dataset\d{3}_[^:/]+|\d{1,3}):([^:/]+)")  # of nnU-Net: a data set and a configuration
MEND = "copy it again"


@dataclass(frozen=True)
class Named:
    """A framework's file that MODEL names, read."""

    kind: str  # nnunet, monai or target
    path: Path | None = None
    content: Any = None
    part: str = ""  # behind the #


def named(spec: Any) -> Named | None:
    """The framework's file that MODEL is; None where it is another model. BadInput for a document of no known kind."""
    if not isinstance(spec, (str, Path)):
        return None
    if DATASET.fullmatch(str(spec)):
        return Named("nnunet")
    text, _, part = str(spec).partition("#")
    path = Path(text)
    if os.path.isdir(text):  # False for what is no path at all
        path = config_of(path)
    elif not text.lower().endswith((".json", ".yaml", ".yml")):
        return None
    what = f"model {path}"
    data = read_bytes(path, what)
    content = parse_json(data, what, MEND) if path.suffix.lower() == ".json" else parse_yaml(data, what)
    if isinstance(content, dict) and isinstance(content.get("configurations"), dict) and "plans_name" in content:
        return Named("nnunet", path)
    if is_config(content):
        mapping = at(content, part.replace("#", SEPARATOR)) if part else content
        if path.suffix.lower() != ".json" and isinstance(mapping, dict) and TARGET in mapping and is_plain(mapping):
            return Named("target", path, mapping, part)
        return Named("monai", path, content, part)
    raise BadInput(
        f"{what}: holds no plans of nnU-Net's and no {TARGET} of a bundle; wants file.py:Name, package.module:Name or such a file"
    )


def open_project(model: Any, choice: Choice, model_args: Any = None) -> Project | None:
    """What a framework's file says; None where MODEL is no such file."""
    found = named(model)
    if (found is None or found.kind != "nnunet") and (name := choice.first_given):
        raise BadInput(f"{spelled(name)} is of nnU-Net's plans, and MODEL is none; leave it out")
    if found is None:
        return None
    no_arguments(model_args, f"model {model}")
    if found.kind == "target":
        return Target(str(model), found.content)
    if found.kind == "monai":
        assert found.path is not None
        return Bundle.open(str(model), found.path, found.content, found.part)
    return Plans.open(str(model), choice)


def output_suffixes(spec: Any) -> tuple[str, ...]:
    """The suffixes of the files that MODEL's framework reads: what ranp writes beside its own."""
    found = named(spec)
    by_kind = {"nnunet": Plans.suffixes, "monai": Bundle.suffixes, "target": Target.suffixes}
    return () if found is None else by_kind[found.kind]


def has_batches(spec: Any) -> bool:
    """Whether MODEL has mini-batches of its own."""
    found = named(spec)
    return found is not None and found.kind != "target"
