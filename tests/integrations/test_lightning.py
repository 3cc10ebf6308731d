"""A module of Lightning's whose network is pruned when fit begins. Needs the extra lightning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("lightning") is None, reason="Lightning is not installed: pip install 'ranp-cli[lightning]'"
    ),
]

MODULE = """
import json, sys, warnings
from pathlib import Path
from package_imports import declare_torchvision_ops
declare_torchvision_ops()
warnings.simplefilter("ignore")
import torch
from torch import nn
import lightning as L
from torchmetrics import MeanMetric
from ranp_cli import BadInput
from ranp_cli.integrations.lightning import Prune


class Module(L.LightningModule):
    def __init__(self, width=12, calls=1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1),
                                 nn.ReLU(), nn.Conv3d(width, 2, 1))
        self.seen, self.calls = MeanMetric(), calls

    def training_step(self, batch, batch_idx):
        for _ in range(self.calls):
            output = self.net(batch["x"])
        loss = nn.functional.cross_entropy(output, batch["y"])
        self.seen.update(loss.detach())
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self):
        self.optimised = sum(p.numel() for p in self.parameters())
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader():
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(1, 8, 8, 8, generator=generator), "y": torch.randint(2, (8, 8, 8), generator=generator)} for _ in range(8)]
    return torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)


def trainer(callback, devices=1, epochs=1):
    return L.Trainer(max_epochs=epochs, accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=[callback],
                     enable_progress_bar=False, enable_model_summary=False, logger=False, default_root_dir=".",
                     enable_checkpointing=False)
"""
ONE = f"""{MODULE}
torch.manual_seed(3)
module = Module()
dense = sum(p.numel() for p in module.parameters())

prune = Prune(sparsity=0.5, attribute="net", min_neurons=1)
run = trainer(prune)
run.fit(module, loader())
assert module.optimised == sum(p.numel() for p in module.parameters()) < dense  # pruned before the optimiser was made
assert module.net[0].out_channels == module.net[1].num_features < 12
assert module.seen.update_count == 4  # the steps of the training alone
run.save_checkpoint("one.ckpt")
assert torch.load("one.ckpt", weights_only=False)["ranp"]["net"]["mask_sha256"]
again = trainer(Prune(sparsity=0.9), epochs=2)
resumed = Module()
again.fit(resumed, loader(), ckpt_path="one.ckpt")  # its network, whatever is asked for
assert resumed.net[0].out_channels == module.net[0].out_channels
assert resumed.optimised == module.optimised
assert not hasattr(resumed, "_ranp_dense")
tested = Module()
tested.test_step = lambda batch, batch_idx: None
trainer(Prune(sparsity=0.9)).test(tested, loader(), ckpt_path="one.ckpt")
assert not hasattr(tested, "_ranp_dense")
assert tested.net[0].out_channels == module.net[0].out_channels
json.dump(module.net[0].out_channels, open("width.json", "w"))
x = torch.randn(1, 1, 8, 8, 8)
torch.save((x, module.net.eval()(x)), "expected.pt")
for change, words in (({{"attribute": "no"}}, "has no network 'no'; its modules: net, seen"), ({{"batches": 0}}, "1 or more")):
    try:
        trainer(Prune(**{{"sparsity": 0.5, **change}})).fit(Module(), loader())
        raise SystemExit(f"nothing was raised: {{change}}")
    except BadInput as error:
        assert words in str(error), error
try:
    trainer(Prune(sparsity=0.5)).fit(Module(calls=2), loader())
    raise SystemExit("nothing was raised")
except BadInput as error:
    assert "calls net 2 times" in str(error), error
"""
LOAD = f"""{MODULE}
module = Module.load_from_checkpoint("one.ckpt")
x, expected = torch.load("expected.pt", weights_only=True)
assert module.net[0].out_channels == json.load(open("width.json"))
assert torch.equal(module.net.eval()(x), expected)

assert Module().net[0].out_channels == 12
"""
TWO = f"""{MODULE}
module = Module()  # without a seed: the weights differ until Lightning makes them equal
run = trainer(Prune(sparsity=0.5, min_neurons=1), devices=2)
run.fit(module, loader())
shapes = {{name: list(p.shape) for name, p in module.named_parameters()}}
json.dump([shapes, float(module.net[0].weight.sum())], open(f"rank{{run.global_rank}}.json", "w"))
run.save_checkpoint("two.ckpt")
if run.global_rank == 0:
    assert Module.load_from_checkpoint("two.ckpt").net[0].out_channels == module.net[0].out_channels < 12
"""
FAIL = f"""{MODULE}
trainer(Prune(sparsity=0.5, attribute="net", resource="nothing"), devices=2).fit(Module(), loader())
"""


def run(folder: Path, text: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(text)
    here = Path(__file__).parents[1]
    path = [str(here.parent), str(here / "laws"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_fit_checkpoint_resume_and_load(tmp_path):
    run(tmp_path, ONE)
    run(tmp_path, LOAD)


def test_two_processes_have_the_same_network(tmp_path):
    run(tmp_path, TWO)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first[0]["net.0.weight"][0] < 12


def test_two_processes_end_together_where_pruning_fails(tmp_path):
    done = run(tmp_path, FAIL, check=False)
    assert done.returncode != 0
    assert "nothing" in done.stderr
    assert "BadInput" in done.stderr
