"""The multiply-adds of one layer of each kind, worked out by hand, beside ours and torch's own counter.

Convention: a multiply-add is one product that is added to a sum, of convolutions, linear layers and products of two
tensors. What padding brings in is multiplied too; biases, gates, norms, activations and pooling count nothing.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import laws
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import Net

import ranp_cli as ranp
from ranp_cli.core import flop_formulas

ATTENTION = "on a CPU attention runs as one fused op, which torch's counter has no formula for"
WHOLE = "in inference the whole layer runs as one fused op, which torch's counter has no formula for"
ONEDNN = "on a CPU an LSTM runs inside oneDNN, as one op that torch's counter has no formula for"
NO_FORMULA = "torch's counter has no formula for this op"


@dataclass(frozen=True)
class Kind:
    """A layer, the shape of its input (one sample), and its multiply-adds."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    macs: int
    lacks: int = 0  # of them, those that torch's counter never sees
    fused: int | None = None  # what torch's counter says where it runs fused layers whole, if that is another number
    why: str = field(default="")  # the reason of either


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(shape))


def of(run: Callable[[Any, torch.Tensor], Any], **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Net(run, **copy.deepcopy(parts))


def attend(m: Any, x: torch.Tensor) -> torch.Tensor:  # 6 queries, 4 keys of 8 channels, 4 values of 5 channels
    return F.scaled_dot_product_attention(x, m.k(x[:, :, :4]), m.v(x[:, :, :4]))


CONVOLUTIONS = {
    "conv1d": Kind(lambda: nn.Conv1d(2, 4, 3), (1, 2, 9), 4 * 7 * (2 * 3)),  # maps, positions, window
    "conv2d": Kind(lambda: nn.Conv2d(3, 5, (3, 2)), (1, 3, 8, 8), 5 * (6 * 7) * (3 * 3 * 2)),
    "conv3d": Kind(lambda: nn.Conv3d(2, 4, 3, padding=1), (1, 2, 5, 6, 7), 4 * (5 * 6 * 7) * (2 * 27)),
    "without bias": Kind(lambda: nn.Conv3d(2, 4, 3, padding=1, bias=False), (1, 2, 5, 6, 7), 4 * 210 * (2 * 27)),
    "one voxel": Kind(lambda: nn.Conv3d(8, 4, 1), (1, 8, 3, 3, 3), 4 * 27 * 8),
    "strided": Kind(lambda: nn.Conv3d(2, 4, 3, 2, 1), (1, 2, 8, 8, 8), 4 * (4 * 4 * 4) * (2 * 27)),
    "dilated": Kind(lambda: nn.Conv3d(2, 4, 3, dilation=2), (1, 2, 9, 9, 9), 4 * (5 * 5 * 5) * (2 * 27)),
    "same": Kind(lambda: nn.Conv1d(2, 4, 4, padding="same"), (1, 2, 9), 4 * 9 * (2 * 4)),
    "circular": Kind(lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 9, 9), 4 * 81 * (2 * 9)),
    "grouped": Kind(lambda: nn.Conv3d(4, 6, 3, padding=1, groups=2), (1, 4, 4, 4, 4), 6 * 64 * (2 * 27)),  # 2 of 4 inputs
    "depthwise": Kind(lambda: nn.Conv3d(4, 4, 3, padding=1, groups=4), (1, 4, 4, 4, 4), 4 * 64 * 27),
    "depthwise, two maps each": Kind(lambda: nn.Conv2d(4, 8, 3, groups=4), (1, 4, 6, 6), 8 * 16 * 9),
    # transposed: every *input* value meets the window of every output map that it reaches, whatever the stride
    "transposed": Kind(lambda: nn.ConvTranspose3d(6, 4, 2, 2), (1, 6, 4, 4, 4), 6 * (4 * 4 * 4) * (4 * 8)),
    "transposed, output padding": Kind(
        lambda: nn.ConvTranspose3d(6, 4, 3, 2, 1, output_padding=1), (1, 6, 4, 4, 4), 6 * 64 * (4 * 27)
    ),
    "transposed 2d": Kind(lambda: nn.ConvTranspose2d(3, 5, (3, 2)), (1, 3, 4, 5), 3 * (4 * 5) * (5 * 3 * 2)),
    "transposed 1d": Kind(lambda: nn.ConvTranspose1d(3, 5, 4, 4), (1, 3, 7), 3 * 7 * (5 * 4)),
    "transposed, grouped": Kind(  # each of 4 inputs reaches the 3 maps of its group
        lambda: nn.ConvTranspose3d(4, 6, 3, 2, 1, output_padding=1, groups=2), (1, 4, 3, 3, 3), 4 * 27 * (3 * 27)
    ),
    "transposed, depthwise": Kind(lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=4), (1, 4, 5, 5), 4 * 25 * 4),
    "time first": Kind(
        of(lambda m, x: torch.conv_tbc(x.transpose(0, 1), m.w, m.b), w=weight(3, 4, 5), b=weight(5)),
        (1, 7, 4), 5 * 5 * (4 * 3), lacks=5 * 5 * (4 * 3), why=NO_FORMULA,
    ),
}  # fmt: skip

