"""Networks whose code branches on the values of tensors: the path of the first mini-batch is traced, and others are looked at here."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from ..core.contexts import seeded
from ..core.copies import replicate
from ..core.errors import USER_EXCEPTIONS, VerificationFailed, in_words
from ..core.tensors import in_precision_of
from ..graph.graph import Graph
from ..io.batches import Batch, Batches
from ..pruning.verify import OTHER_PATH
from .session import Session

MOST = 16  # mini-batches that the slim network is tried on


def reads_of(graph: Graph) -> list[str]:
    """Where the code makes numbers of Python of what it computes from the input: `file:line`."""
    return list(dict.fromkeys(graph.eval_run.tracer.reads + graph.train_run.tracer.reads))


def keep_for_later(graph: Graph, batches: Batches) -> None:
    """Hold the first mini-batches of an iterator, where they are needed again."""
    if reads_of(graph):
        batches.hold = max(batches.hold, MOST)


def notes_of(graph: Graph) -> list[str]:
    """A note where the code reads values: the path through the network may depend on them."""
    if not (reads := reads_of(graph)):
        return []
    return [f"the code reads values of tensors at {', '.join(reads[:3])}{', ...' * (len(reads) > 3)}: {OTHER_PATH}"]


def try_paths(session: Session, graph: Graph, slim: nn.Module, batches: Batches | None) -> None:
    """Run the slim network on the first mini-batches, where the code reads values.

    Raises: VerificationFailed when it fails on one on which the dense network runs.
    """
    if batches is None or not reads_of(graph):
        return
    with session.report.timing("verify"):
        copies = [_copy(slim, training) for training in (False, True)]
        again: Iterable[Batch] = batches.held or batches
        for index, batch in enumerate(islice(again, MOST)):
            for copy in copies:
                error = _failure(copy, batch)
                if error is not None and _failure(_copy(session.model, copy.training), batch) is None:
                    raise VerificationFailed(
                        f"the slim network fails on mini-batch {index}, on which the dense one runs: {in_words(error, 200)}; "
                        f"{OTHER_PATH}; nothing was written"
                    ) from error


def _copy(model: nn.Module, training: bool) -> nn.Module:
    return replicate(model, lambda _, t: t.clone()).train(training)


def _failure(model: nn.Module, batch: Batch) -> BaseException | None:
    """What a network raises on a mini-batch, which may change its buffers."""
    given = batch.to(next((p.device for p in model.parameters()), torch.device("cpu")))
    args, kwargs = in_precision_of(model, (given.args, given.kwargs))
    try:
        with seeded(), torch.no_grad():
            model(*args, **kwargs)
    except USER_EXCEPTIONS as error:
        return error
    return None
