"""The command line: a command is its options, one library call, one output call. torch is imported by the call."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, show
from .checkpoint import check_output, write_atomic
from .config import INPUTS, merge, read_config
from .errors import BadInput, RanpError

app = typer.Typer(
    name="ranp",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Make 3D CNNs small before they are trained (RANP, arXiv:2010.02488).\n\n"
    "Score every neuron on a calibration batch, remove the least important ones for real, prove the result.\n\n"
    "Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors",
)

# -- options, named once; None is "not given", so that a config file can say it

Model = Annotated[str, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")]
Strs = list[str] | None
ModelArg = Annotated[
    Strs, typer.Option("--model-arg", metavar="KEY=VALUE", help="argument of the factory, read as YAML (repeatable)")
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="state dict to load: .safetensors or .pt")
]
WeightsKey = Annotated[
    str | None, typer.Option("--weights-key", metavar="KEY", help="which nested state dict of --weights")
]
Batch = Annotated[
    str | None, typer.Option("--batch", metavar="B", help=".pt, .safetensors, .npz of (input, target), or file.py:Name")
]
BatchLimit = Annotated[int | None, typer.Option("--batches", metavar="N", help="use at most N mini-batches")]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss", metavar="NAME", help="cross_entropy, mse, l1, smooth_l1, bce, dice, dice_ce, or file.py:Name"
    ),
]
IgnoreIndex = Annotated[
    int | None,
    typer.Option(
        "--ignore-index", metavar="I", help="target value that does not count  [default: -100, and 255 where no class]"
    ),
]
CriterionOption = Annotated[
    str | None,
    typer.Option("--criterion", metavar="C", help="mpmg-sum|mean|max, mnmg-sum|mean|max, neuron  [default: mpmg-sum]"),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="seed of weights and of --method random  [default: 0]")
]
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:i  [default: auto]")]
Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML with the same keys; an option beats it")
]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH|-", help="write the report as JSON; - for stdout")]
Quiet = Annotated[bool | None, typer.Option("--quiet", "-q", help="print nothing but errors")]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", metavar="I", help="weights of the slim network: keep|factory|glorot|orthogonal  [default: keep]"
    ),
]
Output = Annotated[
    Strs, typer.Option("-o", "--output", metavar="FILE", help="where the slim network goes (repeatable)")
]
Input = Annotated[
    Strs, typer.Option("--input", metavar="SHAPE", help="shape of an input, as 1x4x128x128x128 (repeatable)")
]

SUFFIXES = (".safetensors", ".onnx", ".pt")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"ranp {__version__}")
        raise typer.Exit()


@app.command(epilog="Example: ranp score model.py:UNet3D --batch calib.pt -o scores.safetensors")
def score(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")] = None,
    batch: Batch = None, output: Annotated[Strs, typer.Option("-o", "--output", metavar="FILE", help="scores.safetensors")] = None,
    criterion: CriterionOption = None, loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None,
    model_arg: ModelArg = None, weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Score every neuron from gradients on a calibration batch; prune --scores then needs none."""
    o = Options("score", locals(), {"criterion": "mpmg-sum", "output": []})
    o.need("model", "batch")
    o.check_outputs((".safetensors",))
    import ranp_cli as ranp

    scores = ranp.score(o["model"], o["batch"], criterion=o["criterion"], progress=o.progress, **o.scoring())
    for path in o["output"]:
        scores.save(path)
    o.show(scores.report)


