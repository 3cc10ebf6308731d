"""`compare`: one network, many methods and sparsities; gradients once, cut many times, trained where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.contexts import labels_on_cpu, without_autocast
from ..core.errors import BadInput
from ..core.progress import Progress, silent
from ..core.spelling import spelled
from ..io.losses import loss_name
from ..pruning.initial_weights import INITS
from ..reporting.report import Report, layer_row
from ..scoring.distributed import place_in_job
from .comparison.cells import Cells, key_of
from .comparison.cutting import Cutter, Subject
from .comparison.matching import cut, full_width
from .comparison.oracle import correlations
from .comparison.over_seeds import joined, mark_best
from .comparison.result import Comparison
from .comparison.rows import DEFAULT, Table, table_of
from .comparison.times import RowTimes, check_timed
from .comparison.training import Fit, Training
from .options import (
    COMPARE,
    FitOptions,
    GradientOptions,
    InputOptions,
    LayerOptions,
    ModelOptions,
    OracleOptions,
    ProbeOptions,
    StepOptions,
)
from .probe import Probing
from .session import check_choices

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

    from .keywords import CompareKeywords


SEEDS = 3


@without_autocast
@labels_on_cpu
@COMPARE
def compare(
    model: nn.Module | str | Callable[..., nn.Module],
    batches: Any,
    *,
    sparsity: Any,
    methods: Iterable[str] = DEFAULT,
    match: str | None = None,
    width_arg: str | None = None,
    cells: str | Path | None = None,
    distributed: bool = False,
    progress: Progress = silent,
    **options: Unpack[CompareKeywords],
) -> Comparison:
    """Lay methods side by side on one network: Table 2 and Fig. 4 of the paper for your own; with `fit`, trained.

    `model` is not changed. The mini-batches are gone through once (with `fit`: once a seed); each row is then selected,
    refined on meta tensors' shapes and counted. Nothing is verified here: `prune` does that for the one that you take.

    Args:
        model: as for `prune`; or a class or function that returns the network.
        sparsity: a number, "max", a range "0.1:0.95:0.05" (both ends count), or a list of these.
        methods: `full`, `random`, `layerwise`, `flat`, `snip`, `vanilla`, `weighted`, `ranp-flops|mem|params|latency` (or `ranp-f|m|p|l`),
            `taylor`, `magnitude`, `activation`, `weight`, `obd`; with `:criterion` for another than the default, as in `vanilla:mnmg-sum`. For `snip`
            the sparsity is the share of weights that are masked. `shuffle:METHOD` keeps as many neurons in each layer as
            METHOD, but others; `width` is the same factory with a smaller `width_arg`.
        inputs: shape(s) of the input to count for, when another than that of the mini-batches: scores at a small
            spatial size, costs at a large one (section 5 of the paper).
        match: `macs`, `mem` (activations) or `params`: cut every method to at most that of the first one (Table 3).
        width_arg: an integer argument of the model's factory, for the method `width`.
        fit: `fit(model, seed)`, a function or its spec, trains a network and returns a number or a dict of numbers,
            higher is better. It gets a network of its own in training mode, on `device`, and runs under the seed.
        seeds: so many seeds from `seed` on, 3 if not said. A network that is not an `nn.Module` object is built, scored
            and cut anew under each; an object keeps its weights.
        metric: which of the numbers rows go by; the first if not said.
        init: weights that rows are trained from: `keep` (if not said), or drawn anew: `factory`, `glorot`, `orthogonal`.
        cells: a file (.jsonl) that each trained cell is appended to; it must not exist yet.
        resume: such a file of an earlier call with the same options: what it holds is not trained again.
        probe, probe_lr: train copies of the dense network and of each row's for so many steps, as `prune` does; a row then
            has the part `probe`. A fit trains them in full, and goes without.
        oracle: also remove every unit on its own, and lay the rank correlation of every criterion with the change of the loss beside
            each other: the report's part `oracle`. One forward pass a unit and mini-batch.
        oracle_scores: likewise, with what `score` returned or saved for the criterion `oracle`.
        time: also measure a forward pass of each row's network, turn by turn with the dense one; a row then has the part `speed`.
        runtime, threads: of what is timed, for `time` and for the method `ranp-latency`.
        batch_size: samples of what `time` measures.
        distributed: this process is one of torchrun's, and trains its share of the cells; all return the whole table.
        batches: as for `prune`.

    Returns: a Comparison; its report has one entry of `rows` for each method and sparsity, with `accuracy` after a fit.

    Raises: BadInput; Infeasible where nothing matches; FitsInterrupted, a KeyboardInterrupt, on Ctrl-C while cells are trained.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> table = ranp.compare(net, batch, sparsity=0.5, methods=["full", "ranp-f"])
        >>> [(row["method"], row["kept"]) for row in table.rows]
        [('full', 10), ('ranp-flops', 5)]

        table = ranp.compare("model.py:UNet3D", "calib.pt", sparsity=0.7, fit="train.py:fit", cells="cells.jsonl")

    Source: Tables 2 and 3, Fig. 4 of RANP (Xu et al., 3DV 2020).
    """
    chosen = COMPARE.read(options)
    fitted = chosen[FitOptions]
    is_trained = fitted.fit is not None
    seed = chosen[ModelOptions].seed or 0
    table = table_of(methods, sparsity, match, chosen[LayerOptions], seed, is_trained)
    subject = Subject(model, batches, table, chosen, width_arg)
    if width_arg is not None:
        full_width(subject)
    check_fit(fitted, cells, distributed, subject)
    check_timed(subject, is_trained)
    probing = Probing.of(chosen[ProbeOptions], None, None, chosen[GradientOptions])
    if probing is not None and is_trained:
        raise BadInput(
            f"{spelled('probe')}: {spelled('fit')} trains every row in full, which says more; leave one of them out"
        )
    if chosen[OracleOptions].is_wanted and (is_trained or distributed):
        raise BadInput(
            f"{spelled('oracle', True)} ranks units before anything is trained, in one process; leave out {spelled('fit')}, "
            "and start it without torchrun"
        )
    function = Fit.of(fitted.fit, fitted.metric) if is_trained else None

    report = Report("compare")
    first = Cutter(subject, seed, report)
    oracle_scores = chosen[OracleOptions].oracle_scores
    report.read(batches=batches, oracle_scores=oracle_scores)
    if chosen[OracleOptions].is_wanted:
        report.parts["oracle"] = correlations(first, oracle_scores, progress)
    if function is None:
        rows = counted(first, probing, progress)
    else:
        rows = trained(first, function, cells, distributed, progress)
    counted_for = {} if subject.at is None else {"profiled_input": subject.at.signature}
    report.parts |= {
        "model": {**first.session.model_info, **counted_for},
        "neurons": {"total": first.graph.n},
        "before": first.before,
        "layers": [layer_row(layer) for layer in first.graph.layers],
        **cut_to(table, width_arg),
        "rows": rows,
    }
    return Comparison(report)


def check_fit(fitted: FitOptions, cells: Any, distributed: bool, subject: Subject) -> None:
    """BadInput for options of a fit without one, and for those that do not go together."""
    alone = {
        "seeds": fitted.seeds,
        "metric": fitted.metric,
        "init": fitted.init,
        "cells": cells,
        "resume": fitted.resume,
    }
    given = [spelled(name) for name, value in alone.items() if value is not None]
    if fitted.fit is None:
        if given:
            raise BadInput(
                f"{given[0]} has no effect without {spelled('fit')}; give {spelled('fit', 'file.py:fit')}, or leave it out"
            )
        return
    check_choices(init=(fitted.init or "keep", INITS))
    if cells is not None and fitted.resume is not None:
        raise BadInput(f"{spelled('resume')} goes on in the file that it names; leave out {spelled('cells')}")
    if distributed and cells is None and fitted.resume is None:
        raise BadInput(f"processes share a file of cells: give {spelled('cells')}, a path that all of them see")
    if (
        subject.width_arg is not None
        and subject.options[ModelOptions].weights is not None
        and fitted.init in (None, "keep")
    ):
        raise BadInput(
            f"{spelled('weights')} do not fit a narrower network, so 'width' would start from others than the rest; give "
            f"{spelled('init')} factory, glorot or orthogonal, or leave out width"
        )


def header(cutter: Cutter, fit: str, init: str) -> dict[str, Any]:
    """What the file of cells says of them: the network, and every option that a cell's result depends on."""
    subject, table = cutter.subject, cutter.subject.table
    of_model, gradients = subject.options[ModelOptions], subject.options[GradientOptions]
    layers = subject.options[LayerOptions]
    needs_first = table.match is not None or subject.width_arg is not None
    options = {
        "--fit": fit,
        "--init": init,
        "--model-arg": subject.model_args,
        "--weights": of_model.weights,
        "--weights-key": of_model.weights_key,
        "--batch": str(subject.batches)
        if isinstance(subject.batches, (str, Path))
        else loss_name(type(subject.batches)),
        "--batches": gradients.batch_limit,
        **({} if gradients.keys is None else {"--keys": str(gradients.keys)}),
        "--loss": None if gradients.loss is None else loss_name(gradients.loss, gradients.loss_args),
        "--ignore-index": gradients.ignore_index,
        "--score-init": gradients.score_init,
        "--precision": gradients.precision,
        "--lambda": layers.lambda_in_effect,
        **({} if layers.resource_term == "layer" else {"--resource-term": layers.resource_term}),
        "--min-neurons": layers.min_neurons,
        "--keep": list(layers.keep),
        "--only": list(layers.only),
        "--input": subject.options[InputOptions].inputs,
        "--match": table.match,
        "--width-arg": subject.width_arg,
        "the first method": table.reference.name if needs_first and table.reference is not None else None,
    }
    known = {k: cutter.session.model_info[k] for k in ("spec", "args", "fingerprint")}
    return {"model": known, "options": options}


