"""One network under one seed, scored once and cut by any method; the network is cut many times, gradients are taken once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...core.contexts import labels_on_cpu, seeded
from ...core.errors import BadInput
from ...core.example import Example, as_example
from ...core.progress import Progress
from ...core.spelling import Word, spelled
from ...costs.runtime_names import runtime_of
from ...costs.timing import Ground
from ...graph.analyse import cost_of, trace_costs
from ...graph.graph import Graph, TraceResult
from ...io.batches import Batches
from ...io.losses import loss_name
from ...io.model import built, factory_of
from ...io.user_code import is_code
from ...pruning.select import Selection
from ...reporting.report import Report, reduction
from ...scoring.setup import Importance
from ...scoring.zero_scores import whole_layers
from ..function_keywords import Chosen
from ..importances import gradient_setup, importances
from ..layer_times import layer_seconds
from ..options import GradientOptions, InputOptions, LayerOptions, ModelOptions, StepOptions
from ..ranking import agreement_of
from ..select_and_refine import select_and_refine
from ..session import Session, first_batch
from .rows import Entry, Level, Table, shuffled


@dataclass
class Subject:
    """What is compared, and how it is loaded, scored and counted: the same for every seed.

    `model` is an `nn.Module`, a spec, or a class or function that returns an `nn.Module`: this and a spec of code are
    built anew under each seed.
    """

    model: Any
    batches: Any
    table: Table
    options: Chosen
    width_arg: str | None = None
    seconds: dict[str, Any] | None = None  # of the layers, once they were measured
    _source: tuple[Batches, Example] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.way = gradient_setup(self.options[GradientOptions])
        wants_width = any(e.kind == "width" for e in self.table.entries)
        if self.width_arg is not None and not wants_width:
            raise BadInput(
                f"{spelled('width_arg')} names the argument of method 'width'; add width to {spelled('methods')}, or leave it out"
            )
        if wants_width and self.width_arg is None:
            raise BadInput(
                f"method 'width' needs {spelled('width_arg', Word('NAME'))}: which integer argument of the factory makes it narrower"
            )

        inputs = self.options[InputOptions].inputs
        self.at = (
            None if inputs is None else as_example(inputs)
        )  # the input that is counted for, when another than that of the mini-batches

    @property
    def model_args(self) -> dict[str, Any]:
        return dict(self.options[ModelOptions].model_args or {})

    @property
    def name(self) -> str | None:
        """The model's spec, or the name of the callable that makes it; None for an `nn.Module`."""
        if isinstance(self.model, nn.Module):
            return None
        return str(self.model) if isinstance(self.model, (str, Path)) else loss_name(self.model)

    def factory(self) -> Any:
        """The class or function that makes the network; None where the network is one object for all seeds."""
        found = self.model
        if isinstance(found, (str, Path)):
            found = factory_of(str(found), f"model {found}") if is_code(str(found)) else None
        return found if callable(found) and not isinstance(found, nn.Module) else None

    def build(self, seed: int, **changed: Any) -> nn.Module:
        """A new network of the factory, with weights drawn from `seed`."""
        with seeded(seed):
            return built(self.factory(), {**self.model_args, **changed}, f"model {self.name}")

    def open(self, report: Report, seed: int) -> Session:
        model, options = self.model, self.options[ModelOptions]
        if isinstance(model, (str, Path, nn.Module)) or not callable(model):
            return Session.open(report, model, options, seed)
        session = Session.open(report, self.build(seed), options, seed)
        session.model_info |= {"spec": self.name, "args": self.model_args}
        return session

    def first_batch(self, seed: int) -> tuple[Batches, Example]:
        if self._source is None:
            self._source = first_batch(self.batches, self.options[GradientOptions], seed)
        return self._source


@dataclass(frozen=True)
class Cut:
    """A row of the table, and its network: the dense one for `full`, else one of its own."""

    row: dict[str, Any]
    network: nn.Module


