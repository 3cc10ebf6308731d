"""The command line: a command is its options, one library call, one output call. torch is imported by the call."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..core.atomic import written
from ..core.errors import GateExceeded, Interrupted, RanpError, Stopped
from ..costs.budget import gate, limit
from ..reporting import show
from .arguments import (
    WAY,
    Amp,
    Batch,
    BatchLimit,
    BatchSize,
    Config,
    CriterionOption,
    Device,
    Html,
    IgnoreIndex,
    Init,
    Input,
    Json,
    Keep,
    Lambda,
    Loss,
    LowMemory,
    MemoryLimit,
    MinNeurons,
    ModelArg,
    Only,
    Optimizer,
    Output,
    Plot,
    Precision,
    Probe,
    ProbeLr,
    Quiet,
    ScoreInit,
    Seed,
    Strs,
    Time,
    Weights,
    WeightsKey,
)
from .compare_command import EXAMPLE as COMPARE_EXAMPLE
from .compare_command import compare
from .options import Commands, Options, shapes
from .process import launched, leads, speaks, stopped_by

app = typer.Typer(
    cls=Commands,
    name="ranp",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Make 3D CNNs small before they are trained (RANP, arXiv:2010.02488).\n\n"
    "Score every neuron on a calibration batch, remove the least important ones for real, prove the result.\n\n"
    "Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors",
)

SUFFIXES = (".safetensors", ".onnx", ".pt", ".pt2")


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
    criterion: CriterionOption = None, score_init: ScoreInit = None,
    sparsity: Annotated[float | None, typer.Option("--sparsity", metavar="X", help="also show what these scores alone would keep at X")] = None,
    loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None, weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    precision: Precision = None, low_memory: LowMemory = None, memory_limit: MemoryLimit = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="FILE", help="go on from what an earlier ranp score wrote")] = None,
    plot: Plot = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Score every neuron from gradients on a calibration batch; prune --scores then needs none."""
    o = Options("score", locals(), {"criterion": "mpmg-sum", "score_init": "keep", "output": [], **WAY})
    o.need("model", "batch")
    o.check_outputs((".safetensors",))
    import ranp_cli as ranp

    same = {k: o[k] for k in ("criterion", "score_init", "sparsity", "resume")}
    try:
        scores = ranp.score(o["model"], o["batch"], **same, distributed=launched(), progress=o.progress, **o.scoring())
    except Interrupted as stopped:
        name, code = stopped_by()
        for path in o["output"]:
            stopped.scores.save(path)
        files = o["output"][:1]
        where = f"written to {files[0]}: go on with --resume {files[0]}" if files else "not written: there was no -o"
        raise Stopped(f"stopped by {name}; the scores of {stopped.batches} mini-batches were {where}", code) from None
    if leads():
        for path in o["output"]:
            scores.save(path)
        o.draw(scores)
        o.show(scores.report)


