"""The import of torch's compiler is put off: pruning does without it, and what needs it still works."""

import subprocess
import sys

import pytest
import torch

from ranp_cli.core.no_compiler import MARK, _put_off

PRUNE = """
import sys, torch
from torch import nn
import ranp_cli as ranp

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.two, self.head = nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(16, 2, 1)

    def forward(self, x):
        x = nn.functional.silu(self.norm(self.one(x)))
        return self.head(torch.cat([x, nn.functional.mish(self.two(x))], 1))

def run():
    batch = torch.randn(2, 1, 8, 8, 8), torch.randint(2, (2, 8, 8, 8))
    return ranp.prune(Net(), batch, sparsity=0.5)
"""


def modules_after(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PRUNE + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pruning_does_not_import_the_compiler():
    assert (
        "torch._dynamo" in modules_after("torch.cat([torch.ones(1, device='meta')] * 2); print(*sys.modules)").split()
    )
    assert "torch._dynamo" not in modules_after("run(); print(*sys.modules)").split()


@pytest.mark.slow
def test_what_is_compiled_afterwards_is_compiled_as_ever():
    code = """
first = run().report.to_dict()
assert first["seconds"]["import"] > 0
import torch._dynamo
from torch._refs import cat
net = torch.compile(Net(), backend="eager")
assert net(torch.ones(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)
second = run().report.to_dict()
assert "import" not in second["seconds"]
print(first["after"] == second["after"])
"""
    assert modules_after(code).split()[-1] == "True"


def test_a_function_is_disabled_once_the_compiler_is_there(monkeypatch: pytest.MonkeyPatch):
    calls = []

    class Compiler:
        @staticmethod
        def disable(function, recursive, wrapping):
            calls.append((recursive, wrapping))
            return function

    def double(x):
        return 2 * x

    put_off = _put_off(double)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert put_off(1) == 2
    assert not calls
    assert not hasattr(double, MARK)
    monkeypatch.setitem(sys.modules, "torch._dynamo", Compiler)
    assert put_off(2) == 4
    assert calls == [(True, False)]
    assert hasattr(double, MARK)


def test_a_torch_that_marks_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    from ranp_cli.core.no_compiler import without_compiler

    monkeypatch.setattr(torch, "_disable_dynamo", lambda function: function)
    assert without_compiler.__wrapped__() == 0
