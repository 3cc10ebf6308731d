"""What scores and reports say of zeros: in files, in other processes, in the networks of others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from paths import ROOT, TESTS
from processes import done, in_this_process, start
from torch import nn
from zero_nets import (
    HERE,
    batches,
    residual,
    scaled,
    two_parts,
    under_no_grad,
    with_ones,
    without_b,
)
from zoo import Net

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput
from ranp_cli.io.slim_file import SCORES, read_document, read_tensors, to_bytes
from ranp_cli.scoring.zero_scores import ALL_ZERO


@pytest.mark.parametrize("make", [lambda: two_parts(under_no_grad), scaled, lambda: without_b(residual())])
def test_a_file_of_scores_carries_it(make, tmp_path):
    path = tmp_path / "s.safetensors"
    ranp.score(make(), batches()).save(path)
    given, anew = ranp.prune(make(), scores=path, sparsity=0.4), ranp.prune(make(), batches(), sparsity=0.4)
    assert given.mask.layers == anew.mask.layers
    assert given.mask.fixed == anew.mask.fixed
    assert given.report.parts["scoring"] == anew.report.parts["scoring"]
    assert given.report.parts["notes"] == anew.report.parts["notes"]


def rewritten(path: Path, **changes) -> Path:
    """The file with other entries in its document; None takes one out."""
    about = {**read_document(path, SCORES), **changes}
    about = {key: value for key, value in about.items() if value is not None}
    path.write_bytes(to_bytes(read_tensors(path), about))
    return path


def test_an_older_file_still_loads(tmp_path):
    path = tmp_path / "s.safetensors"
    ranp.score(two_parts(under_no_grad), batches()).save(path)
    mask = ranp.prune(two_parts(under_no_grad), scores=rewritten(path, not_ranked=None), sparsity=0.4).mask
    assert mask.fixed["e0"] == ALL_ZERO
    assert len(mask.layers["e0"]["kept"]) == 8


@pytest.mark.parametrize(
    "changes", [{"not_ranked": ["e0"]}, {"not_ranked": {"e0": 1}}, {"scales_at_one": "g"}, {"weights_drawn": [3]}]
)
def test_a_file_that_says_it_otherwise_is_refused(changes, tmp_path):
    path = tmp_path / "s.safetensors"
    ranp.score(two_parts(under_no_grad), batches()).save(path)
    with pytest.raises(BadInput, match=f"'{next(iter(changes))}' of .* must be .* write it anew with ranp score"):
        ranp.prune(two_parts(under_no_grad), scores=rewritten(path, **changes), sparsity=0.4)


@pytest.mark.parametrize("make", [lambda: two_parts(under_no_grad), scaled, lambda: without_b(residual())])
def test_resuming_gives_what_one_go_gives(make, tmp_path):
    first, one, two = (tmp_path / f"{name}.safetensors" for name in ("first", "one", "two"))
    ranp.score(make(), batches(3), batch_limit=1).save(first)
    ranp.score(make(), batches(3), resume=first).save(two)
    ranp.score(make(), batches(3)).save(one)
    assert one.read_bytes() == two.read_bytes()


def test_scores_taken_with_a_scale_at_zero_are_not_gone_on_from(tmp_path):
    path = tmp_path / "s.safetensors"
    ranp.score(scaled(), batches(1)).save(path)
    with pytest.raises(BadInput, match=r"`resume`: these scores were taken with the zeros of norm.weight.*score anew"):
        ranp.score(scaled(), batches(2), resume=rewritten(path, scales_at_one=None))


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(tmp_path):
    (tmp_path / "loader.py").write_text(f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
                                        "from zero_nets import batches\ndef loader():\n    return batches(3)\n")  # fmt: skip
    where = os.pathsep.join(map(str, (ROOT, TESTS / "laws", TESTS / "helpers", HERE.parent)))
    arguments = ["score", f"{HERE}:scaled", "--batch", "loader.py:loader", "-o"]
    code, err = in_this_process([*arguments, "one.safetensors"], tmp_path)
    assert code == 0, err
    code, _, err = done(start([*arguments, "two.safetensors"], tmp_path, 2, PYTHONPATH=where))
    assert code == 0, err
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert read_document(tmp_path / "two.safetensors", SCORES)["scales_at_one"] == ["norm.weight"]


def test_the_command_line_says_so(tmp_path, capsys):
    torch.save(batches()[0], tmp_path / "b.pt")
    arguments = ["prune", f"{HERE}:scaled", "--batch", str(tmp_path / "b.pt"), "--sparsity", "0.5", "--json", "-"]
    assert run([*arguments, "-o", str(tmp_path / "slim.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["scoring"] == {"scales_at_one": ["norm.weight"]}
    assert "1 scale (norm.weight) initialised to zero: scored at one" in " ".join(err.split())


def test_nnunets_residual_encoder_as_nnunet_initialises_it():
    from dynamic_network_architectures.architectures import unet

    torch.manual_seed(0)
    model = unet.ResidualEncoderUNet(1, 3, (4, 8, 16), nn.Conv3d, 3, (1, 2, 2), (1, 2, 2), 2, (1, 1), conv_bias=True,
                                     norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU,
                                     deep_supervision=True)  # fmt: skip
    model.apply(model.initialize)
    batch = [(torch.randn(2, 1, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8)))]
    pruned = ranp.prune(model, batch, sparsity=0.4)
    names = pruned.report.parts["scoring"]["scales_at_one"]
    assert len(names) == 5
    assert all(name.endswith("conv2.norm.weight") for name in names)
    assert pruned.mask.layers == ranp.prune(with_ones(model, *names), batch, sparsity=0.4).mask.layers
    assert all(row["importance_mean"] > 0 for row in pruned.report.parts["layers"])
    assert all(not p.any() for name, p in pruned.model.named_parameters() if name in names)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # timm scripts functions when it is imported
def test_timms_zero_init_last():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3, zero_init_last=True)
    scores = ranp.score(model, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))])
    assert len(scores.about["scales_at_one"]) == 8
    assert all(values.any() for values in scores.layers.values())


def test_monais_diffusion_unet():
    from monai.networks import nets

    torch.manual_seed(0)
    inner = nets.DiffusionModelUNet(2, 1, 1, channels=(8, 16), attention_levels=(False, False), num_res_blocks=1,
                                    norm_num_groups=4)  # fmt: skip
    model = Net(lambda m, x: m.net(x, timesteps=torch.zeros(x.shape[0], dtype=torch.long)), net=inner)
    batch = [(torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8))]
    with pytest.raises(BadInput, match=r"layer net.out.2.conv are all zero and it is the last one"):
        ranp.score(model, batch, loss="mse")
    nn.init.normal_(inner.out[2].conv.weight)
    scores = ranp.score(model, batch, loss="mse")
    assert len(scores.about["weights_drawn"]) == 8
    assert all(name.endswith("conv2.conv") for name in scores.about["weights_drawn"])
    assert all(values.any() for values in scores.layers.values())