@app.command(
    epilog="Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors"
)
def prune(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")] = None,
    batch: Batch = None,
    scores: Annotated[str | None, typer.Option("--scores", metavar="FILE", help="what ranp score wrote, instead of --batch")] = None,
    sparsity: Annotated[str | None, typer.Option("--sparsity", metavar="X|max", help="fraction of neurons to remove, in [0, 1), or max; of weights for --method snip")] = None,
    output: Output = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="FILE", help="write mask.json there")] = None,
    resource: Annotated[str | None, typer.Option("--resource", metavar="R", help="flops|mem|params|latency (each layer is timed on --device)|none  [default: flops]")] = None,
    lambda_: Lambda = None,
    method: Annotated[str | None, typer.Option("--method", metavar="M", help="ranp|weighted|vanilla|random|layerwise|flat|snip|taylor|magnitude  [default: ranp]")] = None,
    criterion: CriterionOption = None,
    min_neurons: MinNeurons = None, keep: Keep = None, only: Only = None,
    budget: Annotated[Strs, typer.Option("--budget", metavar="K=V", help="instead of --sparsity, the largest network with at most: macs=40G, flops=, params=10%, forward-mem=300MiB, train-mem=8GiB, latency=20ms or 50% (a forward pass, measured; repeatable)")] = None,
    round_to: Annotated[int | None, typer.Option("--round-to", metavar="N", help="layers keep multiples of N neurons  [default: 1]")] = None,
    input_: Annotated[Strs, typer.Option("--input", metavar="SHAPE", help="count, budget and foretell memory for this shape of input, not that of the batch (repeatable)")] = None,
    optimizer: Optimizer = None, batch_size: BatchSize = None, amp: Amp = None, time: Time = None,
    latencies: Annotated[str | None, typer.Option("--latencies", metavar="FILE", help="the layers' times of an earlier --resource latency, from its mask.json, instead of measuring")] = None,
    probe: Probe = None, probe_lr: ProbeLr = None,
    init: Init = None, score_init: ScoreInit = None, loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None,
    weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="an op without a rule is an error")] = None,
    allow_less: Annotated[bool | None, typer.Option("--allow-less", help="take it when much less than asked can be removed")] = None,
    precision: Precision = None, low_memory: LowMemory = None, memory_limit: MemoryLimit = None,
    plot: Plot = None, html: Html = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Remove the least important neurons, prove the slim network and write it."""
    given = locals()
    defaults = {"output": [], "resource": "flops", "lambda_": 11.0, "method": "ranp", "min_neurons": "auto",
                "keep": [], "only": [], "budget": [], "input_": [], "round_to": 1, "init": "keep", "score_init": "keep", "strict": False, "allow_less": False, "time": False, **WAY}  # fmt: skip
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
        "budget",
        "round_to",
        "optimizer",
        "batch_size",
        "time",
        "latencies",
        "probe",
        "probe_lr",
        "init",
        "score_init",
        "strict",
        "allow_less",
    )
    result = ranp.prune(o["model"], o["batch"], inputs=shapes(o["input_"]), amp=bool(o["amp"]), **{k: o[k] for k in same}, progress=o.progress, **o.scoring())  # fmt: skip
    o.write(result)
    o.draw(result)
    o.show(result.report)


@app.command(epilog="Example: ranp refine model.py:UNet3D --mask mask.json --init glorot -o slim.safetensors")
def refine(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name or package.module:Name")] = None,
    mask: Annotated[str | None, typer.Option("--mask", metavar="FILE", help="mask.json, as ranp prune --mask writes it")] = None,
    output: Output = None, input_: Input = None, init: Init = None,
    transfer: Annotated[bool | None, typer.Option("--transfer", help="the mask is of the same architecture with other input channels or classes")] = None,
    model_arg: ModelArg = None, weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None, config: Config = None, json_: Json = None,
    quiet: Quiet = None,
) -> None:  # fmt: skip
    """Build the slim network from a mask, prove it and write it."""
    o = Options("refine", locals(), {"output": [], "input_": [], "init": "keep", "transfer": False, "seed": None})
    o.need("model", "mask")
    o.check_outputs(SUFFIXES)
    import ranp_cli as ranp

    result = ranp.refine(
        o["model"],
        o["mask"],
        inputs=shapes(o["input_"]),
        init=o["init"],
        transfer=o["transfer"],
        full=True,
        **o.loading(),
    )
    o.write(result, mask=False)
    o.show(result.report)


app.command(epilog=COMPARE_EXAMPLE)(compare)


@app.command(epilog="Example: ranp profile model.py:UNet3D slim.safetensors")
def profile(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, TorchScript, slim.safetensors or .onnx")] = None,
    model2: Annotated[str | None, typer.Argument(metavar="[MODEL2]", help="a second one, to lay beside it")] = None,
    input_: Input = None, model_arg: ModelArg = None, weights: Weights = None, seed: Seed = None,
    optimizer: Optimizer = None, batch_size: BatchSize = None, amp: Amp = None, time: Time = None, device: Device = None,
    max_macs: Annotated[str | None, typer.Option("--max-macs", metavar="V", help="a gate: exit code 5 when there are more, as 40G")] = None,
    max_params: Annotated[str | None, typer.Option("--max-params", metavar="V", help="likewise, as 5M")] = None,
    max_forward_mem: Annotated[str | None, typer.Option("--max-forward-mem", metavar="V", help="likewise, as 300MiB")] = None,
    max_train_mem: Annotated[str | None, typer.Option("--max-train-mem", metavar="V", help="likewise, as 8GiB")] = None,
    depth: Annotated[int | None, typer.Option("--depth", metavar="N", min=0, help="sum up layers (or the tree) below N levels of modules; 0: no layers")] = None,
    tree: Annotated[bool | None, typer.Option("--tree", help="the module tree instead of the layers: what each module and all below it cost, and save for the backward pass")] = None,
    html: Html = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Count parameters, multiply-adds, FLOPs and memory of one or two networks, without running them (but for --time)."""
    o = Options("profile", locals(), {"input_": [], "time": False})
    o.need("model")
    o.check_outputs(())
    kinds = ("macs", "params", "forward-mem", "train-mem")
    given = {kind: o[f"max_{kind.replace('-', '_')}"] for kind in kinds}
    gates = [limit(k, text, False, f"--max-{k} {text}") for k, text in given.items() if text is not None]
    import ranp_cli as ranp

    same = {k: o[k] for k in ("seed", "weights", "optimizer", "batch_size", "time", "device")}
    report = ranp.profile(o["model"], shapes(o["input_"]), other=o["model2"], model_args=o.model_args(),
                          tree=bool(o["tree"]), amp=bool(o["amp"]), **same)  # fmt: skip
    o.show(report)
    gate(report.to_dict(), gates)


def run(argv: Sequence[str]) -> int:
    """Run one command; the only place where errors become messages and exit codes."""
    stdout = sys.stdout
    written.clear()
    try:
        if not argv:
            argv = ["--help"]
        if not leads() and not {"-h", "--help", "--version"}.isdisjoint(argv):
            return 0
        result = app(args=list(argv), prog_name="ranp", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except GateExceeded as error:
        for line in str(error).splitlines():
            _fail(error, line, error.exit_code)
        return error.exit_code
    except RanpError as error:
        return _fail(error, str(error), error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:
            return _fail(error, f"{' '.join(usage().split())}; see ranp --help", 2)
        text = f"a bug of ranp: {type(error).__name__}: {error}; RANP_DEBUG=1 shows the traceback, please report it"
        return _fail(error, text, 1)
    finally:
        sys.stdout = stdout


def _fail(error: Exception, message: str, code: int) -> int:
    if speaks(error):
        if os.environ.get("RANP_DEBUG"):
            traceback.print_exc()
        show.show_error(message, show.console(stderr=True))
    return code
