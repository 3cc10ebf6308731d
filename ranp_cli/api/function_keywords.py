"""Groups of options as the keywords of a public function: shown in its signature and its help, read from a call."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from ..core.errors import BadInput, nearest
from ..core.spelling import spelled
from .option import COUNT, NUMBER, WHOLE, options_of


def in_python(text: str) -> str:
    """A help text with keywords in place of flags."""
    names = {
        "--batch": "batches",
        "--batches": "batch_limit",
        "--model-arg": "model_args",
        "--loss-arg": "loss_args",
        "--input": "inputs",
    }
    text = re.sub(r"--[a-z][a-z-]*", lambda flag: f"`{names.get(flag[0], flag[0][2:].replace('-', '_'))}`", text)
    return text.removesuffix(" (repeatable)")


# -- groups as the keywords of a function

Group = TypeVar("Group")
Params = ParamSpec("Params")
Result = TypeVar("Result")


class Keywords:
    """The options that a public function takes as keywords: those of its groups.

        SCORE = Keywords(ModelOptions, GradientOptions)

        @SCORE
        def score(model, *, progress=silent, **options: Unpack[ScoreKeywords]):
            chosen = SCORE.read(options)
            chosen[ModelOptions].seed

    `help()`, editors and `inspect.signature` then see every keyword; type checkers see them in `ranp_cli.api.keywords`.

    Args:
        groups: the groups, in the order of the help.
        without: options of the groups that it does not take.
        defaults: the defaults of this function, where they differ from the group's.
    """

    def __init__(self, *groups: type, without: Sequence[str] = (), **defaults: Any) -> None:
        self.groups, self.defaults = groups, defaults
        self.options = [
            replace(each, default=defaults.get(each.keyword, each.default))
            for group in groups
            for each in options_of(group)
            if each.keyword not in without
        ]
        self.names = [each.keyword for each in self.options]
        self.known = list(self.names)  # and the function's own, once it is known

    def __call__(self, function: Callable[Params, Result]) -> Callable[Params, Result]:
        """Show the options in the signature of `function`, behind its own parameters and before `progress`."""
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        types = {field.name: field.type for group in self.groups for field in dataclasses.fields(group)}
        added = [
            inspect.Parameter(o.keyword, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=types[o.keyword])
            for o in self.options
        ]
        named.sort(key=lambda p: p.name == "progress")
        at = len(named) - (named[-1].name == "progress")
        vars(function)["__signature__"] = own.replace(parameters=[*named[:at], *added, *named[at:]])
        self.known += [p.name for p in named]
        function.__doc__ = self.documented(inspect.cleandoc(function.__doc__ or ""))
        return function

    def documented(self, text: str) -> str:
        """A docstring with a line for each option that its `Args:` does not name yet."""
        head, _, rest = text.partition("Args:\n")
        block, gap, tail = rest.partition("\n\n")
        described = {
            name for line in re.findall(r"^    (\w[\w, ]*):", block, re.M) for name in line.replace(" ", "").split(",")
        }
        for each in self.options:
            if each.keyword not in described:
                block += f"\n    {each.keyword}: {each.doc or in_python(each.help)}{f' ({each.says} by default)' if each.says else ''}."
        return f"{head}Args:\n{block}{gap}{tail}"

    def read(self, given: Mapping[str, Any]) -> Chosen:
        """The groups with the given options; TypeError for a keyword that there is not, with the nearest one."""
        for name in given:
            if name not in self.names:
                raise TypeError(f"unexpected keyword '{name}'{nearest(name, self.known)}")
        values = {**self.defaults, **{name: self._value(name, value) for name, value in given.items()}}
        held = {}
        for group in self.groups:
            names = [field.name for field in dataclasses.fields(group)]
            held[group] = group(**{name: values[name] for name in names if name in values})
        return Chosen(held)

    def _value(self, name: str, value: Any) -> Any:
        """What was given, numpy's numbers as Python's own; BadInput for a text where a number is wanted."""
        if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "ndim", 0):
            value = value.item()
        kind = next(each.kind for each in self.options if each.keyword == name)
        if isinstance(value, str) and kind in (NUMBER, WHOLE, COUNT):
            raise BadInput(f"{spelled(name, value)}: wants {kind.wants}")
        return value


class Chosen:
    """The options of one call, by group: `chosen[ModelOptions].seed`."""

    def __init__(self, held: Mapping[type, Any]) -> None:
        self._held = held

    def replaced(self, group: type, **values: Any) -> Chosen:
        """The same options, but for some of one group."""
        return Chosen({**self._held, group: replace(self._held[group], **values)})

    def __getitem__(self, group: type[Group]) -> Group:
        found: Group = self._held[group]
        return found
