"""The training of cells: the user's `fit`, called on one network under one seed each, and what it returns."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.contexts import seeded
from ...core.copies import replicate
from ...core.errors import USER_EXCEPTIONS, BadInput, FitsInterrupted, in_words, nearest
from ...core.progress import Progress, silent
from ...core.spelling import spelled
from ...graph.analyse import trace_costs
from ...io.losses import loss_name
from ...io.readers import found_instead
from ...io.user_code import is_code
from ...io.user_code import named as named_object
from ...pruning.initial_weights import initialise
from ...reporting.report import Report
from ...scoring.distributed import WorkerGroup
from .cells import Cells, Key, key_of, named
from .cutting import Cutter, Subject, merged
from .matching import cut
from .rows import Entry, Level

ONLY = "accuracy"  # the name of a metric that came without one
POLL = 0.2  # seconds between looks at what other processes have trained
HIDDEN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass
class Fit:
    """The user's function; `run` calls it and checks what comes back. `metric` is the one that rows go by."""

    name: str
    function: Callable[[nn.Module, int], Any]
    metric: str | None

    @classmethod
    def of(cls, fit: Any, metric: str | None) -> Fit:
        """From `file.py:fit`, `package.module:fit` or a callable; BadInput for what cannot be called as fit(model, seed)."""
        name = fit if isinstance(fit, str) else loss_name(fit)
        what = spelled("fit", name)
        if isinstance(fit, str) and not is_code(fit):
            raise BadInput(f"{what}: wants file.py:fit or package.module:fit, a function fit(model, seed)")
        function = named_object(fit, what) if isinstance(fit, str) else fit
        if not callable(function) or isinstance(function, type):
            raise BadInput(f"{what}: is {found_instead(function)}; wants a function fit(model, seed)")
        try:
            inspect.signature(function).bind(nn.Identity(), 0)
        except TypeError as error:
            raise BadInput(
                f"{what}: cannot be called as fit(model, seed): {error}; give it these two arguments"
            ) from None
        except ValueError:  # a callable without a signature: it shows when it is called
            pass
        return cls(name, function, metric)

    def run(self, network: nn.Module, seed: int, device: torch.device) -> tuple[Any, float]:
        """Train a network: what `fit` returns, and the seconds it took. What it raises comes through."""
        start = time.perf_counter()
        with seeded(seed), torch.enable_grad(), _at_home(device), alone():
            value = self.function(network.to(device).train(), seed)
        return value, time.perf_counter() - start

    def chosen(self, metrics: dict[str, Any]) -> str:
        """The metric that rows go by; BadInput when `fit` does not return the one that was asked for."""
        if self.metric is None:
            return next(iter(metrics))
        if self.metric not in metrics:
            raise BadInput(
                f"{spelled('metric', self.metric)}: fit returns no such number{nearest(self.metric, metrics)}"
            )
        return self.metric


def metrics_of(value: Any) -> dict[str, float]:
    """What `fit` returned, a number or a dict of numbers, by name; BadInput for anything else."""
    if not isinstance(value, dict):
        return {ONLY: _number(value, "fit returned")}
    if not value or not all(isinstance(name, str) for name in value):
        raise BadInput(f"fit returned {found_instead(value)}; wants a number, or a dict of names and numbers")
    return {name: _number(each, f"fit returned for '{name}'") for name, each in value.items()}


