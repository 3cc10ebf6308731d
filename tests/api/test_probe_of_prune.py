"""The probe as `prune` and the command line run it."""

from __future__ import annotations

import io
import json
from typing import Any

import laws
import pytest
import torch
from html_reader import Reader
from probed_nets import clouds, seeded, through
from rich.console import Console
from small_nets import batch, net
from torch import nn
from torch.nn import functional as F

import ranp_cli as ranp
from ranp_cli.api.probe import Plan, first_of, probe
from ranp_cli.cli import run
from ranp_cli.io.batches import load_batches
from ranp_cli.reporting.html import page
from ranp_cli.reporting.show import show_report

pytestmark = pytest.mark.usefixtures("one_thread")
UNET = "ranp_cli.models.unet3d:unet3d --model-arg layers=7 --model-arg width=8 --model-arg num_classes=3"


def without_seconds(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "seconds"}


def test_prune_reports_it_and_changes_nothing_else():
    model = net()
    model.train()
    model(batch()[0]).sum().backward()
    before = laws.snapshot(model)
    data = batch()
    with torch.no_grad():
        probed = ranp.prune(model, data, sparsity=0.5, probe=4)
    laws.unchanged(model, before)
    plain = ranp.prune(model, data, sparsity=0.5)
    assert probed.mask.to_dict() == plain.mask.to_dict()
    assert laws.as_file(probed.model) == laws.as_file(plain.model)
    assert all(p.grad is None and p.requires_grad for p in probed.model.parameters())
    report = probed.report.to_dict()
    part = report["probe"]
    assert (part["steps"], part["optimizer"], part["lr"]) == (4, "adam", 3e-3)
    assert report["memory"]["after"]["optimizer"] == "sgd"
    assert report["seconds"]["probe"] > 0
    assert len(part["slim"]["curve"]) == 4
    assert set(part["dense"]["worst_class"]) == {"class", "loss", "right"}
    assert "probe" not in plain.report.to_dict()
    again = ranp.prune(model, data, sparsity=0.5, probe=4).report.to_dict()["probe"]
    assert without_seconds(again) == without_seconds(part)
    alone = probe(model, plain.model, data, steps=4)
    assert without_seconds(alone) == without_seconds(part)


def test_the_given_optimizer_is_that_of_both():
    report = ranp.prune(net(), batch(), sparsity=0.5, probe=1, optimizer="sgd-momentum", probe_lr=0.5).report.to_dict()
    assert (report["probe"]["optimizer"], report["probe"]["lr"]) == ("sgd-momentum", 0.5)
    assert report["memory"]["after"]["optimizer"] == "sgd-momentum"


def test_drawn_weights_are_the_ones_that_train():
    kept, drawn = (ranp.prune(net(), batch(), sparsity=0.5, probe=1, init=init) for init in ("keep", "glorot"))
    first = [each.report.to_dict()["probe"] for each in (kept, drawn)]
    assert first[0]["dense"] == first[1]["dense"]
    assert first[0]["slim"]["first"] != first[1]["slim"]["first"]
    assert without_seconds(probe(net(), drawn.model, batch(), steps=1)) == without_seconds(first[1])


def test_dropout_is_off():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Linear(6, 8), nn.Linear(8, 6), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.dropout(self.drop(self.a(x)), 0.5, self.training))

    dropping = seeded(Dropping)
    plain = nn.Sequential(dropping.a, dropping.b)
    part = probe(dropping, plain, clouds(), steps=4)
    assert part["dense"] == part["slim"]


def test_what_a_forward_draws_depends_on_the_seed_alone():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x + torch.randn_like(x))

    model, before = seeded(Noisy), torch.get_rng_state()
    first = probe(model, model, clouds(), steps=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, third = (probe(model, model, clouds(), steps=4, seed=seed) for seed in (0, 1))
    assert without_seconds(first) == without_seconds(second) != without_seconds(third)
    assert first["dense"] == first["slim"]  # both meet the same noise


def test_an_input_that_the_model_writes_into_is_whole():
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x.mul_(0.5))

    data = clouds(1)
    before = data[0][0].clone()
    probe(seeded(Writing), seeded(Writing), data, steps=3)
    assert torch.equal(data[0][0], before)


