"""What a scoring is asked for and what it gives: its settings, checked, and the scores of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.errors import BadInput
from ..core.spelling import spelled
from ..graph.graph import Graph
from .compensated_sum import CompensatedSum
from .criteria import Criterion
from .distributed import WorkerGroup


@dataclass(frozen=True)
class Importance:
    """The scores of each layer in float64, and how many mini-batches they are the mean of.

    One score a neuron, of shape (N,); for the criterion `snip` one a weight, of the parameter's shape, in float32.
    `sums` are what the mean was taken of, to go on from. `not_ranked`: the layers whose scores say nothing, and why.
    """

    scores: list[np.ndarray]
    batches: int
    sums: list[CompensatedSum | None] = field(default_factory=list)
    not_ranked: dict[str, str] = field(default_factory=dict)
    begun: Sequence[float] = ()  # what `oracle` has of the next mini-batch: the changes of the loss for its first units


@dataclass(frozen=True)
class GradientSetup:
    """Settings for one scoring run; results such as the chosen precision are returned in `facts`."""

    precision: str = "model"
    low_memory: bool = False
    memory_limit: int | None = None  # bytes
    spread: WorkerGroup = field(default_factory=WorkerGroup)
    agreement: Callable[[list[np.ndarray], list[np.ndarray]], float] | None = None  # of the masks of two scores
    resumed: Importance | None = None
    keep_partial: bool = False  # Ctrl-C ends the scoring instead of the program, once there is a mini-batch
    keep: Callable[[dict[str, Importance]], None] | None = None  # writes down what is done so far
    save_every: float = 60.0  # seconds; 0: never
    advance: Callable[[], Any] = lambda: None  # after each mini-batch, for the oracle after each unit: the progress bar
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, text: str) -> None:
        self.facts.setdefault("notes", []).append(text)


def score_shapes(graph: Graph, criterion: Criterion) -> list[tuple[int, ...]]:
    """Of the scores of each layer."""
    if criterion.reduce == "nothing":
        return [graph.slots[layer.slot].shape for layer in graph.layers]
    return [(n,) for n in graph.sizes]


def check_setup(model: nn.Module, device: torch.device, way: GradientSetup, criteria: Sequence[Criterion]) -> None:
    """BadInput for settings that do not go together."""
    twice = next((c.name for c in criteria if c.reduce == "curvature"), None)
    oracle = any(c.of_units for c in criteria)
    if twice and way.low_memory:
        raise BadInput(
            f"criterion '{twice}' takes second derivatives, which need all activations kept; leave out "
            f"{spelled('low_memory', True)} and {spelled('memory_limit')}, or use taylor"
        )
    if oracle and way.precision == "auto":
        raise BadInput(
            f"{spelled('precision', 'auto')} compares gradients, and criterion 'oracle' takes none: give fp32 or bf16"
        )
    if way.precision in ("bf16", "fp16", "auto") and device.type == "cpu" and isinstance(model, torch.jit.ScriptModule):
        raise BadInput(
            f"{spelled('precision', way.precision)} needs the Python model on a CPU; leave it out for TorchScript"
        )