PRODUCTS = {
    "linear": Kind(lambda: nn.Linear(10, 7), (1, 10), 7 * 10),
    "linear, 3 axes": Kind(lambda: nn.Linear(5, 4), (1, 6, 5), 6 * (4 * 5)),  # at each of 6 places
    "linear, 3 axes, without bias": Kind(lambda: nn.Linear(5, 4, bias=False), (1, 6, 5), 6 * (4 * 5)),
    "bmm": Kind(of(lambda m, x: torch.bmm(x, m.w), w=weight(1, 5, 3)), (1, 4, 5), 4 * 3 * 5),
    "baddbmm": Kind(of(lambda m, x: torch.baddbmm(x, x, m.w), w=weight(1, 5, 5)), (1, 4, 5), 4 * 5 * 5),
    "matmul over heads": Kind(of(lambda m, x: x @ x.transpose(2, 3)), (1, 2, 6, 8), 2 * (6 * 6 * 8)),
    "einsum": Kind(of(lambda m, x: torch.einsum("bci,oc->boi", x, m.w), w=weight(7, 5)), (1, 5, 6), 7 * 6 * 5),
    "einsum of three": Kind(  # x with w: 7 maps of 5 x 4; what comes of it (7 x 4) with y
        of(lambda m, x: torch.einsum("bi,oij,bj->bo", x, m.w, x[:, :4]), w=weight(7, 5, 4)), (1, 5), 7 * 5 * 4 + 7 * 4
    ),
    "outer product": Kind(of(lambda m, x: torch.einsum("bi,j->bij", x, m.w), w=weight(3)), (1, 5), 0),  # nothing is summed
    "tensordot": Kind(of(lambda m, x: torch.tensordot(x, m.w, 2), w=weight(5, 6, 3)), (1, 5, 6), 3 * (5 * 6)),
    "unfolded convolution": Kind(
        of(lambda m, x: m.w @ F.unfold(x, 3), w=weight(7, 18)), (1, 2, 6, 6), 7 * (4 * 4) * (2 * 9)
    ),
    "bilinear": Kind(  # the weight with x1 (3 maps of 5 x 4), then what comes of it (3 x 4) with x2
        of(lambda m, x: m.b(x, x[:, :4]), b=nn.Bilinear(5, 4, 3)), (1, 5), 3 * 5 * 4 + 3 * 4,
        lacks=3 * 5 * 4 + 3 * 4, why=NO_FORMULA,
    ),
    "matrix times vector": Kind(of(lambda m, x: m.w @ x[0], w=weight(7, 5)), (1, 5), 7 * 5, lacks=35, why=NO_FORMULA),
    "addmv": Kind(
        of(lambda m, x: torch.addmv(m.b, m.w, x[0]), w=weight(7, 5), b=weight(7)), (1, 5), 7 * 5, lacks=35, why=NO_FORMULA
    ),
    "dot": Kind(of(lambda m, x: torch.dot(x[0], m.w), w=weight(5)), (1, 5), 5, lacks=5, why=NO_FORMULA),
    "addbmm": Kind(
        of(lambda m, x: torch.addbmm(m.b, x, m.w), w=weight(1, 5, 3), b=weight(4, 3)), (1, 4, 5), 4 * 3 * 5,
        lacks=4 * 3 * 5, why=NO_FORMULA,
    ),
    "linear and activation": Kind(
        of(lambda m, x: torch._addmm_activation(m.b, x, m.w), w=weight(5, 3), b=weight(3)), (1, 5), 3 * 5,
        lacks=3 * 5, why=NO_FORMULA,
    ),
    "whole numbers": Kind(
        of(lambda m, x: torch._int_mm((9 * x[0]).to(torch.int8), m.w).float(), w=torch.ones(16, 8, dtype=torch.int8)),
        (1, 24, 16), 24 * 8 * 16, lacks=24 * 8 * 16, why=NO_FORMULA,
    ),
    "spectral norm": Kind(  # a linear layer; its norm is u.(W v): a matrix times a vector, and a dot
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)), (1, 5), 4 * 5 + 4 * 5 + 4,
        lacks=4 * 5 + 4, why=NO_FORMULA,
    ),
}  # fmt: skip