@pytest.mark.parametrize("method", ["ranp", "random"])
def test_a_stream_is_held_as_it_goes_by(method):
    """A generator object can be gone through once: by the scoring, which draws what it drew without a probe."""
    whole = [batch(8), batch(12), batch(8)]

    def stream() -> Any:
        for x, y in whole:
            yield x + torch.rand(1), y

    model = net()
    plain = ranp.prune(model, stream(), sparsity=0.5, method=method)
    probed = ranp.prune(model, stream(), sparsity=0.5, method=method, probe=2)
    assert probed.mask.to_dict() == plain.mask.to_dict()
    assert probed.report.to_dict()["probe"]["batches"] == 2


def test_no_more_than_eight_mini_batches_are_held():
    data = clouds(20)
    seen = []

    def stream() -> Any:
        for k, one in enumerate(data):
            seen.append(k)
            yield one

    assert len(first_of(load_batches(stream), Plan.of(50).kept)) == 8
    assert max(seen) == 7
    assert Plan.of(3).kept == 3
    source = load_batches(stream())
    source.hold = 2
    assert len(list(source)) == 20
    assert [one.target is y for one, (_, y) in zip(source.held, data, strict=False)] == [True, True]


def test_torchscript_trains():
    eager = seeded(lambda: nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1)))
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        script = torch.jit.trace(eager, batch()[0])
    before = {name: t.clone() for name, t in script.state_dict().items()}
    parts = [ranp.prune(m, batch(), sparsity=0.5, probe=6).report.to_dict()["probe"] for m in (eager, script)]
    assert all(torch.equal(t, before[name]) for name, t in script.state_dict().items())
    for side in ("dense", "slim"):
        assert parts[1][side]["curve"] == pytest.approx(parts[0][side]["curve"], rel=1e-4)
        assert parts[1][side]["last"] < parts[1][side]["first"]