class Cutter:
    """The subject under one seed; `score` it before it is cut. Steps and notes go to `report`."""

    @labels_on_cpu
    def __init__(self, subject: Subject, seed: int, report: Report) -> None:
        self.subject, self.seed, self.report = subject, seed, report
        self.session = subject.open(report, seed)
        self.source, example = subject.first_batch(seed)
        self.graph: Graph = self.session.analyse(example)
        self.session.draw(self.graph, subject.options[GradientOptions].score_init)
        self.before = self.counts(self.session.model, self.graph.eval_run)
        self.found: dict[str, Importance] | None = None
        self.limits: dict[Level, dict[str, Any]] = {}  # costs of the first method's network, by sparsity

    @property
    def example(self) -> Example:
        """The input that is counted for."""
        return self.subject.at or self.graph.example

    @property
    def ground(self) -> Ground:
        """What layers and networks are timed on."""
        step = self.subject.options[StepOptions]
        return Ground(self.session.device, runtime_of(step.runtime), step.threads)

    def counts(self, network: nn.Module, run: TraceResult) -> dict[str, Any]:
        """What a network costs, from its run where that was on the input that is counted for."""
        at = self.subject.at
        return cost_of(network, run) if at is None else trace_costs(network, at).costs

    def score(self, progress: Progress) -> None:
        """Take the gradients that the methods need, once for all of them."""
        if self.found is not None:
            return
        subject = self.subject
        rankings = [e.ranking for e in subject.table.entries if e.ranking is not None]
        scored = [ranking for ranking in rankings if ranking.criterion is not None]
        way = replace(subject.way, facts={})
        if scored:
            way = replace(way, agreement=agreement_of(self.graph, scored[0], subject.table.levels[0]))
        criteria = [str(ranking.criterion) for ranking in scored]
        self.found = {}
        if criteria:
            self.found = importances(
                self.session, self.graph, self.source, criteria, subject.options[GradientOptions], progress, way
            )
        self.graph.fix_layers(subject.options[LayerOptions].keep, subject.options[LayerOptions].only)
        if any(ranking.resource == "latency" for ranking in rankings):
            subject.seconds = layer_seconds(self.session, self.graph, subject.seconds, self.ground, progress)

    def full(self, name: str) -> Cut:
        row = {
            "method": name,
            "sparsity": {"requested": 0.0, "achieved": 0.0},
            "kept": self.graph.n,
            "after": self.before,
            "reduction": reduction(self.before, self.before),
            "feasible": True,
            "floored": [],
            "layers_kept": self.graph.sizes,
        }
        return Cut(row, self.session.model)

    @labels_on_cpu
    def ranked(self, e: Entry, level: Level) -> Cut:
        """Select, refine and count one method at one sparsity. `feasible`: no layer needed the floor."""
        assert e.ranking is not None
        assert self.found is not None
        graph, ranking = self.graph, replace(e.ranking, seed=self.seed)
        by = self.found[ranking.criterion] if ranking.criterion else Importance([np.zeros(n) for n in graph.sizes], 0)

        def choose() -> Selection:
            chosen = ranking.select(graph, by.scores, level)
            return shuffled(graph, chosen, self.seed) if e.kind == "shuffled" else chosen

        with seeded(self.seed), whole_layers(graph, by.not_ranked):
            refined = select_and_refine(self.session, graph, choose)
            kept = [int(k.sum()) for k in graph.by_layer(refined.selection.keep[graph.unit])]
            after = self.counts(refined.model, refined.trace.run)
        floored = refined.selection.floored
        how = {k: v for k, v in ranking.recorded.items() if k in ("criterion", "resource", "resource_term", "lambda")}
        how = {**how, **self.costs(level, sum(kept), after)}
        how |= {"feasible": not floored, "floored": floored, "layers_kept": kept}
        return Cut({"method": e.name, **how}, refined.model)

    def costs(self, level: Level, kept: int, after: dict[str, Any]) -> dict[str, Any]:
        """The part of a row that says how large the network is."""
        return {
            "sparsity": {"requested": level, "achieved": round(1 - kept / self.graph.n, 6)},
            "kept": kept,
            "after": after,
            "reduction": reduction(self.before, after),
        }


def merged(report: Report, others: Iterable[Report]) -> None:
    """Add the seconds and the notes of the other seeds' reports, each note once."""
    for other in others:
        for step, seconds in other.seconds.items():
            report.seconds[step] = report.seconds.get(step, 0.0) + seconds
        notes = [*report.parts.get("notes", []), *other.parts.get("notes", [])]
        if notes:
            report.parts["notes"] = list(dict.fromkeys(notes))
