"""The command line: a command is its options, one library call, one output call. torch is imported by the call."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from . import __version__, show
from .budget import gate, limit
from .checkpoint import written
from .errors import GateExceeded, Interrupted, RanpError, Stopped
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
    typer.Option(
        "--criterion",
        metavar="C",
        help="mpmg-sum|mean|max, mnmg-sum|mean|max, neuron, taylor, snip, l1, l2  [default: mpmg-sum, or the method's own]",
    ),
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

ScoreInit = Annotated[
    str | None,
    typer.Option(
        "--score-init", metavar="I", help="weights that are scored: keep|factory|glorot|orthogonal  [default: keep]"
    ),
]
MinNeurons = Annotated[
    int | None, typer.Option("--min-neurons", metavar="N", help="each layer keeps its best N  [default: 1]")
]
Keep = Annotated[Strs, typer.Option("--keep", metavar="GLOB", help="layers never pruned (repeatable)")]
Only = Annotated[Strs, typer.Option("--only", metavar="GLOB", help="prune these layers only (repeatable)")]
Lambda = Annotated[float | None, typer.Option("--lambda", metavar="X", help="weight of the resource  [default: 11]")]

Plot = Annotated[
    Strs,
    typer.Option("--plot", metavar="FILE", help="a picture: .png, .svg or .pdf (needs the extra plot; repeatable)"),
]

Html = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="the report as one page: no scripts, nothing from elsewhere"),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="O", help="of the training step: sgd|sgd-momentum|adam|adamw  [default: sgd]"),
]
Amp = Annotated[
    bool | None,
    typer.Option(
        "--amp", help="memory in mixed precision: weights in 32 bits, what autocast casts on the device in 16"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", help="samples of the training step, and of what is timed  [default: the input's]"
    ),
]
Time = Annotated[
    bool | None,
    typer.Option("--time", help="run the networks too, and say how fast they are: dense and slim turn by turn"),
]

Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="of the gradients: model, fp32, fp64, bf16, fp16, or auto: bf16 if the mask is that of fp32  [default: model]",
    ),
]
LowMemory = Annotated[
    bool | None, typer.Option("--low-memory", help="score with activations computed twice instead of kept")
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", metavar="V", help="likewise, as little as keeps to it, as 6GiB")
]

SUFFIXES = (".safetensors", ".onnx", ".pt", ".pt2")
WAY = {"precision": "model", "low_memory": False}  # in which gradients are computed


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
    probe: Annotated[int | None, typer.Option("--probe", metavar="N", help="train copies of both networks for N steps on the batch, with --optimizer or else adam, and say whether the slim one keeps up; 200 tells well")] = None,
    probe_lr: Annotated[float | None, typer.Option("--probe-lr", metavar="X", help="learning rate of --probe  [default: adam, adamw 3e-3, sgd 0.05, sgd-momentum 0.01]")] = None,
    init: Init = None, score_init: ScoreInit = None, loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None,
    weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    strict: Annotated[bool | None, typer.Option("--strict", help="an op without a rule is an error")] = None,
    allow_less: Annotated[bool | None, typer.Option("--allow-less", help="take it when much less than asked can be removed")] = None,
    precision: Precision = None, low_memory: LowMemory = None, memory_limit: MemoryLimit = None,
    plot: Plot = None, html: Html = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Remove the least important neurons, prove the slim network and write it."""
    given = locals()
    defaults = {"output": [], "resource": "flops", "lambda_": 11.0, "method": "ranp", "min_neurons": 1,
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


@app.command(epilog="Example: ranp compare model.py:UNet3D --batch calib.pt --sparsity 0.1:0.9:0.2 --csv table.csv")
def compare(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")] = None,
    batch: Batch = None,
    sparsity: Annotated[Strs, typer.Option("--sparsity", metavar="X", help="a number in [0, 1), max, or from:to:step (repeatable)")] = None,
    methods: Annotated[Strs, typer.Option("--methods", metavar="M,...", help="full, snip, random, layerwise, vanilla, weighted, ranp-mem, ranp-flops (these by default), flat, ranp-params, ranp-latency, taylor, magnitude; vanilla:mnmg-sum for another criterion")] = None,
    input_: Annotated[Strs, typer.Option("--input", metavar="SHAPE", help="count for this shape of input, not that of the batch (repeatable)")] = None,
    lambda_: Lambda = None, min_neurons: MinNeurons = None, keep: Keep = None, only: Only = None, score_init: ScoreInit = None,
    loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None,
    weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    precision: Precision = None, low_memory: LowMemory = None, memory_limit: MemoryLimit = None,
    csv: Annotated[str | None, typer.Option("--csv", metavar="PATH|-", help="write the rows as CSV; - for stdout")] = None,
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="PATH|-", help="write the rows as Markdown; - for stdout")] = None,
    plot: Plot = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Lay the methods side by side on your network: gradients once, cut at every method and sparsity."""
    defaults = {
        "sparsity": [],
        "methods": [],
        "input_": [],
        "lambda_": 11.0,
        "min_neurons": 1,
        "keep": [],
        "only": [],
        "score_init": "keep",
        **WAY,
    }
    o = Options("compare", locals(), defaults, outputs={"csv", "markdown"})
    o.need("model", "batch", "sparsity")
    o.check_outputs(())
    import ranp_cli as ranp
    from ranp_cli.comparison import DEFAULT

    same = {k: o[k] for k in ("sparsity", "lambda_", "min_neurons", "keep", "only", "score_init")}
    chosen = [name.strip() for text in o["methods"] for name in str(text).split(",")]
    result = ranp.compare(o["model"], o["batch"], methods=chosen or DEFAULT, inputs=shapes(o["input_"]), **same,
                          progress=o.progress, **o.scoring())  # fmt: skip
    o.draw(result)
    o.show(result.report, csv=result.csv(), markdown=result.markdown())


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
