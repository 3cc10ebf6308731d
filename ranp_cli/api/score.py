"""The story of `score`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core.contexts import labels_on_cpu
from ..core.errors import BadInput, Interrupted
from ..io.losses import loss_name
from ..pruning.init import INITS
from ..reporting.report import Report
from ..scoring.distributed import together
from ..scoring.zero_scores import keep_whole
from .build_report import scores_of
from .results import UNSAID, Scores
from .session import Progress, Ranking, agreement_of, check_choices, first_batch, importances, open_job, silent, way_of

# -- the public functions


@labels_on_cpu
def score(model: nn.Module | str, batches: Any, *, loss: Any = None, ignore_index: int | None = None, criterion: str = "mpmg-sum",
          score_init: str = "keep", sparsity: float | None = None, batch_limit: int | None = None, seed: int = 0, device: str = "auto", model_args: dict[str, Any] | None = None,
          weights: str | None = None, weights_key: str | None = None, precision: str = "model", low_memory: bool = False,
          memory_limit: str | int | None = None, resume: Scores | str | Path | None = None, distributed: bool = False,
          progress: Progress = silent) -> Scores:  # fmt: skip
    """Score every neuron of `model` by the sensitivity of the loss on calibration batches.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D` or `net.pt`.
        batches: mini-batches of `(input, target)`, a single one, or a path or `file.py:Name`.
        loss: a name (`cross_entropy`, `dice`, ...), a spec, or `loss(output, target) -> scalar`.
        criterion: `mpmg-sum|mean|max`, `mnmg-sum|mean|max`, `neuron`, `taylor`, `snip`, `l1` or `l2`.
        batch_limit: use at most that many mini-batches.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `model` (the weights' own), `fp32`, `fp64`, `bf16` or `fp16` (autocast; sums stay in the weights' own or
            better), or `auto`: bf16 if it gives the mask of fp32 on the first mini-batch.
        low_memory: compute activations twice instead of keeping them; the scores are the same.
        memory_limit: as little of that as keeps to so many bytes, such as `6GiB`.
        resume: what an earlier call returned or saved; its mini-batches are passed over and counted.
        distributed: this process is one of torchrun's, or of an initialised `torch.distributed`: it takes its share of the
            mini-batches, and every process returns the scores of all.

    Returns: Scores, `.layers[name]` of shape (N_l,), float64.

    Raises: BadInput; Infeasible for a memory limit that cannot be kept; Interrupted (a KeyboardInterrupt) with what is
        there, for Ctrl-C.

    Source: eq. 4-8 of RANP (Xu et al., 3DV 2020).
    """
    check_choices(score_init=(score_init, INITS))
    way = replace(way_of(precision, low_memory, memory_limit), keep_partial=True)
    if (distributed or resume is not None) and precision == "auto":
        raise BadInput(
            "--precision auto decides on one process' first mini-batch: give bf16 or fp32 with --resume or torchrun"
        )
    if sparsity is not None and criterion == "snip":
        raise BadInput("criterion 'snip' scores weights: leave out --sparsity, which is a share of neurons")
    report = Report("score")
    job = open_job(report, model, seed, model_args, weights, weights_key, device)
    source, example = first_batch(batches, batch_limit, seed)
    graph = job.analyse(report, example)
    job.draw(graph, score_init, seed)
    how = {"criterion": criterion, "score_init": score_init, "seed": seed, "precision": precision, "loss": loss_name(loss),
           "ignore_index": UNSAID if ignore_index is None else ignore_index}  # fmt: skip
    going_on = None if resume is None else Scores.of(resume).resumed(job, graph, how, source.most)
    ranking = Ranking.of("snip" if criterion == "snip" else "vanilla", criterion, "none", 0.0, 1, seed)
    with together(distributed, job.device) as spread:
        spread.agree(source.length)
        way = replace(way, spread=spread, resumed=going_on, agreement=agreement_of(graph, ranking, sparsity))
        found = importances(report, job, graph, source, [criterion], loss, ignore_index, seed, progress, way)[criterion]
    keep_whole(graph, found.not_ranked)
    scores = scores_of(report, job, graph, found, how, sparsity)
    if way.facts.get("stopped"):
        raise Interrupted(scores, found.batches)
    return scores
