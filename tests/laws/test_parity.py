"""Whole networks: what profile says is what torch's own counter sees in a real run, whichever way the network comes in;
and what is not counted is listed, by op and module, with nothing beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import laws
import packages
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula
from zoo import Net

import ranp_cli as ranp
from ranp_cli.core.example import Example
from ranp_cli.io.exchange.onnx_export import to_onnx


@contextmanager
def without_torchs_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def sample(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand((1, *shape[1:]), generator=torch.Generator().manual_seed(2))


def torchs(model: nn.Module, x: torch.Tensor) -> int:
    """The FLOPs that torch's counter sees when the network runs for real."""
    with laws.op_by_op(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return counter.get_total_flops()


def profiled(model: Any, x: Any = None) -> dict[str, Any]:
    with without_torchs_warnings():
        return ranp.profile(model, x).to_dict()


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.fast else pytest.mark.slow) for c in packages.CASES]
)
def test_every_network_of_the_zoo(case):
    model, x = zoo.build(case), sample(case.shape)
    report = profiled(model, tuple(x.shape))
    assert report["before"]["flops"] == torchs(model, x) > 0
    assert report["before"]["params"] == sum(p.numel() for p in model.parameters())
    assert sum(row["macs"] for row in report["layers"]) <= report["before"]["macs"]
    assert not report.get("uncounted_ops")


# -- one network, four ways in

FAST = "monai_unet"
NAMES = [FAST, "nnunet_plain", "r3d_18", "monai_attention_unet", "monai_unetr", "cnn_gru", "timm_mobilenetv3"]
WAYS = [
    pytest.param(case, id=case.name, marks=() if case.name == FAST else pytest.mark.slow)
    for case in packages.CASES
    if case.name in NAMES
]


@pytest.mark.parametrize("case", WAYS)
def test_the_factory(case):
    x = sample(case.shape)
    report = profiled(f"{packages.__file__}:{case.name}", tuple(x.shape))
    assert report["before"]["flops"] == torchs(zoo.build(case), x)


@pytest.mark.parametrize("case", WAYS)
def test_a_traced_file(case, tmp_path):
    model, x = zoo.build(case).eval(), sample(case.shape)
    with without_torchs_warnings():
        torch.jit.trace(model, x, check_trace=False).save(tmp_path / "traced.pt")
    report = profiled(str(tmp_path / "traced.pt"), x)
    assert report["before"]["flops"] == torchs(model, x)
    assert not report.get("uncounted_ops")


def test_a_traced_file_with_constants(tmp_path):
    """torch compares equal constants when it loads a file, which it cannot do on meta tensors: the run is a real one."""
    net = Net(lambda m, x: m.fc(x) * torch.tensor([1.5]) + x.sum() * torch.tensor([1.5]), fc=nn.Linear(3, 4)).eval()
    x = torch.rand(1, 3)
    with without_torchs_warnings():
        torch.jit.trace(net, x, check_trace=False).save(tmp_path / "traced.pt")
    report = profiled(str(tmp_path / "traced.pt"), x)
    assert report["before"]["macs"] == 3 * 4
    assert "cannot be estimated" in report["memory"]["before"]["error"]


@pytest.mark.parametrize("case", WAYS)
def test_a_slim_file(case, tmp_path):
    """Of both networks: the recorded numbers, and those of what is loaded from the file."""
    model, x, path = zoo.build(case), sample(case.shape), tmp_path / "slim.safetensors"
    ranp.prune(model, zoo.batches(case), loss=zoo.loss, sparsity=0.5, allow_less=True).save(path)
    slim = ranp.load(path, model)
    report = profiled(str(path))
    assert report["before"]["flops"] == torchs(model, x)
    assert report["after"]["flops"] == torchs(slim, x) < report["before"]["flops"]
    assert report["after"]["params"] == sum(p.numel() for p in slim.parameters())
    alone = profiled(slim, x)["before"]  # a single sample may be too few for a training step
    assert {key: report["after"][key] for key in alone} == alone


@pytest.mark.parametrize("case", WAYS)
def test_an_onnx_file(case, tmp_path):
    model, x, path = zoo.build(case).eval(), sample(case.shape), tmp_path / "network.onnx"
    to_onnx(model, Example((x,)), path)
    report = profiled(str(path), tuple(x.shape))
    assert report["before"]["flops"] == torchs(model, x)
    assert not report.get("uncounted_ops")


# -- what is not counted is listed


