"""Models that are made in unusual ways: they are pruned, or one line says why not, and they are as they were."""

from __future__ import annotations

import functools
import io
import re
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ranp_cli as ranp
from ranp_cli.core.copies import replicate
from ranp_cli.core.errors import BadInput

BATCH = (torch.rand(2, 1, 4, 4, 4), torch.randint(3, (2, 4, 4, 4)))


def convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1))


class Holder(nn.Module):
    """A network that carries something along."""

    def __init__(self, thing: Any = None) -> None:
        super().__init__()
        self.convs, self.thing = convs(), thing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x)


class AnswersNone(Holder):
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


class Slotted(Holder):
    __slots__ = ("deep", "factor")

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.deep = 3, [torch.ones(1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor * self.deep[0]


class SlottedTwice(Slotted):
    __slots__ = "more"

    def __init__(self) -> None:
        super().__init__()
        self.more = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.more


class Wrapper:
    """An object of the user's that holds a lock, and itself."""

    def __init__(self) -> None:
        self.lock, self.me, self.count = threading.Lock(), self, [0]


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return convs()


GOOD: dict[str, Callable[[], nn.Module]] = {
    "__getattr__ gives None": AnswersNone,
    "__slots__": Slotted,
    "__slots__ of two classes": SlottedTwice,
    "a lock": lambda: Holder(threading.Lock()),
    "locks in containers": lambda: Holder({"a": [threading.RLock(), (threading.Condition(), 1)]}),
    "an object with a lock": lambda: Holder(Wrapper()),
    "a file": lambda: Holder(open(__file__)),  # noqa: SIM115  a model that holds an open file
    "a socket": lambda: Holder(socket.socket()),
    "a generator": lambda: Holder(n for n in range(3)),
    "made in inference mode": in_inference_mode,
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD)
def test_unusual_models_are_pruned(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    thing = vars(model).get("thing")
    result = ranp.prune(model, BATCH, sparsity=0.5)
    assert result.mask.achieved > 0.4
    assert "max_rel_error_fp32" in result.report.to_dict()["verified"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert vars(model).get("thing") is thing
    for held in [getattr(thing, name, None) for name in ("close",)]:
        if held is not None:
            held()


def test_a_copy_shares_what_cannot_be_copied_and_nothing_else() -> None:
    model = Holder(Wrapper())
    twin = replicate(model, lambda _, t: t.clone())
    assert twin.thing is not model.thing
    assert twin.thing.me is twin.thing
    assert twin.thing.lock is model.thing.lock
    assert twin.thing.count is not model.thing.count
    slotted = Slotted()
    assert replicate(slotted, lambda _, t: t.clone()).deep is not slotted.deep


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(*convs(), nn.Flatten(), nn.Linear(192, 3)), {nn.Linear}
        )


# model, what the message says
BAD: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: convs().to("meta"), "'0.weight' of the model is on the meta device and has no values; make the model on a real one"),
    (quantised, "'4' is quantised (Linear): its weights have no gradients; prune the model before it is quantised"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), BAD)
@pytest.mark.parametrize("call", [functools.partial(ranp.prune, sparsity=0.5), ranp.score])
def test_models_without_gradients_are_one_line(make: Callable[[], nn.Module], says: str, call: Any) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        call(make(), BATCH)


def test_in_inference_mode_nothing_has_gradients() -> None:
    with torch.inference_mode(), pytest.raises(BadInput, match=r"inside torch.inference_mode\(\).* call it outside"):
        ranp.prune(convs(), BATCH, sparsity=0.5)


def test_mini_batches_made_in_inference_mode() -> None:
    with torch.inference_mode():
        batch = BATCH[0] * 2, BATCH[1] * 1
    assert ranp.score(convs(), batch).about["batches"] == 1


def test_profile_takes_a_model_without_values() -> None:
    """Counting needs none: the negative control of the refusal."""
    file = io.StringIO()
    print(ranp.profile(convs().to("meta"), (1, 1, 4, 4, 4)).to_dict()["before"]["params"], file=file)
    assert file.getvalue() == "251\n"
