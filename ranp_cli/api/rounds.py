"""`prune(rounds=N)`: score, remove the least important units, fine-tune, and again: greedy pruning of a network that trains.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, Fig. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..core.contexts import seeded
from ..core.copies import replicate
from ..core.errors import USER_EXCEPTIONS, BadInput, Infeasible, in_words
from ..core.numbers import MEASURED
from ..core.progress import Progress
from ..core.spelling import spelled
from ..costs.budget import infeasible, met
from ..graph.graph import Graph
from ..io.batches import Batches
from ..pruning.select import Selection
from ..reporting.report import not_pruned
from ..scoring.zero_scores import keep_whole
from ..training.least_important import without_least
from .build_report import add_memory
from .costing import Costing
from .fine_tuning import FineTuning
from .goal import Goal
from .importances import gradient_setup, importances
from .options import (
    GradientOptions,
    InputOptions,
    LayerOptions,
    MethodOptions,
    ProbeOptions,
    RoundOptions,
    StepOptions,
)
from .pruner_state import indices_of
from .ranking import while_training
from .results import Pruned
from .rounds_state import RoundsFile
from .select_and_refine import select_and_refine
from .session import Session, first_batch
from .shortfall import MUCH_LESS
from .shrinking import Removal, Shrinking, removals_part

if TYPE_CHECKING:
    from .function_keywords import Chosen

PROOF = "every"  # removal is proved before it happens


def prune_in_rounds(
    session: Session, batches: Any, goal: Goal, chosen: Chosen, strict: bool, allow_less: bool, progress: Progress
) -> Pruned:
    """The network after all rounds, or the best that met the goal on the way. `session.model` stays as it is.

    Raises: BadInput; Infeasible when the goal is not reached; VerificationFailed.
    """
    options = chosen[RoundOptions]
    assert options.rounds is not None
    source, example = first_batch(batches, chosen[GradientOptions], session.seed)
    if isinstance(source.source, Iterator):
        raise BadInput(
            f"{source.name}: rounds go through the mini-batches many times, and this iterator gives them once; give a list, or a function that returns a new one"
        )
    if isinstance(session.model, torch.jit.ScriptModule):
        raise BadInput(
            f"a TorchScript model is not pruned in rounds: give its source (file.py:Name), or leave out {spelled('rounds')}"
        )
    live = replace(session, model=_copy(session.model, session.device))
    live.analyse(example, strict)
    tuning = FineTuning.of(options, chosen[StepOptions], chosen[GradientOptions], live)
    ranking = while_training(chosen[MethodOptions], chosen[LayerOptions], session.seed)
    loop = Rounds(
        session.model,
        Shrinking(live, example, ranking, tuning.optimizers, (), PROOF),
        source,
        goal,
        chosen,
        tuning,
        progress,
    )
    loop.run(options.rounds, None if options.checkpoint is None else RoundsFile(options.checkpoint))
    loop.check(allow_less)
    pruned = loop.pruned()
    home = next((p.device for p in session.model.parameters()), torch.device("cpu"))
    pruned.model.to(home)
    add_memory(session, pruned.model, loop.costing)
    return pruned


def _copy(model: nn.Module, device: torch.device) -> nn.Module:
    return replicate(model, lambda _, t: t.to(device, copy=True))


def check_goes_together(goal: Goal, chosen: Chosen, scores: Any, init: str) -> None:
    """BadInput for options of a single pruning, where rounds were asked for, and the other way round."""
    options, gradients, step = chosen[RoundOptions], chosen[GradientOptions], chosen[StepOptions]
    if options.rounds is None:
        for name in ("updates", "lr", "fit", "metric", "checkpoint"):
            if (value := getattr(options, name)) is not None:
                raise BadInput(
                    f"{spelled(name, value)} belongs to pruning in rounds; give {spelled('rounds')}, such as {spelled('rounds', 8)}, or leave it out"
                )
        return
    method = chosen[MethodOptions]
    once: dict[str, tuple[Any, Any]] = {
        "scores": (scores, None),
        "init": (init, "keep"),
        "score_init": (gradients.score_init, "keep"),
        "probe": (chosen[ProbeOptions].probe, None),
        "inputs": (chosen[InputOptions].inputs, None),
        "time": (step.time, False),
        "round_to": (method.round_to, 1),
        "latencies": (method.latencies, None),
        "sparsity": (goal.sparsity == "max", False),
        "method": (method.method == "snip", False),
    }
    for name, (value, usual) in once.items():
        if value != usual:
            shown = {"sparsity": "max", "method": "snip"}.get(name, value)
            raise BadInput(
                f"{spelled(name, shown)} is for pruning at once, not in rounds; leave it out, or leave out {spelled('rounds')}"
            )
    if timed := [limit.kind for limit in goal.limits if limit.kind in MEASURED]:
        raise BadInput(
            f"{spelled('budget')} {timed[0]}: rounds go by what can be counted; give macs, flops, params, forward-mem or train-mem"
        )


@dataclass
class Rounds:
    """The loop: what is left of the network, and the rows of its rounds. `best`: the state after the best round, with its
    number and how good it was, None while none has met the goal."""

    dense: nn.Module
    shrinking: Shrinking
    source: Batches
    goal: Goal
    chosen: Chosen
    tuning: FineTuning
    progress: Progress
    rows: list[Removal] = field(default_factory=list)
    spent: float = 0.0  # multiply-adds of a forward pass of one sample, over all updates
    best: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        shrinking = self.shrinking
        self.session = shrinking.session
        self.costing = Costing.of(self.session, None, self.chosen[StepOptions])
        self.costing.use(shrinking.dense)
        self.before = self._costs()
        self.dense_neurons = shrinking.neurons

    def run(self, rounds: int, file: RoundsFile | None) -> None:
        """All rounds, or those that the file does not have yet; it is written after each."""
        about = self._about(rounds)
        if file is not None and (known := file.read(about)) is not None:
            self._go_on(known, file)
        for k in range(len(self.rows), rounds):
            self._round(k, rounds)
            if file is not None:
                file.write(about, self._state())

    def _round(self, k: int, rounds: int) -> None:
        shrinking, graph = self.shrinking, self.shrinking.graph
        values = self._values(graph, k)
        count = self._much(graph, values, (k + 1) / rounds)
        left = shrinking.neurons - count
        goal = left if self.goal.sparsity is None else shrinking.left_at(float(self.goal.sparsity))
        removal = shrinking.remove(values, shrinking.neurons, count, count, goal) if count else None
        row = removal or Removal(0, 0, 0, shrinking.neurons, shrinking.costs["params"], shrinking.costs["macs"])
        with seeded((self.session.seed + k + 1) % 2**63):
            found = self.tuning.run(self.session, self.source, k, rounds, self.progress)
        self.spent += found.updates * shrinking.costs["macs"]
        row.updates, row.loss, row.metric = found.updates, found.loss, found.metric
        self.rows.append(row)
        self._keep_best(k)

    def _values(self, graph: Graph, k: int) -> Callable[[Graph], np.ndarray]:
        """The importance of units by the scores of the network as it now is."""
        ranking, options = self.shrinking.ranking, self.chosen[GradientOptions]
        if ranking.criterion is None:
            ranking = replace(ranking, seed=(ranking.seed + k) % 2**63)
            return lambda g: ranking.values(g, [np.zeros(n) for n in g.sizes])
        way = gradient_setup(options)
        found = importances(self.session, graph, self.source, [ranking.criterion], options, self.progress, way)
        importance = found[ranking.criterion]
        keep_whole(graph, importance.not_ranked)
        return lambda g: ranking.values(g, importance.scores)

    # -- how much goes

    def _much(self, graph: Graph, values: Callable[[Graph], np.ndarray], way: float) -> int:
        """How many neurons go, so that after this round the network has gone this share of its way, in (0, 1].

        On the way each round takes the same share of what is there: of neurons, or of what the budgets limit.
        """
        now, goal = self.shrinking.neurons, self.goal
        if goal.sparsity is not None:
            last = self.shrinking.left_at(float(goal.sparsity))
            return max(0, now - (last if way == 1 else round(self.dense_neurons * (last / self.dense_neurons) ** way)))
        bounds = {
            each.kind: self.before[each.kind]
            * min(1.0, each.of(self.before[each.kind]) / self.before[each.kind]) ** way
            for each in goal.limits
        }
        few, enough = -1, now  # too few to meet the bounds, and enough or all there are
        while enough - few > 1:
            middle = (few + enough) // 2
            if self._meets(graph, values, middle, bounds):
                enough = middle
            else:
                few = middle
        return enough

    def _meets(
        self, graph: Graph, values: Callable[[Graph], np.ndarray], count: int, bounds: Mapping[str, float]
    ) -> bool:
        def choose() -> Selection:
            least = self.shrinking.floors(self.shrinking.neurons - count)
            return Selection(without_least(graph, values(graph), least, count, count, count).keep, [], "")

        refined = select_and_refine(self.session, graph, choose)
        self.costing.use(graph)
        costs = self.costing.under(self.goal.limits, refined.model, refined.trace)
        return all(costs[kind] <= bound for kind, bound in bounds.items())

    def _costs(self) -> dict[str, float]:
        """What the network now costs of each kind that is limited."""
        self.costing.use(self.shrinking.graph)
        return self.costing.under(self.goal.limits, self.session.model, None) if self.goal.limits else {}

    def _is_reached(self) -> bool:
        if self.goal.sparsity is not None:
            return self.shrinking.neurons <= self.shrinking.left_at(float(self.goal.sparsity))
        return met(self.goal.limits, self.before, self._costs())

    # -- the best network, and going on later

    def _keep_best(self, k: int) -> None:
        """Remember this network where it meets the goal and no other was better: by the metric, else by the loss."""
        row = self.rows[k]
        worth = row.metric if row.metric is not None else -(math.inf if row.loss is None else row.loss)
        if self._is_reached() and (self.best is None or worth > self.best["worth"]):
            self.best = {**self._network(copied=True), "round": k, "worth": worth}

    def _about(self, rounds: int) -> dict[str, Any]:
        """What has to be the same for a run that goes on."""
        limits = [f"{each.kind}={each.text}" for each in self.goal.limits]
        return {
            "fingerprint": self.session.model_info["fingerprint"],
            "weights": self.session.weights_digest(),
            "method": self.shrinking.ranking.recorded,
            "goal": {"rounds": rounds, "sparsity": self.goal.sparsity, "budget": limits, "seed": self.session.seed},
            "fine_tuning": self.tuning.recorded,
        }

    def _state(self) -> dict[str, Any]:
        optimizers = [each.state_dict() for each in self.tuning.optimizers]
        rows = removals_part(self.rows)
        return {**self._network(), "rounds": rows, "spent": self.spent, "optimizers": optimizers, "best": self.best}

    def _network(self, copied: bool = False) -> dict[str, Any]:
        """What is left of the network, and its weights."""
        shrinking = self.shrinking
        weights = self.session.model.state_dict()
        return {
            "kept": {name: torch.from_numpy(kept.copy()) for name, kept in shrinking.kept.items()},
            "held": {reason: dict(layers) for reason, layers in shrinking.held.items()},
            "attributes": {name: dict(values) for name, values in shrinking.attributes.items()},
            "verified": dict(shrinking.verified),
            "model": {
                name: t.detach().to("cpu", copy=copied) if isinstance(t, torch.Tensor) else t
                for name, t in weights.items()
            },
        }

    def _go_on(self, known: Mapping[str, Any], file: RoundsFile) -> None:
        """Stand where the file was written."""
        self._restore(known, str(file.path))
        try:
            for optimizer, state in zip(self.tuning.optimizers, known["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except USER_EXCEPTIONS as error:  # whatever torch says of a state that a stranger wrote
            raise file.broken(error) from error
        self.rows, self.spent, self.best = [Removal(**row) for row in known["rounds"]], known["spent"], known["best"]

    def _restore(self, known: Mapping[str, Any], what: str) -> None:
        """Cut the dense network to what `_network` had, with its weights."""
        kept = {name: indices_of(t) or [] for name, t in known["kept"].items()}
        self.shrinking.restore(kept, known["attributes"], known["held"], what)
        try:
            self.session.model.load_state_dict(known["model"])
        except USER_EXCEPTIONS as error:
            raise BadInput(f"{what}: its weights are not those of this network: {in_words(error, 200)}") from error
        self.shrinking.verified = known["verified"]

    # -- what came of it

    def check(self, allow_less: bool) -> None:
        """Raise Infeasible where the goal was not reached."""
        if self.best is not None:
            return
        if self.goal.limits:
            raise infeasible(self.goal.limits, self.before, self._costs())
        asked, reached = float(self.goal.sparsity or 0), self.shrinking.sparsity
        if not allow_less and reached < MUCH_LESS * asked:
            raise Infeasible(
                f"only {reached:.1%} of the neurons could be removed in {len(self.rows)} rounds where {asked:.1%} was asked; "
                f"give {spelled('allow_less', True)} to take it"
            )

    def pruned(self) -> Pruned:
        """The best network that met the goal, or what the last round left, with its mask and report."""
        shrinking, session, last = self.shrinking, self.session, len(self.rows) - 1
        if self.best is not None and self.best["round"] != last:
            self.session = session = replace(session, model=_copy(self.dense, session.device))
            self.shrinking = shrinking = Shrinking(session, shrinking.example, shrinking.ranking, (), (), PROOF)
            self._restore(self.best, "the best round")
            session.note(f"the network is that of round {self.best['round'] + 1}, the best that meets the goal")
        updates = sum(row.updates for row in self.rows)
        parts: dict[str, Any] = {
            "rounds": removals_part(self.rows),
            "loop": {"updates": updates, "dense_updates": self.spent / shrinking.dense_costs["macs"]},
        }
        if self.goal.limits:
            parts["budget"] = self.goal.rows(self.before, self._costs())
        method = {**shrinking.ranking.recorded, **self.tuning.recorded, "rounds": len(self.rows)}
        self.costing.use(shrinking.dense)
        asked = round(shrinking.sparsity, 6) if self.goal.sparsity is None else self.goal.sparsity
        pruned = shrinking.pruned(asked, method, **parts)
        whole = {name for name, kept in shrinking.kept.items() if len(kept) == shrinking.dense_sizes[name]}
        rows = not_pruned(shrinking.graph, np.ones(len(shrinking.graph.unit_roots), dtype=bool))
        session.report.parts["not_pruned"] = [row for row in rows if row["layer"] in whole]
        if notes := session.report.parts.get("notes"):
            session.report.parts["notes"] = list(dict.fromkeys(notes))
        return pruned
