"""What the commands share: their options, the config file behind them, what is printed and written at the end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from ..core.atomic import check_output, strict, write_atomic, written
from ..core.errors import BadInput, Stopped
from ..reporting import show
from .config import INPUTS, merge, read_config
from .process import launched, leads, stopped_by


class Commands(TyperGroup):
    """The commands; Ctrl-C says a word, where typer leaves in silence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name, code = stopped_by()
            files = f"written before: {', '.join(written)}" if written else "nothing was written"
            raise Stopped(f"stopped by {name}; {files}", code) from None


class Options:
    """The options of one command: given ones beat the config file, that beats the defaults."""

    def __init__(
        self,
        command: str,
        given: dict[str, Any],
        defaults: dict[str, Any],
        outputs: set[str] | frozenset[str] = frozenset(),
    ):
        self.command = command
        path = given.pop("config")
        config = read_config(path, given, inputs=INPUTS - outputs) if path else {}
        config = {key: typed(f"config {path}", key, value) for key, value in config.items()}
        self.values = merge(given, config, {"seed": 0, "device": "auto", "model_arg": [], "quiet": False, **defaults})
        self.to_stderr = "-" in [self.values.get(name) for name in TEXTS]
        if launched() and not (command == "score" or (command == "compare" and self["fit"])):
            raise BadInput(
                f"ranp {command} is the work of one process, torchrun started {os.environ['WORLD_SIZE']}: "
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
                raise BadInput(f"{shown} is missing; see ranp {self.command} --help")

    def check_outputs(self, suffixes: tuple[str, ...]) -> None:
        """Complain about what cannot be written before the long work begins."""
        for path in self["output"] or ():
            suffix, script = Path(path).suffix, Path(self["model"]).suffix in (".pt", ".pth", ".ts")
            if suffix not in suffixes:
                raise BadInput(
                    f"-o {path}: ranp {self.command} writes {', '.join(suffixes)}; give a file of such a name"
                )
            if suffix == ".pt" and not script:
                raise BadInput(
                    f"-o {path}: a .pt file is written for a TorchScript MODEL only; give a .safetensors or .pt2 name"
                )
            if suffix == ".pt2" and script:
                raise BadInput(f"-o {path}: torch.export takes no TorchScript MODEL; give a .pt name")
        if sum(self[name] == "-" for name in TEXTS) > 1:
            raise BadInput("stdout holds one document: give - to one of --json, --csv and --markdown")
        written = [*(self["output"] or ()), *([self["mask"]] if self.command == "prune" and self["mask"] else [])]
        written += [self[name] for name in TEXTS if self[name] and self[name] != "-"]
        if self["html"]:
            if Path(self["html"]).suffix.lower() not in (".html", ".htm"):
                raise BadInput(f"--html {self['html']}: writes a page; give a .html name")
            written.append(self["html"])
        for path in self["plot"] or ():
            from ..reporting.plots import check_plot

            check_plot(path)
            written.append(path)
        for path in written:
            check_output(path)
        if len({Path(path).resolve() for path in written}) < len(written):
            raise BadInput("two outputs have the same name; give each its own")

    def model_args(self) -> dict[str, Any]:
        from ..io.model import parse_model_args

        return parse_model_args(self["model_arg"])

    def loading(self) -> dict[str, Any]:
        same = {k: self[k] for k in ("weights", "weights_key", "seed", "device")}
        return {**same, "model_args": self.model_args()}

    def scoring(self) -> dict[str, Any]:
        return {
            **self.loading(),
            "loss": self["loss"],
            "ignore_index": self["ignore_index"],
            "batch_limit": self["batches"],
            **{k: self[k] for k in ("precision", "low_memory", "memory_limit")},
        }

    def progress(self, description: str, total: int | None) -> Any:
        if self["quiet"] or not leads():
            return nullcontext(lambda: None)
        return show.progress(show.console(stderr=True), description, total)

    def draw(self, result: Any) -> None:
        for path in self["plot"] or ():
            result.plot(path)

    def write(self, result: Any, mask: bool = True) -> None:
        with result.report.timing("write"):
            for path in self["output"]:
                result.save(path)
            if mask and self["mask"]:
                result.mask.save(self["mask"])

    def show(self, report: Any, **texts: str) -> None:
        """Print the report, and write it (--json) and its other forms (`csv`, `markdown`) where they were asked for."""
        document = report if isinstance(report, dict) else report.to_dict()
        for name, text in {"json_": json.dumps(strict(document), indent=1) + "\n", **texts}.items():
            if self[name] == "-":
                self.stdout.write(text)
            elif self[name]:
                write_atomic(self[name], text.encode())
        if self["html"]:
            from ..reporting.html import write_html

            write_html({**document, "memory": report.parts.get("memory", {})}, self["html"])
        if not self["quiet"]:
            show.show_report(document, self.page, self["depth"])


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


TEXTS = ("json_", "csv", "markdown")
INTS = {"batches", "ignore_index", "seed", "depth", "round_to", "batch_size", "seeds", "probe"}
BOOLS = {"strict", "allow_less", "quiet", "transfer", "low_memory", "time", "tree", "amp"}
LISTS = {"output", "keep", "only", "model_arg", "input_", "methods", "plot", "budget"}


def typed(where: str, key: str, value: Any) -> Any:
    """A value of the config file in the type of its option; BadInput names the key."""
    shown = key.strip("_").replace("_", "-")
    if key == "input_":
        return [as_shape(v) for v in (value if isinstance(value, list) and not _ints(value) else [value])]
    if key in LISTS:
        items = value if isinstance(value, list) else [value]
        wanted, sound = "text, or a list of it", all(isinstance(v, str) for v in items)
    elif key in INTS:
        wanted, sound = "a whole number", type(value) is int
    elif key in BOOLS:
        wanted, sound = "true or false", type(value) is bool
    elif key == "min_neurons":
        wanted, sound = "a whole number, or auto", type(value) is int or value == "auto"
    elif key in ("lambda_", "probe_lr"):
        wanted, sound = "a number", type(value) in (int, float)
    elif key == "sparsity":
        wanted = "a number in [0, 1) or max"
        sound = type(value) in (int, float, str) or isinstance(value, list)
    elif key.startswith("max_") or key == "memory_limit":
        wanted, sound = "a size such as 8GiB or 40G", type(value) in (int, float, str)
    else:
        wanted, sound = "text", isinstance(value, str)
    if not sound:
        raise BadInput(f"{where}: '{shown}' is {value!r}; wants {wanted}")
    return value


def as_shape(value: Any) -> str:
    return "x".join(map(str, value)) if _ints(value) else str(value)


def _ints(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int for n in value)
