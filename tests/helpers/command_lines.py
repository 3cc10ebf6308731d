"""A folder full of models, calibration files, masks and settings, good ones and bad ones, and command lines for it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ranp_cli.cli import run

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    "A U-Net of one level."
    def __init__(self, width=6, classes=3):
        super().__init__()
        self.enc = nn.Conv3d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm3d(width)
        self.mid = nn.Conv3d(width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.dec = nn.Conv3d(2 * width, width, 3, padding=1)
        self.head = nn.Conv3d(width, classes, 1)
    def forward(self, x):
        a = torch.relu(self.norm(self.enc(x)))
        b = torch.relu(self.mid(nn.functional.max_pool3d(a, 2)))
        return self.head(torch.relu(self.dec(torch.cat([a, self.up(b)], 1))))

def needs(width): return Net(width)
def fails(): raise ValueError("two\\nlines")
def nothing(): return 5
def endless():
    while True: yield torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8))
def dies():
    yield torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8))
    raise OSError("the disk is gone")
def mean(output, target): return output.mean()
def nan(output, target): return output.sum() * float("nan")
def apart(output, target): return torch.tensor(1.0)
def flat(output, target): return output.sum() * 0
def vector(output, target): return output
"""

# Nets that people have: body of a subclass of Net. All but the last few must be pruned, saved and loaded.
ODD_NETS = {
    "Prints": "def forward(self, x): print('hello'); return super().forward(x)",
    "List": "def forward(self, x): o = super().forward(x); return [o, nn.functional.avg_pool3d(o, 2)]",
    "Dict": "def forward(self, x): return {'out': super().forward(x)}",
    "Double": "def __init__(self): super().__init__(); self.double()",
    "BFloat": "def __init__(self): super().__init__(); self.bfloat16()",
    "Frozen": "def __init__(self): super().__init__(); self.enc.requires_grad_(False); self.mid.requires_grad_(False)",
    "AllFrozen": "def __init__(self): super().__init__(); self.requires_grad_(False)",
    "TwoInputs": "def forward(self, x, z): return super().forward(x + z)",
    "Keywords": "def forward(self, *, image, other): return super().forward(image + other)",
    "DictInput": "def forward(self, d): return super().forward(d['a'][0])",
    "Unused": "def __init__(self): super().__init__(); self.extra = nn.Conv3d(3, 3, 1)",
    "DataFlow": "def forward(self, x): o = super().forward(x); return o if o.sum() > -1e9 else -o",
    "Buffers": "def __init__(self):\n"
    "        super().__init__()\n"
    "        self.register_buffer('scale', torch.arange(1.0, 7).view(1, 6, 1, 1, 1), persistent=False)\n"
    "    def forward(self, x):\n"
    "        a = torch.relu(self.norm(self.enc(x) * self.scale))\n"
    "        return self.head(torch.relu(self.dec(torch.cat([a, a], 1))))",
    "WeightNorm": "def __init__(self): super().__init__(); nn.utils.parametrizations.weight_norm(self.mid)",
    "SpectralNorm": "def __init__(self): super().__init__(); nn.utils.parametrizations.spectral_norm(self.mid)",
}
# class -> the telling part of the line
BAD_NETS = {
    "NanOutput": ("def forward(self, x): return super().forward(x) * float('nan')", "loss of mini-batch 0 is nan"),
    "Detached": ("def forward(self, x): return super().forward(x).detach()", "the first is enc"),
    "Raises": ("def forward(self, x): raise RuntimeError('boom\\nbang')", "RuntimeError: boom bang (at net"),
    "Leaves": ("def forward(self, x): raise SystemExit(5)", "SystemExit"),
    "ReturnsNone": ("def forward(self, x): super().forward(x)", "the model returned None"),
    "Lazy": ("def __init__(self): super().__init__(); self.enc = nn.LazyConv3d(6, 3, padding=1)", "nitialized"),
}

