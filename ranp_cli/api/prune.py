"""The story: score, select, refine, verify, report. Every public function of the package but `load` stands here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..core.contexts import labels_on_cpu
from ..core.errors import BadInput, Infeasible
from ..core.example import Example, as_example
from ..costs.budget import advised, costs_for, costs_of, limits
from ..costs.memory import STATES, Grounds, check_optimizer, memory_of, with_training
from ..costs.timing import Stand
from ..graph.analyse import cost_of, measure, measure_all
from ..graph.graph import Graph
from ..pruning.init import INITS
from ..pruning.mask import Mask
from ..pruning.methods import METHODS
from ..pruning.min_neurons import AUTO
from ..pruning.resources import reweighting
from ..pruning.select import Selection, check
from ..pruning.slim_trace import SlimRun
from ..reporting.report import Report, not_pruned
from ..scoring.scorer import Importance
from ..scoring.zero_scores import SAID, keep_whole
from .budget_search import fit
from .build_report import pruned_of
from .probe import Probing
from .results import Pruned, Scores
from .session import (
    LAMBDA,
    Progress,
    Ranking,
    agreement_of,
    check_choices,
    first_batch,
    importances,
    layer_seconds,
    open_job,
    read_latencies,
    settle,
    silent,
    tell_scoring,
    way_of,
)
from .trainability import trainability

MUCH_LESS = 0.5  # a pruning that reaches less than this share of the sparsity asked for is an error


@labels_on_cpu
def prune(model: nn.Module | str, batches: Any = None, *, scores: Scores | str | Path | None = None, sparsity: float | str | None = None,
          resource: str = "flops", lambda_: float = LAMBDA, method: str = "ranp", criterion: str | None = None, min_neurons: int | str = "auto",
          keep: Sequence[str] = (), only: Sequence[str] = (), budget: Any = (), round_to: int = 1, optimizer: str | None = None, batch_size: int | None = None,
          inputs: Any = None, amp: bool = False, latencies: Any = None, time: bool = False, init: str = "keep", score_init: str = "keep", loss: Any = None, ignore_index: int | None = None,
          batch_limit: int | None = None, seed: int = 0, device: str = "auto", strict: bool = False, allow_less: bool = False,
          model_args: dict[str, Any] | None = None, weights: str | None = None, weights_key: str | None = None,
          precision: str = "model", low_memory: bool = False, memory_limit: str | int | None = None,
          probe: int | None = None, probe_lr: float | None = None, progress: Progress = silent) -> Pruned:  # fmt: skip
    """Remove the least important neurons of `model`.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D`.
        batches: mini-batches of `(input, target)`, input of shape (N, C, D, H, W) or what the model takes.
        scores: what `score` returned or saved, instead of `batches`.
        sparsity: fraction of neurons to remove, in [0, 1), or "max": the largest at which no layer needs a floor.
        resource: `flops`, `mem`, `params`, `latency` or `none`: what a layer's neurons are reweighted by. `latency` is
            measured on `device`, so it is never the same twice.
        latencies: what was measured before, instead: a mask made so, its path, or `{layer: seconds}`.
        lambda_: weight of the resource term; 11 ShapeNet, 15 BraTS, 80 UCF101.
        method: `ranp`, `weighted`, `vanilla`, `random`, `layerwise`, `flat`, `snip` (the share is then one of weights), `taylor` or
            `magnitude`.
        criterion: as for `score`; by default the one that the method goes by.
        min_neurons: the fewest neurons that each layer keeps, its best ones: a number (1 is the paper's rule), or "auto":
            12, and no more than 0.6 of its share if all layers were cut to the same width.
        keep, only: globs of layer names that are never pruned / that alone are pruned.
        budget: instead of `sparsity`: `["macs=40G", "train-mem=8GiB", ...]` or `{"params": "10%"}`; the largest network
            that meets all of `macs`, `flops`, `params`, `forward-mem`, `train-mem` and `latency` (`20ms`, of a forward pass,
            measured on `device`). A share is of the dense network.
        round_to: each layer keeps a multiple of so many neurons, where its units allow.
        optimizer, batch_size: of the training step whose memory is foretold, and of what is timed; by default the
            batch's own size. Optimiser: `sgd`, `sgd-momentum`, `adam` or `adamw`; by default sgd, and adam for the probe.
        time: also measure how fast both networks are.
        inputs: shape(s) of the input to count, budget and foretell memory for, when another than that of the batches: score
            at a small spatial size, train at a large one. What is kept at a given sparsity does not depend on it.
        amp: the memory is that of 16-bit autocast on the device.
        init: weights of the slim network: `keep`, or drawn anew: `factory`, `glorot`, `orthogonal`.
        score_init: weights that are scored, likewise; the slim network keeps them.
        precision, low_memory, memory_limit: of the gradients, as for `score`.
        probe: train copies of both networks for so many steps on the first mini-batches, and report how far each loss
            falls; `probe_lr`: with this learning rate. See `ranp_cli.probe.probe`.
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
    if (batches is None) == (scores is None):
        raise BadInput("give either a calibration batch (--batch) or scores (--scores)")
    wanted = limits(budget)
    if (sparsity is None) == (not wanted):
        raise BadInput("give either --sparsity X in [0, 1), or max, or --budget, such as --budget macs=10%")
    probing = Probing.of(probe, optimizer, probe_lr, scores, loss, ignore_index)
    optimizer = "sgd" if optimizer is None else optimizer
    check_optimizer(optimizer)
    way = way_of(precision, low_memory, memory_limit)
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"batch-size {batch_size}: give 1 or more samples")
    if scores is not None and (loss is not None or ignore_index is not None or batch_limit is not None):
        raise BadInput(
            "--loss, --ignore-index and --batches belong to the gradients: they have no effect with --scores; leave them out"
        )
    check_choices(init=(init, INITS), score_init=(score_init, INITS))
    if scores is not None and score_init != "keep":
        raise BadInput("--score-init belongs to the gradients: it has no effect with --scores; give it to ranp score")
    if sparsity not in (None, "max"):
        sparsity = check(sparsity)
    if sparsity == "max" and method in METHODS and METHODS[method].by_layer:
        raise BadInput(
            f"--sparsity max has no meaning for --method {method}, which never empties a layer; give a number"
        )
    keep, only = ([g] if isinstance(g, str) else g for g in (keep, only))
    report = Report("prune")
    job = open_job(report, model, seed, model_args, weights, weights_key, device)
    at = None if inputs is None else as_example(inputs)
    large = None if at is None else measure_all(job.model, at)  # now: the model may not take it, and scoring is long
    given = None if scores is None else Scores.of(scores)
    if given is not None:
        criterion = given.fits(job, criterion)
    ranking = Ranking.of(method, criterion, resource, lambda_, min_neurons, seed, round_to)
    known = read_latencies(latencies, ranking)
    if given is not None:
        graph = job.analyse(report, Example.from_signature(given.about["model"]["input"]), strict)
        score_init = given.about.get("score_init", "keep")
        job.draw(graph, score_init, seed)
        found = Importance(given.in_order(graph, job), given.about["batches"], not_ranked=given.not_ranked(graph))
        told = {key: given.about.get(key) for key in SAID}
        tell_scoring(report, {**told, "not_ranked": found.not_ranked})
    else:
        source, example = first_batch(batches, batch_limit, seed)
        if probing is not None:
            source.hold = probing.plan.kept
        graph = job.analyse(report, example, strict)
        job.draw(graph, score_init, seed)
        found = Importance([np.zeros(n) for n in graph.sizes], 0)
        if ranking.criterion is not None:
            way = replace(way, agreement=agreement_of(graph, ranking, sparsity))
            by = importances(report, job, graph, source, [ranking.criterion], loss, ignore_index, seed, progress, way)
            found = by[ranking.criterion]
    graph.fix_layers(keep, only)
    keep_whole(graph, found.not_ranked)
    measured = None
    if ranking.resource == "latency":
        measured = layer_seconds(report, job, graph, known, progress)
    sample = (at or graph.example).with_batch(batch_size or (at or graph.example).samples)
    stand = Stand(sample, job.device) if time or any(each.kind == "latency" for each in wanted) else None
    final, grounds = None, Grounds()

    def foretold(net: nn.Module) -> dict[str, Any]:
        return memory_of(net, sample, optimizer, job.device.type if amp else None, grounds)

    def cost(net: nn.Module, ran: SlimRun | None) -> dict[str, float]:
        counts = cost_of(net, ran.run if ran else graph.eval_run) if at is None else measure(net, at)[2]
        needed = any(each.kind.endswith("-mem") for each in wanted)
        memory = {"before": foretold(net)} if needed else {}
        counted = [each for each in wanted if each.kind != "latency"]
        return costs_for(counted, {"before": counts, "memory": memory}, "before", "--budget ")

    if sparsity is None:
        try:
            settled, final = fit(report, job, graph, ranking, found.scores, wanted, cost, stand, progress)
        except Infeasible as error:
            lowered = [
                name for name, n in (("--round-to", round_to), ("--min-neurons", min_neurons)) if n not in (1, AUTO)
            ]
            dropped = [name for name, globs in (("--keep", keep), ("--only", only)) if globs]
            raise advised(error, sample.samples, STATES[optimizer] > 0, lowered, dropped) from None
        chosen, slim, changed, ran = settled
        chosen = replace(chosen, requested=round(float(chosen.requested), 6))
    else:
        level = sparsity
        chosen, slim, changed, ran = settle(report, job, graph, lambda: ranking.select(graph, found.scores, level))
    how = {**ranking.recorded, "init": init, "batches": found.batches}
    if score_init != "keep":
        how["score_init"] = score_init
    if precision != "model":
        how["precision"] = precision
    if measured:
        how["latency"] = measured
    if wanted:
        how["budget"] = {each.kind: each.text for each in wanted}
    mask = Mask.from_units(
        graph, chosen.keep, model=job.about, method=how, requested=chosen.requested, floored=chosen.floored
    )
    if not allow_less and not wanted:
        enough(graph, chosen, mask, method == "snip")
    pruned = pruned_of(report, job, graph, mask, chosen.keep, slim, changed, ran, init, seed, at, large)
    with report.timing("memory"):
        pair = {"before": job.model, "after": slim}
        memory = {side: foretold(net) for side, net in pair.items()}
        report.parts |= {side: with_training(report.parts[side], about) for side, about in memory.items()}
        report.parts["memory"] = memory
    if stand is not None:
        with report.timing("time"):
            macs = [report.parts[side]["macs"] for side in ("before", "after")]
            report.parts["speed"] = stand.pair(job.model, slim, final, macs, training=time)
    if wanted:
        before, after = costs_of(report.parts, "before"), costs_of(report.parts, "after")
        report.parts["budget"] = [
            {"kind": each.kind, "limit": each.text, "bound": each.of(before[each.kind]), "before": before[each.kind],
             "after": after[each.kind]} for each in wanted
        ]  # fmt: skip
    report.parts["not_pruned"] = not_pruned(graph, chosen.keep)
    report.parts |= trainability(job, graph, chosen, report.parts["after"], at)
    pruned.rankings = ranking.steps(graph, found.scores)
    layer_tau = ranking.tau(graph)
    for k, row in enumerate(report.parts["layers"]):
        row["importance_mean"] = float(np.mean(found.scores[k]))
        if layer_tau is not None:
            row["tau"], row["reweighting"] = float(layer_tau[k]), float(reweighting(layer_tau, lambda_)[k])
    if probing is not None:
        probing.report(report, job, slim, source, seed, progress)
    return pruned


def enough(graph: Graph, chosen: Selection, mask: Mask, of_weights: bool) -> None:
    """Raise Infeasible when much less went than was asked for; of a share of weights (SNIP), when nothing did."""
    asked = chosen.requested
    if asked == "max" or mask.achieved >= MUCH_LESS * float(asked) or (of_weights and mask.achieved > 0):
        return
    why = not_pruned(graph, chosen.keep)
    text = f"only {mask.achieved:.1%} of the neurons could be removed where {float(asked):.1%} was asked"
    if not why:
        raise Infeasible(f"{text}: every layer is at its floor; give --allow-less to take it")
    commonest = Counter(row["reason"] for row in why).most_common(1)[0][0]
    first = next(row["layer"] for row in why if row["reason"] == commonest)
    raise Infeasible(f"{text}; {len(why)} of {len(graph.layers)} layers cannot be pruned ({first}: {commonest}); "
                     "give --allow-less to take it")  # fmt: skip
