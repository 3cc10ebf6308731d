"""`prune`: score, select, refine, verify, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..core.contexts import labels_on_cpu, without_autocast
from ..core.errors import BadInput
from ..core.example import Example
from ..core.progress import Progress, silent
from ..core.spelling import spelled
from ..costs.budget import costs_of
from ..costs.faster_ways import recommended
from ..costs.memory import check_optimizer
from ..costs.runtime_names import runtime_of
from ..costs.timing import Benchmark, Ground
from ..graph.graph import Graph
from ..pruning.held_back import held_back
from ..pruning.initial_weights import INITS
from ..pruning.layer_costs import reweighting
from ..pruning.mask import Mask
from ..pruning.min_neurons import AUTO
from ..pruning.select import Selection
from ..reporting.report import Report, not_pruned
from ..scoring.setup import Importance
from ..scoring.zero_scores import SAID, keep_whole
from .budget_search import Races
from .build_report import add_memory, build_pruned
from .costing import Costing
from .goal import Goal
from .importances import gradient_setup, importances, report_scoring
from .layer_times import layer_seconds, read_latencies
from .options import (
    PRUNE,
    GradientOptions,
    InputOptions,
    LayerOptions,
    MethodOptions,
    ModelOptions,
    ProbeOptions,
    RoundOptions,
    StepOptions,
)
from .other_paths import keep_for_later, try_paths
from .probe import Probing
from .projects import complete, project_of
from .ranking import Ranking, agreement_of
from .results import Pruned, Scores
from .round_to import reach_rounded
from .rounds import check_goes_together, prune_in_rounds
from .session import Session, check_choices, first_batch
from .shortfall import check_enough, less_than_asked, not_rounded
from .trainability import trainability

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..io.batches import Batches
    from .function_keywords import Chosen
    from .keywords import PruneKeywords


@without_autocast
@labels_on_cpu
@PRUNE
def prune(
    model: nn.Module | str,
    batches: Any = None,
    *,
    scores: Scores | str | Path | None = None,
    sparsity: float | str | None = None,
    budget: Any = (),
    init: str = "keep",
    strict: bool = False,
    allow_less: bool = False,
    progress: Progress = silent,
    **options: Unpack[PruneKeywords],
) -> Pruned:
    """Remove the least important neurons of `model`.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D`, nnU-Net's plans (`nnUNetPlans.json`,
            `501:3d_fullres`), or a bundle of MONAI's (its folder or config, `train.json#net_id`).
        batches: mini-batches of `(input, target)`, input of shape (N, C, D, H, W) or what the model takes; those of the
            plans or the bundle where they are the model.
        scores: what `score` returned or saved, instead of `batches`.
        sparsity: fraction of neurons to remove, in [0, 1), or "max": the largest at which no layer needs a floor.
        resource: `flops`, `mem`, `params`, `latency` or `none`: what a layer's neurons are reweighted by. `latency` is
            measured on `device`, so it is never the same twice.
        latencies: what was measured before, instead: a mask made so, its path, or `{layer: seconds}`; with a budget of latency
            a table of times, as a file of ranp's cache folder is, or its path.
        lambda_: weight of the resource term; 11 ShapeNet, 15 BraTS, 80 UCF101.
        resource_term: `layer`, a factor on the scores of a layer by its whole cost (eq. 10), or `unit`: the unit of the lowest
            score - lambda * cost goes first, its cost being what its removal saves now, and the costs are taken anew.
            Scores and costs are divided by their means, so `lambda_` (1 by default) has one meaning for all networks.
        method: `ranp`, `weighted`, `vanilla`, `random`, `layerwise`, `flat`, `snip` (the share is then one of weights), `taylor`,
            `magnitude`, `activation`, `weight` or `obd`.
        criterion: as for `score`; by default the one that the method goes by.
        min_neurons: the fewest neurons that each layer keeps, its best ones: a number (1 is the paper's rule), or "auto":
            12, and no more than 0.6 of its share if all layers were cut to the same width.
        keep, only: globs of layer names that are never pruned / that alone are pruned.
        budget: instead of `sparsity`: `["macs=40G", "train-mem=8GiB", ...]` or `{"params": "10%"}`; the largest network
            that meets all of `macs`, `flops`, `params`, `forward-mem`, `train-mem`, `latency` (`20ms`, of a forward pass,
            measured on `device`) and `step-time` (of a training step, likewise). A share is of the dense network.
        round_to: each layer keeps a multiple of so many neurons, where its units allow. "auto": the network is cut with multiples
            of 1, 4, 8 and 16, these are timed turn by turn in `runtime`, and the fastest is taken, or under a limit of time
            the one that keeps the most importance; no rounding where it gains no more than the noise.
        optimizer, batch_size: of the training step whose memory is estimated, and of what is timed (with the optimiser's own
            step where it is given); by default the
            batch's own size. Optimiser: `sgd`, `sgd-momentum`, `adam` or `adamw`; by default sgd, and adam for the probe.
        time: also measure how fast both networks are, and whether the slim one gains by channels last or autocast in bf16 here.
        inputs: shape(s) of the input to count, budget and estimate memory for, when another than that of the batches: score
            at a small spatial size, train at a large one. What is kept at a given sparsity does not depend on it.
        amp: the memory is that of 16-bit autocast on the device.
        init: weights of the slim network: `keep`, or drawn anew: `factory`, `glorot`, `orthogonal`.
        score_init: weights that are scored, likewise; the slim network keeps them.
        precision, low_memory, memory_limit: of the gradients, as for `score`.
        probe: train copies of both networks for so many steps on the first mini-batches, and report how far each loss
            falls; `probe_lr`: with this learning rate. See `ranp_cli.probe.probe`.
        rounds: remove in so many rounds, each followed by fine-tuning, as for a trained network (Molchanov et al., ICLR 2017);
            each takes the same share of what is there. The result has the fine-tuned weights, the report a row a round.
        updates, lr: of the fine-tuning after each round: so many updates on `batches` with `optimizer`, `adam` by default.
        fit, metric: a function `fit(model, seed)`, or its spec, that fine-tunes instead and returns an accuracy, or a dict of them.
        checkpoint: a file that is written after each round; a call with the same options goes on from it.
        strict: an op without a rule is an error instead of fixing its channels.
        allow_less: do not raise when much less than `sparsity` could be removed.

    Returns: Pruned, with `.model` (the slim module, of the same class), `.mask` and `.report`.

    Raises: BadInput; Infeasible when much less than asked can be removed; VerificationFailed when slim is not masked.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> ranp.prune(net, batch, sparsity=0.5).model[0].out_channels
        3

    Source: eq. 6-11 of RANP (Xu et al., 3DV 2020).
    """
    chosen = PRUNE.read(options)
    goal = Goal.of(sparsity, budget, chosen[MethodOptions].method)
    project = project_of(model, chosen[ModelOptions])
    check_options(batches, scores, init, chosen, has_batches=project is not None)
    check_goes_together(goal, chosen, scores, init)
    batches, chosen = complete(project, batches, scores, chosen)
    probing = Probing.of(chosen[ProbeOptions], chosen[StepOptions].optimizer, scores, chosen[GradientOptions])

    session = Session.open(Report("prune"), model, chosen[ModelOptions], project=project)
    session.report.read(batches=batches, scores=scores)
    if chosen[RoundOptions].rounds is not None:
        return prune_in_rounds(session, batches, goal, chosen, strict, allow_less, progress)
    ground = ground_of(session.device, chosen, goal)
    costing = Costing.of(session, chosen[InputOptions].inputs, chosen[StepOptions])  # it may not take the input
    known_scores = None if scores is None else Scores.of(scores).check_network(session, chosen[MethodOptions].criterion)
    criterion = chosen[MethodOptions].criterion if known_scores is None else known_scores.criterion
    ranking = Ranking.of(replace(chosen[MethodOptions], criterion=criterion), chosen[LayerOptions], session.seed)
    latencies, costing.table = read_latencies(chosen[MethodOptions].latencies, ranking, goal, ground)
    if known_scores is not None:
        source, score_init = None, known_scores.about.get("score_init", "keep")
        graph, importance = restore_scores(session, known_scores, strict)
    else:
        source, score_init = None, chosen[GradientOptions].score_init
        source, graph, importance = take_scores(session, batches, ranking, goal, chosen, strict, probing, progress)
    graph.fix_layers(chosen[LayerOptions].keep, chosen[LayerOptions].only)
    keep_whole(graph, importance.not_ranked)
    if ranking.resource == "latency":
        latencies = layer_seconds(session, graph, latencies, ground, progress)
    costing.use(graph)
    stand = stand_of(costing, ground, goal, ranking)
    refined, races, ranking = reach_rounded(goal, session, graph, ranking, importance.scores, costing, stand, progress)

    method = method_info(ranking, init, importance, score_init, chosen, latencies, goal)
    mask = mask_of(session, graph, refined.selection, method)
    causes = held_back(graph, refined.selection)
    if not allow_less and not goal.limits:
        check_enough(refined.selection, mask, ranking.method == "snip", causes)
    pruned = build_pruned(session, graph, mask, refined, init, costing)
    try_paths(session, graph, refined.model, source)
    mask.name_run(pruned.model)
    add_memory(session, refined.model, costing)
    add_speed(session, refined.model, stand, races, chosen[StepOptions].time)
    add_outcome(session, graph, goal, refined.selection, costing, mask, causes)
    pruned.rankings = add_ranking(session.report, graph, ranking, importance)
    if probing is not None and source is not None:
        probing.report(session, refined.model, source, progress)
    return pruned


def mask_of(session: Session, graph: Graph, selection: Selection, method: dict[str, Any]) -> Mask:
    return Mask.from_units(
        graph,
        selection.keep,
        model=session.model_info,
        requested=selection.requested,
        floored=selection.floored,
        method=method,
    )


def add_outcome(
    session: Session,
    graph: Graph,
    goal: Goal,
    selection: Selection,
    costing: Costing,
    mask: Mask,
    causes: list[dict[str, Any]],
) -> None:
    """Write to the report whether limits are met, what was not pruned and why, and what the slim network needs to learn."""
    parts = session.report.parts
    if goal.limits:
        parts["budget"] = goal.rows(costs_of(parts, "before"), costs_of(parts, "after"))
    parts["not_pruned"] = not_pruned(graph, selection.keep)
    parts |= trainability(session, graph, selection, costing)
    parts["held_back"] = causes
    session.note(
        *less_than_asked(selection, mask, causes), *not_rounded(graph, selection, mask.method.get("round_to", 1))
    )


def ground_of(device: torch.device, chosen: Chosen, goal: Goal) -> Ground:
    """What is timed on; BadInput for a choice of it where nothing is timed."""
    step, method = chosen[StepOptions], chosen[MethodOptions]
    step.check_timed(
        step.time
        or goal.is_timed
        or method.round_to == AUTO
        or (method.resource == "latency" and method.latencies is None),
        f"{spelled('time', True)}, {spelled('resource', 'latency')} or {spelled('budget', 'latency=20ms')}",
    )
    return Ground(device, runtime_of(step.runtime), step.threads)


def stand_of(costing: Costing, ground: Ground, goal: Goal, ranking: Ranking) -> Benchmark | None:
    """Where networks are timed; None where none is."""
    if not (costing.options.time or goal.is_timed or ranking.finds_rounding):
        return None
    return Benchmark(costing.sample, ground, costing.options.optimizer)


def add_speed(session: Session, slim: nn.Module, stand: Benchmark | None, races: Races, training: bool) -> None:
    """Write to the report how fast both networks are, on a `stand`; `races` has what was raced for a budget.

    With `training` (--time) a training step is timed in any case, and ways to run the slim network faster are tried.
    ."""
    if stand is None:
        return
    parts = session.report.parts
    with session.report.timing("time"):
        macs = [parts[side]["macs"] for side in ("before", "after")]
        parts["speed"] = stand.pair(session.model, slim, races, macs, training=training)
        if training and (found := recommended(stand, slim)):
            parts["speed"]["recommended"] = found


def check_options(batches: Any, scores: Any, init: str, chosen: Chosen, has_batches: bool = False) -> None:
    """BadInput for choices that there are not; unless there are either mini-batches or scores, with what belongs to them.

    Args:
        has_batches: MODEL has mini-batches of its own.
    """
    gradients = chosen[GradientOptions]
    gradient_setup(gradients)
    if (batches is None) == (scores is None) and not (has_batches and batches is None):
        raise BadInput(f"give either a calibration batch ({spelled('batches')}) or scores ({spelled('scores')})")
    check_choices(init=(init, INITS))
    check_optimizer(chosen[StepOptions].optimizer or "sgd")
    if scores is None:
        return
    of_gradients = ("loss", "loss_args", "ignore_index", "batch_limit", "keys")
    if any(getattr(gradients, name) is not None for name in of_gradients):
        *names, last = map(spelled, of_gradients)
        raise BadInput(
            f"{', '.join(names)} and {last} belong to the gradients: they have no effect with {spelled('scores')}; leave them out"
        )
    if gradients.score_init != "keep":
        raise BadInput(
            f"{spelled('score_init')} belongs to the gradients: it has no effect with {spelled('scores')}; give it to ranp score"
        )


def restore_scores(session: Session, scores: Scores, strict: bool) -> tuple[Graph, Importance]:
    """The graph, and the importance as the scores have it."""
    graph = session.analyse(Example.from_signature(scores.about["model"]["input"]), strict)
    session.draw(graph, scores.about.get("score_init", "keep"))
    values = scores.in_order(graph, session)
    if len(scores.begun) and not scores.about["batches"]:
        raise BadInput(
            f"these scores by the oracle have {len(scores.begun)} units of the first mini-batch and no whole one; finish them "
            f"with {spelled('resume')}"
        )
    if scores.about.get("unfinished"):
        session.note(
            f"these are the scores of {scores.about['batches']} mini-batches: ranp score was stopped before its end; "
            f"finish it with {spelled('resume')}"
        )
    importance = Importance(values, scores.about["batches"], not_ranked=scores.not_ranked(graph))
    zeros = {key: scores.about.get(key) for key in SAID}
    report_scoring(session, {**zeros, "not_ranked": importance.not_ranked})
    return graph, importance


def take_scores(
    session: Session,
    batches: Any,
    ranking: Ranking,
    goal: Goal,
    chosen: Chosen,
    strict: bool,
    probing: Probing | None,
    progress: Progress,
) -> tuple[Batches, Graph, Importance]:
    """The mini-batches, the graph, and the importance from their gradients; zeros for a method without a criterion."""
    options = chosen[GradientOptions]
    source, example = first_batch(batches, options, session.seed)
    if probing is not None:
        source.hold = probing.plan.kept
    graph = session.analyse(example, strict)
    keep_for_later(graph, source)
    session.draw(graph, options.score_init)
    if ranking.criterion is None:
        return source, graph, Importance([np.zeros(n) for n in graph.sizes], 0)
    way = replace(gradient_setup(options), agreement=agreement_of(graph, ranking, goal.sparsity))
    by_criterion = importances(session, graph, source, [ranking.criterion], options, progress, way)
    return source, graph, by_criterion[ranking.criterion]


def method_info(
    ranking: Ranking,
    init: str,
    importance: Importance,
    score_init: str,
    chosen: Chosen,
    latencies: dict[str, Any] | None,
    goal: Goal,
) -> dict[str, Any]:
    """How the mask came about, as mask.json has it; what is as by default is left out."""
    info = {**ranking.recorded, "init": init, "batches": importance.batches}
    if score_init != "keep":
        info["score_init"] = score_init
    if chosen[GradientOptions].precision != "model":
        info["precision"] = chosen[GradientOptions].precision
    if latencies:
        info["latency"] = latencies
    if goal.limits:
        info["budget"] = {limit.kind: limit.text for limit in goal.limits}
    return info


def add_ranking(report: Report, graph: Graph, ranking: Ranking, importance: Importance) -> dict[str, list[np.ndarray]]:
    """Write to each layer's row its mean importance, and what the resource made of it. Return the ranking, step by step."""
    layer_tau = ranking.tau(graph)
    for k, row in enumerate(report.parts["layers"]):
        row["importance_mean"] = float(np.mean(importance.scores[k]))
        if layer_tau is not None:
            row["tau"], row["reweighting"] = float(layer_tau[k]), float(reweighting(layer_tau, ranking.lam)[k])
    return ranking.steps(graph, importance.scores)