def inside(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[tuple[str, str, int]]:
    """The (op, module, count) that the profile lists of a network with a convolution, counted, and `run` in `deep.op`."""
    deep = nn.Sequential()
    deep.add_module("op", Net(lambda m, x: run(x)))
    net = Net(lambda m, x: m.deep(m.conv(x)), conv=nn.Conv2d(2, 2, 1), deep=deep).eval()
    report = profiled(net, x)
    assert report["before"]["macs"] == x[0, 0].numel() * 2 * 2  # of the convolution
    return [(row["op"], row["module"], row["count"]) for row in report.get("uncounted_ops", [])]


ARITHMETIC = {
    "fft": (lambda x: torch.fft.fft2(x).real, "aten._fft_c2c", 1),
    "fft, twice": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]), "aten._fft_r2c", 1),
    "inverse": (torch.linalg.inv, "aten.linalg_inv_ex", 1),
    "solve": (lambda x: torch.linalg.solve(x, x), "aten._linalg_solve_ex", 1),
    "determinant": (torch.linalg.det, "aten._linalg_det", 1),
    "eigenvalues": (lambda x: torch.linalg.eigvalsh(x), "aten._linalg_eigh", 1),
    "exponential": (lambda x: torch.matrix_exp(torch.matrix_exp(x)), "aten.linalg_matrix_exp", 2),
    "distances": (lambda x: torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"), "aten._cdist_forward", 1),
    "sampling": (
        lambda x: F.grid_sample(x, torch.zeros(1, 4, 4, 2), align_corners=False), "aten.grid_sampler_2d", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_without_a_count_is_listed(name):
    run, op, count = ARITHMETIC[name]
    listed = inside(run, torch.rand(1, 2, 6, 6))
    assert (op, "deep.op", count) in listed
    assert {module for _, module, _ in listed} == {"deep.op"}


@pytest.fixture(params=["meta", "real"])
def custom(request) -> Iterator[tuple[Any, str]]:
    """An op of a user's own library; `real` cannot run on meta tensors."""
    name = f"ranp_counts_{request.param}"
    library = torch.library.Library(name, "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    if request.param == "meta":
        library.impl("twice", torch.empty_like, "Meta")
    yield getattr(torch.ops, name).twice, name
    library._destroy()


def test_an_op_of_the_users_own_is_listed_until_torch_knows_its_formula(custom):
    op, name = custom
    x = torch.rand(1, 2, 6, 6)
    assert inside(op, x) == [(f"{name}.twice", "deep.op", 1)]
    register_flop_formula(op)(lambda x_shape, *args, out_shape=None, **kwargs: 2 * 1000)
    try:
        report = profiled(Net(lambda m, x: op(m.conv(x)), conv=nn.Conv2d(2, 2, 1)), x)
        assert report["before"]["macs"] == 36 * 2 * 2 + 1000
        assert not report.get("uncounted_ops")
    finally:
        del flop_registry[op]


def functions() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Of (1, 2, 6, 6): element-wise, normalising, pooling, moving. None of them counts, none is listed."""
    plain = "relu relu6 elu selu celu gelu silu mish sigmoid tanh softplus softsign hardswish hardtanh leaky_relu glu"
    found: dict[str, Any] = {name: getattr(F, name) for name in plain.split()}
    maths = "abs exp log1p sqrt rsqrt sin erf square sign floor reciprocal neg"
    for name in maths.split():
        found[name] = getattr(torch, name)
    for name in "cumsum cumprod softmax amax mean sum prod var".split():
        found[name] = partial(lambda f, x: f(x, 1), getattr(torch, name))
    found |= {
        "arithmetic": lambda x: torch.lerp(x * x + 3, x / 2, 0.5) - torch.addcmul(x, x, x) + torch.where(x > 0, x, -x),
        "special": lambda x: torch.special.bessel_j0(x) + torch.special.i1(x),
        "batch norm": nn.BatchNorm2d(2).eval(),
        "instance norm": nn.InstanceNorm2d(2),
        "group norm": nn.GroupNorm(2, 2),
        "layer norm": nn.LayerNorm(6),
        "rms norm": nn.RMSNorm(6),
        "local response norm": nn.LocalResponseNorm(2),
        "normalize": F.normalize,
        "cosine similarity": lambda x: F.cosine_similarity(x, 2 * x),
        "average pooling": lambda x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 3),
        "max pooling": lambda x: F.max_pool2d(x, 2) + F.adaptive_max_pool2d(x, 3) + F.lp_pool2d(x, 2, 2),
        "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        "upsampling": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear") + F.interpolate(x, scale_factor=2),
        "padding": lambda x: (
            F.pad(x, [1] * 4) + F.pad(x, [1] * 4, mode="reflect") + F.pad(x, [1] * 4, mode="replicate")
        ),
        "layout": lambda x: F.pixel_unshuffle(x, 2).flip(1).roll(1, 2).permute(0, 2, 3, 1).reshape(1, -1, 1),
        "pixel shuffle": lambda x: F.pixel_shuffle(torch.cat([x, x], 1), 2),
        "windows": lambda x: F.fold(F.unfold(x, 2), (6, 6), 2),
        "embedding": lambda x: F.embedding(x.long().clamp(0, 3), torch.rand(4, 3)),
        "embedding bag": lambda x: F.embedding_bag(x.flatten(1).long().clamp(0, 3), torch.rand(4, 3)),
        "one hot": lambda x: F.one_hot(x.long().clamp(0, 3), 4),
        "scatter": lambda x: torch.zeros(1, 2, 6, 6).scatter_add(1, torch.zeros(1, 2, 6, 6, dtype=torch.int64), x),
        "sorting": lambda x: x.sort(1)[0] + x.topk(2, 1)[0] + x.argmax(1, keepdim=True),
        "complex views": lambda x: torch.view_as_complex(torch.stack([x, x], -1)).abs(),
        "dropout": lambda x: F.dropout(x, training=False) + F.dropout2d(x, training=False),
    }
    return found


FREE = functions()


@pytest.mark.parametrize("name", FREE)
def test_what_costs_no_multiply_adds_is_not_listed(name):
    assert inside(FREE[name], torch.rand(1, 2, 6, 6)) == []
