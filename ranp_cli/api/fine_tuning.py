"""The fine-tuning between the rounds of `prune(rounds=N)`: updates on the mini-batches, or the user's own function."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..core.errors import USER_EXCEPTIONS, BadInput, in_words
from ..core.progress import Progress
from ..core.spelling import spelled
from ..core.tensors import map_tensors
from ..io.batches import Batch, Batches
from ..io.losses import load_loss
from ..scoring.checks import run_backward, run_model
from ..scoring.precision import reproducible
from .comparison.training import Fit, metrics_of
from .options import GradientOptions, RoundOptions, StepOptions
from .probe import OPTIMIZER, RATES, Loss, optimizer_of, own_precision
from .session import Session

UPDATES = 100


@dataclass(frozen=True)
class Tuned:
    """What one fine-tuning was: updates of an optimiser, their mean loss, and the metric of the user's function."""

    updates: int
    loss: float | None = None
    metric: float | None = None


@dataclass
class FineTuning:
    """How to fine-tune; `of` checks it. With `fit` there is no optimiser of ours."""

    optimizers: list[torch.optim.Optimizer]
    recorded: dict[str, Any]  # what has to be the same to go on, and what the mask says
    updates: int
    loss: Loss
    fit: Fit | None = None

    @classmethod
    def of(cls, options: RoundOptions, step: StepOptions, gradients: GradientOptions, session: Session) -> FineTuning:
        """BadInput for what cannot train the session's model."""
        loss = load_loss(gradients.loss, gradients.ignore_index, gradients.loss_args)
        if options.fit is not None:
            if options.lr is not None:
                raise BadInput(
                    f"{spelled('lr', options.lr)} is of our own updates, not of {spelled('fit')}; leave it out"
                )
            fit = Fit.of(options.fit, options.metric)
            return cls([], {"fit": fit.name, "metric": options.metric}, 0, loss, fit)
        if options.metric is not None:
            raise BadInput(f"{spelled('metric', options.metric)} is of what {spelled('fit')} returns; give that too")
        name, updates = step.optimizer or OPTIMIZER, options.updates or UPDATES
        lr = RATES[name] if options.lr is None else options.lr
        if isinstance(lr, bool) or not 0 < lr < float("inf"):
            raise BadInput(f"{spelled('lr', lr)}: give a learning rate above 0, such as {RATES[name]}")
        trained = [p for p in session.model.parameters() if p.requires_grad]
        if not trained:
            raise BadInput(
                f"no parameter of the model requires a gradient, so nothing can be fine-tuned; call requires_grad_(True) on it, "
                f"or leave out {spelled('rounds')}"
            )
        told = {"optimizer": name, "lr": float(lr), "updates": updates}
        return cls([optimizer_of(name, trained, float(lr))], told, updates, loss)

    def run(self, session: Session, source: Batches, k: int, rounds: int, progress: Progress) -> Tuned:
        """Fine-tune the session's model, in place, after removal number k.

        Raises: BadInput, also for what the user's function raises or returns, and for a loss that is not finite.
        """
        with session.report.timing("fine-tuning"):
            if self.fit is not None:
                return self._by_user(self.fit, session, k, rounds, progress)
            return self._by_updates(session, source, k, rounds, progress)

    def _by_updates(self, session: Session, source: Batches, k: int, rounds: int, progress: Progress) -> Tuned:
        net, losses = session.model, []
        with (
            reproducible(session.device),
            torch.enable_grad(),
            progress(f"round {k + 1} of {rounds}", self.updates) as advance,
        ):
            net.train()
            for index, batch in enumerate(islice(_endless(source), self.updates)):
                losses.append(self._update(net, own_precision(net, batch.to(session.device)), index, k))
                advance()
            for p in net.parameters():
                p.grad = None
        return Tuned(self.updates, float(np.mean(losses)))

    def _update(self, net: nn.Module, batch: Batch, index: int, k: int) -> float:
        # a forward may write into its input
        args, kwargs = map_tensors((batch.args, batch.kwargs), lambda t: t.detach().clone())
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        value = self.loss(run_model(net, args, kwargs, index), batch.target)
        number = float(value.item())
        if not np.isfinite(number):
            raise BadInput(
                f"round {k + 1}, update {index + 1}: the loss is {number}; give a smaller {spelled('lr')}, or more {spelled('rounds')}"
            )
        if not value.requires_grad:
            raise BadInput(
                f"the loss has no gradient, so nothing can be fine-tuned; give a model and {spelled('loss')} that are differentiable"
            )
        run_backward(value, index)
        for optimizer in self.optimizers:
            optimizer.step()
        return number

    def _by_user(self, fit: Fit, session: Session, k: int, rounds: int, progress: Progress) -> Tuned:
        what = f"{spelled('fit', fit.name)}, round {k + 1}"
        with progress(f"round {k + 1} of {rounds}", None), counted_updates() as updates:
            try:
                value, _ = fit.run(session.model, session.seed, session.device)
            except USER_EXCEPTIONS as error:
                raise BadInput(f"{what}: {in_words(error)}") from error
        try:
            metrics = metrics_of(value)
        except BadInput as error:
            raise BadInput(f"{what}: {error}") from None
        for p in session.model.parameters():
            p.grad = None
        return Tuned(len(updates), metric=metrics[fit.chosen(metrics)])


def _endless(source: Batches) -> Iterator[Batch]:
    """The mini-batches, again and again. (A source without any is an error of its own.)"""
    while True:
        yield from source


@contextmanager
def counted_updates() -> Iterator[list[None]]:
    """A list that gets an entry for every step of any optimiser of this thread."""
    steps: list[None] = []
    thread = threading.get_ident()

    def count(*_: Any) -> None:
        if threading.get_ident() == thread:
            steps.append(None)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield steps
    finally:
        handle.remove()
