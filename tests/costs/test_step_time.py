"""A training step as a budget, and what makes a network faster on this machine. Times are given by hand."""

from __future__ import annotations

import pytest
import torch
from small_nets import CPU, batch, chain, net, weights
from torch import nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.example import Example
from ranp_cli.core.tensors import CHANNELS_LAST
from ranp_cli.costs import faster_ways, timing
from ranp_cli.costs.memory import STATES
from ranp_cli.costs.runtimes import Torch
from ranp_cli.costs.step_time import OPTIMIZERS, Step

pytestmark = pytest.mark.usefixtures("one_thread")
VOLUME = Example((torch.randn(2, 1, 8, 8, 8),))


def steps_alone(work) -> float:
    """A machine on which a training step takes a microsecond a weight, and a forward pass of whatever size a second."""
    return weights(work) if isinstance(work, Step) else 1.0


# -- the budget


def test_a_step_is_met_as_a_latency_is(clock, by_sparsity_alone):
    clock(steps_alone)
    by_step = ranp.prune(net(), batch(), budget="step-time=50%").report.to_dict()
    clock(weights)
    by_pass = ranp.prune(net(), batch(), budget="latency=50%").report.to_dict()
    assert by_step["after"] == by_pass["after"]
    line = by_step["budget"][0]
    assert (line["kind"], line["before"], line["after"]) == (
        "step-time",
        by_step["speed"]["train_before_s"],
        by_step["speed"]["train_after_s"],
    )
    assert line["after"] <= line["bound"] == line["before"] / 2
    assert by_step["speed"]["before_s"] == 1.0  # the report says both


@pytest.mark.parametrize("tight", ["latency", pytest.param("step-time", marks=pytest.mark.slow)])
def test_of_two_times_the_tighter_one_decides(tight, clock, by_sparsity_alone):
    clock(weights)
    shares = {"latency": "80%", "step-time": "80%", tight: "40%"}
    both = ranp.prune(net(), batch(), budget=shares).report.to_dict()
    alone = ranp.prune(net(), batch(), budget={tight: "40%"}).report.to_dict()
    assert both["after"] == alone["after"]
    assert {row["kind"] for row in both["budget"]} == {"latency", "step-time"}
    assert all(row["after"] <= row["bound"] for row in both["budget"])


def test_a_step_that_cannot_be_so_short_names_the_closest(clock):
    clock(lambda work: 0.002 + weights(work))
    with pytest.raises(ranp.Infeasible, match=r"no network meets step-time=1ms \(1 ms\): .* step-time 2\."):
        ranp.prune(net(), batch(), budget="step-time=1ms")


def test_a_network_that_cannot_train_has_no_step_to_limit():
    model = chain().requires_grad_(False)
    with pytest.raises(ranp.BadInput, match="the time of a training step on 2x1x8x8x8 cannot be measured on cpu"):
        ranp.prune(model, batch(), method="random", budget="step-time=50%")