@app.command(
    epilog="Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors"
)
def prune(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")] = None,
    batch: Batch = None,
    scores: Annotated[str | None, typer.Option("--scores", metavar="FILE", help="what ranp score wrote, instead of --batch")] = None,
    sparsity: Annotated[str | None, typer.Option("--sparsity", metavar="X|max", help="fraction of neurons to remove, in [0, 1), or max")] = None,
    output: Output = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="FILE", help="write mask.json there")] = None,
    resource: Annotated[str | None, typer.Option("--resource", metavar="R", help="flops|mem|params|none  [default: flops]")] = None,
    lambda_: Annotated[float | None, typer.Option("--lambda", metavar="X", help="weight of the resource  [default: 11]")] = None,
    method: Annotated[str | None, typer.Option("--method", metavar="M", help="ranp|weighted|vanilla|random|layerwise  [default: ranp]")] = None,
    criterion: CriterionOption = None,
    min_neurons: Annotated[int | None, typer.Option("--min-neurons", metavar="N", help="each layer keeps its best N  [default: 1]")] = None,
    keep: Annotated[Strs, typer.Option("--keep", metavar="GLOB", help="layers never pruned (repeatable)")] = None,
    only: Annotated[Strs, typer.Option("--only", metavar="GLOB", help="prune these layers only (repeatable)")] = None,
    init: Init = None, loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None,
    weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="an op without a rule is an error")] = None,
    allow_less: Annotated[bool | None, typer.Option("--allow-less", help="take it when much less than asked can be removed")] = None,
    config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Remove the least important neurons, prove the slim network and write it."""
    given = locals()
    defaults = {"output": [], "resource": "flops", "lambda_": 11.0, "method": "ranp", "min_neurons": 1,
                "keep": [], "only": [], "init": "keep", "strict": False, "allow_less": False}  # fmt: skip
    o = Options("prune", given, defaults, outputs={"mask"})
    o.need("model")
    o.check_outputs(SUFFIXES)
    import ranp_cli as ranp

    same = (
        "scores",
        "sparsity",
        "resource",
        "lambda_",
        "method",
        "criterion",
        "min_neurons",
        "keep",
        "only",
        "init",
        "strict",
        "allow_less",
    )
    result = ranp.prune(o["model"], o["batch"], **{k: o[k] for k in same}, progress=o.progress, **o.scoring())
    o.write(result)
    o.show(result.report)


@app.command(epilog="Example: ranp refine model.py:UNet3D --mask mask.json --init glorot -o slim.safetensors")
def refine(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name or package.module:Name")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="FILE", help="mask.json, as ranp prune --mask writes it")] = None,
    output: Output = None, input_: Input = None, init: Init = None, model_arg: ModelArg = None, weights: Weights = None,
    weights_key: WeightsKey = None, seed: Seed = None, device: Device = None, config: Config = None, json_: Json = None,
    quiet: Quiet = None,
) -> None:  # fmt: skip
    """Build the slim network from a mask, prove it and write it."""
    o = Options("refine", locals(), {"output": [], "input_": [], "init": "keep", "seed": None})
    o.need("model", "mask")
    o.check_outputs(SUFFIXES)
    import ranp_cli as ranp

    result = ranp.refine(o["model"], o["mask"], inputs=shapes(o["input_"]), init=o["init"], full=True, **o.loading())
    o.write(result, mask=False)
    o.show(result.report)


@app.command(epilog="Example: ranp profile model.py:UNet3D slim.safetensors")
def profile(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, TorchScript, slim.safetensors or .onnx")] = None,
    model2: Annotated[str | None, typer.Argument(metavar="[MODEL2]", help="a second one, to lay beside it")] = None,
    input_: Input = None, model_arg: ModelArg = None, weights: Weights = None, seed: Seed = None,
    depth: Annotated[int | None, typer.Option("--depth", metavar="N", min=0, help="sum up layers below N levels of modules; 0: no layers")] = None,
    config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Count parameters, multiply-adds, FLOPs and memory of one or two networks, without running them."""
    o = Options("profile", locals(), {"input_": []})
    o.need("model")
    o.check_outputs(())
    import ranp_cli as ranp

    o.show(
        ranp.profile(
            o["model"],
            shapes(o["input_"]),
            other=o["model2"],
            seed=o["seed"],
            model_args=o.model_args(),
            weights=o["weights"],
        )
    )


# -- what the commands share


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
        self.to_stderr = self.values.get("json_") == "-"
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
            if (
                Path(path).suffix == ".pt"
                and ".pt" in suffixes
                and Path(self["model"]).suffix not in (".pt", ".pth", ".ts")
            ):
                raise BadInput(
                    f"-o {path}: a .pt file is written for a TorchScript MODEL only; give a .safetensors name"
                )
            if Path(path).suffix not in suffixes:
                raise BadInput(
                    f"-o {path}: ranp {self.command} writes {', '.join(suffixes)}; give a file of such a name"
                )
        written = [*(self["output"] or ()), *([self["mask"]] if self.command == "prune" and self["mask"] else [])]
        if self["json_"] and self["json_"] != "-":
            written.append(self["json_"])
        for path in written:
            check_output(path)
        if len({Path(path).resolve() for path in written}) < len(written):
            raise BadInput("two outputs have the same name; give each its own")

    def model_args(self) -> dict[str, Any]:
        from .source import parse_model_args

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
        }

    def progress(self, description: str, total: int | None) -> Any:
        if self["quiet"]:
            return nullcontext(lambda: None)
        return show.progress(show.console(stderr=True), description, total)

    def write(self, result: Any, mask: bool = True) -> None:
        with result.report.timing("write"):
            for path in self["output"]:
                result.save(path)
            if mask and self["mask"]:
                result.mask.save(self["mask"])

    def show(self, report: Any) -> None:
        document = report if isinstance(report, dict) else report.to_dict()
        text = json.dumps(document, indent=1) + "\n"
        if self.to_stderr:
            self.stdout.write(text)
        elif self["json_"]:
            write_atomic(self["json_"], text.encode())
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


INTS = {"batches", "ignore_index", "seed", "min_neurons", "depth"}
BOOLS = {"strict", "allow_less", "quiet"}
LISTS = {"output", "keep", "only", "model_arg", "input_"}


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
    elif key == "lambda_":
        wanted, sound = "a number", type(value) in (int, float)
    elif key == "sparsity":
        wanted, sound = "a number in [0, 1) or max", type(value) in (int, float, str)
    else:
        wanted, sound = "text", isinstance(value, str)
    if not sound:
        raise BadInput(f"{where}: '{shown}' is {value!r}; wants {wanted}")
    return value


def as_shape(value: Any) -> str:
    return "x".join(map(str, value)) if _ints(value) else str(value)


def _ints(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(n) is int for n in value)


def run(argv: Sequence[str]) -> int:
    """Run one command; the only place where errors become messages and exit codes."""
    stdout = sys.stdout
    try:
        if not argv:
            argv = ["--help"]
        result = app(args=list(argv), prog_name="ranp", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except RanpError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped by the user; nothing was written", 130)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:
            return _fail(f"{' '.join(usage().split())}; see ranp --help", 2)
        return _fail(
            f"a bug of ranp: {type(error).__name__}: {error}; RANP_DEBUG=1 shows the traceback, please report it", 1
        )
    finally:
        sys.stdout = stdout


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANP_DEBUG"):
        traceback.print_exc()
    show.show_error(message, show.console(stderr=True))
    return code
