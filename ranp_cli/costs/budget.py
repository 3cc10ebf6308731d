"""What a network may cost: `macs=40G`, `train-mem=8GiB`, `params=10%`, `latency=20ms`, `step-time=30%`; limits to prune to, and gates to check against."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import BadInput, GateExceeded, Infeasible, nearest
from ..core.numbers import KINDS, MEASURED, TIMES, shown
from ..core.spelling import spelled

POWERS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True)
class Limit:
    """The most that may be spent of one kind; `share`: of what the dense network costs."""

    kind: str
    value: float
    share: bool
    text: str

    def of(self, before: float) -> float:
        return self.value * before if self.share else self.value


def limit(kind: str, text: Any, relative: bool = True, given: str = "") -> Limit:
    """A Limit from `40G`, `8GiB`, `300 MiB`, `1e9` or (with `relative`) `10%`; BadInput, naming what was `given`, else."""
    given = given or spelled("budget", f"{kind}={text}")
    if kind not in KINDS:
        raise BadInput(f"no budget '{kind}'{nearest(kind, KINDS)}")
    if KINDS[kind] == "s":
        return _time(kind, str(text), given)
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE]\d+)?)\s*(%|[KMGT]i?)?(B)?\s*", str(text), re.IGNORECASE)
    number, scale, unit = found.groups() if found else ("0", None, None)
    sound = (
        found is not None and float(number) > 0 and (unit is None or KINDS[kind] == "B") and (scale != "%" or not unit)
    )
    if not sound or (scale == "%" and (not relative or float(number) > 100)):
        example = "8GiB or 300MiB" if KINDS[kind] else "40G or 1.5M"
        raise BadInput(f"{given}: give a size such as {example}{', or a share such as 50%' if relative else ''}")
    if scale == "%":
        return Limit(kind, float(number) / 100, True, str(text))
    return Limit(kind, float(number) * POWERS[(scale or "").upper()], False, str(text))


def _time(kind: str, text: str, given: str) -> Limit:
    """A Limit from `20ms`, `0.5s`, `300us` or `50%`."""
    found = re.fullmatch(r"\s*(\d+\.?\d*(?:e-?\d+)?)\s*(%|us|ms|s)\s*", text, re.IGNORECASE)
    number, unit = (float(found[1]), found[2].lower()) if found else (0.0, "")
    if number <= 0 or (unit == "%" and number > 100):
        raise BadInput(f"{given}: give a time such as 20ms, 0.5s or 300us, or a share such as 50%")
    return Limit(kind, number / 100 if unit == "%" else number * TIMES[unit], unit == "%", text)


def limits(given: Any) -> list[Limit]:
    """Limits from `["macs=40G", ...]`, one such text, or a mapping."""
    if isinstance(given, str):
        given = [given]
    pairs = (
        list(given.items()) if isinstance(given, Mapping) else [str(text).partition("=")[::2] for text in given or ()]
    )
    if len({kind for kind, _ in pairs}) < len(pairs):
        raise BadInput("a budget of the same kind is given twice; leave one out")
    return [limit(kind, text) for kind, text in pairs]


def costs_of(report: Mapping[str, Any], side: str) -> dict[str, float]:
    """Kind -> what a network costs, from a report; `side` is "before" or "after"."""
    counts, memory = report[side], report.get("memory", {}).get(side, {})
    found = {kind: counts[kind] for kind in ("macs", "flops", "params") if kind in counts}
    for kind, key in (("forward-mem", "forward_peak_bytes"), ("train-mem", "train_peak_bytes")):
        if memory.get(key) is not None:
            found[kind] = memory[key]
    speed = report.get("speed", {})
    found |= {
        kind: speed[key] for kind, key in (("latency", f"{side}_s"), ("step-time", f"train_{side}_s")) if key in speed
    }
    return found


def costs_for(
    limits: Iterable[Limit], report: Mapping[str, Any], side: str, option: Callable[[str], str]
) -> dict[str, float]:
    """`costs_of`, where all that `limits` are on must be known; else BadInput says why it is not, and names the `option` of the kind."""
    costs, memory = costs_of(report, side), report.get("memory", {}).get(side, {})
    for each in limits:
        if each.kind not in costs:
            error = "train_error" if each.kind == "train-mem" else "error"
            raise BadInput(f"{option(each.kind)}: {memory.get(error, 'not known of this file; give the model itself')}")
    return costs


def gate(report: Mapping[str, Any], gates: Iterable[Limit]) -> None:
    """Raise GateExceeded, a line for each limit that the network of a profile exceeds, by how much."""
    gates, side = list(gates), "after" if "after" in report else "before"
    costs, lines = costs_for(gates, report, side, lambda kind: spelled(f"max_{kind.replace('-', '_')}")), []
    for each in gates:
        over = costs[each.kind] - each.value
        if over > 0:
            lines.append(
                f"{each.kind} {shown(each.kind, costs[each.kind])} exceeds {each.text} by {shown(each.kind, over)} "
                f"({over / each.value:.1%})"
            )
    if lines:
        raise GateExceeded("\n".join(lines))


def met(limits: Sequence[Limit], before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    return all(after[each.kind] <= each.of(before[each.kind]) for each in limits)


def used(limits: Sequence[Limit], before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Largest used share of any budget; 1 is fully used."""
    return max(after[each.kind] / each.of(before[each.kind]) for each in limits)


def infeasible(
    limits: Sequence[Limit], before: Mapping[str, float], least: Mapping[str, float], floors: str = ""
) -> Infeasible:
    """What to say when even the smallest network exceeds a limit; `floors`: which layers take the most of it."""
    over = [each for each in limits if least[each.kind] > each.of(before[each.kind])]
    parts = [f"{each.kind}={each.text} ({shown(each.kind, each.of(before[each.kind]))})" for each in over]
    closest = ", ".join(f"{each.kind} {shown(each.kind, least[each.kind])}" for each in over)
    return Infeasible(
        f"no network meets {', '.join(parts)}: the smallest, with every layer at its floor, has {closest}{floors}",
        [each.kind for each in over],
    )


def advised(
    error: Infeasible, samples: int, stateful: bool, lowered: Iterable[str], dropped: Iterable[str]
) -> Infeasible:
    """What to say to someone whom `error` meets: all that can help.

    Args:
        samples: of the batch.
        stateful: the optimiser keeps a state.
        lowered, dropped: options that keep neurons and were given; a lower value, or none, keeps fewer.
    """
    of_batch = [kind for kind in error.kinds if kind in MEASURED or kind.endswith("-mem")]
    ways = [
        "raise the budget",
        *(f"lower {option}" for option in lowered),
        *(f"leave out {option}" for option in dropped),
    ]
    ways += [f"lower {spelled('batch_size')}"] * bool(samples > 1 and of_batch)
    ways += [f"give {spelled('optimizer', 'sgd')}"] * bool(stateful and "train-mem" in of_batch)
    return Infeasible(f"{error}; {', '.join(ways[:-1])}{', or ' * (len(ways) > 1)}{ways[-1]}", error.kinds)
