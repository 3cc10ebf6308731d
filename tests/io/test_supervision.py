"""Mini-batches and losses as other libraries give them: dicts, tensors with metadata, lists of targets, losses with arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput
from ranp_cli.io.batches import load_batches
from ranp_cli.io.losses import deep_weights, load_loss, loss_name

X, Y = torch.rand(2, 1, 4, 4, 4), torch.randint(2, (2, 1, 4, 4, 4))
DICTS = [{"image": X, "label": Y}, {"image": X + 1, "label": Y}, {"image": X + 2, "label": Y}]


# -------------------------------------------------------------------------------------------- mini-batches as dicts


@pytest.mark.parametrize("keys", ["image,label", " image , label ", ("image", "label")])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [list, tuple])
def test_dicts_of_any_number_are_mini_batches(count: int, kind: Any, keys: Any) -> None:
    batches = list(load_batches(kind(DICTS[:count]), None, keys))
    assert [float(batch.args[0].mean()) for batch in batches] == [float(d["image"].mean()) for d in DICTS[:count]]
    assert all(batch.target is not None and not batch.kwargs for batch in batches)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("names", [("image", "label"), ("img", "seg"), ("vol", "gt")])
def test_dicts_without_keys_are_told_what_to_type(count: int, names: tuple[str, str]) -> None:
    given = [dict(zip(names, (X, Y), strict=True)) for _ in range(count)]
    with pytest.raises(BadInput, match=f"mini-batch 0: is a dict with .* or give keys='{','.join(names)}'"):
        load_batches(given)


def test_a_dict_of_many_keys_is_told_which_are_likely() -> None:
    with pytest.raises(BadInput, match="or give keys='image,label'"):
        load_batches({"id": torch.ones(2), "image": X, "label": Y, "image_meta_dict": {}})
    with pytest.raises(BadInput, match="or name two of its keys, as keys='image,label'"):
        load_batches({"a": X, "b": Y, "c": Y})


def test_a_pair_of_dicts_is_a_tuple_of_inputs_by_name_and_targets_by_name() -> None:
    (batch,) = load_batches(({"left": X, "right": X}, {"depth": Y}))
    assert batch.kwargs.keys() == {"left", "right"}
    assert batch.target.keys() == {"depth"}
    assert len(list(load_batches(({"x": X, "y": Y}, {"x": X, "y": Y})))) == 2


@pytest.mark.parametrize("keys", ["image", "image,", "image,image", "a,b,c", ("image",), 3 * ("a",)])
def test_bad_keys(keys: Any) -> None:
    with pytest.raises(BadInput, match="wants two names, of the input and of the target, such as image,label"):
        load_batches(DICTS, None, keys)


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_keys_in_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"batch{suffix}"
    if suffix == ".pt":
        torch.save(DICTS[:2], path)
    else:
        flat = {f"{name}.{index}": value.clone() for index, d in enumerate(DICTS[:2]) for name, value in d.items()}
        save_file(flat, path) if suffix == ".safetensors" else np.savez(path, **{k: v.numpy() for k, v in flat.items()})
    assert len(list(load_batches(str(path), None, "image,label"))) == 2
    with pytest.raises(BadInput, match="keys='image"):
        load_batches(str(path))


class Tagged(Tensor):
    """A tensor that carries something with it, as MONAI's MetaTensor does."""


def test_tensors_with_metadata_become_plain_ones() -> None:
    (batch,) = load_batches((X.as_subclass(Tagged), [Y.as_subclass(Tagged)]))
    assert type(batch.args[0]) is Tensor
    assert type(batch.target[0]) is Tensor


def test_monai() -> None:
    """A MONAI data loader, its transforms and its loss, as they are."""
    from monai.data import DataLoader, Dataset, MetaTensor
    from monai.transforms import ScaleIntensityd

    samples = [{"image": MetaTensor(X[0]), "label": MetaTensor(Y[0])} for _ in range(4)]
    loader = DataLoader(Dataset(samples, ScaleIntensityd("image")), batch_size=2)
    assert all(
        type(t) is Tensor for batch in load_batches(loader, None, "image,label") for t in (*batch.args, batch.target)
    )
    scores = ranp.score(nn.Conv3d(1, 2, 1), loader, keys="image,label", loss="monai.losses:DiceCELoss",
                        loss_args={"to_onehot_y": True, "softmax": True})  # fmt: skip
    assert scores.about["batches"] == 2
    assert scores.about["loss"] == "monai.losses:DiceCELoss(to_onehot_y=True, softmax=True)"


