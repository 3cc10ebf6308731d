"""`score`: the importance of every neuron, from gradients on calibration batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.contexts import labels_on_cpu, without_autocast
from ..core.errors import BadInput, Interrupted
from ..core.progress import Progress, silent
from ..core.spelling import spelled
from ..io.losses import loss_name
from ..reporting.report import Report
from ..scoring.distributed import join_process_group
from ..scoring.setup import Importance
from ..scoring.zero_scores import SAID, keep_whole
from .build_report import build_scores
from .importances import gradient_setup, importances
from .options import SCORE, GradientOptions, LayerOptions, LongRunOptions, MethodOptions, ModelOptions
from .projects import complete, project_of
from .ranking import Ranking, agreement_of
from .results import UNSAID, Scores
from .session import Session, first_batch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import ScoreKeywords


@without_autocast
@labels_on_cpu
@SCORE
def score(
    model: nn.Module | str,
    batches: Any = None,
    *,
    criterion: str = "mpmg-sum",
    sparsity: float | None = None,
    resume: Scores | str | Path | None = None,
    kept_in: str | Path | None = None,
    distributed: bool = False,
    progress: Progress = silent,
    **options: Unpack[ScoreKeywords],
) -> Scores:
    """Score every neuron of `model` by the sensitivity of the loss on calibration batches.

    `model` is not changed: not its weights, gradients, buffers or modes, nor the global RNG.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D` or `net.pt`.
        batches: mini-batches of `(input, target)`, a single one, or a path or `file.py:Name`.
        loss: a name (`cross_entropy`, `dice`, ...), a spec, or `loss(output, target) -> scalar`.
        criterion: `mpmg-sum|mean|max`, `mnmg-sum|mean|max`, `neuron`, `taylor`, `obd`, `activation-mean|std|zeros`, `snip`,
            `l1`, `l2`, or `oracle`: the change of the loss without each unit, one forward pass a unit and mini-batch; a unit's
            neurons have its value, and fixed units, which are not tried, 0.
        sparsity: also report how many neurons of each layer these scores alone keep at that share, in [0, 1).
        batch_limit: use at most that many mini-batches.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `model` (the weights' own), `fp32`, `tf32` (products in TF32 on a GPU, where `fp32` is fp32), `fp64`, `bf16` or `fp16` (autocast; sums stay in the weights' own or
            better), or `auto`: bf16 if it gives the mask of fp32 on the first mini-batch.
        low_memory: compute activations twice instead of keeping them; the scores are the same.
        memory_limit: as little of that as keeps to so many bytes, such as `6GiB`.
        resume: what an earlier call returned or saved; its mini-batches are passed over and counted.
        kept_in: a file that what is done so far is written to every `save_every` seconds, for `resume` after a crash.
        distributed: this process is one of torchrun's, or of an initialised `torch.distributed`: it takes its share of the
            mini-batches, and every process returns the scores of all.

    Returns: Scores, `.layers[name]` of shape (N_l,), float64.

    Raises: BadInput; Infeasible for a memory limit that cannot be kept; Interrupted (a KeyboardInterrupt) with what is
        there, for Ctrl-C.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> {name: values.shape for name, values in ranp.score(net, batch).layers.items()}
        {'0': (8,), '2': (2,)}

    Source: eq. 4-8 of RANP (Xu et al., 3DV 2020).
    """
    chosen = SCORE.read(options)
    project = project_of(model, chosen[ModelOptions])
    batches, chosen = complete(project, batches, None, chosen, with_step=False)
    gradients = chosen[GradientOptions]
    way = replace(gradient_setup(gradients), keep_partial=True)
    if (distributed or resume is not None) and gradients.precision == "auto":
        raise BadInput(
            f"{spelled('precision', 'auto')} decides on one process' first mini-batch: give bf16 or fp32 with {spelled('resume')} or torchrun"
        )
    if sparsity is not None and criterion == "snip":
        raise BadInput(f"criterion 'snip' scores weights: leave out {spelled('sparsity')}, which is a share of neurons")

    session = Session.open(Report("score"), model, chosen[ModelOptions], project=project)
    session.report.read(batches=batches)
    source, example = first_batch(batches, gradients, session.seed)
    graph = session.analyse(example)
    session.draw(graph, gradients.score_init)
    how = recorded(criterion, gradients, session.seed)
    earlier = None if resume is None else Scores.of(resume).resumed(session, graph, how, source.most)
    by_score = MethodOptions(method="snip" if criterion == "snip" else "vanilla", criterion=criterion, resource="none")
    ranking = Ranking.of(by_score, LayerOptions(lambda_=0.0, min_neurons=1), session.seed)

    def keep(found: dict[str, Importance]) -> None:
        """Write what is done so far, where `resume` takes it from."""
        assert kept_in is not None
        said = {
            **{key: value for key, value in way.facts.items() if key in SAID},
            "not_ranked": found[criterion].not_ranked,
        }
        so_far = replace(session, report=Report("score", {"scoring": {k: v for k, v in said.items() if v}}))
        build_scores(so_far, graph, found[criterion], how, None).keep(kept_in)

    with join_process_group(distributed, session.device, chosen[LongRunOptions].timeout) as workers:
        workers.agree(source.length)
        way = replace(
            way,
            spread=workers,
            resumed=earlier,
            agreement=agreement_of(graph, ranking, sparsity),
            keep=None if kept_in is None else keep,
            save_every=chosen[LongRunOptions].save_every,
        )
        importance = importances(session, graph, source, [criterion], gradients, progress, way)[criterion]
    keep_whole(graph, importance.not_ranked)
    scores = build_scores(session, graph, importance, how, sparsity)
    if way.facts.get("stopped"):
        raise Interrupted(scores, importance.batches)
    return scores


def recorded(criterion: str, gradients: GradientOptions, seed: int) -> dict[str, Any]:
    """What the scores say of how they were taken; `resume` goes on with the same only."""
    return {
        "criterion": criterion,
        "score_init": gradients.score_init,
        "seed": seed,
        "precision": gradients.precision,
        "loss": loss_name(gradients.loss, gradients.loss_args),
        "ignore_index": UNSAID if gradients.ignore_index is None else gradients.ignore_index,
    }
