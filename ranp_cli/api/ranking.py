"""What neurons are ranked by: the method with all that belongs to it, checked and completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.graph import Graph
from ..pruning.layer_costs import NAMES as RESOURCES
from ..pruning.layer_costs import tau
from ..pruning.methods import METHODS, unit_values, weigh
from ..pruning.min_neurons import AUTO, Floor, check_floor, floors
from ..pruning.removal_order import removal_order
from ..pruning.rounding import raise_parts, rounded
from ..pruning.select import Selection, select
from ..pruning.snip import links_of, select_snip, strength_of
from ..scoring.criteria import criterion
from .options import LAMBDA, LayerOptions, MethodOptions
from .session import check_choices

TERMS = ("layer", "unit")


@dataclass(frozen=True)
class Ranking:
    """What units are ranked by; `of` checks and completes it. `criterion` is None where scores are drawn at random."""

    method: str
    criterion: str | None
    resource: str = "none"
    lam: float = LAMBDA
    min_neurons: Floor = 1
    seed: int = 0
    round_to: int = 1
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    finds_rounding: bool = False  # which multiple is best is not known yet
    term: str = "layer"  # how the resource counts: as a factor of the layer, or by what a unit's removal saves
    _orders: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, method_options: MethodOptions, layers: LayerOptions, seed: int) -> Ranking:
        """BadInput for what does not exist or does not go together."""
        method, resource, criterion_name = method_options.method, method_options.resource, method_options.criterion
        check_choices(method=(method, METHODS), resource=(resource, RESOURCES))
        if criterion_name is not None:
            criterion(criterion_name)
        known = METHODS[method]
        name = criterion_name or known.criterion
        if known.criteria and name not in known.criteria:
            raise BadInput(
                f"{spelled('method', method)} goes by {' or '.join(known.criteria)}, not by '{name}'; leave out {spelled('criterion')}"
            )
        if name == "snip" and method != "snip":
            raise BadInput(
                f"criterion 'snip' scores weights, not neurons: it goes with {spelled('method', 'snip')}, not with {method}"
            )
        min_neurons, round_to = check_floor(layers.min_neurons), check_rounding(method_options.round_to)
        term = layers.resource_term
        check_choices(resource_term=(term, TERMS))
        lam = layers.lambda_in_effect
        if not 0 <= lam < math.inf:
            raise BadInput(f"{spelled('lambda_', lam)}: give 0 or more; it is the weight of the resource term")
        name = None if method == "random" else name
        if term == "unit" and (resource == "none" or known.by_layer or method in ("random", "snip")):
            raise BadInput(
                f"{spelled('resource_term', term)} takes from each score what the unit costs: give a {spelled('resource')} other than "
                f"none, and a {spelled('method')} that ranks all neurons by a score, such as taylor or ranp"
            )
        resource = resource if known.resource or term == "unit" else "none"
        whole = cls(method, name, resource, lam, min_neurons, seed, round_to or 1, layers.keep, layers.only, term=term)
        return whole if round_to else replace(whole, finds_rounding=True)

    @property
    def recorded(self) -> dict[str, Any]:
        """As mask.json has it; a resource has no meaning but for RANP, a criterion none for random scores."""
        how: dict[str, Any] = {
            "name": self.method,
            "criterion": self.criterion,
            "resource": self.resource,
            "lambda": float(self.lam),
            "seed": self.seed,
            "min_neurons": self.min_neurons,
        }
        if self.term == "unit":
            how["resource_term"] = self.term
        elif not METHODS[self.method].resource:
            del how["lambda"]
        if self.criterion is None:
            del how["criterion"]
        if self.round_to > 1:
            how["round_to"] = self.round_to
        return how

    def tau(self, graph: Graph) -> np.ndarray | None:
        return None if self.resource == "none" or self.term == "unit" else tau(graph.layers, self.resource)

    def weighed(self, graph: Graph, scores: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The scores of the neurons as they are ranked by, layer by layer; with a term by unit their order of removal."""
        found = weigh(scores, self.method, self.tau(graph), self.lam, self.seed)
        if self.term == "layer" or self.resource == "none":
            return found
        values = unit_values(graph, found)
        macs = [layer.macs for layer in graph.layers]  # of the input that costs are counted for
        seconds = [layer.seconds for layer in graph.layers]
        key = b"|".join(np.asarray(t).tobytes() for t in (values, graph.unit, graph.fixed_units, macs, seconds))
        if key not in self._orders:
            self._orders.clear()
            self._orders[key] = removal_order(graph, values, self.resource, self.lam)
        return graph.by_layer(self._orders[key][graph.unit])

    def steps(self, graph: Graph, scores: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
        """The scores as they are, as this method weighs them, and what lies between: what Fig. 3 shows."""
        if self.criterion is None or self.method == "snip":
            return {}
        found = {"vanilla": list(scores)}
        if self.method == "ranp":
            found["weighted"] = weigh(scores, "weighted", None, self.lam, self.seed)
        name = f"{self.method}, by {self.resource}" if self.resource != "none" else self.method
        if self.term == "unit":
            found[f"{name}: order of removal"] = self.weighed(graph, scores)
        elif self.method not in ("vanilla", "layerwise", "flat"):
            found[name] = self.weighed(graph, scores)
        return found

    def values(self, graph: Graph, scores: Sequence[np.ndarray]) -> np.ndarray:
        """What each unit is worth: the higher, the sooner it stays."""
        if self.method == "snip":
            return strength_of(graph, [links_of(graph, k, g) for k, g in enumerate(scores)])
        return unit_values(graph, self.weighed(graph, scores))

    def share_kept(self, graph: Graph, scores: Sequence[np.ndarray], keep: np.ndarray) -> float:
        """The share of the importance of all neurons that those of these units have, as this ranking weighs them."""
        value = self.values(graph, scores)[graph.unit]
        total = float(value.sum())
        return float(value[keep[graph.unit]].sum()) / total if total else 1.0

    def select(self, graph: Graph, scores: Sequence[np.ndarray], sparsity: float | str) -> Selection:
        """The units that stay."""
        if self.method == "snip":
            chosen = select_snip(graph, scores, sparsity, self.min_neurons)
        else:
            chosen = select(graph, self.weighed(graph, scores), sparsity, method=self.method, floor=self.min_neurons)
        if self.round_to > 1:
            least = self.floors(graph, chosen.keep)
            values = self.values(graph, scores)
            chosen = replace(
                chosen, keep=rounded(graph, values, chosen.keep, self.round_to, least), rounded=chosen.keep
            )
        if graph.empties(chosen.keep):
            chosen = replace(chosen, keep=raise_parts(graph, self.values(graph, scores), chosen.keep))
        return chosen

    def floors(self, graph: Graph, keep: np.ndarray) -> np.ndarray:
        """The fewest neurons of each layer in a network of these units, of shape (layers,)."""
        floor = 1 if METHODS[self.method].by_layer and self.min_neurons == AUTO else self.min_neurons
        return floors(graph, floor, int(keep[graph.unit].sum()))


def check_rounding(given: object) -> int | None:
    """A number that widths are multiples of, 1 or more; None for `auto`. BadInput otherwise."""
    if given == AUTO:
        return None
    try:
        number = int(str(given))
    except ValueError:
        number = 0
    if isinstance(given, (bool, float)) or number < 1:
        raise BadInput(
            f"{spelled('round_to', given)}: give 1 or more, or auto; each layer then keeps a multiple of so many neurons"
        )
    return number


def while_training(method: MethodOptions, layers: LayerOptions, seed: int) -> Ranking:
    """The ranking of a network that trains; BadInput for what has no meaning there."""
    ranking = Ranking.of(method, layers, seed)
    by_layer = METHODS[ranking.method].by_layer
    if by_layer or ranking.resource == "latency":
        what = spelled("method", method.method) if by_layer else spelled("resource", method.resource)
        raise BadInput(
            f"{what} has no meaning while a network trains; give a method that ranks neurons, such as taylor or ranp"
        )
    return ranking


def agreement_of(
    graph: Graph, ranking: Ranking, sparsity: Any
) -> Callable[[list[np.ndarray], list[np.ndarray]], float]:
    """Of two scores: the share of the neurons kept by the first that the second keeps too, at that sparsity (else at 0.5)."""
    level = sparsity if isinstance(sparsity, (int, float)) else 0.5
    if ranking.resource == "latency":  # of which nothing is known yet
        ranking = replace(ranking, resource="none")

    def agreed(first: list[np.ndarray], second: list[np.ndarray]) -> float:
        one, two = (ranking.select(graph, scores, level).keep[graph.unit] for scores in (first, second))
        return float((one & two).sum() / one.sum())

    return agreed