def test_on_the_command_line(tmp_path, monkeypatch, clock, capsys):
    monkeypatch.chdir(tmp_path)
    clock(steps_alone)
    torch.save(batch(), "calib.pt")
    words = "prune ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3 --batch calib.pt"
    assert run([*words.split(), "--budget", "step-time=50%", "--optimizer", "adam", "-o", "slim.safetensors"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "budget: step-time=50%: " in shown
    assert "training step, with adam" in shown
    assert run([*words.split(), "--budget", "step-time=50", "-o", "slim.safetensors"]) == 2
    assert "give a time such as 20ms" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["latency", "step-time"])
def test_a_pruner_takes_no_limit_of_time(kind):
    """What it would be measured on is busy with the training; before, the first removal ended in a KeyError."""
    model = net()
    with pytest.raises(ranp.BadInput, match="a limit of time has no meaning while a network trains"):
        ranp.Pruner(model, torch.optim.SGD(model.parameters(), 0.1), example=batch()[0], until={kind: "50%"})


# -- the step


def test_every_optimizer_can_be_timed():
    assert OPTIMIZERS.keys() == STATES.keys()


@pytest.mark.parametrize("name", [None, *OPTIMIZERS])
@pytest.mark.parametrize("way", [Torch(), *faster_ways.WAYS], ids=lambda way: way.name)
def test_a_step_works_and_leaves_the_weights_as_they_are(name, way):
    module = net()
    before = {key: p.detach().clone() for key, p in module.named_parameters()}
    step = Step.of(module, VOLUME, way, name)
    stepped = []
    if step.optimizer is not None:
        step.optimizer.register_step_post_hook(
            lambda *_: stepped.append([p.grad is not None for p in module.parameters()])
        )
    for _ in range(2):
        step()
    assert all(torch.equal(p, before[key]) for key, p in module.named_parameters())
    assert len(stepped) == (0 if name is None else 2)
    assert all(all(flags) for flags in stepped)
    last = module.get_parameter(
        next(key for key, p in module.named_parameters() if p.ndim == 5 and min(p.shape[:2]) > 1)
    )
    assert last.is_contiguous(memory_format=torch.channels_last_3d) == way.channels_last


@pytest.mark.parametrize(
    ("runtime", "way"), [("torch", None), ("torch-bf16", None), ("onnxruntime", "torch"), ("openvino", "torch")]
)
def test_a_training_step_runs_in_torch_whatever_runs_the_network(runtime, way, clock):
    clock(weights)
    speed = ranp.prune(net(), batch(), sparsity=0.5, time=True, runtime=runtime, optimizer="sgd").report.to_dict()[
        "speed"
    ]
    assert speed.get("train_runtime") == way
    assert speed["train_optimizer"] == "sgd"
    assert timing.Benchmark(VOLUME, timing.Ground(CPU)).way == Torch()


# -- what makes it faster


def machine(**gains: float):
    """Times a microsecond a weight, divided by what each way brings: `half` and `last`."""

    def seconds(work) -> float:
        if isinstance(work, timing.LayerOp):
            return 0.001
        module = work.module
        wide = next(p for p in module.parameters() if p.ndim > 3 and min(p.shape[:2]) > 1)
        last = not wide.is_contiguous()
        return weights(work) / (gains.get("half", 1) if work.half else 1) / (gains.get("last", 1) if last else 1)

    return seconds


@pytest.mark.parametrize(
    ("gains", "way"),
    [
        ({"last": 1.5}, "channels last"),
        ({"half": 1.5, "last": 0.9}, "bf16 autocast"),
        ({"half": 1.5, "last": 1.5}, "channels last and bf16 autocast"),
        ({"half": 1.08, "last": 1.01}, None),
        ({"half": 0.2, "last": 0.2}, None),
        ({}, None),
    ],
)
def test_what_pays_is_recommended_with_its_gain(gains, way, clock):
    clock(machine(**gains))
    found = faster_ways.recommended(timing.Benchmark(VOLUME, CPU), net())
    if way is None:
        assert not found
        return
    assert [(entry["of"], entry["way"]) for entry in found] == [("training step", way), ("forward pass", way)]
    for entry in found:
        assert entry["gain"] == pytest.approx(entry["plain_s"] / entry["seconds"])
        assert entry["gain"] > faster_ways.PAYS
        assert entry["max_rel_error"] < (0.1 if "bf16" in way else 1e-5)


def test_a_gain_within_the_noise_is_none(clock):
    """Every way is more than twice as fast in most turns, and slower in the others."""
    turns: dict[int, int] = {}

    def seconds(work) -> float:
        turns[id(work)] = turns.get(id(work), 0) + 1
        is_plain = not work.half
        return 1.0 if is_plain else (0.4 if turns[id(work)] % 2 else 1.3)

    clock(seconds)
    assert not faster_ways.recommended(timing.Benchmark(VOLUME, CPU), net())


def test_a_way_that_does_not_run_is_left_out(monkeypatch, clock):
    clock(machine(half=3, last=2))
    plain = Step.__call__

    def failing(step):
        if step.half:
            raise RuntimeError("not implemented for 'BFloat16'")
        return plain(step)

    monkeypatch.setattr(timing, "once", lambda work, device: (work(), machine(half=3, last=2)(work))[1])
    monkeypatch.setattr(Step, "__call__", failing)
    found = {entry["of"]: entry["way"] for entry in faster_ways.recommended(timing.Benchmark(VOLUME, CPU), net())}
    assert found == {"training step": "channels last", "forward pass": "channels last and bf16 autocast"}


@pytest.mark.slow
def test_a_user_who_chose_a_way_gets_no_other(clock):
    clock(machine(half=3, last=2))
    for name, kinds in (("torch-bf16", []), ("torch-channels-last", []), ("onnxruntime", ["training step"])):
        report = ranp.prune(net(), batch(), sparsity=0.5, time=True, runtime=name).report.to_dict()
        assert [entry["of"] for entry in report["speed"].get("recommended", [])] == kinds
    assert "recommended" not in ranp.prune(net(), batch(), budget="latency=50%").report.to_dict()["speed"]


@pytest.mark.parametrize("way", faster_ways.WAYS, ids=lambda way: way.name)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["training step", "forward pass"])
def test_the_line_can_be_pasted(kind, dims, way):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    model, x = nn.Sequential(conv(2, 4, 3), nn.ReLU(), conv(4, 3, 3)), torch.randn(2, 2, *[8] * dims)
    names = {
        "torch": torch,
        "model": model,
        "x": x,
        "y": torch.zeros(2, *[4] * dims, dtype=torch.int64),
        "criterion": nn.CrossEntropyLoss(),
    }
    exec(faster_ways.line_of(kind, way, Example((x,)), "cpu"), names)
    result = names["loss" if kind == "training step" else "y"]
    assert result.requires_grad
    if kind == "forward pass":
        assert (result.dtype == torch.bfloat16) == way.half
        assert result.is_contiguous(memory_format=CHANNELS_LAST[dims + 2]) == way.channels_last


