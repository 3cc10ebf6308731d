"""The full-width 3D-UNet (16 M parameters, 238 G multiply-adds at 64^3) through `prune`, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

GIB = 2**30
CODE = """
import json, resource, torch
import ranp_cli as ranp
from ranp_cli.models.unet3d import unet3d
torch.manual_seed(0)
model = unet3d(15, 64)
batches = [(torch.rand(1, 1, 64, 64, 64), torch.randint(50, (1, 64, 64, 64))) for _ in range(2)]
result = ranp.prune(model, batches, sparsity=0.78, resource="mem")
report = result.report.to_dict()
report["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(report))
"""


@pytest.mark.slow
def test_full_unet():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["peak"] < 6 * GIB
    assert report["neurons"]["total"] == 2386
    assert report["verified"]["max_rel_error_fp64"] < 1e-10
    assert (
        0.78 <= report["sparsity"]["achieved"] < 0.78 + 1 / 2386
    )  # kappa = int(2386 * 0.22), which the floor counts within
    assert report["reduction"]["macs"] > 0.8
