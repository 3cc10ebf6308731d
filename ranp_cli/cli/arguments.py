"""From options to commands: a command takes the options of its groups as flags, and its help shows them in panels."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import GenericAlias
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..api.option import FROM, OUT, PANELS, SWITCH, TEXT, TEXTS, Option
from ..api.options import PRUNE

MODEL = "file.py:Name, package.module:Name, a TorchScript file, nnU-Net's plans (a file, or DATASET:CONFIGURATION), or a bundle of MONAI's: code, which runs"


def name_of(option: Option) -> str:
    """The name of its value in a command: as in a config file, with a `_` behind a word of Python."""
    if option.flag == "--model":  # MODEL has that name
        return "dense"
    key = option.key
    return f"{key}_" if keyword.iskeyword(key) or key in ("input", "json") else key


def own(
    help: str,
    panel: str,
    *flags: str,
    kind: Any = TEXT,
    metavar: str | None = None,
    default: Any = None,
    says: str | None = None,
) -> Option:
    """An option of the command line alone, or one whose Python form is a parameter of one function."""
    return Option(flags[-1].lstrip("-").replace("-", "_"), default, help, panel, kind, metavar, flags, says)


OUTPUT = own("where the slim network goes (repeatable)", OUT, "-o", "--output", kind=TEXTS, metavar="FILE", default=())
INIT = own("weights of the slim network: keep|factory|glorot|orthogonal", OUT, "--init", metavar="I", says="keep")
PLOT = own(
    "a picture: .png, .svg or .pdf (needs the extra plot; repeatable)",
    OUT,
    "--plot",
    kind=TEXTS,
    metavar="FILE",
    default=(),
)
HTML = own("the report as one page: no scripts, nothing from elsewhere", OUT, "--html", metavar="FILE")
JSON = own("write the report as JSON; - for stdout", OUT, "--json", metavar="PATH|-")
QUIET = own("print nothing but errors", OUT, "-q", "--quiet", kind=SWITCH)
CONFIG = own("YAML with the same keys; an option beats it", OUT, "--config", metavar="FILE")
BATCH = replace(
    own(
        ".pt, .safetensors, .npz of (input, target), which never run code, or file.py:Name, which does",
        FROM,
        "--batch",
        metavar="B",
    ),
    keyword="batches",
)
INPUT = replace(
    next(o for o in PRUNE.options if o.keyword == "inputs"), help="shape of an input, as 1x4x128x128x128 (repeatable)"
)
CRITERION = replace(next(o for o in PRUNE.options if o.keyword == "criterion"), says="mpmg-sum")


@dataclass(frozen=True)
class Argument:
    """A value without a flag."""

    name: str
    metavar: str
    help: str


def parameter(option: Option) -> inspect.Parameter:
    """The option as typer reads it; None is "not given", so that a config file can say it."""
    kind, shown = option.kind, option.says
    if shown is None and option.default not in (None, ()) and option.default is not False:
        shown = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
    help = option.help + (f"  [default: {shown}]" if shown is not None else "")
    value_type: Any = GenericAlias(list, kind.type) if kind.repeatable else kind.type
    info = typer.Option(*option.flags, metavar=option.metavar, help=help, rich_help_panel=option.panel, min=kind.least)
    return inspect.Parameter(
        name_of(option), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value_type | None, info]
    )


class PanelCommand(TyperCommand):
    """A command whose help lists its options panel by panel, without rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[Any]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                is_argument = getattr(param, "param_type_name", "") == "argument"
                panel = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or OUT
                rows.setdefault(panel, []).append(row)
        for panel in ("Arguments", *PANELS):
            if panel in rows:
                with formatter.section(panel):
                    formatter.write_dl(rows[panel])


@dataclass(frozen=True)
class Command:
    """One command: what it says of itself, its arguments, and its options.

    Args:
        library: the options that go on to the Python function as keywords.
        others: those of the command line alone.
        defaults: by name, where they differ from the options' own.
    """

    name: str
    help: str
    example: str
    arguments: Sequence[Argument]
    library: Sequence[Option]
    others: Sequence[Option]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    functions: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    @property
    def options(self) -> list[Option]:
        """All options, panel by panel."""
        return sorted([*self.others, *self.library], key=lambda option: PANELS.index(option.panel))

    @property
    def names(self) -> list[str]:
        return [*(argument.name for argument in self.arguments), *map(name_of, self.options)]

    def runs(self, function: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """`function` runs the command: it gets the values by name, None for what was not given."""
        self.functions.append(function)
        return function

    def on(self, app: typer.Typer) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[dict[str, Any]], None]]:
        """`runs`, and add it to the app."""

        def decorate(function: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
            self.runs(function)
            self.add_to(app)
            return function

        return decorate

    def add_to(self, app: typer.Typer) -> None:
        def called(**values: Any) -> None:
            self.functions[0](values)

        parameters = [*map(positional, self.arguments), *map(parameter, self.options)]
        called.__doc__ = self.help
        vars(called)["__signature__"] = inspect.Signature(parameters)
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(self.name, cls=PanelCommand, epilog=self.example)(called)


def positional(argument: Argument) -> inspect.Parameter:
    info = typer.Argument(metavar=argument.metavar, help=argument.help)
    annotation = Annotated[str | None, info]
    return inspect.Parameter(argument.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
