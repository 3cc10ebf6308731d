"""Calls beside other threads: each is as if alone, and no other thread sees a flag, a dtype or a number of theirs."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ranp_cli as ranp
from ranp_cli.core.contexts import ignoring
from ranp_cli.core.default_dtype import default_dtype
from ranp_cli.core.random_state import Private, current, globally_seeded, private, seeded
from ranp_cli.core.threads import is_alone
from ranp_cli.reporting.progress_bar import progress


def in_a_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    assert found, "the thread failed"
    return found[0]


# -- the random state

DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(40),
    "randn": lambda: torch.randn(3, 20),
    "randint": lambda: (torch.randint(9, (5,)), torch.randint(2, 9, (5,))),
    "randperm": lambda: torch.randperm(9),
    "like": lambda: (torch.rand_like(torch.ones(5)), torch.randn_like(torch.ones(5)), torch.randint_like(torch.ones(5), 2, 7)),
    "in place": lambda: (torch.empty(20).normal_(1, 2), torch.empty(20).uniform_(1, 2), torch.empty(9).exponential_(),
                         torch.empty(9).bernoulli_(0.3), torch.empty(9).random_(7), torch.empty(9).geometric_(0.5)),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.4)),
    "multinomial": lambda: torch.multinomial(torch.ones(5), 3),
    "normal": lambda: (torch.normal(torch.zeros(3), 1.0), torch.normal(0.0, torch.ones(3)), torch.normal(0.0, 1.0, (3,))),
    "poisson": lambda: torch.poisson(torch.full((9,), 4.0)),
    "dropout": lambda: (F.dropout(torch.ones(9), 0.5), F.dropout3d(torch.ones(2, 9, 1, 1, 1)), F.alpha_dropout(torch.ones(9), 0.5, True)),
    "rrelu, gumbel": lambda: (F.rrelu(-torch.ones(9), training=True), F.gumbel_softmax(torch.ones(9))),
    "init": lambda: [p.detach() for p in nn.Conv3d(2, 3, 3).parameters()],
    "loader": lambda: list(torch.utils.data.DataLoader(torch.arange(9), shuffle=True, batch_size=4)),
    "own seed": lambda: (torch.manual_seed(3), torch.rand(2), torch.initial_seed())[1:],
    "method of the generator": lambda: [torch.rand(2), torch.default_generator.manual_seed(5), torch.rand(2)][::2],
    "generator by name": lambda: torch.rand(2, generator=torch.random.default_generator),
    "generator kept from before": lambda: torch.rand(2, generator=KEPT),
    "as MONAI's loader": lambda: (torch.rand(2), reset(), torch.rand(2))[::2],
    "state": lambda: [torch.rand(2), torch.set_rng_state(STATE), torch.rand(2)][::2],
    "fork": lambda: [torch.random.fork_rng(devices=[]).__enter__(), torch.rand(2)][1:],
}  # fmt: skip
STATE = torch.Generator().manual_seed(8).get_state()
KEPT = torch.default_generator


def reset() -> None:
    """As MONAI's DataLoader does when it is made without workers."""
    own = torch.random.default_generator
    own.manual_seed(own.initial_seed())


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [t for each in value for t in flat(each)]
    return [torch.as_tensor(value)]


@pytest.mark.parametrize("name", DRAWS)
def test_a_generator_of_the_threads_own_draws_the_same_numbers(name):
    """And leaves the global one as it was; twice, as the state has to go on."""

    def draw() -> list[Tensor]:
        return flat([DRAWS[name](), torch.rand(3), DRAWS[name]()])

    with globally_seeded(7):
        wanted = draw()
    before = torch.get_rng_state()
    with private(Private(7)):
        found = draw()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    with private(Private(8)):
        assert name in ("own seed",) or not all(torch.equal(a, b) for a, b in zip(wanted, draw(), strict=True))


def test_seeded_takes_the_threads_own_generator_beside_others_only():
    with seeded(3):
        alone = torch.rand(3)
        assert current() is None or threading.active_count() > 1

    def beside() -> Tensor:
        with seeded(3):
            assert current() is not None
            return torch.rand(3)

    assert torch.equal(in_a_thread(beside), alone)


# -- the default dtype


