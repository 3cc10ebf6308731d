"""Spell an option as its caller writes it: `min_neurons=0` in Python, `--min-neurons 0` on the command line.

Every message that names an option does so with `spelled`, by the option's keyword in Python. The spelling is that of the
door the call came in by: Python's, unless the command line says `spelling(...)`, which also knows what a config file gave.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

UNSAID: Any = object()  # no value: the option alone is named


class Word(str):
    """What stands for a value in a usage line: `X`, `NAME`. It is never quoted."""

    __slots__ = ()


class Spelling(Protocol):
    def __call__(self, keyword: str, value: Any) -> str: ...


def python_spelling(keyword: str, value: Any) -> str:
    """`min_neurons=0`, or the keyword alone in backticks."""
    return f"`{keyword}`" if value is UNSAID else f"{keyword}={literal(value)}"


# One for the process and not a context variable: on a GPU, hooks of a backward pass run in threads that torch starts.
_spelling: list[Spelling] = [python_spelling]


def spelled(keyword: str, value: Any = UNSAID) -> str:
    """An option in a message, as the caller writes it.

    Args:
        keyword: its name in Python.
        value: what it is, or could be, set to, or a `Word` that stands for it; without, the option alone is named.

    >>> spelled("min_neurons", 0), spelled("loss", "dice"), spelled("sparsity", Word("X")), spelled("keep")
    ('min_neurons=0', "loss='dice'", 'sparsity=X', '`keep`')
    """
    return _spelling[-1](keyword, value)


@contextmanager
def spelling(words: Spelling) -> Iterator[None]:
    """Spell options so while this lasts."""
    depth = len(_spelling)
    _spelling.append(words)
    try:
        yield
    finally:
        del _spelling[depth:]


def respell(words: Spelling) -> None:
    """Spell options so from here to the end of the `spelling` that is open."""
    assert len(_spelling) > 1, "only within `spelling`"
    _spelling.append(words)


def literal(value: Any) -> str:
    """A value as Python code; what has no short literal, such as a function or a network, by its name or its type's."""
    if isinstance(value, Word):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    return str(getattr(value, "__name__", type(value).__name__))
