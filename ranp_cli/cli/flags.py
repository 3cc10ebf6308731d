"""How messages spell options on the command line: as flags, or as keys of the config file that gave the value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..api.option import Option
from ..api.options import PRUNE
from ..core.spelling import UNSAID, literal
from .arguments import BATCH

ARGUMENTS = {"model": "MODEL", "other": "MODEL2"}


class FlagSpelling:
    """Options as `--min-neurons 0`, or as `min-neurons: 0 (conf.yaml)`.

    Args:
        options: those of the command, by whose flags they are named; for others the flag is made from the keyword.
        config: keys, as `Option.key` has them, whose values come from a config file.
        path: that file.
    """

    def __init__(self, options: Iterable[Option] = (), config: Iterable[str] = (), path: Any = None) -> None:
        own = {option.keyword: option for option in options}
        self.options = {**{option.keyword: option for option in [*PRUNE.options, BATCH]}, **own}
        self.arguments = {keyword: name for keyword, name in ARGUMENTS.items() if keyword not in own}
        self.config, self.path = frozenset(config), path

    def __call__(self, keyword: str, value: Any) -> str:
        if keyword in self.arguments:
            flag = key = self.arguments[keyword]
        else:
            option = self.options.get(keyword)
            flag = option.flags[0] if option else f"--{keyword.strip('_').replace('_', '-')}"
            key = option.key if option else ""
        words = [] if value is UNSAID else as_words(value)
        if key in self.config:
            shown = key.replace("_", "-")
            return f"{shown}: {', '.join(words)} ({self.path})" if words else f"{shown} ({self.path})"
        if value is True:
            return flag
        return " ".join(f"{flag} {word}" for word in words) if words else flag


def as_words(value: Any) -> list[str]:
    """A value as it stands behind its flag; more than one where the flag is repeated."""
    if value is True:
        return ["true"]
    if isinstance(value, tuple) and value and all(type(n) is int for n in value):
        return ["x".join(map(str, value))]
    if isinstance(value, Mapping):
        return [f"{name}={part}" for name, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [word for part in value for word in as_words(part)]
    is_text = isinstance(value, (str, int, float, os.PathLike))
    return [str(value) if is_text else literal(value)]