PROJECTIONS = 6 * 8 * (3 * 8) + 6 * 8 * 8  # of 6 places with 8 channels: queries, keys and values; the output
LOOKING = 2 * (6 * 6 * 4) * 2  # 2 heads of 4 channels: scores, and their product with the values

ATTENTIONS = {
    "scaled dot product": Kind(  # two linear layers on 2 heads of 4 places; scores; their product with the values
        of(attend, k=nn.Linear(8, 8), v=nn.Linear(8, 5)), (1, 2, 6, 8),
        2 * 4 * (8 * 8 + 8 * 5) + 2 * (6 * 4 * 8) + 2 * (6 * 4 * 5),
    ),  # of unequal channels: torch does not fuse that
    "scaled dot product, fused": Kind(
        of(lambda m, x: F.scaled_dot_product_attention(m.q(x), x, x, is_causal=True), q=nn.Linear(8, 8)), (1, 2, 6, 8),
        2 * 6 * (8 * 8) + 2 * (6 * 6 * 8) * 2, fused=2 * 6 * (8 * 8), why=ATTENTION,
    ),  # masked places are multiplied as well
    "multi-head attention": Kind(
        of(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)),
        (1, 6, 8), PROJECTIONS + LOOKING, fused=0, why=WHOLE,
    ),
    "transformer layer": Kind(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (1, 6, 8),
        PROJECTIONS + LOOKING + 6 * (8 * 16 + 16 * 8), fused=0, why=WHOLE,
    ),
}  # fmt: skip

RECURRENT = {  # at each of 6 steps: gates x hidden x (input + hidden)
    "rnn": Kind(of(lambda m, x: m.r(x)[0], r=nn.RNN(5, 4, batch_first=True)), (1, 6, 5), 6 * 4 * (5 + 4)),
    "gru": Kind(of(lambda m, x: m.r(x)[0], r=nn.GRU(5, 4, batch_first=True)), (1, 6, 5), 6 * 3 * 4 * (5 + 4)),
    "lstm": Kind(
        of(lambda m, x: m.r(x)[0], r=nn.LSTM(5, 4, batch_first=True)), (1, 6, 5), 6 * 4 * 4 * (5 + 4), fused=0, why=ONEDNN
    ),
    "lstm, two layers both ways": Kind(  # the second layer reads both directions of the first
        of(lambda m, x: m.r(x)[0], r=nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True)), (1, 6, 5),
        2 * 6 * 4 * 4 * (5 + 4) + 2 * 6 * 4 * 4 * (8 + 4), fused=0, why=ONEDNN,
    ),
    "lstm, projected": Kind(  # what is handed on has 3 channels, made of 4
        of(lambda m, x: m.r(x)[0], r=nn.LSTM(5, 4, batch_first=True, proj_size=3)), (1, 6, 5),
        6 * (4 * 4 * (5 + 3) + 3 * 4),
    ),
    "lstm cell": Kind(of(lambda m, x: m.r(x)[0], r=nn.LSTMCell(5, 4)), (1, 5), 4 * 4 * (5 + 4)),
    "gru cell": Kind(lambda: nn.GRUCell(5, 4), (1, 5), 3 * 4 * (5 + 4)),
}  # fmt: skip

