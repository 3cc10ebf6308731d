"""The scores by each criterion, from one pass over the mini-batches, and what the report says of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from ..core.errors import BadInput
from ..core.progress import Progress
from ..core.spelling import spelled
from ..costs.budget import limit
from ..graph.graph import Graph
from ..io.batches import Batches
from ..io.losses import load_loss
from ..pruning.initial_weights import INITS
from ..scoring.criteria import Criterion, criterion
from ..scoring.over_batches import score
from ..scoring.precision import PRECISIONS
from ..scoring.setup import GradientSetup, Importance
from ..scoring.weight_gradients import norms
from ..scoring.zero_scores import SAID, ZERO_WEIGHTS, notes, unranked
from .options import GradientOptions
from .session import Session, check_choices

NOISE = 1e-4  # a sum of signed gradients below this share of the unsigned one is what rounding left


def gradient_setup(options: GradientOptions) -> GradientSetup:
    """How gradients are to be computed; BadInput for what does not exist."""
    check_choices(precision=(options.precision, PRECISIONS), score_init=(options.score_init, INITS))
    try:
        limited = options.memory_limit
        size = None if limited is None else int(limit("train-mem", limited, relative=False).value)
    except (BadInput, OverflowError):
        raise BadInput(f"{spelled('memory_limit', options.memory_limit)}: give a size such as 6GiB or 800MiB") from None
    return GradientSetup(
        precision=options.precision, low_memory=options.low_memory or size is not None, memory_limit=size
    )


def importances(
    session: Session,
    graph: Graph,
    source: Batches,
    criteria: Iterable[str],
    options: GradientOptions,
    progress: Progress,
    way: GradientSetup,
) -> dict[str, Importance]:
    """The scores by each criterion, from one pass over the mini-batches; norms of weights need none."""
    wanted = [criterion(name) for name in dict.fromkeys(criteria)]
    twins = {c.name: c.name.replace("mnmg", "mpmg") for c in wanted if c.signed and c.of_weights and c.is_linear}
    if way.resumed:  # of the other criterion nothing is known
        twins = {}
    wanted += [criterion(name) for name in twins.values() if name not in criteria]
    function = load_loss(options.loss, options.ignore_index, options.loss_args)
    found = {c.name: norm_scores(session.model, graph, c) for c in wanted if not c.needs_batches}
    told: dict[str, Any] = {}
    if by_batches := [c for c in wanted if c.needs_batches]:
        length = (
            None
            if source.length is None
            else way.spread.share(source.length - (way.resumed.batches if way.resumed else 0))
        )
        if length is not None and any(c.of_units for c in by_batches):  # the bar goes by units
            begun = len(way.resumed.begun) if way.resumed and way.spread.rank == 0 else 0
            length = length * int((~graph.fixed_units).sum()) - begun
        with session.report.timing("score"), progress("scoring", length) as advance:
            shown = replace(way, advance=advance)
            found |= score(session.model, graph, source, function, by_batches, session.device, session.seed, shown)
        session.note(*way.facts.pop("notes", []))
        told = {**({} if way.precision == "model" else {"precision": way.precision}), **way.facts}
    asked = [found[c.name] for c in wanted if c.name not in twins.values()]
    report_scoring(session, {**told, "not_ranked": {k: why for each in asked for k, why in each.not_ranked.items()}})
    for name, twin in twins.items():
        pairs = zip(graph.layers, found[name].scores, found[twin].scores, strict=True)
        noise = [layer.name for layer, signed, plain in pairs if plain.sum() > 0 and signed.sum() < NOISE * plain.sum()]
        if noise:
            session.note(
                f"{name} is rounding noise in {len(noise)} of {len(graph.layers)} layers ({noise[0]}, ...): behind a norm the "
                f"loss does not depend on the scale of the weights, so the signed sum is zero; use {twin} or neuron"
            )
    return found


def norm_scores(model: nn.Module, graph: Graph, c: Criterion) -> Importance:
    """The norms of the layers' weights as scores."""
    values = norms(model, graph, c)
    return Importance(values, 0, not_ranked=unranked(graph, values, {}, ZERO_WEIGHTS))


def report_scoring(session: Session, facts: dict[str, Any]) -> None:
    """Write to the report how was scored, and notes of what a reader has to know of it; what is empty is left out."""
    facts = {key: value for key, value in facts.items() if value or key not in SAID}
    if facts:
        session.report.parts["scoring"] = facts
    session.note(*notes(facts))
