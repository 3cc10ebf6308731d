"""The story of `refine`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..core.contexts import labels_on_cpu
from ..core.errors import BadInput
from ..core.example import Example, as_example
from ..graph.guess import guess_example
from ..pruning.init import INITS
from ..pruning.mask import Mask
from ..pruning.select import Selection
from ..reporting.report import Report
from .build_report import pruned_of
from .session import check_choices, open_job, settle


@labels_on_cpu
def refine(model: nn.Module | str, mask: Mask | dict[str, Any] | str | Path, *, inputs: Any = None, init: str = "keep",
           transfer: bool = False, seed: int | None = 0, device: str = "auto", model_args: dict[str, Any] | None = None,
           weights: str | None = None, weights_key: str | None = None, full: bool = False) -> Any:  # fmt: skip
    """Build the slim network from a model and a mask.

    `model` is not changed.

    Args:
        mask: a Mask, its dict, or a path to mask.json.
        transfer: the mask was made for the same architecture with other input channels or classes (section 5 of the
            paper: ShapeNet to BraTS and back); `report.parts["transfer"]` says what was matched and what was left.
        inputs: shape(s) of the input, a tensor or a tuple of them; by default those that the mask records.
        seed: of the model's weights; by default the one that the mask records.
        init: `keep` the surviving weights, or draw them anew: `factory`, `glorot`, `orthogonal`.
        full: return a Pruned (`.model`, `.mask`, `.report`) instead of the slim module alone.

    Returns: the slim module, of the same class, verified against the masked one.

    Raises: BadInput when the mask is of another network; VerificationFailed.
    """
    check_choices(init=(init, INITS))
    mask = Mask.of(mask)
    seed = int(mask.method.get("seed") or 0) if seed is None else seed
    report = Report("refine")
    job = open_job(report, model, seed, model_args, weights, weights_key, device)
    wanted = mask.model.get("fingerprint")
    if wanted and wanted != job.about["fingerprint"] and not transfer:
        raise BadInput(
            f"the mask is of another network: {mask.difference(job.model)}; give the mask that was made for this model, "
            "or --transfer for the same architecture with other input channels or classes"
        )
    guessed: dict[str, bool] = {}
    if inputs is not None:
        example = as_example(inputs)
    elif mask.model.get("input") and not transfer:
        example = Example.from_signature(mask.model["input"])
    else:
        example, guessed = guess_example(job.model), {"input_guessed": True}
    graph = job.analyse(report, example)
    job.draw(graph, mask.method.get("score_init", "keep"), seed)
    if transfer:
        keep, report.parts["transfer"] = mask.transfer(graph)
    else:
        keep = mask.units(graph)
    chosen, slim, changed, ran = settle(
        report, job, graph, lambda: Selection(keep | graph.fixed_units, mask.floored, "")
    )
    made = Mask.from_units(
        graph, chosen.keep, model=job.about, method=mask.method, requested=mask.requested, floored=mask.floored
    )
    made.method = {**mask.method, "init": init} if init != "keep" else mask.method
    pruned = pruned_of(report, job, graph, made, chosen.keep, slim, changed, ran, init, seed)
    report.parts["model"] = {**report.parts["model"], **guessed}
    return pruned if full else pruned.model