def test_several_outputs_and_named_inputs():
    """Deep supervision: the loss is the sum, the classes are those of the output that fits the target."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.coarse, self.fine = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 3, 1), nn.Conv3d(8, 3, 1)

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            x = self.body(image).relu()
            return [self.coarse(F.avg_pool3d(x, 2)), self.fine(x)]

    x, y = batch()
    part = ranp.prune(seeded(Deep), {"input": {"image": x}, "target": y}, sparsity=0.5, probe=3).report.to_dict()[
        "probe"
    ]
    model = seeded(Deep)
    coarse, fine = model(x)
    by_hand = F.cross_entropy(fine, y) + F.cross_entropy(coarse, y[:, ::2, ::2, ::2])
    assert part["dense"]["first"] == pytest.approx(by_hand.item())
    assert part["dense"]["worst_class"]["class"] in (0, 1, 2)


def test_a_network_that_cannot_train_has_a_note():
    model = net().requires_grad_(False)
    report = ranp.prune(model, batch(), sparsity=0.5, probe=3).report.to_dict()
    assert report["probe"] == {"steps": 3, "optimizer": "adam", "lr": 3e-3, "error": report["probe"]["error"]}
    assert "no parameter of the model requires a gradient" in report["probe"]["error"]
    with pytest.raises(ranp.BadInput, match="no parameter of the model requires a gradient"):
        probe(model, model, batch(), steps=3)


def test_only_what_requires_a_gradient_is_trained():
    model = through(8)
    model[0].requires_grad_(False)
    part = probe(model, through(8), clouds(), steps=20, lr=0.03)
    assert part["dense"]["last"] > part["slim"]["last"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(batch(), "calib.pt")
    return tmp_path


def test_on_the_command_line(folder, capsys):
    words = f"prune {UNET} --batch calib.pt --sparsity 0.5 --probe 3 --html page.html --json report.json -o slim.safetensors"
    assert run(words.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    text = " ".join(out.split())
    assert "probe: 3 steps of adam (lr 0.003): loss" in text
    assert "worst class:" in text
    report = json.loads((folder / "report.json").read_text())
    assert len(report["probe"]["dense"]["curve"]) == 3
    content = Reader((folder / "page.html").read_text())
    assert "polyline" in content.tags
    assert content.open == []
    assert "script" not in content.tags


def test_from_a_config_file(folder, capsys):
    (folder / "c.yaml").write_text(
        "model: ranp_cli.models.unet3d:unet3d\nmodel-arg: {layers: 7, width: 8, num_classes: 3}\nbatch: calib.pt\n"
        "sparsity: 0.5\nprobe: 2\nprobe-lr: 1\noptimizer: sgd\n"
    )
    assert run("prune --config c.yaml --json -".split()) == 0
    part = json.loads(capsys.readouterr().out)["probe"]
    assert (part["steps"], part["lr"], part["optimizer"]) == (2, 1.0, "sgd")
    (folder / "c.yaml").write_text("probe: many\n")
    assert run("prune --config c.yaml".split()) == 2
    assert "'probe' is 'many'; wants a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--batch calib.pt --probe 0", "--probe 0: give the number of training steps"),
        ("--batch calib.pt --probe -3", "--probe -3: give the number of training steps"),
        ("--batch calib.pt --probe many", "--probe"),
        ("--batch calib.pt --probe 5 --probe-lr 0", "--probe-lr 0.0: give a learning rate above 0"),
        ("--batch calib.pt --probe 5 --probe-lr nan", "--probe-lr nan: give a learning rate above 0"),
        ("--batch calib.pt --probe-lr 0.1", "--probe-lr 0.1 has no effect without --probe"),
        ("--batch calib.pt --probe 5 --optimizer lbfgs", "unknown optimizer 'lbfgs'"),
        ("--scores s.safetensors --probe 5", "give --batch instead of --scores"),
        ("--batch calib.pt --method random --probe 5 --loss no_such", "--loss no_such: no such loss"),
    ],
)
def test_bad_usage(words, says, folder, capsys):
    assert run([*f"prune {UNET} --sparsity 0.5".split(), *words.split()]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_page_and_the_sentence_without_numbers():
    """Where nothing could be trained, the reason stands in both."""
    report = {"probe": {"steps": 3, "optimizer": "adam", "lr": 3e-3, "error": "no <gradient>"}}
    out = io.StringIO()
    show_report(report, Console(file=out, width=80))
    assert "probe: no <gradient>" in out.getvalue()
    assert "no &lt;gradient&gt;" in page(report)
    assert "Probe" not in page({})


def test_compare_has_the_probe_of_each_row():
    """As prune has it: the same networks, steps and mini-batches. The dense network keeps up with itself."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 3, 1))
    g = torch.Generator().manual_seed(1)
    data = [(torch.randn(2, 1, 4, 4, 4, generator=g), torch.randint(3, (2, 4, 4, 4), generator=g)) for _ in range(2)]
    table = ranp.compare(model, data, sparsity=0.5, methods=["full", "weighted"], probe=3)
    full, weighted = (row["probe"] for row in table.rows)
    assert full["lag"] == 0
    pruned = ranp.prune(model, data, sparsity=0.5, method="weighted", probe=3).report.to_dict()["probe"]
    assert weighted == {key: value for key, value in pruned.items() if key != "seconds"}


def test_a_fit_goes_without_a_probe():
    with pytest.raises(ranp.BadInput, match="`fit` trains every row in full"):
        ranp.compare(nn.Conv3d(1, 2, 1), [], sparsity=0.5, fit=lambda net, seed: 0.0, probe=3)
