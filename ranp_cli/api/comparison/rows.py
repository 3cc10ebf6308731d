"""The rows that `compare` is asked for: names of methods, sparsities, and which of them go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...core.errors import BadInput, nearest
from ...core.spelling import Word, spelled
from ...graph.graph import Graph
from ...pruning.methods import METHODS
from ...pruning.select import Selection, check
from ...reporting.compare_captions import RESOURCE_KEYS
from ...scoring.criteria import CRITERIA
from ..options import LayerOptions, MethodOptions
from ..ranking import Ranking

DEFAULT = (
    "full",
    "snip",
    "random",
    "layerwise",
    "vanilla",
    "weighted",
    "ranp-mem",
    "ranp-flops",
)  # Table 2 of the paper
SHORT = {
    "ranp": "ranp-flops",
    "ranp-f": "ranp-flops",
    "ranp-m": "ranp-mem",
    "ranp-p": "ranp-params",
    "ranp-l": "ranp-latency",
}
KNOWN = (
    *(m for m in METHODS if m != "ranp"),
    "ranp-flops",
    "ranp-mem",
    "ranp-params",
    "ranp-latency",
    *SHORT,
    "full",
    "width",
)
SHUFFLE = "shuffle:"
MOST = 1000  # rows

Level = float | str


@dataclass(frozen=True)
class Entry:
    """One row family: its name, and how it ranks; no ranking for the full network and for `width`."""

    name: str
    ranking: Ranking | None
    kind: Literal["full", "ranked", "shuffled", "width"] = "ranked"

    def goes_with(self, level: Level) -> bool:
        """Whether the method has a network at that sparsity: those that never empty a layer have no largest one."""
        return not (level == "max" and self.ranking is not None and METHODS[self.ranking.method].by_layer)


def entry(name: str, layers: LayerOptions, seed: int) -> Entry:
    """`vanilla:mnmg-sum`, `ranp-mem`, `shuffle:ranp-f`, ... as a row family; BadInput for what does not exist."""
    if name.startswith(SHUFFLE):
        inner = entry(name.removeprefix(SHUFFLE), layers, seed)
        if inner.kind != "ranked":
            raise BadInput(f"method '{name}': only what ranks neurons can be shuffled; give one such as shuffle:ranp-f")
        return Entry(f"{SHUFFLE}{inner.name}", inner.ranking, "shuffled")
    if name == "full":
        return Entry(name, None, "full")
    if name == "width":
        return Entry(name, None, "width")
    base, _, criterion = name.partition(":")
    if base not in KNOWN:
        raise BadInput(f"unknown method '{base}'{nearest(base, [*KNOWN, 'shuffle:METHOD'])}")
    if criterion and criterion not in CRITERIA:
        raise BadInput(f"unknown criterion '{criterion}' of method '{name}'{nearest(criterion, CRITERIA)}")
    base = SHORT.get(base, base)
    method, _, resource = base.partition("-")
    by = MethodOptions(method=method, criterion=criterion or None, resource=resource or "none")
    if not resource:
        layers = replace(layers, resource_term="layer")
    ranking = Ranking.of(by, layers, seed)
    return Entry(f"{base}:{criterion}" if criterion else base, ranking)


def sparsities(given: Any) -> list[Level]:
    """A number, "max", "0.1:0.95:0.05" (from, to, step), or a list of these, in order and once each."""
    if given is None or given == [] or given == ():
        raise BadInput(
            f"no sparsity was given; give {spelled('sparsity', Word('X'))} in [0, 1), max, or a range such as 0.1:0.95:0.05"
        )
    if isinstance(given, (list, tuple)):
        return list(dict.fromkeys(x for part in given for x in sparsities(part)))
    text = str(given)
    if "," in text:
        return sparsities(text.split(","))
    if ":" not in text:
        return ["max"] if text == "max" else [check(text)]
    try:
        first, last, step = map(float, text.split(":"))
    except ValueError:
        first = last = step = float("nan")
    if not (step > 0 and 0 <= first <= last < 1):
        raise BadInput(f"{spelled('sparsity', text)}: give a range as from:to:step, such as 0.1:0.95:0.05")
    return [round(first + k * step, 6) for k in range(int((last - first) / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Table:
    """The rows that are asked for, method by method, and the entry that the others are cut to, where they are."""

    entries: Sequence[Entry]
    levels: Sequence[Level]
    match: str | None  # macs, mem or params: what every method has no more of than the first one
    reference: Entry | None  # the first method, but for `full`

    @property
    def rows(self) -> list[tuple[Entry, Level]]:
        """One a method and sparsity; a method of a matched table has a network at every sparsity of the first one."""
        plan = [(e, x) for e in self.entries for x in (self.levels if e.kind != "full" else [0.0])]
        matched = self.match is not None
        return [(e, x) for e, x in plan if e.goes_with(x) or (matched and e is not self.reference)]


def table_of(
    names: Iterable[str], sparsity: Any, match: str | None, layers: LayerOptions, seed: int, unique: bool
) -> Table:
    """The rows for these methods and sparsities; BadInput for what does not exist or does not go together.

    Args:
        unique: a method that is named twice is an error, as its cells could not be told apart.
    """
    levels = sparsities(sparsity)
    entries = [entry(name, layers, seed) for name in names]
    if not entries:
        raise BadInput(f"no method was given; leave out {spelled('methods')} for those of the paper")
    if len(entries) * len(levels) > MOST:
        raise BadInput(f"{len(entries)} methods at {len(levels)} sparsities are more than {MOST} rows; give fewer")
    if match is not None and match not in RESOURCE_KEYS:
        raise BadInput(f"unknown match '{match}'{nearest(match, RESOURCE_KEYS)}")
    twice = next((e.name for k, e in enumerate(entries) if e.name in {other.name for other in entries[:k]}), None)
    if unique and twice:
        raise BadInput(f"method '{twice}' is named twice; with {spelled('fit')} give each method once")
    first = next((e for e in entries if e.kind != "full"), None)
    has_width = any(e.kind == "width" for e in entries)
    if (match or has_width) and (first is None or first.kind == "width"):
        what = f"{spelled('match')} cuts every method" if match else "method 'width' is cut"
        raise BadInput(
            f"{what} to the size of the first one (but for full); name one that ranks neurons before the others"
        )
    if (match or has_width) and first is not None and not all(first.goes_with(x) for x in levels):
        raise BadInput(f"the first method, {first.name}, never empties a layer and has no sparsity max; give numbers")
    return Table(entries, levels, match, first)


def shuffled(graph: Graph, chosen: Selection, seed: int) -> Selection:
    """As many neurons in every layer as `chosen` keeps, but other ones, drawn from `seed`.

    Units that lie in the same layers with as many neurons in each may stand for each other, and are drawn among
    themselves: so the counts are kept exactly, also where units tie layers. Fixed units stay.
    """
    units, layers = len(graph.unit_roots), len(graph.layers)
    counts = np.zeros((units, layers), dtype=np.int64)
    np.add.at(counts, (graph.unit, np.repeat(np.arange(layers), graph.sizes)), 1)
    kind = np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)
    value = np.random.default_rng(seed).random(units)
    fixed = graph.fixed_units
    keep = chosen.keep & fixed
    for k in range(int(kind.max()) + 1):
        free = np.flatnonzero((kind == k) & ~fixed)
        best = free[np.lexsort((free, -value[free]))]
        keep[best[: int(chosen.keep[free].sum())]] = True
    return replace(chosen, keep=keep)
