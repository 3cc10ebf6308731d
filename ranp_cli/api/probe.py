"""A probe: train the dense and the slim network side by side for a few steps and compare how far each loss falls.

Pruning is proved to be exact elsewhere (`verify`); whether the slim network can still learn the task shows only in
training. A short one on the calibration batches shows the worst cases: a network that is too narrow somewhere learns
more slowly, and often leaves out one class altogether. 200 steps tell well, 50 tell little (`probe_text` has the numbers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.contexts import NoDropout, in_checkpoints, labels_on_cpu, seeded, without_autocast
from ..core.copies import replicate, uncompiled
from ..core.errors import BadInput
from ..core.progress import Progress, silent
from ..core.spelling import spelled
from ..core.tensors import in_precision_of, map_tensors
from ..costs.memory import check_optimizer
from ..io.batches import Batch, Batches, load_batches
from ..io.losses import load_loss
from ..reporting.probe_text import notes_of
from ..scoring.checks import run_backward, run_model
from ..scoring.precision import reproducible
from .class_losses import Tally
from .options import GradientOptions, ProbeOptions
from .session import Session, choose_device

KEPT = 8  # mini-batches that are held in memory
OPTIMIZER = "adam"  # steps of Adam do not depend on the scale of the loss
RATES = {"sgd": 0.05, "sgd-momentum": 0.01, "adam": 3e-3, "adamw": 3e-3}
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Plan:
    """How a probe trains; `of` checks it."""

    steps: int
    optimizer: str
    lr: float

    @classmethod
    def of(cls, steps: int, optimizer: str | None = None, lr: float | None = None) -> Plan:
        """The plan with the defaults filled in; BadInput for what cannot be trained with."""
        name = OPTIMIZER if optimizer is None else optimizer
        check_optimizer(name)
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
            raise BadInput(
                f"{spelled('probe', steps)}: give the number of training steps, 1 or more, such as {spelled('probe', 200)}"
            )
        rate = RATES[name] if lr is None else lr
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
            raise BadInput(f"{spelled('probe_lr', lr)}: give a learning rate above 0, such as {RATES[name]}")
        return cls(int(steps), name, float(rate))

    @property
    def kept(self) -> int:
        """How many mini-batches are needed."""
        return min(self.steps, KEPT)

    def optimizer_of(self, net: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in net.parameters() if p.requires_grad]
        if not trained:
            raise BadInput(
                "no parameter of the model requires a gradient, so nothing can be trained; "
                f"call requires_grad_(True) on it, or leave out {spelled('probe')}"
            )
        return optimizer_of(self.optimizer, trained, self.lr)


def optimizer_of(name: str, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The optimiser of a name of RATES."""
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    if name == "sgd-momentum":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    return makers[name](parameters, lr=lr)


def plan_of(steps: int | None, optimizer: str | None, lr: float | None, scores: Any = None) -> Plan | None:
    """The plan that the options ask for; None without --probe. BadInput for options that do not go together."""
    if steps is None:
        if lr is not None:
            raise BadInput(
                f"{spelled('probe_lr', lr)} has no effect without {spelled('probe')}; give {spelled('probe', 200)} too, or leave it out"
            )
        return None
    if scores is not None:
        raise BadInput(
            f"{spelled('probe')} trains on calibration batches, and {spelled('scores')} holds none; give {spelled('batches')} instead of {spelled('scores')}"
        )
    return Plan.of(steps, optimizer, lr)


