"""The commands: each is its options, one library call, one output call. torch is imported by the call."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..api.option import COST, COUNT, FAR, FROM, OUT, SHARE, SIZE, SWITCH, TEXTS, WHAT
from ..api.options import PROFILE, PRUNE, REFINE, SCORE
from ..core.atomic import what_was_written, written
from ..core.errors import (
    GateExceeded,
    Interrupted,
    RanpError,
    Stopped,
    is_out_of_memory,
    memory_advice,
    one_line,
    shortened,
)
from ..core.job import job
from ..core.spelling import spelling
from ..costs.budget import gate, limit
from ..integrations.named import has_batches, output_suffixes
from ..reporting import show
from .arguments import (
    BATCH,
    CONFIG,
    CRITERION,
    HTML,
    INIT,
    INPUT,
    JSON,
    MODEL,
    OUTPUT,
    PLOT,
    QUIET,
    Argument,
    Command,
    own,
)
from .compare_command import COMPARE_COMMAND
from .flags import FlagSpelling
from .invocation import Commands, Run
from .process import (
    begin,
    is_main_process,
    launched,
    mute,
    should_report,
    signal_came,
    stopped_by,
)

app = typer.Typer(
    cls=Commands,
    name="ranp",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Make 3D CNNs small before they are trained (RANP, arXiv:2010.02488).\n\n"
    "Score every neuron on a calibration batch, remove the least important ones for real, prove the result.\n\n"
    "Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors",
)

SUFFIXES = (".safetensors", ".onnx", ".pt", ".pt2")
GATES = ("macs", "params", "forward-mem", "train-mem")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and leave", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"ranp {__version__}")
        raise typer.Exit()


# -- score

SCORE_COMMAND = Command(
    "score",
    "Score every neuron from gradients on a calibration batch; prune --scores then needs none.",
    "Example: ranp score model.py:UNet3D --batch calib.pt -o scores.safetensors",
    arguments=[Argument("model", "MODEL", MODEL)],
    library=[
        CRITERION,
        own("also show what these scores alone would keep at X", FAR, "--sparsity", kind=SHARE, metavar="X"),
        own("go on from what an earlier ranp score wrote", FROM, "--resume", metavar="FILE"),
        *SCORE.options,
    ],
    others=[
        BATCH,
        own("scores.safetensors", OUT, "-o", "--output", kind=TEXTS, metavar="FILE", default=()),
        PLOT,
        CONFIG,
        JSON,
        QUIET,
    ],
)


@SCORE_COMMAND.on(app)
def score(given: dict[str, Any]) -> None:
    run = Run(SCORE_COMMAND, given)
    run.need("model")
    if not has_batches(run["model"]):
        run.need("batch")
    import ranp_cli as ranp

    kept_in = run["output"][0] if run["output"] else None
    with run.outputs((".safetensors",)):
        try:
            scores = ranp.score(
                run["model"],
                run["batch"],
                distributed=launched(),
                progress=run.progress,
                kept_in=kept_in,
                **run.keywords(),
            )
        except Interrupted as stopped:
            name, code = stopped_by()
            if is_main_process():
                for path in run["output"]:
                    stopped.scores.keep(path)
            where = (
                f"written to {kept_in}: go on with --resume {kept_in}" if kept_in else "not written: there was no -o"
            )
            raise Stopped(f"stopped by {name}; the scores of {stopped.what} were {where}", code) from None
        if is_main_process():
            for path in run["output"]:
                scores.save(path)
            run.draw(scores)
            run.documents(scores.report)
    if is_main_process():
        run.show(scores.report)


# -- prune

PRUNE_COMMAND = Command(
    "prune",
    "Remove the least important neurons, prove the slim network and write it.",
    "Example: ranp prune model.py:UNet3D --batch calib.pt --sparsity 0.78 --resource mem -o slim.safetensors",
    arguments=[Argument("model", "MODEL", MODEL)],
    library=[
        own("what ranp score wrote, instead of --batch", FROM, "--scores", metavar="FILE"),
        own(
            "fraction of neurons to remove, in [0, 1), or max; of weights for --method snip",
            FAR,
            "--sparsity",
            kind=SHARE,
            metavar="X|max",
        ),
        own(
            "instead of --sparsity, the largest network with at most: macs=40G, flops=, params=10%, forward-mem=300MiB, "
            "train-mem=8GiB, latency=20ms or 50% (a forward pass, measured), step-time= (a training step, likewise; repeatable)",
            FAR,
            "--budget",
            kind=TEXTS,
            metavar="K=V",
            default=(),
        ),
        own("take it when much less than asked can be removed", FAR, "--allow-less", kind=SWITCH),
        own("an op without a rule is an error", WHAT, "--strict", kind=SWITCH),
        INIT,
        *PRUNE.options,
    ],
    others=[
        BATCH,
        OUTPUT,
        own("where mask.json goes; none: nowhere", OUT, "--mask", metavar="FILE|none", says="beside the first -o"),
        PLOT,
        HTML,
        CONFIG,
        JSON,
        QUIET,
    ],
)


@PRUNE_COMMAND.on(app)
def prune(given: dict[str, Any]) -> None:
    run = Run(PRUNE_COMMAND, given, outputs={"mask"})
    run.need("model")
    import ranp_cli as ranp

    with run.outputs((*SUFFIXES, *output_suffixes(run["model"]))):
        result = ranp.prune(run["model"], run["batch"], progress=run.progress, **run.keywords())
        run.write(result)
        run.draw(result)
        run.documents(result.report)
    run.show(result.report)


# -- refine

REFINE_COMMAND = Command(
    "refine",
    "Build the slim network from a mask, prove it and write it.",
    "Example: ranp refine model.py:UNet3D --mask mask.json --init glorot -o slim.safetensors",
    arguments=[Argument("model", "MODEL", "file.py:Name, package.module:Name, or nnU-Net's plans")],
    library=[
        own(
            "the mask is of the same architecture with other input channels or classes", FROM, "--transfer", kind=SWITCH
        ),
        INIT,
        *REFINE.options,
    ],
    others=[
        own("mask.json, as ranp prune writes it", FROM, "--mask", metavar="FILE"),
        OUTPUT,
        CONFIG,
        JSON,
        QUIET,
    ],
    defaults={"seed": None},  # the one that the mask records
)


@REFINE_COMMAND.on(app)
def refine(given: dict[str, Any]) -> None:
    run = Run(REFINE_COMMAND, given)
    run.need("model", "mask")
    import ranp_cli as ranp

    with run.outputs((*SUFFIXES, *output_suffixes(run["model"]))):
        result = ranp.refine(run["model"], run["mask"], full=True, **{"seed": None, **run.keywords()})
        run.write(result)
        run.documents(result.report)
    run.show(result.report)


COMPARE_COMMAND.add_to(app)


# -- profile

PROFILE_COMMAND = Command(
    "profile",
    "Count parameters, multiply-adds, FLOPs and memory of one or two networks, without running them (but for --time).",
    "Example: ranp profile model.py:UNet3D slim.safetensors",
    arguments=[
        Argument(
            "model",
            "MODEL",
            "file.py:Name, package.module:Name, TorchScript or nnU-Net's plans (code, which runs), "
            "slim.safetensors or .onnx (read only)",
        ),
        Argument("model2", "[MODEL2]", "a second one, to lay beside it"),
    ],
    library=[
        INPUT,
        own(
            "the module tree instead of the layers: what each module and all below it cost, and save for the backward pass",
            OUT,
            "--tree",
            kind=SWITCH,
        ),
        own(
            "the dense network of a slim file (file.py:Name), for what needs its code: another --input, --tree, --time, "
            "--optimizer, --batch-size, --amp",
            WHAT,
            "--model",
            metavar="SPEC",
        ),
        *PROFILE.options,
    ],
    others=[
        *(
            own(f"a gate: exit code 5 when there is more, as {example}", COST, f"--max-{kind}", kind=SIZE, metavar="V")
            for kind, example in zip(GATES, ("40G", "5M", "300MiB", "8GiB"), strict=True)
        ),
        own(
            "sum up layers (or the tree) below N levels of modules; 0: no layers",
            OUT,
            "--depth",
            kind=COUNT,
            metavar="N",
        ),
        HTML,
        CONFIG,
        JSON,
        QUIET,
    ],
)


@PROFILE_COMMAND.on(app)
def profile(given: dict[str, Any]) -> None:
    run = Run(PROFILE_COMMAND, given)
    run.need("model")
    limits = {kind: run[f"max_{kind.replace('-', '_')}"] for kind in GATES}
    gates = [limit(k, text, False, f"--max-{k} {text}") for k, text in limits.items() if text is not None]
    import ranp_cli as ranp

    with run.outputs(()):
        report = ranp.profile(run["model"], other=run["model2"], **run.keywords())
        run.documents(report)
    run.show(report)
    gate(report.to_dict(), gates)


# -- the door


def run(argv: Sequence[str]) -> int:
    """Run one command, whose messages name options as flags; its exit code."""
    with spelling(FlagSpelling()):
        return _exit_code_of(argv)


def _exit_code_of(argv: Sequence[str]) -> int:
    """Run one command; the only place where errors become messages and exit codes."""
    stdout = sys.stdout
    written.clear()
    begin()
    try:
        job()
        if not argv:
            argv = ["--help"]
        if not is_main_process() and not {"-h", "--help", "--version"}.isdisjoint(argv):
            return 0
        if "_RANP_COMPLETE" in os.environ:  # a shell asks what could stand next; it gives no arguments
            argv = []
        result = app(args=list(argv), prog_name="ranp", standalone_mode=False)
        stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except BrokenPipeError:  # of --help: the reader has seen enough
        mute(1)
        return 0
    except Exception as error:
        if signal_came() and not isinstance(error, Stopped):  # what fails now may fail of the signal
            name, code = stopped_by()
            return _fail(Stopped(f"stopped by {name}", code), f"stopped by {name}; {what_was_written()}", code)
        if isinstance(error, GateExceeded):
            return max(_fail(error, line, error.exit_code) for line in str(error).splitlines())
        if isinstance(error, RanpError):
            return _fail(error, str(error), error.exit_code)
        usage = getattr(error, "format_message", None)
        if usage is not None:
            return _fail(error, f"{shortened(' '.join(usage().split()), 250)}; see ranp --help", 2)
        if isinstance(error, OSError) and _is_of_stdout(error):
            mute(1)
            return _fail(error, f"cannot write to stdout: {error.strerror}; give another stdout", 2)
        if is_out_of_memory(error):
            return _fail(error, memory_advice(error), 2)
        text = f"a bug of ranp: {one_line(error)}; RANP_DEBUG=1 shows the traceback, please report it"
        return _fail(error, text, 1)
    finally:
        sys.stdout = stdout


def _is_of_stdout(error: OSError) -> bool:
    """Whether writing the help or the version failed, which typer does itself: such an error names no file."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EBADF, errno.EIO)


def _fail(error: Exception, message: str, code: int) -> int:
    if should_report(error):
        try:
            if os.environ.get("RANP_DEBUG"):
                traceback.print_exception(error)
            show.show_error(message, show.console(stderr=True))
            sys.stderr.flush()
        except OSError:  # nobody hears it; the exit code says the same
            mute(2)
    return code
