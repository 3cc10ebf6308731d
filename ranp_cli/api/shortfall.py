"""What the caller is told where less was pruned, or rounded, than was asked for."""

from __future__ import annotations

from typing import Any

from ..core.errors import Infeasible
from ..core.spelling import spelled
from ..graph.graph import Graph
from ..io.readers import some_of
from ..pruning.held_back import in_words, is_short
from ..pruning.mask import Mask
from ..pruning.select import Selection

MUCH_LESS = 0.5  # a pruning that reaches less than this share of the sparsity asked for is an error


def check_enough(selection: Selection, mask: Mask, of_weights: bool, causes: list[dict[str, Any]]) -> None:
    """Raise Infeasible when much less went than was asked for; of a share of weights (SNIP), when nothing did."""
    asked = selection.requested
    if asked == "max" or mask.achieved >= MUCH_LESS * float(asked) or (of_weights and mask.achieved > 0):
        return
    text = f"only {mask.achieved:.1%} of the neurons could be removed where {float(asked):.1%} was asked"
    if of_weights:
        text = f"{float(asked):.1%} of the weights would go, and no neuron loses all of its own; give a higher {spelled('sparsity')}"
        raise Infeasible(f"{text}, or {spelled('allow_less', True)} to take it")
    why = f"; what stays against the ranking: {in_words(causes)}" if causes else ""
    raise Infeasible(f"{text}{why}; give {spelled('allow_less', True)} to take it")


def less_than_asked(selection: Selection, mask: Mask, causes: list[dict[str, Any]]) -> list[str]:
    """A note where a share of the neurons was asked for and noticeably less went; nothing of a share of weights (SNIP)."""
    asked = selection.requested
    if selection.wanted is None or not causes or not is_short(asked, mask.achieved, mask.total):
        return []
    return [
        f"{mask.achieved:.1%} of the neurons went where {float(asked):.1%} was asked; what stays against the ranking: {in_words(causes)}"
    ]


def not_rounded(graph: Graph, selection: Selection, multiple: int) -> list[str]:
    """A note on the layers that were cut and have fewer neurons than they are to keep a multiple of."""
    kept = [int(selection.keep[units].sum()) for units in graph.by_layer(graph.unit)]
    small = [layer.name for layer, n in zip(graph.layers, kept, strict=True) if n < len(layer.neurons) < multiple]
    if not small:
        return []
    return [
        f"{spelled('round_to', multiple)} does not round what has fewer neurons from the start: {some_of(small)} "
        f"({len(small)} layer{'s' * (len(small) != 1)})"
    ]