def _number(value: Any, what: str) -> float:
    """A float of a number, a numpy scalar or a tensor with one element."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, (str, bytes, bool)) or not hasattr(type(value), "__float__"):
        raise BadInput(f"{what} {found_instead(value)}; wants a number (higher is better)")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several
        raise BadInput(f"{what} {found_instead(value)}; wants a number (higher is better)") from None


@contextmanager
def alone() -> Iterator[None]:
    """Hide torchrun from the user's code: a trainer that saw it would wait for processes that train other networks."""
    hidden = {k: v for k, v in os.environ.items() if k in HIDDEN or k.startswith("TORCHELASTIC_")}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _at_home(device: torch.device) -> Any:
    """What the user's code calls "cuda" is the device of this process."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass
class Training:
    """The cells of a table, trained: `first` is the cutter of the first seed, opened by the caller."""

    subject: Subject
    first: Cutter
    seeds: Sequence[int]
    fit: Fit
    cells: Cells
    init: str
    share: WorkerGroup
    report: Report

    def __post_init__(self) -> None:
        self.plan = [(e, x, s) for s in self.seeds for e, x in self.subject.table.rows]
        self.keys = [key_of(e.name, x, s) for e, x, s in self.plan]

    def run(self, progress: Progress) -> str:
        """Train this process' share of what is not held yet, and wait for the others; returns the metric to go by.

        Raises: FitsInterrupted on Ctrl-C; BadInput, with what is kept, for what `fit` raises or returns.
        """
        if any(key in self.cells.held for key in self.keys):
            self._metric()
        mine = [k for k in range(len(self.plan)) if k % self.share.size == self.share.rank]
        todo = {self.keys[k]: self.plan[k] for k in mine if self.keys[k] not in self.cells.held}
        try:
            self._check_weights(self.first)
            if any(seed == self.first.seed for _, _, seed in todo.values()):
                self.first.score(progress)  # its bar comes before that of the training
            missing = self._missing()
            with progress("training", len(missing)) as advance:
                for seed in self.seeds:
                    some = [(key, e, level) for key, (e, level, s) in todo.items() if s == seed]
                    self._seed(seed, some, missing, advance)
                while missing:  # what other processes train
                    time.sleep(POLL)
                    self._tick(missing, advance)
        except KeyboardInterrupt:
            self.cells.refresh()
            kept = len(set(self.keys) & self.cells.held.keys())
            raise FitsInterrupted(kept, len(self.keys), self.cells.path) from None
        return self._metric()

    def _seed(
        self, seed: int, some: Sequence[tuple[Key, Entry, Level]], missing: set[Key], advance: Callable[[], Any]
    ) -> None:
        if not some:
            return
        other = Report("compare")
        cutter = self.first if seed == self.first.seed else Cutter(self.subject, seed, other)
        self._check_weights(cutter)
        cutter.score(silent)
        for key, e, level in some:
            self._train(cutter, key, e, level)
            self._tick(missing, advance)
        merged(self.report, [other])

    def _train(self, cutter: Cutter, key: Key, e: Entry, level: Level) -> None:
        made = cut(cutter, e, level)
        network = replicate(made.network, lambda _, t: t.clone()) if e.kind == "full" else made.network
        if self.init != "keep":
            slots = [layer.slot for layer in cutter.graph.layers]
            if e.kind == "width":
                slots = [layer.slot for layer in trace_costs(network, cutter.example, both_modes=True).layers.values()]
            with seeded(cutter.seed):
                initialise(network, self.init, slots)
        what, keys = f"{spelled('fit', self.fit.name)}, {named(key)}", set(self.keys)
        try:
            value, seconds = self.fit.run(network, cutter.seed, cutter.session.device)
        except USER_EXCEPTIONS as error:
            raise BadInput(f"{what}: {in_words(error)}; {self.cells.advice(keys)}") from error
        try:
            metrics = metrics_of(value)
            self._check_names(metrics)
        except BadInput as error:
            raise BadInput(f"{what}: {error}; {self.cells.advice(keys)}") from None
        self.report.seconds["fit"] = self.report.seconds.get("fit", 0.0) + seconds
        self.cells.add(
            {
                "method": e.name,
                "sparsity": level,
                "seed": cutter.seed,
                "metrics": metrics,
                "seconds": round(seconds, 3),
                "weights": cutter.session.weights_digest(),
                "row": made.row,
            }
        )
        self.fit.chosen(metrics)

    def _tick(self, missing: set[Key], advance: Callable[[], Any]) -> None:
        """Move the bar by the cells that came, those of other processes among them."""
        if self.share.size > 1:
            self.cells.refresh()
        for key in [key for key in missing if key in self.cells.held]:
            missing.remove(key)
            advance()

    def _missing(self) -> set[Key]:
        return {key for key in self.keys if key not in self.cells.held}

    def _metric(self) -> str:
        held = [self.cells.held[key]["metrics"] for key in self.keys if key in self.cells.held]
        other = next((each for each in held if set(each) != set(held[0])), None)
        if other is not None:
            raise BadInput(
                f"{self.cells.path}: fit returned {found_instead(held[0])} and {found_instead(other)}; all cells must "
                f"have the same metrics: train anew with another {spelled('cells')}"
            )
        return self.fit.chosen(held[0])

    def _check_names(self, metrics: dict[str, float]) -> None:
        known = next((self.cells.held[key]["metrics"] for key in self.keys if key in self.cells.held), metrics)
        if set(known) != set(metrics):
            raise BadInput(
                f"fit returned {found_instead(metrics)}, and {found_instead(known)} before; return the same each time"
            )

    def _check_weights(self, cutter: Cutter) -> None:
        """BadInput when the cells of this seed were cut from other weights than the network now has."""
        digest = cutter.session.weights_digest()
        for key in self.keys:
            if key[2] == cutter.seed and self.cells.held.get(key, {}).get("weights", digest) != digest:
                raise BadInput(
                    f"{self.cells.path}: the cells of seed {cutter.seed} were cut from other weights than the model now "
                    f"has; give the same model and {spelled('weights')}, or another {spelled('cells')}"
                )
