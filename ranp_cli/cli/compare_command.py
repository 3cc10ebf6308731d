"""`ranp compare`: the table of methods, counted or trained, on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import BadInput, FitsInterrupted, Stopped
from .arguments import (
    WAY,
    Batch,
    BatchLimit,
    Config,
    Device,
    IgnoreIndex,
    Json,
    Keep,
    Lambda,
    Loss,
    LowMemory,
    MemoryLimit,
    MinNeurons,
    ModelArg,
    Only,
    Plot,
    Precision,
    Probe,
    ProbeLr,
    Quiet,
    ScoreInit,
    Seed,
    Strs,
    Weights,
    WeightsKey,
)
from .options import Options, shapes
from .process import launched, leads, stopped_by

EXAMPLE = "Example: ranp compare model.py:UNet3D --batch calib.pt --sparsity 0.1:0.9:0.2 --csv table.csv"
OF_FIT = ("fit", "seeds", "metric", "init", "resume")


def compare(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="file.py:Name, package.module:Name, or a TorchScript file")] = None,
    batch: Batch = None,
    sparsity: Annotated[Strs, typer.Option("--sparsity", metavar="X", help="a number in [0, 1), max, or from:to:step (repeatable)")] = None,
    methods: Annotated[Strs, typer.Option("--methods", metavar="M,...", help="full, snip, random, layerwise, vanilla, weighted, ranp-mem, ranp-flops (these by default), flat, ranp-params, ranp-latency, taylor, magnitude; vanilla:mnmg-sum for another criterion; shuffle:METHOD, its counts with other neurons; width, see --width-arg")] = None,
    match: Annotated[str | None, typer.Option("--match", metavar="R", help="cut every method to at most the macs|mem|params of the first one")] = None,
    width_arg: Annotated[str | None, typer.Option("--width-arg", metavar="NAME", help="for --methods width: the integer argument of the factory that makes it narrower")] = None,
    fit: Annotated[str | None, typer.Option("--fit", metavar="F", help="file.py:fit, called as fit(model, seed): train every row and return its accuracy, or a dict of numbers")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", metavar="N", help="train under N seeds from --seed on  [default: 3]")] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="NAME", help="which number of fit's dict rows go by  [default: the first]")] = None,
    init: Annotated[str | None, typer.Option("--init", metavar="I", help="weights that rows are trained from: keep|factory|glorot|orthogonal  [default: keep]")] = None,
    output: Annotated[Strs, typer.Option("-o", "--output", metavar="FILE", help="where trained cells are kept as they end: .jsonl  [default: MODEL's name with .cells.jsonl]")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="FILE", help="go on with the cells of an earlier ranp compare --fit")] = None,
    input_: Annotated[Strs, typer.Option("--input", metavar="SHAPE", help="count for this shape of input, not that of the batch (repeatable)")] = None,
    lambda_: Lambda = None, min_neurons: MinNeurons = None, keep: Keep = None, only: Only = None, score_init: ScoreInit = None,
    loss: Loss = None, ignore_index: IgnoreIndex = None, batches: BatchLimit = None, model_arg: ModelArg = None,
    weights: Weights = None, weights_key: WeightsKey = None, seed: Seed = None, device: Device = None,
    precision: Precision = None, low_memory: LowMemory = None, memory_limit: MemoryLimit = None,
    probe: Probe = None, probe_lr: ProbeLr = None,
    csv: Annotated[str | None, typer.Option("--csv", metavar="PATH|-", help="write the rows as CSV; - for stdout")] = None,
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="PATH|-", help="write the rows as Markdown; - for stdout")] = None,
    plot: Plot = None, config: Config = None, json_: Json = None, quiet: Quiet = None,
) -> None:  # fmt: skip
    """Lay the methods side by side on your network: gradients once, cut at every method and sparsity, trained with --fit."""
    defaults = {"sparsity": [], "methods": [], "input_": [], "output": [], "lambda_": 11.0, "min_neurons": "auto", "keep": [],
                "only": [], "score_init": "keep", **WAY}  # fmt: skip
    o = Options("compare", locals(), defaults, outputs={"csv", "markdown"})
    o.need("model", "batch", "sparsity")
    o.check_outputs((".jsonl",))
    import ranp_cli as ranp

    from ..api.comparison.rows import DEFAULT

    same = {
        k: o[k]
        for k in (
            "sparsity",
            "lambda_",
            "min_neurons",
            "keep",
            "only",
            "score_init",
            "match",
            "width_arg",
            "probe",
            "probe_lr",
            *OF_FIT,
        )
    }
    chosen = [name.strip() for text in o["methods"] for name in str(text).split(",")]
    try:
        result = ranp.compare(o["model"], o["batch"], methods=chosen or DEFAULT, inputs=shapes(o["input_"]), cells=file_of_cells(o),
                              **same, distributed=launched(), progress=o.progress, **o.scoring())  # fmt: skip
    except FitsInterrupted as stopped:
        name, code = stopped_by()
        kept = f"{stopped.kept} of {stopped.total} cells are kept in {stopped.path}: go on with --resume {stopped.path}"
        raise Stopped(f"stopped by {name}; {kept if stopped.kept else 'no cell was trained so far'}", code) from None
    if leads():
        o.draw(result)
        o.show(result.report, csv=result.csv(), markdown=result.markdown())


def file_of_cells(o: Any) -> str | None:
    """Where the cells of --fit are kept: -o, or a name made of the model's; None where --resume names it, or without --fit."""
    if len(o["output"]) > 1:
        raise BadInput("-o: the cells lie in one file; give one name")
    if o["output"]:
        return str(o["output"][0])
    if not o["fit"] or o["resume"]:
        return None
    target = str(o["model"]).rpartition(":")[0] or str(o["model"])
    path = Path(target)
    return f"{path.stem if path.suffix in SOURCES else target.rpartition('.')[2]}.cells.jsonl"


SOURCES = (".py", ".pt", ".pth", ".ts")