KINDS = CONVOLUTIONS | PRODUCTS | ATTENTIONS | RECURRENT
FUSED = [name for name, kind in KINDS.items() if kind.fused is not None]


def build(name: str) -> tuple[nn.Module, torch.Tensor, Kind]:
    """The layer in eval mode, behind a name of its own, and one sample."""
    kind = KINDS[name]
    torch.manual_seed(0)
    return nn.Sequential(kind.make()).eval(), torch.rand(kind.shape), kind


def profiled(model: Any, x: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit as a whole
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        return ranp.profile(model, x).to_dict()


def torchs(model: nn.Module, x: torch.Tensor) -> float:
    """The multiply-adds that torch's own counter sees: half its FLOPs."""
    with warnings.catch_warnings(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        model(x)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", KINDS)
def test_ours(name):
    model, x, kind = build(name)
    report = profiled(model, x)
    assert report["before"]["macs"] == kind.macs
    assert report["before"]["flops"] == 2 * kind.macs
    assert not report.get("uncounted_ops")


@pytest.mark.parametrize("name", KINDS)
def test_torchs(name):
    """Equal, or the difference and its reason are said in the tables."""
    model, x, kind = build(name)
    assert torchs(model, x) == (kind.macs - kind.lacks if kind.fused is None else kind.fused)
    with laws.op_by_op():
        assert torchs(model, x) == kind.macs - kind.lacks
    assert bool(kind.why) == bool(kind.lacks or kind.fused is not None)


@pytest.mark.parametrize("name", [n for n, k in CONVOLUTIONS.items() if not k.lacks] + ["linear", "linear, 3 axes"])
def test_the_row_of_the_layer_is_the_whole(name):
    model, x, kind = build(name)
    assert [row["macs"] for row in profiled(model, x)["layers"]] == [kind.macs]


@pytest.mark.parametrize("name", FUSED)
def test_a_traced_file_that_holds_fused_layers(name, tmp_path):
    model, x, kind = build(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.trace(model, x, check_trace=False).save(tmp_path / "layer.pt")
    report = profiled(str(tmp_path / "layer.pt"), x)
    assert report["before"]["macs"] == kind.macs
    assert not report.get("uncounted_ops")


@pytest.mark.parametrize("name", FUSED)
def test_a_network_that_needs_real_numbers(name):
    """On meta tensors torch takes fused layers apart; where the code reads numbers it runs them whole."""
    model, x, kind = build(name)
    real = Net(lambda m, x: m.inner(x) * float(x.detach().numpy().mean()), inner=model).eval()
    report = profiled(real, x)
    assert report["before"]["macs"] == kind.macs
    assert not report.get("uncounted_ops")


@pytest.mark.parametrize("name", ["conv3d", "transposed", "linear", "einsum", "multi-head attention", "gru"])
def test_a_forward_in_inference_mode(name):
    """There torch hands whole ops on, made of those that are counted."""
    model, x, kind = build(name)

    @torch.inference_mode()
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.inner(x)

    plain = profiled(Net(lambda m, x: m.inner(x), inner=model), x)
    report = profiled(Net(run, inner=model), x)
    assert report["before"]["macs"] == plain["before"]["macs"] == kind.macs
    assert report["layers"] == plain["layers"]
    assert not report.get("uncounted_ops")


def test_the_layer_of_a_gpu():
    """cuDNN runs a recurrent layer as one op: by hand as above, of 2 samples, and of packed steps."""
    shapes = [tuple(w.shape) for w in nn.LSTM(5, 4, 2, bidirectional=True).parameters()]
    macs = KINDS["lstm, two layers both ways"].macs
    assert flop_formulas.FORMULAS["aten._cudnn_rnn"]((6, 2, 5), shapes, out=None) == 2 * macs
    assert flop_formulas.FORMULAS["aten._cudnn_rnn"]((12, 5), shapes, out=None) == 2 * macs


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], 3 * 4 * 5),
        ("ij,jk", [(3, 4), (4, 5)], 3 * 4 * 5),  # what stands once stays
        ("...ij,...jk->...ik", [(2, 6, 3, 4), (6, 4, 5)], 2 * 6 * 3 * 4 * 5),  # the dots line up on the right
        ("b...i, oi -> b...o", [(2, 7, 8, 4), (5, 4)], 2 * 7 * 8 * 5 * 4),
        ("bi,bi->b", [(2, 4), (2, 4)], 2 * 4),
        ("i,j->ij", [(3,), (4,)], 0),  # nothing is summed
        ("bij->bi", [(2, 3, 4)], 0),  # only added up
        ("bij,k->bk", [(2, 3, 4), (5,)], 0),  # added up first, then an outer product
        ("bij,jk->bk", [(2, 3, 4), (4, 5)], 2 * 4 * 5),  # i is added up first
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 2 * 3 * 4 + 2 * 4 * 5),
        ("bi,oij,bj->bo", [(2, 5), (7, 5, 4), (2, 4)], 2 * 7 * 5 * 4 + 2 * 7 * 4),
    ],
)
def test_einsum(equation, shapes, macs):
    """By hand, as torch takes it apart, and as an op of an .onnx file (test_export.py) has it."""
    assert flop_formulas.einsum(equation, shapes) == macs
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, [torch.ones(s) for s in shapes])
    assert counter.get_total_flops() == 2 * macs


