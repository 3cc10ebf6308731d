"""`ranp compare`: the table of methods, counted or trained, on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..api.option import FAR, OUT, RANK, SHARES, TEXTS, WHAT
from ..api.options import COMPARE
from ..core.errors import BadInput, FitsInterrupted, Stopped
from .arguments import BATCH, CONFIG, JSON, MODEL, PLOT, QUIET, Argument, Command, own
from .invocation import Run
from .process import is_main_process, launched, stopped_by

SOURCES = (".py", ".pt", ".pth", ".ts")
COMPARE_COMMAND = Command(
    "compare",
    "Lay the methods side by side on your network: gradients once, cut at every method and sparsity, trained with --fit.",
    "Example: ranp compare model.py:UNet3D --batch calib.pt --sparsity 0.1:0.9:0.2 --csv table.csv",
    arguments=[Argument("model", "MODEL", MODEL)],
    library=[
        own(
            "a number in [0, 1), max, or from:to:step (repeatable)",
            FAR,
            "--sparsity",
            kind=SHARES,
            metavar="X",
            default=(),
        ),
        own("cut every method to at most the macs|mem|params of the first one", FAR, "--match", metavar="R"),
        own(
            "for --methods width: the integer argument of the factory that makes it narrower",
            WHAT,
            "--width-arg",
            metavar="NAME",
        ),
        *COMPARE.options,
    ],
    others=[
        BATCH,
        own(
            "full, snip, random, layerwise, vanilla, weighted, ranp-mem, ranp-flops (these by default), flat, ranp-params, "
            "ranp-latency, taylor, magnitude, activation, weight, obd; vanilla:mnmg-sum for another criterion; shuffle:METHOD, "
            "its counts with other neurons; width, see --width-arg",
            RANK,
            "--methods",
            kind=TEXTS,
            metavar="M,...",
            default=(),
        ),
        replace(
            own(
                "where trained cells are kept as they end: .jsonl",
                OUT,
                "-o",
                "--output",
                kind=TEXTS,
                metavar="FILE",
                default=(),
                says="MODEL's name with .cells.jsonl",
            ),
            keyword="cells",
        ),
        own("write the rows as CSV; - for stdout", OUT, "--csv", metavar="PATH|-"),
        own("write the rows as Markdown; - for stdout", OUT, "--markdown", metavar="PATH|-"),
        PLOT,
        CONFIG,
        JSON,
        QUIET,
    ],
)


@COMPARE_COMMAND.runs
def compare(given: dict[str, Any]) -> None:
    run = Run(COMPARE_COMMAND, given, outputs={"csv", "markdown"})
    run.need("model", "batch", "sparsity")
    import ranp_cli as ranp

    from ..api.comparison.rows import DEFAULT

    methods = [name.strip() for text in run["methods"] for name in str(text).split(",")]
    with run.outputs((".jsonl",)):
        try:
            result = ranp.compare(
                run["model"],
                run["batch"],
                methods=methods or DEFAULT,
                cells=file_of_cells(run),
                distributed=launched(),
                progress=run.progress,
                **run.keywords(),
            )
        except FitsInterrupted as stopped:
            name, code = stopped_by()
            kept = f"{stopped.kept} of {stopped.total} cells are kept in {stopped.path}: go on with --resume {stopped.path}"
            raise Stopped(
                f"stopped by {name}; {kept if stopped.kept else 'no cell was trained so far'}", code
            ) from None
        if is_main_process():
            texts = {"csv": result.csv(), "markdown": result.markdown()}
            run.draw(result)
            run.documents(result.report, **texts)
    if is_main_process():
        run.show(result.report, **texts)


def file_of_cells(run: Run) -> str | None:
    """Where the cells of --fit are kept: -o, or a name made of the model's; None where --resume names it, or without --fit."""
    if len(run["output"]) > 1:
        raise BadInput("-o: the cells lie in one file; give one name")
    if run["output"]:
        return str(run["output"][0])
    if not run["fit"] or run["resume"]:
        return None
    target = str(run["model"]).rpartition(":")[0] or str(run["model"])
    path = Path(target)
    return f"{path.stem if path.suffix in SOURCES else target.rpartition('.')[2]}.cells.jsonl"
