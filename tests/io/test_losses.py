"""Losses by name and by the user's own code."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from io_folder import Y, message
from paths import ROOT
from torch import nn
from torch.nn import functional

from ranp_cli.core import errors
from ranp_cli.io.losses import load_loss

LOGITS, ONE = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)


LABELS = torch.randint(0, 3, (2, 4, 4, 4))


BINARY = LABELS.clamp(max=1)


FLOAT = BINARY.unsqueeze(1).float()


HOLES = LABELS.clone()


HOLES[0, :2] = 255


KNOWN = HOLES != 255


ONE_HOT = functional.one_hot(LABELS, 3).movedim(-1, 1).float()


SMALL = LOGITS[:, :, ::2, ::2, ::2]


CE, BCE, L1 = functional.cross_entropy, functional.binary_cross_entropy_with_logits, functional.l1_loss


# name, ignore_index, output, target, value
LOSSES: list[tuple[str | None, int | None, Any, Any, Any]] = [
    (None, None, LOGITS, LABELS, CE(LOGITS, LABELS)),
    (None, None, LOGITS, LABELS.to(torch.uint8), CE(LOGITS, LABELS)),
    (None, None, LOGITS, LABELS.unsqueeze(1), CE(LOGITS, LABELS)),
    (None, None, LOGITS, LABELS.float(), CE(LOGITS, LABELS)),  # as MONAI's loaders give labels
    ("cross_entropy", None, LOGITS, HOLES.unsqueeze(1).float(), CE(LOGITS, HOLES, ignore_index=255)),
    (None, None, torch.stack([LOGITS, -LOGITS], 1), LABELS, CE(LOGITS, LABELS) + CE(-LOGITS, LABELS)),  # heads, as of DynUNet
    (None, None, torch.stack([LOGITS, -LOGITS], 1), LABELS.unsqueeze(1).float(), CE(LOGITS, LABELS) + CE(-LOGITS, LABELS)),
    (None, None, LOGITS[:, :, 0, 0, 0], LABELS[:, :1, 0, 0], CE(LOGITS[:, :, 0, 0, 0], LABELS[:, 0, 0, 0])),
    (None, None, LOGITS, HOLES, CE(LOGITS, HOLES, ignore_index=255)),
    (None, None, LOGITS, HOLES.where(KNOWN, -100), CE(LOGITS, HOLES, ignore_index=255)),
    (None, 1, LOGITS, LABELS, CE(LOGITS, LABELS, ignore_index=1)),
    (None, 255, LOGITS, HOLES, CE(LOGITS, HOLES, ignore_index=255)),
    ("cross_entropy", None, LOGITS, ONE_HOT, CE(LOGITS, LABELS)),
    ("cross_entropy", None, {"out": LOGITS, "aux": LOGITS}, LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, {"seg": LOGITS, "name": "a"}, LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, [LOGITS, None], LABELS, CE(LOGITS, LABELS)),
    ("cross_entropy", None, (LOGITS, SMALL), LABELS, CE(LOGITS, LABELS) + CE(SMALL, LABELS[:, ::2, ::2, ::2])),
    ("mse", None, LOGITS, ONE_HOT, functional.mse_loss(LOGITS, ONE_HOT)),
    ("mse", None, ONE, BINARY, functional.mse_loss(ONE, FLOAT)),
    ("mse", None, ONE[:, 0], BINARY.unsqueeze(1), functional.mse_loss(ONE[:, 0], BINARY.float())),
    ("l1", None, LOGITS, ONE_HOT, L1(LOGITS, ONE_HOT)),
    ("l1", 0, LOGITS, ONE_HOT, L1(LOGITS[ONE_HOT == 1], torch.ones(128))),
    ("l1", None, [ONE, SMALL[:, :1]], BINARY, L1(ONE, FLOAT) + L1(SMALL[:, :1], FLOAT[:, :, ::2, ::2, ::2])),
    ("smooth_l1", None, LOGITS, ONE_HOT, functional.smooth_l1_loss(LOGITS, ONE_HOT)),
    ("bce", None, ONE, BINARY, BCE(ONE, FLOAT)),
    ("bce", None, ONE, BINARY.bool(), BCE(ONE, FLOAT)),
    ("bce", None, ONE, BINARY.where(KNOWN, 255), BCE(ONE[:, 0][KNOWN], FLOAT[:, 0][KNOWN])),
    ("bce", None, LOGITS, ONE_HOT.long(), BCE(LOGITS, ONE_HOT)),
    ("dice", None, (ONE_HOT * 2 - 1) * 99, LABELS, torch.tensor(0.0)),
    ("dice", None, (ONE_HOT * 2 - 1) * 99, HOLES, torch.tensor(0.0)),
    ("dice", None, (1 - ONE_HOT) * 99, LABELS, torch.tensor(1.0)),
    ("dice", None, LOGITS * 0, LABELS, 1 - sum(2 * n / 3 / (128 / 3 + n) for n in LABELS.flatten().bincount()) / 3),
    ("dice", None, ONE * 0, BINARY, 1 - BINARY.sum() / (64 + BINARY.sum())),
    ("dice_ce", None, LOGITS * 0, LABELS, load_loss("dice")(LOGITS * 0, LABELS) + math.log(3)),
    ("dice", None, (FLOAT * 2 - 1) * 99, BINARY, torch.tensor(0.0)),
    ("dice_ce", None, (FLOAT * 2 - 1) * 99, BINARY, torch.tensor(0.0)),
    ("dice_ce", None, (ONE_HOT * 2 - 1) * 99, ONE_HOT, torch.tensor(0.0)),
]  # fmt: skip


MISFIT = "a target of shape {} does not fit an output of shape (2, 3, 4, 4, 4)"


# name, ignore_index, output, target, what the message says
BAD_LOSSES: list[tuple[Any, int | None, Any, Any, str]] = [
    (None, None, LOGITS, ONE_HOT, "a torch.float32 target has no default loss; give `loss`: cross_entropy, mse, l1, "),
    (None, None, LOGITS, LABELS + 1, "the target has class 3, but there are 3 classes, 0 to 2; mend the labels"),
    (None, None, LOGITS, LABELS - 1, "the target has class -1, but there are 3 classes"),
    (None, 7, LOGITS, HOLES, "the target has class 255, but there are 3 classes"),
    (None, None, LOGITS, LABELS * 0 + 255, "every place of the target is ignored; check the labels and `ignore_index`"),
    (None, None, LOGITS, LABELS[:, :2], f"{MISFIT.format((2, 2, 4, 4))}; wants (2, 4, 4, 4), so mend the batch"),
    (None, None, [LOGITS, LOGITS], LABELS[:1], MISFIT.format((1, 4, 4, 4))),
    (None, None, ONE, BINARY, "cross_entropy wants two or more channels, and the output's shape is (2, 1, "),
    (None, None, LOGITS, [0, 1], "the target is a list of 2 int; wants a tensor, or a loss of your own"),
    (None, None, "text", LABELS, "the model returned an object of type str; wants a tensor, or a loss of your own"),
    (None, None, {"a": LOGITS, "b": LOGITS}, LABELS, "the model returned a dict with the keys 'a', 'b'; name one of"),
    ("mse", None, LOGITS, LABELS, f"{MISFIT.format((2, 4, 4, 4))}; wants (2, 3, 4, 4, 4)"),
    ("mse", 1, ONE, BINARY * 0 + 1, "every place of the target is ignored"),
    ("bce", None, ONE, LABELS, "the target has class 2, but there are 2 classes, 0 to 1"),
    ("bce", None, ONE, ONE_HOT[:, :1] * 2, "bce wants targets in [0, 1], and this one has others; scale it"),
    ("dice", None, ONE, LABELS, "the target has class 2, but there are 2 classes, 0 to 1"),
    ("dice", None, ONE[:, 0, 0, 0, 0], Y, "dice wants an output of shape (N, C, ...), not (2,); give another `loss`"),
    (lambda o, t: 1 / 0, None, ONE, BINARY, f"loss=<lambda>: ZeroDivisionError: division by zero ({__file__}:"),
    (lambda o, t: o, None, ONE, BINARY, "loss=<lambda>: returned a tensor of shape (2, 1, 4, 4, 4); wants a scalar"),
    (lambda o, t: 3, None, ONE, BINARY, "loss=<lambda>: returned an object of type int; wants a scalar"),
]  # fmt: skip


LOSS_FILE = """
from torch import nn
def good(output, target): return output.mean()
class Good(nn.Module):
    def forward(self, output, target): return output.mean().reshape(1)