# The calibration files: name -> made from input x and target y
BATCHES: dict[str, Callable[[Any, Any], Any]] = {
    "calib.pt": lambda x, y: (x, y),
    "list.pt": lambda x, y: [{"input": x, "target": y}, {"x": x, "y": y}],
    "one sample ü.pt": lambda x, y: (x[:1], y[:1]),
    "Double.pt": lambda x, y: (x.double(), y),
    "BFloat.pt": lambda x, y: (x.bfloat16(), y),
    "TwoInputs.pt": lambda x, y: [((x, x), y)],
    "Keywords.pt": lambda x, y: {"input": {"image": x, "other": x}, "target": y},
    "DictInput.pt": lambda x, y: [(({"a": [x]},), y)],
    "noise.pt": lambda x, y: (torch.randn(x.shape, generator=seed(9)), y),
    "no_target.pt": lambda x, y: (x,),
    "no_list.pt": lambda x, y: [],
    "rank.pt": lambda x, y: (x[:, 0, 0], y),
    "channels.pt": lambda x, y: (x.repeat(1, 2, 1, 1, 1), y),
    "integers.pt": lambda x, y: (x.long(), y),
    "samples.pt": lambda x, y: (x, y[:1]),
    "size.pt": lambda x, y: (x, y[:, 1:]),
    "empty.pt": lambda x, y: (x[:0], y[:0]),
    "nan.pt": lambda x, y: (x.masked_fill(x > 1, float("nan")), y),
    "classes.pt": lambda x, y: (x, y + 3),
    "ignored.pt": lambda x, y: (x, y * 0 - 100),
    "floats.pt": lambda x, y: (x, y + 0.5),
    "tensor.pt": lambda x, y: x,
    "keys.pt": lambda x, y: {"image": x, "label": y},
    "evil.pt": lambda x, y: Evil(),
    "state.pt": lambda x, y: {"model": {}},
}

# Masks that are wrong: name -> what is done to a good one
MASKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "range.json": lambda m: m["layers"]["enc"].update(kept=[6]),
    "negative.json": lambda m: m["layers"]["enc"].update(kept=[-1]),
    "twice.json": lambda m: m["layers"]["enc"].update(kept=[1, 1]),
    "none_kept.json": lambda m: m["layers"]["enc"].update(kept=[]),
    "no_number.json": lambda m: m["layers"]["enc"].update(neurons="6"),
    "output.json": lambda m: m["layers"]["head"].update(kept=[0]),
    "lacks.json": lambda m: m["layers"].pop("enc"),
    "others.json": lambda m: m.update(layers={"other": {"neurons": 2, "kept": [0]}}),
    "version.json": lambda m: m.update(version=2),
    "model.json": lambda m: m.update(model="net.py:Net"),
    "method.json": lambda m: m.update(method="ranp"),
    "sparsity.json": lambda m: m.update(sparsity=[0.5]),
    "input.json": lambda m: m["model"].update(input="1x1x8x8x8"),
    "floored.json": lambda m: m.update(floored=5),
    "fixed.json": lambda m: m.update(fixed=["head"]),
}

# Text files as they are
TEXTS = {
    "syntax.py": "class Net(:\n",
    "no_class.py": "x = 1\n",
    "prune.yaml": "model: net.py:Net\nmodel-arg: {width: 4}\nbatch: calib.pt\nsparsity: 0.5\nresource: mem\nquiet: true\n",
    "typo.yaml": "sparsty: 0.5\n",
    "broken.yaml": "sparsity: [0.5\n",
    "folded.yaml": "defaults: {}\n",
    "word.yaml": "min-neurons: two\n",
    "float.yaml": "batches: 1.5\n",
    "number.yaml": "keep: 5\n",
    "path.yaml": "output: 5\n",
    "list.yaml": "resource: [mem]\n",
    "lambda.yaml": "lambda: much\n",
    "good.yaml": "min-neurons: 2\nkeep: enc\nlambda: 5\nresource: mem\n",
    "brace.json": "{nope",
    "array.json": "[1]",
    "text.safetensors": "hello, I am no tensor file at all",
}

PRUNE = "prune net.py:Net --batch calib.pt --sparsity 0.5"
NEURONS = {"enc": 6, "mid": 12, "up": 6, "dec": 6, "head": 3}  # of the layers of Net


class Evil:
    """A pickle of this runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def ranp(line: str) -> int:
    return run(shlex.split(line))


def net(home: Path, name: str = "Net", **args: Any) -> torch.nn.Module:
    from ranp_cli.io.user_code import named

    return named(f"{home / 'net.py'}:{name}", "model")(**args)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr holds, which has to be one line."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ranp: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def outputs(model: torch.nn.Module, batch: Any) -> list[torch.Tensor]:
    """All that a model in eval mode gives for the first input of a batch, in a list."""
    batch = batch[0] if isinstance(batch, list) else batch
    data = batch["input"] if isinstance(batch, dict) else batch[0]
    args, kwargs = ((), data) if isinstance(data, dict) else (data if isinstance(data, tuple) else (data,), {})
    with torch.no_grad():
        out = model.eval()(*args, **kwargs)
    out = list(out.values()) if isinstance(out, dict) else out
    return out if isinstance(out, list) else [out]