# --------------------------------------------------------------------------------------------- lists of targets


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, 2, 1)
        self.heads = nn.ModuleList([nn.Conv3d(8, 2, 1), nn.Conv3d(16, 2, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.a(x).relu()
        return [self.heads[0](a), self.heads[1](self.b(a).relu())]


OUTPUTS = [torch.randn(2, 2, 4, 4, 4), torch.randn(2, 2, 2, 2, 2), torch.randn(2, 2, 1, 1, 1)]
COARSER = [Y, Y[..., ::2, ::2, ::2], Y[..., ::4, ::4, ::4]]


@pytest.mark.parametrize("name", [None, "cross_entropy", "mse", "l1", "smooth_l1", "bce", "dice", "dice_ce"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_every_named_loss_takes_a_list_of_targets(name: str | None, kind: Any) -> None:
    by_class = name in (None, "cross_entropy", "dice", "dice_ce")
    targets = COARSER if by_class else [output.sigmoid() for output in OUTPUTS]
    loss = load_loss(name)
    parts = [loss(output, target) for output, target in zip(OUTPUTS, targets, strict=True)]
    wanted = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert torch.isclose(loss(OUTPUTS, kind(targets)), wanted)
    assert torch.equal(loss(OUTPUTS[:1], kind(targets[:1])), parts[0])


def test_the_weights_halve_and_add_up_to_one() -> None:
    assert deep_weights(1) == [1]
    assert sum(deep_weights(5)) == pytest.approx(1)
    assert deep_weights(5)[3] == 2 * deep_weights(5)[4]


def test_a_coarse_target_that_is_all_ignored_adds_nothing() -> None:
    loss = load_loss("cross_entropy")
    ignored = [COARSER[0], torch.full_like(COARSER[1], -100)]
    assert torch.isclose(loss(OUTPUTS[:2], ignored), loss(OUTPUTS[0], COARSER[0]) * 2 / 3)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (COARSER[:2], "the target is a list of 2 Tensor, and the model returned a list of 3 Tensor; wants a target for each output"),
        ([], "the target is an empty list; wants a tensor, or a loss of your own"),
        ([Y, 3, Y], "wants a tensor, or a loss of your own"),
        ([Y, Y, Y], "a target of shape (2, 1, 4, 4, 4) does not fit an output of shape (2, 2, 2, 2, 2)"),
        ([Y, Y + 0.5, Y], "a torch.float32 target has no default loss"),
    ],
)  # fmt: skip
def test_lists_of_targets_that_do_not_fit(targets: Any, says: str) -> None:
    with pytest.raises(BadInput) as error:
        load_loss(None)(OUTPUTS, targets)
    assert says in str(error.value)


def test_deep_supervision_from_scores_to_probe() -> None:
    batch = (X, [Y, Y[..., ::2, ::2, ::2]])
    report = ranp.prune(Deep(), [batch], sparsity=0.3, probe=2, loss="dice_ce").report.to_dict()
    assert "error" not in report["probe"]
    with pytest.raises(BadInput, match="2 samples in the input, 1 in the target"):
        load_batches((X, [Y, Y[:1]]))


# ---------------------------------------------------------------------------------------- losses with arguments

LOSSES = """
from torch import nn
class Weighted(nn.Module):
    def __init__(self, weight, inner=nn.CrossEntropyLoss):
        super().__init__()
        self.weight, self.inner = weight, inner()
    def forward(self, output, target): return self.weight * self.inner(output, target[:, 0])
def scaled(output, target, scale=1): return scale * nn.functional.cross_entropy(output, target[:, 0])
made = Weighted(3)
"""


def test_losses_with_arguments(tmp_path: Path) -> None:
    (tmp_path / "loss.py").write_text(LOSSES)
    plain = load_loss("cross_entropy")(OUTPUTS[0], Y)
    for spec, args, factor in (
        ("Weighted", {"weight": 2}, 2),
        ("Weighted", {"weight": 2, "inner": "torch.nn.CrossEntropyLoss"}, 2),
        ("scaled", {"scale": 5}, 5),
        ("scaled", {}, 1),
    ):
        assert torch.isclose(load_loss(f"{tmp_path}/loss.py:{spec}", None, args)(OUTPUTS[0], Y), factor * plain)


@pytest.mark.parametrize(
    ("spec", "args", "says"),
    [
        ("dice", {"weight": 1}, "loss_args={'weight': 1}: loss='dice' takes no arguments; leave it out"),
        (None, {"weight": 1}, "loss='cross_entropy' takes no arguments"),
        ("{}:Weighted", {}, "needs the argument weight; give loss_args={'weight': VALUE}"),
        ("{}:Weighted", {"wait": 1}, "takes no argument 'wait'; did you mean 'weight'?"),
        ("{}:scaled", {"scales": 1}, "takes no argument 'scales'; did you mean 'scale'?"),
        ("{}:made", {"weight": 1}, "is made already and takes no arguments; name its class to use `loss_args`"),
    ],
)
def test_bad_arguments_of_losses(tmp_path: Path, spec: Any, args: dict[str, Any], says: str) -> None:
    (tmp_path / "loss.py").write_text(LOSSES)
    with pytest.raises(BadInput) as error:
        load_loss(spec and spec.format(tmp_path / "loss.py"), None, args)
    assert says in str(error.value)


def test_scores_of_a_loss_with_other_arguments_are_others() -> None:
    assert loss_name("a.b:C", {"weight": 2}) == "a.b:C(weight=2)"
    assert loss_name("dice") == "dice"


def test_keys_and_arguments_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loss.py").write_text(LOSSES)
    Path("net.py").write_text(
        "from torch import nn\nclass Net(nn.Conv3d):\n    def __init__(s): super().__init__(1, 2, 1)\n"
    )
    torch.save(DICTS[:2], "dicts.pt")
    typed = "score net.py:Net --batch dicts.pt -q -o s.safetensors"
    assert run(typed.split()) == 2
    assert "or give --keys image,label" in capsys.readouterr().err
    assert run([*typed.split(), "--keys", "image,label", "--loss", "loss.py:Weighted", "--loss-arg", "weight=2"]) == 0
    Path("conf.yaml").write_text("keys: image,label\nloss: loss.py:Weighted\nloss-arg: {weight: 2}\n")
    assert run([*typed.split(), "--config", "conf.yaml"]) == 0
    capsys.readouterr()
    assert run(["prune", "net.py:Net", "--scores", "s.safetensors", "--sparsity", "0", "--keys", "a,b", "-q"]) == 2
    assert "--keys belong to the gradients" in capsys.readouterr().err