class Needs:
    def __init__(self, weight): pass
number = 5
"""


# spec, ignore_index, what the message says; None where it is fine
LOSS_SPECS: list[tuple[Any, int | None, str | None]] = [
    ("dice", None, None),
    ("dise", None, "loss='dise': no such loss; did you mean 'dice'? (known: cross_entropy, mse, l1, "),
    ("loss.py:good", None, None),
    ("loss.py:Good", None, None),
    ("torch.nn:MSELoss", None, None),
    ("torch.nn.functional:mse_loss", None, None),
    (nn.L1Loss(), None, None),
    ("loss.py:good", 3, "loss='loss.py:good': `ignore_index` is for the named losses; leave it out, "),
    ("loss.py:god", None, "loss='loss.py:god': there is no 'god' in it; did you mean 'good'?"),
    ("loss.py:number", None, "loss='loss.py:number': is an object of type int; wants a function loss(output, target)"),
    ("loss.py:Needs", None, "loss='loss.py:Needs': needs the argument weight; give loss_args={'weight': VALUE}"),
    ("loss.py", None, "loss='loss.py': which name in that file? Say loss.py:NAME (it offers: Good, Needs, good)"),
    ("absent.py:good", None, "loss='absent.py:good': no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ignore_index", "output", "target", "value"), LOSSES)
def test_losses(name: str | None, ignore_index: int | None, output: Any, target: Any, value: torch.Tensor) -> None:
    before = target.clone()
    loss = load_loss(name, ignore_index)(output, target)
    assert loss.shape == ()
    torch.testing.assert_close(loss, value, atol=1e-4, rtol=1e-5)
    assert torch.equal(before, target)


@pytest.mark.parametrize(("name", "ignore_index", "output", "target", "says"), BAD_LOSSES)
def test_bad_losses(name: Any, ignore_index: int | None, output: Any, target: Any, says: str) -> None:
    assert message(load_loss(name, ignore_index), output, target).startswith(says)


@pytest.mark.parametrize(("spec", "ignore_index", "says"), LOSS_SPECS)
def test_loss_specs(folder: Path, spec: Any, ignore_index: int | None, says: str | None) -> None:
    (folder / "loss.py").write_text(LOSS_FILE)
    if says is None:
        assert load_loss(spec, ignore_index)(ONE, BINARY.unsqueeze(1).float()).shape == ()
    else:
        assert message(load_loss, spec, ignore_index).startswith(says)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce", "mse", "bce"])
def test_ignored_places_have_no_gradient(name: str) -> None:
    output = (LOGITS if name in ("cross_entropy", "dice", "dice_ce") else ONE).clone().requires_grad_()
    target = BINARY.where(KNOWN, 255)
    load_loss(name, 255)(output, target).backward()
    ignored = (HOLES == 255).unsqueeze(1).expand_as(output)
    assert output.grad is not None
    assert not output.grad[ignored].any()
    assert output.grad[~ignored].all()


def test_an_output_too_coarse_for_any_label_adds_nothing() -> None:
    target = torch.full((2, 4, 4, 4), 255)
    target[:, 1, 1, 1] = 1
    coarse = SMALL.clone().requires_grad_()
    loss = load_loss(None)([LOGITS, coarse], target)
    torch.testing.assert_close(loss, CE(LOGITS, target, ignore_index=255))
    loss.backward()
    assert coarse.grad is not None
    assert not coarse.grad.any()


def test_importing_it_does_not_import_torch() -> None:
    import subprocess

    code = "import sys, ranp_cli.io.model, ranp_cli.io.batches, ranp_cli.io.losses, ranp_cli.cli.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_users_line_is_told_and_not_the_librarys_below_it():
    def reads(text: str) -> object:
        return json.loads(text)

    with pytest.raises(ValueError, match="Expecting value") as caught:
        reads("no json")
    line = reads.__code__.co_firstlineno + 1
    assert errors.user_line(caught.value) == f"{__file__}:{line}"
    assert errors.in_words(caught.value).endswith(f"(char 0) (at test_losses.py:{line})")
