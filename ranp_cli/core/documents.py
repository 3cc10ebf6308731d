"""Text of unknown origin as checked values: JSON and YAML of bounded size, and the form that a document must have.

A form is a type (`int`: 0 or more; `float`: any number; `str`, `bool`), a tuple of forms (any of them), `None`, a list of
one form, `{str: form}` for an object with any names, or an object of named forms, where a name that ends in `?` may be absent.
Names that a form does not list are left alone: a later version may write more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from .errors import BadInput, shortened
from .reading import MOST_LEVELS, MOST_NODES, YAML, check_tree

if TYPE_CHECKING:
    import yaml

Form = Any
LARGEST = 2**63  # whole numbers are below it
MOST_PARTS = 2_000_000  # of a JSON text: lists, objects and commas; each becomes some 50 to 100 bytes


class NotYaml(BadInput):
    """Text that is not YAML: what the problem is and in which line, where that is known."""

    def __init__(self, what: str, problem: str = "", line: int | None = None) -> None:
        super().__init__(f"{what}: is not YAML ({problem or 'bad value'}); mend it, or quote the value")
        self.problem, self.line = problem, line


# -- text to values


def parse_json(text: bytes | str, what: str, advice: str) -> Any:
    """The value of a JSON text: nested at most 100 levels deep, its numbers finite and below 2^63."""
    parts = sum(map(text.count, ",[{") if isinstance(text, str) else map(text.count, (b",", b"[", b"{")))
    if parts > MOST_PARTS:
        raise BadInput(f"{what} holds more than {MOST_PARTS:,} values; {advice}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadInput(f"{what} is nested more than {MOST_LEVELS} levels deep; {advice}") from None
    except ValueError as error:  # no JSON, no text, a number of more than 4,300 digits
        raise BadInput(f"{what} is not JSON ({shortened(error, 80)}); {advice}") from None
    check_numbers(value, what, advice)
    return value


def parse_yaml(text: bytes | str, what: str) -> Any:
    """The value of a YAML text. Anchors may be used; what they stand for counts each time.

    Raises: NotYaml, or BadInput for what is too large.
    """
    import yaml

    if len(text) > YAML:
        raise BadInput(f"{what}: is longer than {YAML >> 10} KiB; give less")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            _check_nodes(node, what)
            value = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
        check_numbers(value, what, "mend it, or quote the value", finite=False)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise NotYaml(what, error.problem or error.context or "", mark.line + 1 if mark else None) from None
    except RecursionError:
        raise BadInput(f"{what}: is nested too deep; give flat values") from None
    except BadInput:
        raise
    # bytes that are no text, and values that are not of the kind they say: !!int x, 2020-99-99, !!bool maybe
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise NotYaml(what) from None


def _check_nodes(root: yaml.Node | None, what: str) -> None:
    """BadInput where aliases make of a YAML text far more than it says, a value is a part of itself, or a key comes twice."""
    sizes: dict[int, int] = {}

    def size(node: Any, above: tuple[int, ...]) -> int:
        if id(node) in above:
            raise BadInput(f"{what}: a value is a part of itself (&, *); write it out")
        if id(node) not in sizes:
            parts = node.value if isinstance(node.value, list) else ()
            keys = [
                (pair[0].tag, pair[0].value)
                for pair in parts
                if isinstance(pair, tuple) and isinstance(pair[0].value, str)
            ]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise BadInput(f"{what}: '{shortened(twice[1], 60)}' is given twice; leave one out")
            flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(size(part, (*above, id(node))) for part in flat)
        if sizes[id(node)] > MOST_NODES // 10:
            raise BadInput(f"{what}: its aliases (*) stand for more than {MOST_NODES // 10:,} values; write them out")
        return sizes[id(node)]

    if root is not None:
        size(root, ())


def check_numbers(value: Any, what: str, advice: str, finite: bool = True) -> None:
    """BadInput for a number that is not finite (where `finite` is wanted), or too large for 64 bits."""

    def look(leaf: Any) -> None:
        if finite and isinstance(leaf, float) and not math.isfinite(leaf):
            raise BadInput(f"{what} holds a number that is not finite ({leaf}); {advice}")
        if isinstance(leaf, int) and not -LARGEST <= leaf < LARGEST:
            raise BadInput(f"{what} holds a whole number beyond 64 bits; {advice}")

    check_tree(value, what, look)


# -- forms


def check_form(value: Any, form: Form, what: str, advice: str, where: str = "") -> None:
    """BadInput, naming the place, where `value` is not of that form."""
    if not _fits(value, form):
        raise BadInput(
            f"{what}: '{where.lstrip('.')[-80:] or 'the document'}' is {shown(value)}, wants {wanted(form)}; {advice}"
        )
    if isinstance(form, tuple):  # the one that it fits is checked inside
        inner = [each for each in form if _fits(value, each)]
        check_form(value, inner[0], what, advice, where)
    elif isinstance(form, list):
        for index, item in enumerate(value):
            check_form(item, form[0], what, advice, f"{where}.{index}")
    elif isinstance(form, dict) and str in form:
        for name, item in value.items():
            check_form(item, form[str], what, advice, f"{where}.{name}")
    elif isinstance(form, dict):
        for name, each in form.items():
            key = name.removesuffix("?")
            if key in value:
                check_form(value[key], each, what, advice, f"{where}.{key}")
            elif key == name:
                raise BadInput(f"{what}: '{f'{where}.{key}'.lstrip('.')[-80:]}' is missing; {advice}")


def _fits(value: Any, form: Form) -> bool:
    """Whether the value itself is of the form; what it holds is not looked at."""
    if isinstance(form, tuple):
        return any(_fits(value, each) for each in form)
    if form is None:
        return value is None
    if isinstance(form, (list, dict)):
        return isinstance(value, type(form))
    if form is int:
        return type(value) is int and value >= 0
    if form is float:
        return type(value) in (int, float) and math.isfinite(value)
    if isinstance(form, frozenset):
        return isinstance(value, Hashable) and value in form
    return isinstance(value, form)


def wanted(form: Form) -> str:
    """A form in a few words."""
    if isinstance(form, tuple):
        return " or ".join(wanted(each) for each in form)
    if isinstance(form, frozenset):
        return f"one of {', '.join(sorted(map(str, form)))[:100]}"
    if isinstance(form, (list, dict)) or form in (list, dict):
        return "a list" if isinstance(form, list) or form is list else "an object"
    names = {int: "a whole number from 0 on", float: "a number", str: "text", bool: "true or false", None: "null"}
    return names[form]


def shown(value: Any, most: int = 40) -> str:
    """A value of unknown origin in a message: short, and of one line."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