class Constants(nn.Module):
    """Makes constants in every way that has the default dtype."""

    def forward(self, x: Tensor) -> Tensor:
        n = torch.arange(4, device=x.device)
        made = [torch.zeros(4), torch.ones(4), torch.full((4,), 0.1), torch.tensor([0.1] * 4), torch.linspace(0, 1, 4),
                torch.arange(0.0, 4.0), torch.eye(4)[0], n / 3, n * 0.1, n.sqrt(), torch.as_tensor([0.5] * 4),
                torch.where(n > 1, 0.5, 0.25), torch.hann_window(4), torch.fft.fftfreq(4), torch.rand(4) * 0, n.float().double(),
                torch.zeros(4).to(x), torch.stack([torch.zeros(()), torch.ones(())]).repeat(2)]  # fmt: skip
        whole = torch.tensor([1, 2]), torch.full((2,), 1), torch.full((2,), True), torch.arange(3), n // 2, n > 1
        assert not any(t.is_floating_point() for t in whole)
        assert torch.tensor(torch.zeros(2, dtype=torch.float16)).dtype == torch.float16
        assert torch.zeros(2, dtype=torch.float32).dtype == n.float().dtype == torch.float32
        return sum(torch.nn.functional.linear(t, torch.eye(4, dtype=x.dtype)) for t in made) + x


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_constants_are_of_another_default_dtype_in_this_thread_alone():
    x = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        Constants()(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        wanted = Constants()(x)
    finally:
        torch.set_default_dtype(before)
    with default_dtype(torch.float64):
        found = Constants()(x)
        assert in_a_thread(lambda: torch.zeros(1).dtype) == torch.float32
    assert found.dtype == torch.float64
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert torch.zeros(1).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_too():
    class Scripted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.mv(torch.ones([4, 4]) * 0.5 + torch.arange(4) / 2, x)

    script = torch.jit.script(Scripted())
    with default_dtype(torch.float64):
        assert script(torch.ones(4, dtype=torch.float64)).dtype == torch.float64


def test_a_progress_bar_does_not_change_what_is_drawn(capsys):
    """On a terminal the bar is drawn anew from a thread; the numbers of numpy and Python are those of a pipe."""
    console = Console(file=io.StringIO(), force_terminal=True)
    assert console.is_terminal
    found = []
    for around in (nullcontext(), progress(console, "scoring", 2)):
        with around, seeded(3):
            found.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert found[0] == found[1]


def test_another_thread_may_draw():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not is_alone()
    finally:
        stop.set()
        thread.join()


def test_a_progress_bar_of_another_package_draws_nothing():
    from tqdm import tqdm

    with tqdm(total=1, file=io.StringIO()):
        assert any(type(thread).__name__ == "TMonitor" for thread in threading.enumerate())
        assert is_alone()


# -- whole calls


class Net(nn.Module):
    """Draws in its forward, makes constants, and computes a part twice (`reentrant` is how; None: once)."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 3, 1)
        self.scale, self.reentrant = nn.Linear(4, 4), reentrant

    def body(self, x: Tensor) -> Tensor:
        kept = torch.empty(x.shape[0], 1, 1, 1, 1).bernoulli_(0.7)
        return F.dropout(torch.relu(self.b(x)) * kept * (1 + torch.rand(x.shape[0], 1, 1, 1, 1)), 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = x + (self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant))
        return self.c(x * (1 + self.scale(torch.arange(4) / 3 + torch.zeros(4)).sum()))


def digest(net: nn.Module, batches: Any, seed: int) -> str:
    """Of all that a prune and a score give."""
    pruned, scores = ranp.prune(net, batches, sparsity=0.5, seed=seed), ranp.score(net, batches, seed=seed)
    found = hashlib.sha256(str((pruned.mask.to_dict(), pruned.report.parts["verified"])).encode())
    for values in (*(t.numpy() for t in pruned.model.state_dict().values()), *scores.layers.values()):
        found.update(values.tobytes())
    return found.hexdigest()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.usefixtures("one_thread")
def test_eight_threads_prune_and_one_makes_tensors_as_alone():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(2, 1, 6, 6, 6, generator=generator), torch.randint(3, (2, 6, 6, 6), generator=generator))
        for _ in range(2)
    ]
    nets = [Net([None, True, False][k % 3]) for k in range(8)]
    alone = [digest(net, batches, seed) for seed, net in enumerate(nets)]
    assert len(set(alone)) == len(alone)
    torch.manual_seed(5)
    wanted = [torch.rand(1).item() for _ in range(400)]
    torch.manual_seed(5)
    found: dict[int, str] = {}
    seen: list[Any] = []
    done = threading.Event()
    filters = list(warnings.filters)

    def prunes(k: int) -> None:
        found[k] = digest(nets[k], batches, k)

    def makes_tensors() -> None:
        while not done.wait(0.002):
            seen.append(
                (
                    torch.zeros(1).dtype,
                    (torch.arange(2) / 2).dtype,
                    torch.backends.cudnn.deterministic,
                    torch.rand(1).item(),
                )
            )

    threads = [threading.Thread(target=prunes, args=(k,)) for k in range(8)]
    other = threading.Thread(target=makes_tensors)
    for thread in (other, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    other.join()
    assert [found.get(k) for k in range(8)] == alone
    assert len(seen) > 10
    assert {each[:3] for each in seen} == {(torch.float32, torch.float32, False)}
    assert [each[3] for each in seen[:400]] == wanted[: len(seen)]
    assert torch.get_default_dtype() == torch.float32
    assert warnings.filters == filters


def test_a_flag_that_is_set_for_the_process_is_noticed():
    """A negative control of the test above: what it looks at is seen from another thread."""
    torch.set_default_dtype(torch.float64)
    try:
        assert in_a_thread(lambda: torch.zeros(1).dtype) == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_warnings_that_are_ignored_in_turns_leave_the_filters_as_they_were():
    before = list(warnings.filters)
    first, second = ignoring((DeprecationWarning, "this")), ignoring((DeprecationWarning, "this"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("this is known", DeprecationWarning, stacklevel=1)  # an error, were it not ignored any more
    second.__exit__(None, None, None)
    assert warnings.filters == before
    with pytest.raises(DeprecationWarning):
        warnings.warn("this is known", DeprecationWarning, stacklevel=1)
