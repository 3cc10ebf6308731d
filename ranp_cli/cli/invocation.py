"""What the commands share: their options, the config file behind them, what is printed and written at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from ..api.option import SHAPES, TEXT, TEXTS, Kind
from ..core.atomic import check_output, strict, together, what_was_written, write_atomic
from ..core.documents import shown
from ..core.errors import BadInput, Stopped
from ..core.paths import mask_beside
from ..core.spelling import respell
from ..io.inputs import refuse_inputs, refuse_loaded
from ..reporting import progress_bar, show
from .arguments import Command, name_of
from .config import INPUTS, merge, read_config
from .flags import FlagSpelling
from .process import is_main_process, launched, mute, stopped_by


class Commands(TyperGroup):
    """The commands; they report Ctrl-C, where typer exits silently."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name, code = stopped_by()
            raise Stopped(f"stopped by {name}; {what_was_written()}", code) from None


class Run:
    """One run of a command: its values (given ones beat the config file, that beats the defaults), and where output goes.

    Args:
        outputs: the names of config keys that are files to write, where another command reads them.
    """

    def __init__(
        self, command: Command, given: dict[str, Any], outputs: set[str] | frozenset[str] = frozenset()
    ) -> None:
        self.command, self.written_names = command, outputs
        path = given["config"]
        known = {name: value for name, value in given.items() if name != "config"}
        config = read_config(path, known, inputs=INPUTS - outputs) if path else {}
        kinds = {name_of(option): option.kind for option in command.options}
        config = {key: typed(f"config {path}", key, value, kinds.get(key, TEXT)) for key, value in config.items()}
        of_file = [key.rstrip("_") for key in config if known[key] in (None, [], ())]
        respell(FlagSpelling(command.options, of_file, path))
        lists: dict[str, Any] = {name: [] for name, kind in kinds.items() if kind.repeatable}
        self.values = {**merge(known, config, {**lists, "quiet": False}), "config": path}
        self.to_stderr = "-" in [self[name] for name in TEXT_OUTPUTS]
        if launched() and not (command.name == "score" or (command.name == "compare" and self["fit"])):
            raise BadInput(
                f"ranp {command.name} is the work of one process, torchrun started {os.environ['WORLD_SIZE']}: "
                "run ranp score with torchrun, then ranp prune --scores without"
            )
        self.page = show.console(stderr=self.to_stderr)
        self.stdout = sys.stdout
        if self.to_stderr:  # stdout is for the document: what the user's code prints goes the other way
            sys.stdout = sys.stderr

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def need(self, *names: str) -> None:
        for name in names:
            if not self[name]:
                shown = name.upper() if name == "model" else f"--{name}"
                raise BadInput(f"{shown} is missing; see ranp {self.command.name} --help")

    @contextmanager
    def outputs(self, suffixes: tuple[str, ...]) -> Iterator[None]:
        """The command at work: its outputs are checked and locked first, and come to their places together at the end.

        In a job of torchrun, which ends its processes without a word, they are locked when they are written.
        """
        paths = self.check_outputs(suffixes)
        with together(() if launched() else paths):
            yield
            refuse_loaded(paths)

    def check_outputs(self, suffixes: tuple[str, ...]) -> list[str]:
        """Complain about what cannot be written before the long work begins; the files to be written."""
        for path in self["output"] or ():
            suffix, script = Path(path).suffix, Path(self["model"]).suffix in (".pt", ".pth", ".ts")
            if suffix not in suffixes:
                known = ", ".join(suffixes)
                raise BadInput(
                    f"-o {path}: ranp {self.command.name} writes {known}; {_better_name(path, suffixes, script)}"
                )
            if suffix == ".pt" and not script:
                raise BadInput(
                    f"-o {path}: a .pt file is written for a TorchScript MODEL only; {_better_name(path, suffixes, script)}"
                )
            if suffix == ".pt2" and script:
                raise BadInput(f"-o {path}: torch.export takes no TorchScript MODEL; give a .pt name")
        if sum(self[name] == "-" for name in TEXT_OUTPUTS) > 1:
            raise BadInput("stdout holds one document: give - to one of --json, --csv and --markdown")
        written = [*(self["output"] or ()), *([self.mask_file] if self.mask_file else [])]
        written += [self[name] for name in TEXT_OUTPUTS if self[name] and self[name] != "-"]
        if self["html"]:
            if Path(self["html"]).suffix.lower() not in (".html", ".htm"):
                raise BadInput(f"--html {self['html']}: writes a page; give a .html name")
            written.append(self["html"])
        for path in self["plot"] or ():
            from ..reporting.plots import check_plot

            check_plot(path)
            written.append(path)
        places = [check_output(path) for path in written]
        if len(set(places)) < len(places):
            raise BadInput("two outputs have the same name; give each its own")
        refuse_inputs(written, self.inputs())
        return written

    def inputs(self) -> list[tuple[str, str]]:
        """What the command reads: (as the user gives it, path or spec). Going on into the same file (--resume) is no accident."""
        names = (INPUTS - self.written_names) - {"resume"} | {"config"}
        given = {name: value for name in names if isinstance(value := self[name], str)}
        return [
            ("MODEL" if name.startswith("model") else f"--{name.replace('_', '-')}", value)
            for name, value in given.items()
        ]

    def keywords(self) -> dict[str, Any]:
        """What was given of the options that go on to the Python function, as its keywords."""
        found = {}
        for option in self.command.library:
            value = self[name_of(option)]
            if value is None or value == []:
                continue
            if option.keyword in ("model_args", "loss_args"):
                from ..io.model import parse_args

                value = parse_args(value, option.keyword)
            found[option.keyword] = shapes(value) if option.kind is SHAPES else value
        return found

    def progress(self, description: str, total: int | None) -> Any:
        if self["quiet"] or not is_main_process():
            return nullcontext(lambda: None)
        return progress_bar.progress(show.console(stderr=True), description, total)

    def draw(self, result: Any) -> None:
        for path in self["plot"] or ():
            result.plot(path)

    @property
    def mask_file(self) -> str | None:
        """Where prune and refine write mask.json: beside the first output, unless prune is told another place or none."""
        if self.command.name not in ("prune", "refine"):
            return None
        if self.command.name == "prune" and self["mask"]:
            return None if self["mask"] == "none" else str(self["mask"])
        if not self["output"]:
            return None
        place = mask_beside(self["output"][0])
        is_there = self.command.name == "refine" and self["mask"] and place.resolve() == Path(self["mask"]).resolve()
        return None if is_there else str(place)

    def write(self, result: Any) -> None:
        with result.report.timing("write"):
            for path in sorted(self["output"], key=lambda path: path.endswith(".json")):  # which name the others
                result.save(path, mask=None)
            if self.mask_file:
                result.save_mask(self.mask_file)

    def documents(self, report: Any, **texts: str) -> None:
        """Write the report (--json, --html) and its other forms (`csv`, `markdown`) to the files that were asked for."""
        document = _document(report)
        for name, text in {"json_": _as_json(document), **texts}.items():
            if self[name] and self[name] != "-":
                write_atomic(self[name], text.encode())
        if self["html"]:
            from ..reporting.html import write_html

            write_html({**document, "memory": report.parts.get("memory", {})}, self["html"])

    def show(self, report: Any, **texts: str) -> None:
        """Print the report, and whatever was asked for on stdout. A reader that has seen enough (`| head`) is no error."""
        document = _document(report)
        try:
            for name, text in {"json_": _as_json(document), **texts}.items():
                if self[name] == "-":
                    self.stdout.write(text)
            if not self["quiet"]:
                show.show_report(document, self.page, self["depth"])
            self.stdout.flush()
        except BrokenPipeError:
            mute(1)
        except OSError as error:
            mute(1)
            raise BadInput(
                f"cannot write to stdout: {error.strerror}; {what_was_written()}; give --json FILE, or another stdout"
            ) from error


