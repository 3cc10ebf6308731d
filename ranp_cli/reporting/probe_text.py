"""The probe in words and as a picture: what was trained, how far each loss fell, and whether to worry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from ..core.spelling import spelled

# Measured with adam at 3e-3 on 16 slim 3D-UNets of 7% of the multiply-adds on brain tissue, each trained for 400 steps, 5
# of which failed (a Dice score below 0.8; the others had 0.84 to 0.93). After 200 steps of the probe a lag above a third
# named the 5 and no other, an unlearned class 4 of the 5 and no other; of 7 networks on another task (parts of shapes) the
# two together named the 2 worst of the 3 below a mean IoU of 0.8, and no other. After 100 steps a lag above a half named 4
# of the 5 and no other. After 50 steps both named failed and good networks alike.
SURE = 200  # steps
LAGS, LAGS_EARLY = 1 / 3, 1 / 2  # of the way down that a slim network may lack unwarned: from SURE steps on, before
UNLEARNED, LEARNED = 0.02, 0.1  # of the places of a class: right in fewer, the class is not learned; in more, it is
SIDES = ("dense", "slim")


def remedy() -> str:
    return (
        f"try a lower {spelled('sparsity')} (or a larger {spelled('budget')}), a higher {spelled('min_neurons')}, "
        f"or {spelled('method', 'flat')}"
    )


def notes_of(probe: Mapping[str, Any]) -> list[str]:
    """One warning for each way in which the slim network falls behind the dense one."""
    if "error" in probe:
        return []
    dense, slim, steps = probe["dense"], probe["slim"], probe["steps"]
    if "diverged" in dense:
        return [
            f"the loss of the dense network was not finite after {dense['diverged']} steps of the probe, which so says "
            f"nothing; give {spelled('probe_lr')} below {probe['lr']:g}"
        ]
    if "diverged" in slim:
        return [
            f"the loss of the slim network was not finite after {slim['diverged']} steps of the probe, that of the dense one "
            f"was; {remedy()}"
        ]
    notes = []
    if probe["lag"] is None:
        notes.append(
            f"no loss fell in the {steps} steps of the probe, which so says nothing; give it more steps, or "
            f"{spelled('probe_lr')} other than {probe['lr']:g}"
        )
    elif not keeps_up(probe):
        sure = "" if steps >= SURE else f"; {spelled('probe', SURE)} would say it more surely"
        notes.append(
            f"the slim network learns more slowly than the dense one: after {steps} steps its loss still has "
            f"{probe['lag']:.0%} of the way to go (a warning above {most_lag(steps):.0%}); {remedy()}{sure}"
        )
    if "worst_class" in dense and "worst_class" in slim and steps >= SURE:
        good, bad = dense["worst_class"], slim["worst_class"]
        if bad["right"] < UNLEARNED and good["right"] > LEARNED:
            notes.append(
                f"the slim network has not begun to learn class {bad['class']}: after {steps} steps {bad['right']:.0%} of its "
                f"places are labelled right, of the dense network's worst class {good['right']:.0%}; {remedy()}"
            )
    return notes


def most_lag(steps: int) -> float:
    """The lag above which there is a warning."""
    return LAGS if steps >= SURE else LAGS_EARLY


def keeps_up(probe: Mapping[str, Any]) -> bool:
    """Whether the slim loss is as near to the dense one as a good network's."""
    return probe["lag"] is not None and probe["lag"] <= most_lag(probe["steps"])


def probe_sentences(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(label, style, text) of the report's part `probe`, for the terminal."""
    probe = report.get("probe")
    if not probe:
        return
    if "error" in probe:
        yield "probe:", "yellow", probe["error"]
        return
    yield "probe:", "green" if keeps_up(probe) else "yellow", in_words(probe)


def in_words(probe: Mapping[str, Any]) -> str:
    """`50 steps of adam (lr 0.003): loss 1.16 to 0.40 dense, 1.05 to 0.52 slim, which still has 16% of the way to go`."""
    falls = ", ".join(f"{_fall(probe[name])} {name}" for name in SIDES)
    text = f"{probe['steps']} steps of {probe['optimizer']} (lr {probe['lr']:g}): loss {falls}"
    lag = probe["lag"]
    if lag is not None:
        text += f", which still has {lag:.0%} of the way to go" if lag > 0 else ", which is ahead"
    worst = [(name, probe[name]["worst_class"]) for name in SIDES if "worst_class" in probe[name]]
    if worst:
        told = ", ".join(
            f"{row['class']} {name} (loss {row['loss']:.2f}, {row['right']:.0%} right)" for name, row in worst
        )
        text += f"; worst class: {told}"
    return text


def _fall(side: Mapping[str, Any]) -> str:
    first = "not finite" if side["first"] is None else f"{side['first']:.3g}"
    return f"{first} to {'not finite' if side['last'] is None else format(side['last'], '.3g')}"


def probe_page(report: Mapping[str, Any]) -> str:
    """The sentence and the two curves, loss over steps, for the page."""
    probe = report.get("probe")
    if not probe:
        return ""
    head = "<h2>Probe: a few training steps of both networks</h2>\n"
    if "error" in probe:
        return f"{head}<p>{escape(probe['error'])}</p>\n"
    curves = {name: probe[name]["curve"] for name in SIDES if probe[name]["curve"]}
    picture = _curves(curves, probe["steps"]) if curves else ""
    return f'{head}<p class="dim">{escape(in_words(probe))}</p>\n{picture}'


def _curves(curves: Mapping[str, list[float]], steps: int) -> str:
    low, high = (extreme(min_max(curve) for curve in curves.values()) for extreme, min_max in ((min, min), (max, max)))
    colours = {"dense": "var(--was)", "slim": "var(--now)"}
    lines = ""
    for k, (name, curve) in enumerate(curves.items()):
        at = [
            (60 + 780 * i / max(steps - 1, 1), 150 - 140 * (v - low) / ((high - low) or 1)) for i, v in enumerate(curve)
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        lines += (
            f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"><title>{name}</title></polyline>'
            f'<rect x="{700 + 80 * k}" y="4" width="10" height="10" fill="{colours[name]}"/>'
            f'<text x="{714 + 80 * k}" y="13">{name}</text>'
        )
    return (
        '<figure><svg viewBox="0 0 900 180" width="100%" role="img"><title>loss of each step</title>'
        f'<text x="52" y="14" text-anchor="end">{high:.3g}</text><text x="52" y="154" text-anchor="end">{low:.3g}</text>'
        f'<line x1="60" x2="840" y1="150" y2="150" stroke="var(--line)"/><text x="60" y="172">step 1</text>'
        f'<text x="840" y="172" text-anchor="end">step {steps}</text>{lines}</svg></figure>\n'
    )
