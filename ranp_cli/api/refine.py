"""`refine`: the slim network of a mask that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..core.contexts import labels_on_cpu, without_autocast
from ..core.errors import BadInput
from ..core.example import Example, as_example
from ..core.spelling import spelled
from ..graph.guess import guess_example
from ..pruning.initial_weights import INITS
from ..pruning.mask import Mask
from ..pruning.select import Selection
from ..reporting.report import Report
from .build_report import build_pruned
from .costing import Costing
from .options import REFINE, InputOptions, ModelOptions, StepOptions
from .select_and_refine import select_and_refine
from .session import Session, check_choices

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import RefineKeywords


@without_autocast
@labels_on_cpu
@REFINE
def refine(
    model: nn.Module | str,
    mask: Mask | dict[str, Any] | str | Path,
    *,
    init: str = "keep",
    transfer: bool = False,
    full: bool = False,
    **options: Unpack[RefineKeywords],
) -> Any:
    """Build the slim network from a model and a mask.

    `model` is not changed.

    Args:
        model: an `nn.Module`, or a spec such as `model.py:UNet3D`.
        mask: a Mask, its dict, or a path to mask.json.
        transfer: the mask was made for the same architecture with other input channels or classes (section 5 of the
            paper: ShapeNet to BraTS and back); `report.parts["transfer"]` says what was matched and what was left.
        inputs: shape(s) of the input, a tensor or a tuple of them; by default those that the mask records.
        seed: of the model's weights; by default the one that the mask records.
        init: `keep` the surviving weights, or draw them anew: `factory`, `glorot`, `orthogonal`.
        full: return a Pruned (`.model`, `.mask`, `.report`) instead of the slim module alone.

    Returns: the slim module, of the same class, verified against the masked one.

    Raises: BadInput when the mask is of another network; VerificationFailed.

    Example:
        >>> import torch, ranp_cli as ranp
        >>> net = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv3d(8, 2, 1))
        >>> batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 6, 6, 6))
        >>> mask = ranp.prune(net, batch, sparsity=0.5).mask
        >>> ranp.refine(net, mask)[0].out_channels
        3
    """
    chosen = REFINE.read(options)
    check_choices(init=(init, INITS))
    mask = Mask.of(mask)
    seed = chosen[ModelOptions].seed
    session = Session.open(
        Report("refine"), model, chosen[ModelOptions], int(mask.method.get("seed") or 0) if seed is None else seed
    )
    wanted = mask.model.get("fingerprint")
    if wanted and wanted != session.model_info["fingerprint"] and not transfer:
        raise BadInput(
            f"the mask is of another network: {mask.difference(session.model)}; give the mask that was made for this model, "
            f"or {spelled('transfer', True)} for the same architecture with other input channels or classes"
        )
    inputs, is_guessed = chosen[InputOptions].inputs, False
    if inputs is not None:
        example = as_example(inputs)
    elif mask.model.get("input") and not transfer:
        example = Example.from_signature(mask.model["input"])
    else:
        example, is_guessed = guess_example(session.model), True

    graph = session.analyse(example)
    session.draw(graph, mask.method.get("score_init", "keep"))
    if transfer:
        keep, session.report.parts["transfer"] = mask.transfer(graph)
    else:
        keep = mask.units(graph)
    kept = keep[graph.unit]  # of neurons, since refining may take units apart

    def choose() -> Selection:
        return Selection(np.isin(range(len(graph.unit_roots)), graph.unit[kept]) | graph.fixed_units, mask.floored, "")

    refined = select_and_refine(session, graph, choose)
    method = {**mask.method, "init": init} if init != "keep" else mask.method
    of_what_stays = Mask.from_units(
        graph,
        refined.selection.keep,
        model=session.model_info,
        method=method,
        requested=mask.requested,
        floored=mask.floored,
    )
    costing = Costing.of(session, None, StepOptions())
    costing.use(graph)
    pruned = build_pruned(session, graph, of_what_stays, refined, init, costing)
    if is_guessed:
        session.report.parts["model"] = {**session.report.parts["model"], "input_guessed": True}
    return pruned if full else pruned.model