def _document(report: Any) -> dict[str, Any]:
    document: dict[str, Any] = report if isinstance(report, dict) else report.to_dict()
    return document


def _as_json(document: dict[str, Any]) -> str:
    return json.dumps(strict(document), indent=1) + "\n"


def _better_name(path: str, suffixes: Sequence[str], script: bool) -> str:
    """What to type for an output that has the suffix of PyTorch's pickles, or another one."""
    if Path(path).suffix not in (".pth", ".pt", ".ckpt", ".bin", ".ts") or ".safetensors" not in suffixes:
        return "give a file of such a name"
    better = Path(path).with_suffix(".pt" if script and ".pt" in suffixes else ".safetensors")
    return f"give -o {better}" + ("" if script else ", which holds the state dict, and no pickle")


def shapes(given: Sequence[str]) -> list[tuple[int, ...]] | None:
    """`1x4x32x32x32` -> (1, 4, 32, 32, 32), for each --input; None without."""
    out = []
    for text in given:
        try:
            shape = tuple(int(n) for n in str(text).lower().replace(",", "x").split("x"))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise BadInput(f"--input {text}: give sizes joined by x, batch first, such as 1x1x64x64x64")
        out.append(shape)
    return out or None


TEXT_OUTPUTS = ("json_", "csv", "markdown")


def typed(where: str, key: str, value: Any, kind: Kind) -> Any:
    """A value of the config file, as its option takes it; BadInput names the key."""
    if kind is SHAPES:
        return [as_shape(v) for v in (value if isinstance(value, list) and not _ints(value) else [value])]
    items = value if kind is TEXTS and isinstance(value, list) else [value]
    if not all(kind.accepts(item) for item in items):
        raise BadInput(f"{where}: '{key.strip('_').replace('_', '-')}' is {shown(value)}; wants {kind.wants}")
    return value


def as_shape(value: Any) -> str:
    return "x".join(map(str, value)) if _ints(value) else str(value)


def _ints(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int for n in value)