def test_a_second_formula_for_an_op_is_refused():
    with pytest.raises(ValueError, match=r"aten\.mv has a formula already: mv"):
        flop_formulas.formula("aten.mv")(lambda a, x, out: 0)


INDEX = torch.tensor([0, 2, 1])
ALONG = torch.zeros(1, 3, 4, 4, dtype=torch.int64)
MOVED = {  # what picks, places or compares numbers multiplies none
    "assigned by index": lambda y: (y.__setitem__((slice(None), INDEX), 0.0), y)[1],
    "assigned by mask": lambda y: (y.__setitem__(y > 0, 0.0), y)[1],
    "added by index": lambda y: y.index_put((INDEX * 0, INDEX), y[0, :3], accumulate=True),
    "index_fill": lambda y: y.index_fill(1, INDEX, 0.0),
    "gather": lambda y: y.gather(1, ALONG),
    "take": lambda y: y.take(INDEX),
    "take_along_dim": lambda y: torch.take_along_dim(y, ALONG, 1),
    "select_scatter": lambda y: y.select_scatter(y[:, 0], 1, 2),
    "slice_scatter": lambda y: y.slice_scatter(y[:, :2], 1, 2, 4),
    "diagonal_scatter": lambda y: y.diagonal_scatter(y[..., 0], 0, 2, 3),
    "masked_select": lambda y: y.masked_select(y > 0),
    "nonzero": lambda y: y.nonzero().float(),
    "where": lambda y: torch.where(y > 0)[0].float(),
    "unique": lambda y: y.unique(),
    "cummax": lambda y: y.cummax(2)[0],
    "isin": lambda y: torch.isin(y, INDEX).float(),
    "rot90": lambda y: y.rot90(1, (2, 3)),
    "trace": lambda y: y[0, 0].trace(),
    "repeated by counts": lambda y: y.repeat_interleave(torch.tensor([1, 2, 1, 1]), 1),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_moves_numbers_is_not_listed_as_uncounted(name):
    net = Net(lambda m, x: MOVED[name](m.a(x)), a=nn.Conv2d(2, 4, 1))
    report = profiled(net, torch.rand(1, 2, 4, 4))
    assert report["before"]["macs"] == 2 * 4 * 16
    assert not report.get("uncounted_ops")


def test_what_multiplies_and_has_no_formula_is_listed():
    net = Net(lambda m, x: torch.cdist(m.a(x), m.a(x)) + torch.linalg.cross(m.a(x)[:, :3], m.a(x)[:, :3], dim=1).sum(), a=nn.Conv2d(2, 4, 1))  # fmt: skip
    assert "aten.linalg_cross" in {row["op"] for row in profiled(net, torch.rand(1, 2, 4, 4))["uncounted_ops"]}
