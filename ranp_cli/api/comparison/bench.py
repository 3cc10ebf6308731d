"""One network under one seed, scored once and cut by any method; the network is cut many times, gradients are taken once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...core.contexts import labels_on_cpu, seeded
from ...core.errors import BadInput
from ...core.example import Example, as_example
from ...graph.analyse import cost_of, measure
from ...graph.graph import Graph
from ...io.batches import Batches
from ...io.losses import loss_name
from ...io.model import built, factory_of
from ...io.user_code import is_code
from ...pruning.init import INITS
from ...pruning.select import Selection
from ...reporting.report import Report, reduction
from ...scoring.scorer import Importance, Way
from ...scoring.zero_scores import whole
from ..session import (
    Job,
    Progress,
    agreement_of,
    check_choices,
    first_batch,
    importances,
    layer_seconds,
    open_job,
    settle,
)
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
    model_args: dict[str, Any]
    weights: str | None
    weights_key: str | None
    device: str
    batch_limit: int | None
    loss: Any
    ignore_index: int | None
    score_init: str
    keep: Sequence[str]
    only: Sequence[str]
    way: Way
    at: Example | None  # the input that is counted for, when another than that of the mini-batches
    width_arg: str | None = None
    seconds: dict[str, Any] | None = None  # of the layers, once they were measured
    _source: tuple[Batches, Example] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_choices(score_init=(self.score_init, INITS))
        wants_width = any(e.kind == "width" for e in self.table.entries)
        if self.width_arg is not None and not wants_width:
            raise BadInput("--width-arg names the argument of method 'width'; add width to --methods, or leave it out")
        if wants_width and self.width_arg is None:
            raise BadInput(
                "method 'width' needs --width-arg NAME: which integer argument of the factory makes it narrower"
            )

    @classmethod
    def of(cls, model: Any, batches: Any, table: Table, *, inputs: Any, keep: Any, only: Any, model_args: Any,
           **same: Any) -> Subject:  # fmt: skip
        at = None if inputs is None else as_example(inputs)
        globs: list[Sequence[str]] = [[g] if isinstance(g, str) else g for g in (keep, only)]
        return cls(model, batches, table, dict(model_args or {}), at=at, keep=globs[0], only=globs[1], **same)

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

    def open(self, report: Report, seed: int) -> Job:
        model = self.model
        if isinstance(model, (str, Path, nn.Module)) or not callable(model):
            return open_job(report, model, seed, self.model_args or None, self.weights, self.weights_key, self.device)
        job = open_job(report, self.build(seed), seed, None, self.weights, self.weights_key, self.device)
        job.about |= {"spec": self.name, "args": self.model_args}
        return job

    def first_batch(self, seed: int) -> tuple[Batches, Example]:
        if self._source is None:
            self._source = first_batch(self.batches, self.batch_limit, seed)
        return self._source


@dataclass(frozen=True)
class Cut:
    """A row of the table, and its network: the dense one for `full`, else one of its own."""

    row: dict[str, Any]
    network: nn.Module


class Bench:
    """The subject under one seed; `score` it before it is cut. Steps and notes go to `report`."""

    @labels_on_cpu
    def __init__(self, subject: Subject, seed: int, report: Report) -> None:
        self.subject, self.seed, self.report = subject, seed, report
        self.job = subject.open(report, seed)
        self.source, example = subject.first_batch(seed)
        self.graph: Graph = self.job.analyse(report, example)
        self.job.draw(self.graph, subject.score_init, seed)
        at = subject.at
        self.before = cost_of(self.job.model, self.graph.eval_run) if at is None else measure(self.job.model, at)[2]
        self.found: dict[str, Importance] | None = None
        self.limits: dict[Level, dict[str, Any]] = {}  # costs of the first method's network, by sparsity

    @property
    def example(self) -> Example:
        """The input that is counted for."""
        return self.subject.at or self.graph.example

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
            self.found = importances(self.report, self.job, self.graph, self.source, criteria, subject.loss,
                                     subject.ignore_index, self.seed, progress, way)  # fmt: skip
        self.graph.fix_layers(subject.keep, subject.only)
        if any(ranking.resource == "latency" for ranking in rankings):
            subject.seconds = layer_seconds(self.report, self.job, self.graph, subject.seconds, progress)

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
        return Cut(row, self.job.model)

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

        with seeded(self.seed), whole(graph, by.not_ranked):
            chosen, slim, _, ran = settle(self.report, self.job, graph, choose)
            kept = [int(k.sum()) for k in graph.by_layer(chosen.keep[graph.unit])]
            at = self.subject.at
            after = cost_of(slim, ran.run) if at is None else measure(slim, at)[2]
        how = {k: v for k, v in ranking.recorded.items() if k in ("criterion", "resource", "lambda")}
        how = {**how, **self.costs(level, sum(kept), after)}
        how |= {"feasible": not chosen.floored, "floored": chosen.floored, "layers_kept": kept}
        return Cut({"method": e.name, **how}, slim)

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
