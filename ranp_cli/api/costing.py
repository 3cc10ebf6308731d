"""What the dense and the slim network cost: at the input of the mini-batches, or at another one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.example import Example, as_example
from ..core.numbers import MEASURED
from ..core.spelling import spelled
from ..costs.budget import Limit, costs_for
from ..costs.latency_table import LatencyTable
from ..costs.memory import Grounds, memory_of
from ..costs.timing import Benchmark
from ..graph.analyse import TracedCosts, cost_of, trace_costs
from ..graph.graph import Graph
from ..pruning.slim_trace import SlimRun
from .options import StepOptions
from .session import Session


@dataclass
class Costing:
    """Counts networks. `use` a graph before the costs at its own input are asked for."""

    options: StepOptions
    device: str
    at: Example | None  # the input that is counted for, when another than the graph's
    dense_at: TracedCosts | None  # the dense network, counted for it
    graph: Graph | None = None
    grounds: Grounds = field(default_factory=Grounds)
    table: LatencyTable | None = None  # that was given, instead of the one in the cache folder

    @classmethod
    def of(cls, session: Session, inputs: Any, options: StepOptions) -> Costing:
        at = None if inputs is None else as_example(inputs)
        dense = None if at is None else trace_costs(session.model, at, both_modes=True)
        return cls(options, session.device.type, at, dense)

    def use(self, graph: Graph) -> None:
        self.graph = graph

    def table_for(self, stand: Benchmark, kind: str) -> LatencyTable:
        """The times of layers' ops where networks are timed: of a training step in torch, whatever else runs the forward pass."""
        if self.table is None:
            self.table = LatencyTable.open(stand.ground.of(kind))
        return self.table

    @property
    def optimizer(self) -> str:
        return self.options.optimizer or "sgd"

    @property
    def example(self) -> Example:
        """The input that is counted for."""
        if self.at is not None:
            return self.at
        assert self.graph is not None
        return self.graph.example

    @property
    def sample(self) -> Example:
        """It, with the number of samples of the training step."""
        return self.example.with_batch(self.options.batch_size or self.example.samples)

    def memory(self, network: nn.Module) -> dict[str, Any]:
        """The estimated memory of a network, as the report has it."""
        return memory_of(network, self.sample, self.optimizer, self.device, self.options.amp, self.grounds)

    def dense(self, session: Session) -> TracedCosts:
        """The dense network."""
        if self.dense_at is not None:
            return self.dense_at
        assert self.graph is not None
        layers = {(layer.slot, layer.axis): layer for layer in self.graph.layers}
        return TracedCosts(self.graph.eval_run, layers, cost_of(session.model, self.graph.eval_run))

    def slim(self, network: nn.Module, trace: SlimRun) -> TracedCosts:
        """A slim network, from its run on meta tensors where that was on the same input."""
        if self.at is not None:
            return trace_costs(network, self.at, both_modes=True)
        return TracedCosts(trace.run, trace.layers, cost_of(network, trace.run))

    def counts(self, network: nn.Module, trace: SlimRun | None) -> dict[str, Any]:
        """Parameters, multiply-adds, activations of a network; without a trace, of the dense one."""
        if self.at is not None:
            return trace_costs(network, self.at).costs
        assert self.graph is not None
        return cost_of(network, trace.run if trace is not None else self.graph.eval_run)

    def under(self, limits: Sequence[Limit], network: nn.Module, trace: SlimRun | None) -> dict[str, float]:
        """What a network costs of each kind that is limited, times aside."""
        memory = {"before": self.memory(network)} if any(limit.kind.endswith("-mem") for limit in limits) else {}
        counted = [limit for limit in limits if limit.kind not in MEASURED]
        return costs_for(
            counted,
            {"before": self.counts(network, trace), "memory": memory},
            "before",
            lambda kind: f"{spelled('budget')} {kind}",
        )
