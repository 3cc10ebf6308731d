"""Torch's symbolic shapes are left out by a command: it gets the same answers without them, and what needs them still works."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx.experimental import symbolic_shapes

from ranp_cli.core.plain_sizes import EQUAL, ITSELF, NAME, OF_A_NUMBER, OF_BOOLS, PlainSizes, _without_sympy

ASKED = [
    *(
        (name, value)
        for name, kinds in ITSELF.items()
        for value in [(True,), (False,), *([(3,)] if int in kinds else [])]
    ),
    *(
        (name, values)
        for name in OF_BOOLS
        for values in [(True,), (False,), (True, False), (False, False), (True, True, True)]
    ),
    *((name, (value,)) for name in OF_A_NUMBER for value in (3, 0)),
    *((EQUAL, pair) for pair in [(3, 3), (3, 4), ((1, 2), (1, 2)), ((1, 2), (1, 3)), ((1,), (1, 2)), ([], [])]),
]


@pytest.mark.filterwarnings("ignore:guard_size_oblivious will be removed")
@pytest.mark.parametrize(("name", "args"), ASKED, ids=str)
def test_plain_arguments_are_answered_as_by_torch(name: str, args: tuple):
    stand_in = PlainSizes()
    stand_in.real = lambda: pytest.fail("torch's module was asked")
    assert getattr(stand_in, name)(*args) == getattr(symbolic_shapes, name)(*args)


@pytest.mark.parametrize(
    ("name", "args"),
    [("expect_true", (1,)), ("guard_or_false", (torch.ones(1),)), ("sym_and", (1, 2)), ("sym_eq", ([1], (1,)))],
)
def test_other_arguments_are_left_to_torch(name: str, args: tuple):
    def outcome(module: object) -> str:
        try:
            return repr(getattr(module, name)(*args))
        except Exception as error:
            return repr(error)

    assert outcome(PlainSizes()) == outcome(symbolic_shapes)


def test_the_helper_promotes_as_torchs_own():
    from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as Kind
    from torch._prims_common import elementwise_dtypes as own

    own = getattr(own, "__wrapped__", own)
    quick = _without_sympy(own)
    some = [torch.ones(1), torch.ones(1, dtype=torch.half), torch.ones((), dtype=torch.int64), 2, 2.5, True, None, 1j]
    for kind in Kind:
        for x in some:
            for y in some:
                want = own(x, y, type_promotion_kind=kind)
                with pytest.MonkeyPatch.context() as patch:
                    patch.delitem(sys.modules, "sympy", raising=False)
                    assert quick(x, y, type_promotion_kind=kind) == want
                    assert "sympy" not in sys.modules
    with pytest.raises(ValueError, match="Unexpected type"):
        quick("text", type_promotion_kind=Kind.DEFAULT)


COMMAND = """
import sys, runpy
sys.argv = ["ranp", "prune", "model.py:UNet3D", "--batch", "calib.pt", "--sparsity", "0.5", "--batches", "1", "--quiet",
            "-o", sys.argv[1] + "/slim.safetensors"]
from ranp_cli.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""
AFTERWARDS = """
name = "torch.fx.experimental.symbolic_shapes"
assert type(sys.modules[name]).__name__ == "PlainSizes" and "sympy" not in sys.modules
import gc, torch
assert gc.isenabled() and gc.get_freeze_count() > 100_000
class Net(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, 2 * x])
dim = torch.export.Dim("n", min=2, max=64)
program = torch.export.export(Net(), (torch.ones(4, 3),), dynamic_shapes={"x": {0: dim}})
assert program.module()(torch.ones(7, 3)).shape == (14, 3)
assert type(sys.modules[name]).__name__ == "module" and sys.modules[name] is torch.fx.experimental.symbolic_shapes
print("as ever")
"""


def test_a_command_does_without_and_what_needs_it_works_afterwards(tmp_path: Path):
    samples = Path(__file__).parents[2] / "sample_configs"
    done = subprocess.run(
        [sys.executable, "-c", COMMAND + AFTERWARDS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=samples,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("as ever\n")


def test_a_program_of_the_users_keeps_torchs_module():
    code = f"import ranp_cli, sys, gc; ranp_cli.prune; print({NAME!r} in sys.modules, gc.get_freeze_count(), gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "0", "True"], done.stderr
