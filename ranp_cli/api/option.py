"""What an option is: its default, its help, its flag and what a value of it may be. The options are in `options.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WHAT, FROM, RANK, FAR, COST, OUT = (
    "The network",
    "Where the scores come from",
    "How neurons are ranked",
    "How much goes",
    "What it costs",
    "Output",
)
PANELS = (WHAT, FROM, RANK, FAR, COST, OUT)

# -- what a value may be


@dataclass(frozen=True)
class Kind:
    """What a value of an option may be: `wants` says it, `accepts` checks what a config file holds, `type` is typer's."""

    wants: str
    accepts: Callable[[Any], bool]
    type: type = str
    repeatable: bool = False
    least: int | None = None


TEXT = Kind("text", lambda v: isinstance(v, str))
TEXTS = Kind("text, or a list of it", lambda v: isinstance(v, str), repeatable=True)
WHOLE = Kind("a whole number", lambda v: type(v) is int, int)
COUNT = Kind("a whole number from 0 on", lambda v: type(v) is int and v >= 0, int, least=0)
NUMBER = Kind("a number", lambda v: type(v) in (int, float), float)
SWITCH = Kind("true or false", lambda v: type(v) is bool, bool)
WHOLE_OR_AUTO = Kind("a whole number, or auto", lambda v: type(v) is int or v == "auto")
SHARE = Kind("a number in [0, 1) or max", lambda v: type(v) in (int, float, str))
SHARES = Kind("a number in [0, 1) or max", lambda v: type(v) in (int, float, str, list), repeatable=True)
SIZE = Kind("a size such as 8GiB or 40G", lambda v: type(v) in (int, float, str))
FOLD = Kind(
    "a whole number from 0 on, or all", lambda v: v == "all" or (type(v) is int and v >= 0) or str(v).isdecimal()
)
SHAPES = Kind("a shape", lambda v: True, repeatable=True)


# -- an option


@dataclass(frozen=True)
class Option:
    """One option, as the command line shows it. `flags` are in typer's form, the name first unless it is short."""

    keyword: str  # in Python
    default: Any
    help: str
    panel: str
    kind: Kind
    metavar: str | None
    flags: tuple[str, ...]
    says: str | None = None  # what the help gives as default, where it is not `default`
    doc: str | None = None  # for Python, where the help speaks of the command line

    @property
    def flag(self) -> str:
        return self.flags[-1]

    @property
    def key(self) -> str:
        """Its name in a config file and in the values of a command: the flag's, with underscores."""
        return self.flag.lstrip("-").replace("-", "_")


def option(
    default: Any,
    panel: str,
    help: str,
    kind: Kind = TEXT,
    metavar: str | None = None,
    *flags: str,
    says: str | None = None,
    doc: str | None = None,
) -> Any:
    """A field of a group; without `flags` the flag is `--` and the field's name."""
    about = {"help": help, "panel": panel, "kind": kind, "metavar": metavar, "flags": flags, "says": says, "doc": doc}
    return dataclasses.field(default=default, metadata=about)


def options_of(group: type) -> list[Option]:
    """The options of a group, in order."""
    found = []
    for field in dataclasses.fields(group):
        about = dict(field.metadata)
        flags = about.pop("flags") or (f"--{field.name.strip('_').replace('_', '-')}",)
        found.append(Option(field.name, field.default, flags=flags, **about))
    return found
