"""The seconds of each layer, measured or read, for `--resource latency`; and a table of times, for `--budget latency=`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.documents import parse_json
from ..core.errors import BadInput
from ..core.numbers import MEASURED
from ..core.progress import Progress
from ..core.reading import read_bytes
from ..core.spelling import spelled
from ..costs.latency_table import ADVICE, FORMAT, LatencyTable, checked_table
from ..costs.timing import Ground, time_layers, use_latencies
from ..graph.graph import Graph
from ..pruning.mask import Mask
from .goal import Goal
from .ranking import Ranking
from .session import Session
from .time_search import applies


def read_latencies(
    given: Any, ranking: Ranking, goal: Goal, ground: Ground
) -> tuple[dict[str, Any] | None, LatencyTable | None]:
    """What a mask records of the layers' seconds, or a plain `{layer: seconds}`; or else a table of times of ops.

    Raises: BadInput when it is none of these, or nothing that is done goes by it.
    """
    if (table := table_in(given)) is None:
        return read_seconds(given, ranking), None
    if not applies(ranking, goal.limits):
        raise BadInput(
            f"{spelled('latencies')}: a table of times goes with one limit of time, such as {spelled('budget', 'latency=20ms')}, and a "
            f"{spelled('method')} that ranks neurons by their importance, without {spelled('round_to')}; leave it out"
        )
    (kind,) = (limit.kind for limit in goal.limits if limit.kind in MEASURED)
    return None, LatencyTable.open(ground.of(kind), table)


def table_in(given: Any) -> dict[str, Any] | None:
    """The document of a table of times, from itself or from its path; None where it is something else."""
    document, what = given, spelled("latencies")
    if isinstance(given, (str, Path)):
        what = spelled("latencies", str(given))
        document = parse_json(read_bytes(given, what), what, ADVICE)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    return checked_table(document, what)


def read_seconds(given: Any, ranking: Ranking) -> dict[str, Any] | None:
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