def test_images_beside_volumes_have_no_single_layout():
    mixed = nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 3)])
    assert [way.name for way in faster_ways.ways_for(mixed, VOLUME)] == ["bf16 autocast"]
    assert [way.name for way in faster_ways.ways_for(nn.Linear(2, 2), Example((torch.zeros(1, 2),)))] == [
        "bf16 autocast"
    ]


@pytest.mark.parametrize("command", ["prune", "profile"])
def test_it_is_shown_on_terminal_and_page(command, tmp_path, monkeypatch, clock, capsys):
    monkeypatch.chdir(tmp_path)
    clock(machine(half=3))
    torch.save(batch(), "calib.pt")
    words = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3 --time --html page.html"
    ends = {"prune": "--batch calib.pt --sparsity 0.5 -o slim.safetensors", "profile": "--input 2x1x8x8x8"}
    assert run([command, *words.split(), *ends[command].split()]) == 0
    out = capsys.readouterr().out
    line = 'with torch.autocast("cpu", torch.bfloat16): loss = criterion(model(x), y)'
    assert f"\n  {line}\n" in out  # whole, to be pasted
    assert "faster still: training step 3.00 times as fast with bf16 autocast" in out
    page = (tmp_path / "page.html").read_text()
    assert "<code>with torch.autocast(&quot;cpu&quot;" in page


@pytest.mark.parametrize(
    ("gains", "least"),
    [([2, 2, 2, 2, 2], 2), ([2, 2, 2, 2, 0.5], 0.5), ([1.2] * 25 + [0.5] * 5, 1.2), ([1.2] * 16 + [0.5] * 14, 0.5)],
)
def test_the_least_gain_is_what_chance_cannot_explain(gains, least):
    runs = timing.Timings((1.0, 1.0), len(gains), (tuple([1.0] * len(gains)), tuple(1 / gain for gain in gains)))
    assert runs.gain(0, 1) == pytest.approx((max(gains), least))
