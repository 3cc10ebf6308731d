"""One pass over the mini-batches, in one process or in a job, which keeps on the way what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..core.contexts import products, seeded
from ..core.signals import undivided
from ..graph.graph import Graph
from .checks import check_scores
from .criteria import Criterion
from .distributed import ENDED, SAVE, STOP
from .precision import reproducible
from .scorer import Scorer
from .setup import GradientSetup, Importance


def score(
    model: nn.Module,
    graph: Graph,
    batches: Any,
    loss: Callable[[Any, Any], Tensor],
    criteria: Sequence[Criterion],
    device: torch.device,
    seed: int = 0,
    way: GradientSetup | None = None,
) -> dict[str, Importance]:
    """Scores of all neurons by each criterion, averaged over the mini-batches, from one pass over them.

    The model runs in training mode with batch statistics and without dropout, on a twin that shares its weights, so
    the model itself (modes, gradients, buffers) is not touched. A gradient is freed as soon as it has been scored. What
    is drawn in the forward pass of a mini-batch depends on `seed` and its number alone, so that it does not matter
    which process comes to it, or when.

    Raises BadInput for a loss that is not finite or reaches no layer; Infeasible for a memory limit that cannot be kept.
    """
    way = way or GradientSetup()
    scorer = Scorer(model, graph, loss, criteria, device, seed, way)
    with ExitStack() as during:
        during.enter_context(seeded(seed))  # what a loader draws
        during.enter_context(reproducible(device))
        during.enter_context(products(device, short=way.precision == "tf32"))
        for collector in scorer.collectors:
            during.enter_context(collector.watching())
        found = (alone if way.spread.size == 1 else in_job)(scorer, batches, way)
    for c in (c for c in criteria if found[c.name].batches):  # of a mini-batch that is begun nothing can be said
        check_scores(found[c.name].scores, graph.layers, c)
    return found


def alone(scorer: Scorer, batches: Any, way: GradientSetup) -> dict[str, Importance]:
    """Score in one process. Ctrl-C waits for no mini-batch: what is half done is left out."""
    start = count = way.resumed.batches if way.resumed else 0
    clock, oracle = Clock(way), scorer.oracle
    begun = 0 if oracle is None else len(oracle.done)

    def after_unit() -> None:
        way.advance()
        if way.keep is not None and clock.is_time():
            with undivided():
                way.keep(scorer.importances(count))
            clock.restart()

    if oracle is not None:
        oracle.after_unit = after_unit
    try:
        for index, batch in way.spread.mine(batches, start):
            scorer.run(index, batch)
            with undivided():
                scorer.end_of_batch()
                count += 1
                if way.keep is not None and clock.is_time():
                    way.keep(scorer.importances(count))
                    clock.restart()
            if oracle is None:
                way.advance()
    except KeyboardInterrupt:
        has_more = count > start or (oracle is not None and len(oracle.done) > begun)
        if not way.keep_partial or not has_more:
            raise
        way.facts["stopped"] = True
    scorer.finish()
    return scorer.importances(count)


def in_job(scorer: Scorer, batches: Any, way: GradientSetup) -> dict[str, Importance]:
    """Score with the other processes of a job, turn by turn: each does one mini-batch, then all say whether to stop or save.

    So what all have done together are the first mini-batches, without a gap, whenever they stop. A signal waits for the
    end of a turn, and stops all; one that comes after the last turn finds the scores complete.
    """
    first = way.resumed.batches if way.resumed else 0
    count = first if way.spread.rank == 0 else 0
    mine, clock, flags, found = way.spread.mine(batches, first), Clock(way), 0, None
    if scorer.oracle is not None:
        scorer.oracle.after_unit = way.advance
    try:
        with undivided() as is_waiting:
            while True:
                if not flags & ENDED and (item := next(mine, None)) is not None:
                    scorer.run(*item)
                    scorer.end_of_batch()
                    count += 1
                    if scorer.oracle is None:
                        way.advance()
                else:
                    flags = ENDED
                said = way.spread.say(flags | STOP * is_waiting() | SAVE * clock.is_time())
                if any(each & STOP for each in said) or all(each & ENDED for each in said):
                    way.facts.update({"stopped": True} if any(each & STOP for each in said) else {})
                    break
                if said[0] & SAVE and way.keep:
                    so_far = scorer.importances(count)
                    if way.spread.rank == 0:
                        way.keep(so_far)
                    clock.restart()
            scorer.finish()
            way.spread.agree(None if "stopped" in way.facts else way.spread.came[0])
            found = scorer.importances(count)
    except KeyboardInterrupt:
        if not way.keep_partial or found is None:
            raise
        way.facts["stopped"] = True
    assert found is not None
    return found


class Clock:
    """Tells when it is time to keep what is done."""

    def __init__(self, way: GradientSetup) -> None:
        self.every = way.save_every if way.keep else 0.0
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def is_time(self) -> bool:
        return self.every > 0 and time.monotonic() - self.since >= self.every
