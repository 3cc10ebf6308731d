"""The seconds of each layer, measured or read, for `--resource latency`."""

from __future__ import annotations

from typing import Any

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..costs.timing import Ground, time_layers, use_latencies
from ..graph.graph import Graph
from ..pruning.mask import Mask
from .ranking import Ranking
from .session import Progress, Session


def read_latencies(given: Any, ranking: Ranking) -> dict[str, Any] | None:
    """What a mask records of the layers' seconds, or a plain `{layer: seconds}`; BadInput when it does not."""
    if given is None:
        return None
    if ranking.resource != "latency":
        raise BadInput(
            f"{spelled('latencies')} goes with {spelled('resource', 'latency')} of {spelled('method', 'ranp')}; leave it out"
        )
    plain = isinstance(given, dict) and "format" not in given
    known = {"seconds": given} if plain else Mask.of(given).method.get("latency")
    if not isinstance(known, dict) or not isinstance(known.get("seconds"), dict):
        raise BadInput(
            f"{spelled('latencies')}: the mask records no times; give one made with {spelled('resource', 'latency')}"
        )
    return known


def layer_seconds(
    session: Session, graph: Graph, given: dict[str, Any] | None, ground: Ground, progress: Progress
) -> dict[str, Any]:
    """See to it that the layers have their seconds, measured or given; what the mask records of it."""
    if given is not None:
        use_latencies(graph.layers, given["seconds"])
        return given
    with session.report.timing("time"):
        time_layers(graph.layers, ground, progress)
    return {**ground.about(), "seconds": {layer.name: layer.seconds for layer in graph.layers}}
