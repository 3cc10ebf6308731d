"""Whether a network is faster with its channels last, or under autocast in bf16: a short race on the user's machine.

What pays is recommended with its measured gain and a line to paste; where nothing pays there is no recommendation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core.contexts import seeded
from ..core.copies import copy_on
from ..core.errors import USER_EXCEPTIONS
from ..core.example import Example
from ..core.tensors import CHANNELS_LAST, channels_last, tensors_in
from . import timing
from .runtimes import EXACT, Torch, allowed_error, difference, on_threads, to_channels_last
from .timing import Benchmark, Forward, Step, race

PAYS = 1.1  # so many times as fast a way has to be
HOPELESS = 1.5  # so many times as slow at its first look, it is not raced
WAYS = (
    Torch("channels last", channels_last=True),
    Torch("bf16 autocast", half=True),
    Torch("channels last and bf16 autocast", channels_last=True, half=True),
)


def recommended(stand: Benchmark, model: nn.Module) -> list[dict[str, Any]]:
    """Recommendations for the training step and the forward pass of a network that torch runs, as the report has them."""
    if stand.way.name != "torch":  # the user has chosen already
        return []
    kinds = ["training step", *["forward pass"] * (stand.ground.runtime.name == "torch")]
    found = (_best(stand, model, kind) for kind in kinds)
    return [each for each in found if each is not None]


def _best(stand: Benchmark, model: nn.Module, kind: str) -> dict[str, Any] | None:
    """The fastest way, where it is more than a tenth faster than plain torch."""
    with on_threads(stand.ground.threads), seeded():
        plain = _work(stand, model, kind, Torch())
        try:
            _first_look(plain, stand)
            usual = _first_look(plain, stand)
        except USER_EXCEPTIONS:  # a network that cannot train: of two that are timed, `train_error` says why
            return None
        works, ways = [plain], [Torch()]
        for way in ways_for(model, stand.example):
            work = _work(stand, model, kind, way)
            try:
                _first_look(work, stand)
                if _first_look(work, stand) <= HOPELESS * usual:
                    works, ways = [*works, work], [*ways, way]
            except USER_EXCEPTIONS:  # an op that has no kernel in 16 bits: not a way for this network
                continue
        if len(works) == 1:
            return None
        raced = race(works, stand.device)
    best = min(range(len(works)), key=lambda k: raced.seconds[k])
    gain, least = raced.gain(0, best) if best else (1.0, 1.0)
    if gain <= PAYS or least <= 1:
        return None
    error = _error(stand, model, ways[best])
    if (
        not ways[best].half
        and not error <= EXACT
        and not error <= allowed_error(_plain(stand, model), stand.example, stand.device)
    ):
        return None
    return {
        "of": kind,
        "way": ways[best].name,
        "gain": gain,
        "plain_s": raced.seconds[0],
        "seconds": raced.seconds[best],
        "repeats": raced.repeats,
        "max_rel_error": error,
        "line": line_of(kind, ways[best], stand.example, stand.device.type),
    }


def _first_look(work: Step | Forward, stand: Benchmark) -> float:
    return timing.once(work, stand.device)


def _work(stand: Benchmark, model: nn.Module, kind: str, way: Torch) -> Step | Forward:
    if kind == "training step":
        return stand.step_of(model, way)
    copy = _plain(stand, model)
    if not way.channels_last:
        return Forward(copy, stand.example, half=way.half)
    example = Example(*channels_last((stand.example.args, stand.example.kwargs)))
    return Forward(to_channels_last(copy), example, half=way.half)


def _error(stand: Benchmark, model: nn.Module, way: Torch) -> float:
    """How far the outputs of a forward pass are from plain torch's, as a share of their scale."""
    plain, other = _plain(stand, model), _plain(stand, model)
    return difference(plain, stand.example, way.prepare(other, stand.example, stand.device, 0)())


def _plain(stand: Benchmark, model: nn.Module) -> nn.Module:
    return copy_on(model, stand.device, dict(model.named_parameters())).eval()


# -- the line to paste


def ways_for(model: nn.Module, example: Example) -> Sequence[Torch]:
    """The ways that a line can name: channels last only where all images, or all volumes, have the same number of axes."""
    return [way for way in WAYS if not way.channels_last or _memory_format(model, example) is not None]


def _memory_format(model: nn.Module | None, example: Example) -> str | None:
    sizes = {t.ndim for t in tensors_in((example.args, example.kwargs)) if t.is_floating_point()}
    sizes |= {p.ndim for p in model.parameters()} if model is not None else set()
    fitting = sorted(sizes & CHANNELS_LAST.keys())
    return str(CHANNELS_LAST[fitting[0]]) if len(fitting) == 1 else None


def line_of(kind: str, way: Torch, example: Example, device: str) -> str:
    """A line of Python with the user's `model`, `x`, and for training `criterion` and `y`."""
    call = "model(x)"
    if way.channels_last:
        layout = f".to(memory_format={_memory_format(None, example)})"
        call = f"model{layout}(x{layout})"
    before = f'with torch.autocast("{device}", torch.bfloat16): ' if way.half else ""
    return f"{before}loss = criterion({call}, y)" if kind == "training step" else f"{before}y = {call}"
