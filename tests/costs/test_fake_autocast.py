"""`--amp`: what a step holds in mixed precision, by hand and against torch's allocator under its own autocast."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import packages
import pytest
import torch
import zoo
from allocator import Linears, allocated, squares
from small_nets import batch, net
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.costs.fake_autocast import Autocast
from ranp_cli.costs.memory import forward_memory, training_memory

HALF = 2 * 8 * 10  # a tensor of (8, 10) in 16 bits
WEIGHT = 2 * 100  # a weight's cast


def step(model: nn.Module, amp: bool = True) -> ranp.memory.Memory:
    return training_memory(model, Example((torch.zeros(8, 10),)), loss=lambda y: y.float().sum(), amp=amp)


def test_a_step_by_hand():
    found = step(Linears())
    # the input's cast (a's gradient needs it), what relu gives, the output; and the cached cast of each weight
    assert found.by_module == {"a": HALF + WEIGHT, "c": HALF + WEIGHT, "relu": 2 * HALF, "b": WEIGHT}
    assert (found.parameters, found.gradients) == (1200, 1200)  # in 32 bits
    # in inference the casts are cached as well: the last op has all three, its input and its output
    assert forward_memory(Linears(), Example((torch.zeros(8, 10),)), amp=True).working == 3 * WEIGHT + 2 * HALF


def test_a_cast_of_a_weight_is_made_once():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = self.a(x)
            return x

    # the input's cast, five outputs, one weight
    assert step(Shared()).by_module == {"a": 6 * HALF + WEIGHT}


def test_what_autocast_keeps_in_32_bits_stays():
    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10, bias=False)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), torch.nn.functional.mse_loss(self.a(x), x)

    def loss(y: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return y[0].float().sum() + y[1]

    model = Losses()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.zeros(8, 10))
    assert [y.dtype for y in outputs] == [torch.bfloat16, torch.float32]
    found = training_memory(model, Example((torch.zeros(8, 10),)), loss=loss, amp=True)
    assert found.outputs == sum(y.numel() * y.element_size() for y in outputs) == HALF + 4


CLOSE = 0.15
QUICK = {"r3d_18"}  # in the default run


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in QUICK else pytest.mark.slow) for c in packages.CASES]
)
def test_estimated_is_what_the_allocator_reports_under_autocast(case):
    model, x = zoo.build(case), torch.randn(case.shape)
    ratios = [
        forward_memory(model, Example((x,)), amp=True).working / allocated(model, x, False, amp=True),
        training_memory(model, Example((x,)), loss=squares, amp=True).working / allocated(model, x, True, amp=True),
    ]
    assert all(abs(r - 1) <= CLOSE for r in ratios), ratios


def test_counts_are_as_without_and_the_model_is_as_it_was():
    model = net(8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    plain, half = (ranp.profile(model, (2, 1, 16, 16, 16), amp=amp).to_dict() for amp in (False, True))
    assert half["before"] == plain["before"]
    assert half["layers"] == plain["layers"]
    assert half["memory"]["before"]["amp"] == {"dtype": "bfloat16", "device": "cpu"}
    assert "amp" not in plain["memory"]["before"]
    saved = [report["memory"]["before"]["train_parts"]["saved"] for report in (plain, half)]
    assert saved[1] < 0.75 * saved[0]  # pooling's indices have 64 bits, whatever the rest has
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not torch.is_autocast_enabled("cpu")


def test_a_script_too():
    net, x = nn.Sequential(*[nn.Linear(100, 100, bias=False), nn.ReLU()] * 3), torch.randn(80, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(net, x)
        for model in (net, script):
            told = training_memory(model, Example((x,)), loss=squares, amp=True).working
            assert told == pytest.approx(allocated(model, x, True, amp=True), rel=0.01)
            assert told != training_memory(model, Example((x,)), loss=squares).working


def test_code_that_cannot_run_so_is_told():
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(10, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * float(self.a.weight.sum())

    memory = ranp.profile(Numbers(), (8, 10), amp=True).to_dict()["memory"]["before"]
    assert "cannot be estimated" in memory["error"]
    assert "test_fake_autocast.py" in memory["error"]


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "profile ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=4 --input 1x1x16x16x16 --amp"
    assert run([*words.split(), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "sgd, 16-bit autocast (cpu): parameters" in text
    assert run(words.removesuffix(" --amp").split()) == 0
    rows = [re.search(r"peak of a forward pass +(\S+ \S+)", page).group(1) for page in (text, capsys.readouterr().out)]
    assert rows[0] != rows[1]
    Path("net.onnx").write_bytes(b"")
    assert run(["profile", "net.onnx", "--amp"]) == 2
    assert "leave out --amp" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert run([*words.split(), "--device", "cuda"]) == 2
        assert "give auto, cpu" in capsys.readouterr().err


def test_a_budget_in_mixed_precision_keeps_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(tuple(t[:1] for t in batch(16)), "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"
    more = "--batch calib.pt --budget train-mem=3MiB --method magnitude --device cpu --json -"
    found = []
    for amp in ([], ["--amp"]):
        assert run([*words.split(), *more.split(), *amp]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[1]["neurons"]["kept"] > found[0]["neurons"]["kept"]
    assert all(report["budget"][0]["after"] <= 3 * 2**20 for report in found)
    assert found[1]["memory"]["after"]["amp"]["dtype"] == "bfloat16"


def test_a_whole_number_on_another_device_is_a_copy():
    """Batch norm counts it up: in the copy, not in the model."""
    counter = torch.tensor(3)
    placed = Autocast("cuda", half=False).place(counter)
    assert placed.device.type == "cuda"
    assert placed.constant == 3
    assert placed.constant.data_ptr() != counter.data_ptr()
