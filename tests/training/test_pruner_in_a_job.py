"""`Pruner` under DistributedDataParallel: every process removes the same units, and goes on with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, torch, ranp_cli as ranp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
net = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 1))
optimizer = torch.optim.Adam(net.parameters())
ddp = DistributedDataParallel(net, gradient_as_bucket_view=sys.argv[2] == "views")
x = torch.randn(2, 1, 7, 7, 7)
pruner = ranp.Pruner(ddp, optimizer, example=x, method=sys.argv[1], every=2, units=2, until=0.5, min_neurons=1)
generator = torch.Generator().manual_seed(rank)  # other data in every process
for _ in range(14):
    x = torch.randn(2, 1, 7, 7, 7, generator=generator)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(ddp(x), torch.randint(2, (2, 3, 3, 3), generator=generator))
    loss.backward()
    optimizer.step()
    pruner.step(loss)
kept = {name: layer["kept"] for name, layer in pruner.mask.layers.items()}
weights = [p.double().sum().item() for p in net.parameters()]
moments = [optimizer.state[p]["exp_avg"].double().sum().item() for p in net.parameters()]
with open(f"{rank}.json", "w") as file:  # not printed: the processes share one output, and their lines mix
    json.dump([rank, kept, weights, moments, len(pruner.removals)], file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "buckets"), [("taylor", "own"), ("weighted", "views")])
def test_every_process_removes_the_same_units(method, buckets, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "train.py",
        method,
        buckets,
    ]
    known = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**known, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first[0], second[0]) == (0, 1)
    assert first[1:] == second[1:]
    assert first[4] == 5
    assert sum(map(len, first[1].values())) == 9