@without_autocast
@labels_on_cpu
def probe(
    dense: nn.Module,
    slim: nn.Module,
    batches: Any,
    *,
    steps: int = 200,
    loss: Any = None,
    optimizer: str | None = None,
    lr: float | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Train copies of two networks for a few steps on the same mini-batches and say how far each loss falls.

    The networks take turns: one step of the dense one, one step of the slim one, on the same mini-batch. They run in
    training mode without dropout. Neither network is changed, nor the global RNG.

    Args:
        dense, slim: two modules that take the same input; each trains from the weights that it has.
        batches: mini-batches as for `prune`; the first min(steps, 8) are held in memory and gone through in turn.
        steps: optimiser steps of each network, 1 or more.
        optimizer: `sgd`, `sgd-momentum` (0.9), `adam` (the default) or `adamw`.
        lr: learning rate; by default 3e-3 for `adam` and `adamw`, 0.05 for `sgd`, 0.01 for `sgd-momentum`.

    Returns: the part `probe` of the report.
        `dense`, `slim`: each with `first` and `last`, the mean loss over the mini-batches before and after training;
        `curve`, the loss of each step before that step; for class targets `worst_class`: after training, the `class` of
        the highest mean cross-entropy (`loss`), and the share of its places that is labelled right (`right`);
        `diverged`, the step at which the loss was not finite (then `last` is None).
        `lag`: what the slim loss still lacks of the way from the higher of the two first losses down to the dense
        network's last one. 0: it keeps up, 1: it has learned nothing, below 0: it is ahead. None where there is no way.
        `seconds`: wall time of the training steps of each network.

    Raises: BadInput, also when a network cannot be trained.
    """
    plan = Plan.of(steps, optimizer, lr)
    function = load_loss(loss, None)
    with seeded(seed):
        held = first_of(load_batches(batches), plan.kept)
    return run_probe(dense, slim, held, Probing(plan, function, None), choose_device(device), seed, silent)


def first_of(source: Batches, most: int) -> list[Batch]:
    """The first mini-batches, at most so many."""
    if source.held:
        return source.held[:most]
    found = []
    for batch in source:
        found.append(batch)
        if len(found) == most:
            break
    return found


@dataclass(frozen=True)
class Probing:
    """What a probe is made with, whichever the networks: how it trains, and the loss."""

    plan: Plan
    loss: Loss
    ignore_index: int | None

    @classmethod
    def of(
        cls, options: ProbeOptions, optimizer: str | None, scores: Any, gradients: GradientOptions
    ) -> Probing | None:
        """None without --probe. BadInput for options that do not go together, before the long work begins."""
        plan = plan_of(options.probe, optimizer, options.probe_lr, scores)
        return (
            None
            if plan is None
            else cls(
                plan, load_loss(gradients.loss, gradients.ignore_index, gradients.loss_args), gradients.ignore_index
            )
        )

    def run(self, session: Session, slim: nn.Module, source: Batches, progress: Progress) -> dict[str, Any]:
        """The part `probe` of a network; one that cannot be trained has the `error` that says why."""
        try:
            with seeded(session.seed):
                held = first_of(source, self.plan.kept)
            return run_probe(session.model, slim, held, self, session.device, session.seed, progress)
        except BadInput as error:
            plan = self.plan
            return {"steps": plan.steps, "optimizer": plan.optimizer, "lr": plan.lr, "error": str(error)}

    def report(self, session: Session, slim: nn.Module, source: Batches, progress: Progress) -> None:
        """Write the parts `probe` and `notes`."""
        with session.report.timing("probe"):
            part = self.run(session, slim, source, progress)
        session.report.parts["probe"] = part
        session.note(*notes_of(part))


def own_precision(model: nn.Module, batch: Batch) -> Batch:
    """The mini-batch with its inputs in the model's precision."""
    args, kwargs = in_precision_of(model, (batch.args, batch.kwargs))
    return Batch(args, kwargs, batch.target)


def run_probe(
    dense: nn.Module,
    slim: nn.Module,
    held: Sequence[Batch],
    probing: Probing,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """`probe`, of mini-batches and a loss that are there already."""
    plan, loss, ignore_index = probing.plan, probing.loss, probing.ignore_index
    sides = {
        name: Trainee(net, loss, plan, device, ignore_index, seed) for name, net in (("dense", dense), ("slim", slim))
    }
    moved = [batch.to(device) for batch in held]
    moved = [own_precision(dense, batch) for batch in moved]
    with reproducible(device), progress("probing", plan.steps) as advance:
        for side in sides.values():
            side.first, _ = side.evaluate(moved)
        for step in range(plan.steps):
            for side in sides.values():
                side.step(step, moved[step % len(moved)])
            advance()
        found = {name: side.outcome(moved) for name, side in sides.items()}
    return {
        "steps": plan.steps,
        "optimizer": plan.optimizer,
        "lr": plan.lr,
        "batches": len(moved),
        **found,
        "lag": lag_of(found["dense"], found["slim"]),
        "seconds": {name: round(side.seconds, 4) for name, side in sides.items()},
    }


def lag_of(dense: dict[str, Any], slim: dict[str, Any]) -> float | None:
    """What the slim loss lacks of the way from the higher first loss to the dense last one; None where there is no way."""
    ends = [side[key] for side in (dense, slim) for key in ("first", "last")]
    if any(value is None for value in ends):
        return None
    way = max(dense["first"], slim["first"]) - dense["last"]
    return (slim["last"] - dense["last"]) / way if way > 0 else None


@dataclass
class Trainee:
    """A copy of a network that is trained. Its `curve` ends where a loss was not finite."""

    given: nn.Module
    loss: Loss
    plan: Plan
    device: torch.device
    ignore_index: int | None
    seed: int
    first: float | None = None
    curve: list[float] = field(default_factory=list)
    diverged: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.net = replicate(uncompiled(self.given), lambda _, t: t.to(self.device, copy=True))
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        for p in self.net.parameters():
            p.grad = None
        self.optimizer = self.plan.optimizer_of(self.net)

    def step(self, index: int, batch: Batch) -> None:
        """One step of the optimiser, unless the loss was not finite before."""
        if self.diverged is not None:
            return
        start = time.perf_counter()
        with self._training(index), torch.enable_grad(), in_checkpoints(NoDropout):
            value = self._loss(index, batch)[0]
            number = value.item()
            if not np.isfinite(number):
                self.diverged = index
            elif not value.requires_grad:
                raise BadInput(
                    f"the loss has no gradient, so nothing can be trained; leave out {spelled('probe')}, or give a model "
                    f"and {spelled('loss')} that are differentiable"
                )
            else:
                self.curve.append(number)
                run_backward(value, index)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.seconds += time.perf_counter() - start

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float | None, Tally]:
        """The mean loss over the mini-batches, None where it is not finite, and the losses by class."""
        tally, values = Tally(self.ignore_index), []
        with torch.no_grad():
            for index, batch in enumerate(batches):
                with self._training(index):
                    value, output = self._loss(index, batch)
                values.append(value.item())
                tally.add(output, batch.target)
        mean = float(np.mean(values))
        return (mean if np.isfinite(mean) else None), tally

    def outcome(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """The numbers of this network for the report."""
        last, tally = (None, None) if self.diverged is not None else self.evaluate(batches)
        if last is None and self.diverged is None:
            self.diverged = self.plan.steps
        out: dict[str, Any] = {"first": self.first, "last": last, "curve": self.curve}
        if self.diverged is not None:
            return {**out, "diverged": self.diverged}
        worst = tally.worst() if tally else None
        return {**out, "worst_class": worst} if worst else out

    def _loss(self, index: int, batch: Batch) -> tuple[Tensor, Any]:
        # a forward may write into its input
        args, kwargs = map_tensors((batch.args, batch.kwargs), lambda t: t.detach().clone())
        output = run_model(self.net, args, kwargs, index)
        return self.loss(output, batch.target), output

    @contextmanager
    def _training(self, index: int) -> Iterator[None]:
        """What is drawn depends on the step alone, the same for both networks; BadInput when the device is full."""
        with ExitStack() as during:
            during.enter_context(seeded((self.seed + index) % 2**63))
            during.enter_context(NoDropout())
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise BadInput(
                    f"the device has too little memory for a training step ({str(error).splitlines()[0]}); "
                    f"give smaller mini-batches, or leave out {spelled('probe')}"
                ) from error
