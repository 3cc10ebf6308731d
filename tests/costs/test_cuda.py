"""What holds on a GPU: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
import zoo_calls
from laws import run, snapshot, unchanged

import ranp_cli as ranp
from ranp_cli.cli import run as command
from ranp_cli.core.contexts import products
from ranp_cli.core.example import Example
from ranp_cli.core.tensors import map_tensors
from ranp_cli.costs.memory import forward_memory, training_memory
from ranp_cli.models.unet3d import unet3d

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def network(width=16):
    torch.manual_seed(0)
    return unet3d(7, width, 1, 4)


def batches(n=2, size=32):
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(2, 1, size, size, size, generator=g), torch.randint(4, (2, size, size, size), generator=g))
            for _ in range(n)]  # fmt: skip


def peak(work, reserved=False):
    """The most bytes that the allocator handed out, or took from the device, beyond what was there before."""
    work()  # cuDNN's choice of algorithms
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_reserved if reserved else torch.cuda.max_memory_allocated)() - before


@pytest.fixture
def whole_fp32():
    with products(CUDA):
        yield


def test_scores_are_those_of_the_cpu():
    there, here = (
        ranp.score(network().double(), [(x.double(), y) for x, y in batches()], device=d) for d in ("cuda", "cpu")
    )
    for name in here.layers:
        np.testing.assert_allclose(there.layers[name], here.layers[name], rtol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision):
    wanted, found = (ranp.score(network(), batches(), device="cuda", precision=p) for p in ("model", precision))
    for name in wanted.layers:
        np.testing.assert_allclose(
            found.layers[name], wanted.layers[name], rtol=0.2, atol=0.05 * wanted.layers[name].max()
        )


def test_the_peaks_are_those_of_the_allocator():
    """Within the 15 % of the issue, cuDNN's workspace apart, which is stated as an allowance."""
    model = network(32)
    example = Example((torch.empty(2, 1, 64, 64, 64),))
    told, step = forward_memory(model, example, "cuda"), training_memory(model, example, device="cuda")
    model = model.to(CUDA)
    x, y = torch.randn(2, 1, 64, 64, 64, device=CUDA), torch.randint(4, (2, 64, 64, 64), device=CUDA)

    def forward():
        with torch.no_grad():
            model.eval()(x)

    def training():
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model.train()(x), y).backward()

    for estimated, work in ((told, forward), (step, training)):
        measured = peak(work)
        assert estimated.working - estimated.allowance <= 1.15 * measured
        assert measured <= 1.15 * (estimated.working + estimated.allowance)


@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_low_memory_is_below_and_the_same():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        plain, low = (ranp.score(network(), batches(), device="cuda", low_memory=way) for way in (False, True))
    finally:
        torch.use_deterministic_algorithms(False)
    for name in plain.layers:
        np.testing.assert_allclose(low.layers[name], plain.layers[name], rtol=1e-5)
    work = [
        lambda way=way: ranp.score(network(32), batches(1, 64), device="cuda", low_memory=way) for way in (False, True)
    ]
    assert peak(work[1]) < 0.8 * peak(work[0])


def test_out_of_memory_goes_on_by_itself():
    """At the first limit at which a plain pass does not fit. (cuDNN does with less room before it gives up.)"""
    model, data = network(32), batches(1, 64)
    most = peak(lambda: ranp.score(model, data, device="cuda"), reserved=True)
    total = torch.cuda.get_device_properties(0).total_memory
    for percent in range(98, 50, -4):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + percent / 100 * most) / total)
        try:
            notes = ranp.score(model, data, device="cuda").report.to_dict().get("notes", [])
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        if notes:
            break
    assert any("ran out of memory" in note for note in notes)


def test_time_is_taken_by_events():
    speed = ranp.prune(network(), batches(), sparsity=0.5, device="cuda", time=True).report.to_dict()["speed"]
    assert speed["device"].startswith("cuda")
    assert 0 < speed["after_s"] < 1


@pytest.mark.parametrize("runtime", ["torch-channels-last", "torch-bf16", "cuda-graph"])
def test_ways_of_running_a_network(runtime):
    """In TF32, as torch convolves by default, too: what another order of the sums makes of it is no other network."""
    made = ranp.prune(network(32), batches(1, 96), sparsity=0.5, device="cuda", time=True, runtime=runtime)
    speed = made.report.to_dict()["speed"]
    assert speed["runtime"] == runtime
    assert 0 < speed["after_s"] < 1
    assert speed["max_rel_error"] < 0.1


@pytest.mark.parametrize("kind", ["latency", "step-time"])
def test_limits_of_time(kind):
    made = ranp.prune(network(32), batches(1, 48), budget={kind: "80%"}, device="cuda", resource="flops")
    assert made.report.to_dict()["speed"]["device"].startswith("cuda")
    (budget,) = made.report.to_dict()["budget"]
    assert budget["after"] <= budget["bound"]


@pytest.mark.parametrize("case", [*zoo.CASES, *zoo_calls.CASES], ids=lambda c: c.name)
@pytest.mark.parametrize("there", ["model on the GPU", "model on the CPU"])
def test_networks_are_pruned_and_proven(case, there, whole_fp32):
    """The kept neurons are those that the CPU keeps, the caller's model is as it was, and slim runs where the model is."""
    model, data = zoo.build(case), zoo.batches(case)
    how = {"loss": zoo.loss, "sparsity": 0.5, "precision": "fp64", "allow_less": True}
    wanted = ranp.prune(model, data, device="cpu", **how)
    model = model.to("cuda" if there.endswith("GPU") else "cpu")
    before = snapshot(model)
    found = ranp.prune(model, data, device="cuda", **how)
    unchanged(model, before)
    assert found.mask.to_dict()["layers"] == wanted.mask.to_dict()["layers"]
    assert {p.device.type for p in found.model.parameters()} == {p.device.type for p in model.parameters()}
    x = zoo.inputs(case, torch.Generator().manual_seed(7))
    outputs = [run(net.cuda(), map_tensors(x, lambda t: t.cuda()), False) for net in (found.model, wanted.model)]
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_proof_computes_in_fp32_and_leaves_what_the_caller_allows():
    torch.set_float32_matmul_precision("medium")
    try:
        verified = ranp.prune(network(32).cuda(), batches(), sparsity=0.5).report.to_dict()["verified"]
        assert verified["max_rel_error_fp32"] < 1e-5
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(batches(2, 16), "calib.pt")
    spec = ["ranp_cli.models.unet3d:unet3d", "--model-arg", "layers=7", "--model-arg", "width=16", "--model-arg", "in_channels=1", "--model-arg", "num_classes=4"]  # fmt: skip
    prune = ["prune", *spec, "--batch", "calib.pt", "--device", "cuda", "--optimizer", "adam", "-o", "slim.safetensors"]
    assert command([*prune, "--budget", "train-mem=60%"]) == 0, capsys.readouterr().err
    assert command([*prune, "--budget", "latency=95%", "--time"]) == 0, capsys.readouterr().err
    assert command([*prune, "--sparsity", "0.5", "--precision", "auto", "--low-memory", "--amp"]) == 0
    assert command(["profile", "slim.safetensors", *spec[1:], "--model", spec[0], "--device", "cuda", "--time"]) == 0
    assert command(["score", *spec, "--batch", "calib.pt", "--device", "cuda", "-o", "scores.safetensors"]) == 0
    assert (
        command(
            [
                "compare",
                *spec,
                "--batch",
                "calib.pt",
                "--device",
                "cuda",
                "--methods",
                "ranp-flops,random",
                "--sparsity",
                "0.5",
            ]
        )
        == 0
    )
