"""Channel counts that the user's modules keep in attributes of their own: found when the slim run fails, and corrected.

A module may say `self.hidden = 64` and split, pad or allocate by it. Where the slim network fails for that, the integers of the
modules at that place that equal a size of the dense network there are set to what the size became; what lets the network run
further is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from ..graph.graph import Graph
from .slim import Path, attribute_of, integers, set_attribute
from .slim_trace import HardCoded, SlimRun

Setting = dict[tuple[str, Path], int]  # (module, path) -> value
MOST_TRIES = 24  # at one place of the code


@dataclass
class Followed:
    """The attributes that were corrected: {module: {attribute: value}}, and of which classes they are."""

    changed: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: set[tuple[type, Path]] = field(default_factory=set)


def follow_counts(
    slim: nn.Module,
    graph: Graph,
    stays: np.ndarray,
    found: HardCoded,
    check: Callable[[], SlimRun | HardCoded],
    followed: Followed,
) -> SlimRun | HardCoded:
    """Correct attributes of `slim`, in place, until it runs or nothing helps any more; the place where it then fails."""
    modules = dict(slim.named_modules())
    while True:
        for setting in settings(modules, graph, stays, found, followed):
            before = {place: value_at(modules[place[0]], place[1]) for place in setting}
            for (name, path), value in setting.items():
                set_at(modules[name], path, value)
            after = check()
            if isinstance(after, SlimRun) or after.at > found.at:
                setting, after = needed(modules, setting, before, after, check)
                break
            for (name, path), value in before.items():
                set_at(modules[name], path, value)
        else:
            return found
        for name, path in setting:
            key = str(path[0])
            followed.changed.setdefault(name, {})[key] = value_at(modules[name], path[:1])
            followed.known.add((type(modules[name]), path))
        if isinstance(after, SlimRun):
            return after
        found = after


def needed(
    modules: dict[str, nn.Module],
    setting: Setting,
    before: dict[tuple[str, Path], Any],
    after: SlimRun | HardCoded,
    check: Callable[[], SlimRun | HardCoded],
) -> tuple[Setting, SlimRun | HardCoded]:
    """The attributes of a setting without which the network does not run as far; the others get their values back."""
    kept = dict(setting)
    for place in setting if len(setting) > 1 else ():
        set_at(modules[place[0]], place[1], before[place])
        without = check()
        if isinstance(without, SlimRun) or (isinstance(after, HardCoded) and without.at >= after.at):
            after = without
            del kept[place]
        else:
            set_at(modules[place[0]], place[1], setting[place])
    return kept, after


def settings(
    modules: dict[str, nn.Module], graph: Graph, stays: np.ndarray, found: HardCoded, followed: Followed
) -> Iterator[Setting]:
    """What attributes may be set to, the likeliest first: of the module that fails, then of those that it is in.

    First all integers of a module that are sizes at the failing op, then those that are sizes of its own parameters, then
    each alone.
    """
    tried = 0
    given: list[Setting] = []
    parts = found.module.split(".") if found.module else []
    chain = [".".join(parts[:k]) for k in range(len(parts), -1, -1)]
    for name in chain:
        module = modules.get(name)
        if module is None or isinstance(module, torch.jit.ScriptModule):
            continue
        own = list(integers(module))
        for sizes in (found.counts, parameter_sizes(name, graph, stays)):
            meant = {(name, path): sorted(sizes[value]) for path, value in own if value in sizes}
            known = {place: values for place, values in meant.items() if (type(module), place[1]) in followed.known}
            for places in (known, meant, *({place: values} for place, values in meant.items())):
                for values in product(*places.values()) if places else ():
                    setting = dict(zip(places, values, strict=True))
                    if setting not in given and tried < MOST_TRIES:
                        given.append(setting)
                        tried += 1
                        yield setting


def parameter_sizes(name: str, graph: Graph, stays: np.ndarray) -> dict[int, set[int]]:
    """{a size of the parameters in a module of the dense network: what it becomes}, and halves, thirds and quarters of each."""
    found: dict[int, set[int]] = {}
    for slot, labelled in graph.slots.items():
        if name and not slot.startswith(f"{name}."):
            continue
        for size, kept in zip(labelled.shape, graph.kept_indices(labelled, stays), strict=True):
            if kept is not None:
                for part in (1, 2, 3, 4):
                    if size % part == 0 and len(kept) % part == 0 and size // part > 1:
                        found.setdefault(size // part, set()).add(len(kept) // part)
    return found


def value_at(module: nn.Module, path: Path) -> Any:
    value = attribute_of(module, str(path[0]))
    for index in path[1:]:
        value = value[index]
    return value


def set_at(module: nn.Module, path: Path, value: Any) -> None:
    """Set an attribute, or one element of the lists and tuples in it; those are made anew, since other modules may share them."""
    set_attribute(module, str(path[0]), _with(value_at(module, path[:1]), path[1:], value))


def _with(old: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    return type(old)(_with(part, path[1:], value) if index == path[0] else part for index, part in enumerate(old))