def counted(cutter: Cutter, probing: Probing | None, progress: Progress) -> list[dict[str, Any]]:
    """The rows, without a fit; each with its probe and its time, where they were asked for."""
    if probing is not None:
        cutter.source.hold = probing.plan.kept
    cutter.score(progress)
    plan = cutter.subject.table.rows
    times = RowTimes(cutter) if cutter.subject.options[StepOptions].time else None
    rows = []
    with progress("comparing", len(plan)) as advance:
        for e, level in plan:
            found = cut(cutter, e, level)
            if probing is not None:
                part = probing.run(cutter.session, found.network, cutter.source, silent)
                found.row["probe"] = {key: value for key, value in part.items() if key != "seconds"}
            if times is not None:
                times.add(found)
            rows.append(found.row)
            advance()
    if times is not None and rows:
        cutter.report.parts["speed"] = times.about(rows)
    return rows


def trained(cutter: Cutter, function: Fit, cells: Any, distributed: bool, progress: Progress) -> list[dict[str, Any]]:
    """The rows, trained by the user's fit under every seed."""
    subject, table = cutter.subject, cutter.subject.table
    fitted = subject.options[FitOptions]
    init, seed = fitted.init or "keep", cutter.seed
    run = range(seed, seed + (SEEDS if fitted.seeds is None else fitted.seeds))
    total, is_resumed = len(run) * len(table.rows), fitted.resume is not None
    file = Cells(fitted.resume or cells, header(cutter, function.name, init), is_resumed, total, distributed)
    training = Training(subject, cutter, run, function, file, init, place_in_job(distributed), cutter.session.report)
    return summed_up(training, table, training.run(progress))


def summed_up(training: Training, table: Table, metric: str) -> list[dict[str, Any]]:
    """The rows, each over the cells of all seeds; the report says how they were trained."""
    rows = []
    for e, level in table.rows:
        rows.append(joined([training.cells.held[key_of(e.name, level, seed)] for seed in training.seeds], metric))
    mark_best(rows)
    path = training.cells.path
    training.report.parts["fit"] = {
        "spec": training.fit.name,
        "metric": metric,
        "seeds": list(training.seeds),
        "init": training.init,
        **({"cells": str(path)} if path else {}),
    }
    return rows


def cut_to(table: Table, width_arg: str | None) -> dict[str, Any]:
    """The parts of the report that say what rows were cut to, beside their sparsity."""
    if table.reference is None:
        return {}
    about = {"to": table.reference.name, "resource": table.match or "macs"}
    match = {"match": about} if table.match is not None else {}
    return match | ({"width": {"argument": width_arg, **about}} if width_arg is not None else {})
