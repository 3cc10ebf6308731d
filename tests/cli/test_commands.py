"""The command line from end to end: what each command writes, and the one line that it says when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shlex
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ranp_cli
from ranp_cli.cli import run
from ranp_cli.core.errors import BadInput
from ranp_cli.pruning.mask import SCHEMA

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
    "floats.pt": lambda x, y: (x, y.float()),
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
# command line with a hole, what fills it well, then what fills it badly and the telling part of the one line
BAD: list[tuple[str, str, dict[str, str]]] = [
    (
        "prune {} --batch calib.pt --sparsity 0.5",
        "net.py:Net",
        {
            "": "MODEL is missing",
            "absent.py:Net": "absent.py:Net: no such file (looked in ",
            "net.py:Nett": "did you mean 'Net'?",
            "net.py:needs": "needs the argument width; give --model-arg width=VALUE",
            "net.py:fails": "ValueError: two lines (",
            "net.py:nothing": "returned an object of type int; wants an nn.Module",
            "net.py:nn": "wants a class or function that returns an nn.Module",
            "syntax.py:Net": "SyntaxError",
            "no_class.py": "the file defines no nn.Module class",
            "absent.module:Net": "no module 'absent' is installed",
            "torch.nn:ReLU": "no convolution or linear layer",
            "Net": "wants file.py:Name",
            "calib.pt": "pickled modules run code",
            "plain.pt": "plain pickle",
            "absent.pt": "absent.pt: no such file",
            "slim.safetensors": "can only be profiled",
            **{f"net.py:{name}": part for name, (_, part) in BAD_NETS.items()},
        },
    ),
    (
        "prune net.py:Net --batch {} --sparsity 0.5",
        "calib.pt",
        {
            "absent.pt": "batch absent.pt: no such file (looked in ",
            ".": "Is a directory",
            "truncated.pt": "cut off in the middle",
            "zero.pt": "is empty or cut off",
            "evil.pt": "is a pickle that wants to run code (posix.system) and is refused",
            "plain.pt": "plain pickle, which may run code",
            "traced.pt": "is a TorchScript model",
            "tensor.pt": "holds a tensor of shape (2, 1, 8, 8, 8); wants (input, target)",
            "keys.pt": "the keys 'image', 'label'",
            "no_target.pt": "wants (input, target)",
            "no_list.pt": "is an empty list",
            "rank.pt": "the model fails in eval mode on an input of shape 2x8x8",
            "channels.pt": "to have 1 channels, but got 2 channels",
            "integers.pt": "the shape and dtype that it takes",
            "samples.pt": "2 samples in the input, 1 in the target",
            "size.pt": "a target of shape (2, 7, 8, 8) does not fit an output of shape (2, 3, 8, 8, 8)",
            "empty.pt": "the input is empty",
            "nan.pt": "NaN or infinite values",
            "classes.pt": "there are 3 classes, 0 to 2",
            "ignored.pt": "every place of the target is ignored",
            "floats.pt": "has no default loss; give --loss: cross_entropy",
            "truncated.safetensors": "cut off",
            "text.safetensors": "is not safetensors",
            "slim.safetensors": "wants the keys input and target",
            "mask.json": "wants a .pt, .safetensors or .npz file",
            "net.py": "which name in that file?",
            "net.py:absent": "there is no 'absent' in it",
            "net.py:dies": "mini-batch 1: OSError: the disk is gone (",
        },
    ),
    (
        f"{PRUNE} --weights {{}}",
        "weights.pt",
        {
            "absent.pt": "weights absent.pt: no such file",
            "evil.pt": "wants to run code",
            "plain.pt": "plain pickle",
            "calib.pt": "not a state dict",
            "truncated.safetensors": "cut off",
            "wide.pt": "does not fit the model; ",
            "nested.pt": "give --weights-key ema.model",
            "mask.json": "wants a .safetensors, .pt",
        },
    ),
    (f"{PRUNE} --weights nested.pt --weights-key {{}}", "ema.model", {"nope": "give --weights-key ema.model"}),
    (
        f"{PRUNE} --loss {{}}",
        "dice",
        {
            "cross-entropy": "did you mean 'cross_entropy'?",
            "net.py:nan": "the loss of mini-batch 0 is nan",
            "net.py:apart": "has no gradient: it depends on no layer (the first is enc)",
            "net.py:flat": "zero in every layer from enc on",
            "net.py:vector": "wants a scalar float tensor",
            "net.py:absent": "there is no 'absent' in it",
            "bce": "--ignore-index 2",
        },
    ),
    (
        "prune net.py:Net --batch calib.pt --sparsity {}",
        "0",
        dict.fromkeys(
            ("1", "1.5", "-0.1", "nan", "abc", "50%"),
            "give a number in [0, 1), the fraction of neurons to remove, or 'max'",
        ),
    ),
    (
        "prune net.py:Net --batch calib.pt {}",
        "--sparsity max",
        {"": "give either --sparsity X in [0, 1), or max, or --budget"},
    ),
    (
        "prune net.py:Net --sparsity 0.5 {}",
        "--scores scores.safetensors",
        {
            "": "give either a calibration batch (--batch) or scores (--scores)",
            "--batch calib.pt --scores scores.safetensors": "either a calibration batch (--batch) or scores (--scores)",
            "--scores absent.safetensors": "cannot read absent.safetensors: No such file",
            "--scores truncated.safetensors": "truncated",
            "--scores text.safetensors": "is not a safetensors file",
            "--scores slim.safetensors": "was not written by ranp score",
            "--scores calib.pt": "is not a safetensors file",
            "--scores scores.safetensors --model-arg width=4": "the scores are of another network",
        },
    ),
    (
        f"{PRUNE} {{}}",
        "--keep enc",
        {
            "--resource memm": "did you mean 'mem'?",
            "--method ramp": "did you mean 'ranp'?",
            "--criterion mpmgsum": "did you mean 'mpmg-sum'?",
            "--init keeep": "did you mean 'keep'?",
            "--keep nothing*": "no layer matches 'nothing*'; the layers are enc, mid, up, dec, head",
            "--only nothing*": "no layer matches 'nothing*'",
            "--min-neurons 0": "min-neurons 0: give 1 or more",
            "--min-neurons two": "min-neurons two: give 1 or more, or auto",
            "--batches 0": "--batches 0: wants at least 1",
            "--lambda -1": "lambda -1.0: give 0 or more",
            "--lambda nan": "lambda nan",
            "--seed 99999999999999999999999": "seed",
            "--method random --seed -1": "seed",
            "--device nonsense": "device 'nonsense' is not available here",
            "--device meta": "device 'meta'",
            "--nope": "No such option: --nope",
            "--keep": "requires an argument",
            "extra": "unexpected extra argument",
            "--model-arg classes": "wants name=value, for example",
            "--model-arg clases=3": "did you mean 'classes'?",
            "--model-arg width=[": "the value is not YAML",
            "-o slim.txt": "-o slim.txt: ranp prune writes .safetensors",
            "-o absent/slim.safetensors": "the folder absent does not exist",
            "-o s.safetensors -o s.safetensors": "two outputs have the same name",
            "-o s.safetensors -o ./s.safetensors": "two outputs have the same name",
            "--json .": "it is a folder",
            "--mask absent/mask.json": "the folder absent does not exist",
        },
    ),
    (
        f"{PRUNE} -q --config {{}}",
        "good.yaml",
        {
            "absent.yaml": "config absent.yaml: no such file",
            "typo.yaml": "no option 'sparsty'; did you mean 'sparsity'?",
            "broken.yaml": "is not YAML; line 2",
            "folded.yaml": "no option 'defaults'",
            "word.yaml": "min-neurons",
            "float.yaml": "batches",
            "number.yaml": "keep",
            "path.yaml": "output",
            "list.yaml": "resource",
            "lambda.yaml": "lambda",
            "array.json": "holds a list; wants `option: value` lines",
        },
    ),
    (
        "refine {}",
        "net.py:Net --mask mask.json",
        {
            "net.py:Net": "--mask is missing",
            "--mask mask.json": "MODEL is missing",
            "net.py:Net --mask mask.json --init glorott": "did you mean 'glorot'?",
            "net.py:Net --mask mask.json --input 1xax8": "--input 1xax8: give sizes joined by x",
            "net.py:Net --mask mask.json --input 1x1x7x7x7": "the model fails in eval mode on an input of shape 1x1x7x7x7",
            "net.py:Net --mask mask.json --model-arg width=4": "layer enc has 4 neurons, 6 in the mask",
        },
    ),
    (
        "refine net.py:Net --mask {}",
        "mask.json",
        {
            "absent.json": "absent.json: No such file or directory",
            "brace.json": "brace.json is not JSON (",
            "array.json": "must be a document of format 'ranp-mask', not a list",
            "report.json": "not one of format 'ranp-report'",
            "calib.pt": "is not JSON",
            "range.json": "layer enc of the mask must be",
            "negative.json": "layer enc of the mask must be",
            "twice.json": "layer enc of the mask must be",
            "none_kept.json": "layer enc of the mask must be",
            "no_number.json": "layer enc of the mask must be",
            "output.json": "removes neurons of head that may not go (network output)",
            "lacks.json": "of another network: the mask lacks enc",
            "others.json": "the mask lacks enc, mid, up, ...; the model lacks other",
            "version.json": "mask version 2 is not 1",
            "model.json": "model",
            "method.json": "method",
            "sparsity.json": "sparsity",
            "input.json": "input",
            "floored.json": "floored",
            "fixed.json": "fixed",
        },
    ),
    (
        "profile {}",
        "slim.safetensors",
        {
            "": "MODEL is missing",
            "absent.safetensors": "absent.safetensors: No such file",
            "truncated.safetensors": "is truncated",
            "text.safetensors": "is not a safetensors file",
            "scores.safetensors": "was not written by ranp prune or ranp refine",
            "slim.safetensors mask.json": "wants file.py:Name",
            "net.py:Net --input 1x2x8x8x8": "to have 1 channels, but got 2 channels",
            "net.py:Net --input 0x1x8x8x8": "--input 0x1x8x8x8: give sizes joined by x",
            "evil.pt": "pickled modules run code",
        },
    ),
    ("score net.py:Net {}", "--batch calib.pt", {"": "--batch is missing", "--batch": "requires an argument"}),
    ("score net.py:Net --batch calib.pt {}", "-o s.safetensors", {"-o s.pt": "ranp score writes .safetensors"}),
    ("{}", "--version", {"prunee": "Did you mean 'prune'?", "--nope": "No such option: --nope"}),
]

NEURONS = {"enc": 6, "mid": 12, "up": 6, "dec": 6, "head": 3}  # of the layers of Net
COST = {"params", "params_bytes", "macs", "flops", "activation_bytes", "peak_forward_bytes", "paper"}
ALWAYS = {"format", "version", "command", "ranp", "torch", "model", "before", "layers"}
PROFILED = ALWAYS | {"memory"}
RAN = ALWAYS | {"seconds", "device", "neurons", "method"}
SLIMMED = RAN | {"sparsity", "after", "reduction", "verified", "not_pruned"}
PRUNED = SLIMMED | {"memory"}
MAYBE = {
    "floor",
    "held_back",
    "narrowest",
    "floored",
    "fixed",
    "not_pruned",
    "outputs",
    "uncounted_ops",
    "unruled_ops",
    "other",
    "seconds",
    "device",
    "neurons",
}
# command line -> the keys that its report has, and those of a layer
REPORTS = [
    ("score net.py:Net --batch calib.pt", RAN, {"importance_mean"}),
    (PRUNE, PRUNED | {"fixed"}, {"kept", "macs_after", "importance_mean", "tau"}),
    ("prune net.py:Net --scores scores.safetensors --sparsity 0.5", PRUNED, {"kept", "importance_mean"}),
    (f"{PRUNE} --resource none", PRUNED, {"kept", "importance_mean"}),
    ("refine net.py:Net --mask mask.json", SLIMMED, {"kept", "macs_after"}),
    ("profile net.py:Net", PROFILED, set()),
    ("profile traced.pt --input 1x1x8x8x8", PROFILED | {"notes"}, set()),
    ("profile scripted.pt", PROFILED | {"notes"}, set()),
    ("profile slim.safetensors", PROFILED | {"after", "reduction", "sparsity", "method", "verified"}, {"kept"}),
    ("profile net.py:Net slim.safetensors", PROFILED | {"other", "after", "reduction"}, {"kept", "macs_after"}),
]

# Everything else that has to work: command lines
GOOD = [
    *(f"prune net.py:Net --batch {b} --sparsity 0.5" for b in ("list.pt", "calib.npz", "calib.safetensors")),
    "prune net.py:Net --batch 'one sample ü.pt' --sparsity 0.5",
    "prune net.py:Net --batch net.py:endless --batches 2 --sparsity 0.5",
    "prune net:Net --batch ./calib.pt --sparsity 0.5",
    "prune 'späce d/nët work.py' --batch calib.pt --sparsity 0.5 -o 'späce d/slïm.safetensors'",
    *(f"{PRUNE} --method {method}" for method in ("weighted", "vanilla", "random", "layerwise")),
    *(f"{PRUNE} --criterion {criterion}" for criterion in ("mpmg-max", "mnmg-sum", "neuron")),
    *(f"{PRUNE} --resource {resource}" for resource in ("none", "flops", "mem", "params")),
    f"{PRUNE} --loss net.py:mean --min-neurons 2 --lambda 0 --seed 3 --device cpu",
    f"{PRUNE} --weights weights.pt --keep enc --only enc --only mid --allow-less",
    "refine net.py:Net --mask mask.json --input 2x1x16x8x8",
    "profile net.py:Net --input 1x1x16x16x16 --depth 0",
    "profile slim.safetensors --input 1x1x16x16x16 --model net.py:Net",
    "profile slim.safetensors slim.safetensors",
]


pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.jit as a whole


class Evil:
    """A pickle of this runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def ranp(line: str) -> int:
    return run(shlex.split(line))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model file, calibration batches, a mask, scores and a slim file, good ones and bad ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the nets are tiny
    home = tmp_path_factory.mktemp("home")
    nets = {**ODD_NETS, **{name: body for name, (body, _) in BAD_NETS.items()}}
    source = NETS + "".join(f"\nclass {name}(Net):\n    {body}\n" for name, body in nets.items())
    (home / "net.py").write_text(source)
    (home / "späce d").mkdir()
    (home / "späce d" / "nët work.py").write_text(NETS)
    for name, text in TEXTS.items():
        (home / name).write_text(text)
    x, y = torch.randn(2, 1, 8, 8, 8, generator=seed(0)), torch.randint(3, (2, 8, 8, 8), generator=seed(1))
    for name, make in BATCHES.items():
        torch.save(make(x, y), home / name)
    np.savez(home / "calib.npz", input=x.numpy(), target=y.numpy())
    save_file({"input": x, "target": y}, home / "calib.safetensors")
    (home / "plain.pt").write_bytes(pickle.dumps(Evil()))
    (home / "zero.pt").touch()
    (home / "truncated.pt").write_bytes((home / "calib.pt").read_bytes()[:500])
    (home / "truncated.safetensors").write_bytes((home / "calib.safetensors").read_bytes()[:-100])
    for name, width in (("weights.pt", 6), ("wide.pt", 7)):
        torch.save(net(home, width=width).state_dict(), home / name)
    torch.save({"ema": {"model": net(home).state_dict()}}, home / "nested.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated as a whole
        torch.jit.trace(net(home).eval(), x).save(home / "traced.pt")
        torch.jit.script(net(home)).save(home / "scripted.pt")
    before = os.getcwd()
    os.chdir(home)
    try:
        assert ranp("score net.py:Net --batch calib.pt -o scores.safetensors -q") == 0
        assert ranp(f"{PRUNE} --resource mem -o slim.safetensors --mask mask.json --json report.json -q") == 0
    finally:
        os.chdir(before)
    for name, change in MASKS.items():
        mask = json.loads((home / "mask.json").read_text())
        change(mask)
        (home / name).write_text(json.dumps(mask))
    yield home
    torch.set_num_threads(threads)


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, as the current directory."""
    monkeypatch.chdir(home)
    return home


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


# -- bad input


@pytest.mark.parametrize(
    ("line", "part"),
    [(form.format(bad), part) for form, _, rows in BAD for bad, part in rows.items()],
    ids=lambda text: text[:60] if text else "-",
)
def test_bad_input_is_one_telling_line(line: str, part: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = ranp(line)
    assert part in error_line(capsys)
    assert code == 2
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize("line", [*(form.format(good) for form, good, _ in BAD), *GOOD])
def test_its_neighbour_works(line: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(line) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_no_cuda(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(f"{PRUNE} --device cuda") == 2
    assert "device 'cuda' is not available here" in error_line(capsys)


def test_without_anything_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("") in (0, 2)
    shown = "".join(capsys.readouterr())
    assert shown.startswith("Usage: ranp")
    assert "\n  prune " in shown


# -- what comes out


@pytest.mark.parametrize(("line", "keys", "of_layers"), REPORTS, ids=[line for line, *_ in REPORTS])
def test_report_is_one_json_document(
    line: str, keys: set[str], of_layers: set[str], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranp(f"{line} --json -") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err.startswith(f"ranp {line.split()[0]}")
    assert keys <= report.keys() <= keys | MAYBE
    assert all(value not in (None, [], {}) for value in report.values())
    assert (report["format"], report["version"], report["command"]) == ("ranp-report", 1, line.split()[0])
    for side in ("before", "after"):
        if side in report:
            paper = {"param_mb", "gflops", "memory_mb"} if "pt" not in line.split()[1].split(".") else set()
            wanted = COST | ({"train_macs", "train_flops"} if "memory" in report else set())
            assert report[side].keys() == (
                wanted if paper else wanted - {"paper"}
            )  # TorchScript hides its leaf modules
            assert report[side]["flops"] == 2 * report[side]["macs"]
            assert report[side].get("paper", {}).keys() == paper
    if "after" in report:
        reduction = 1 - report["after"]["macs"] / report["before"]["macs"]
        assert report["reduction"]["macs"] == pytest.approx(reduction, abs=1e-6)
    for layer in report["layers"]:
        assert of_layers | {"name", "op", "neurons", "params", "macs", "output_elements"} <= layer.keys()
    assert [layer["name"] for layer in report["layers"]] == [*NEURONS]

    assert ranp(f"{line} -q --json {tmp_path / 'r.json'}") == 0
    again = json.loads((tmp_path / "r.json").read_text())
    assert capsys.readouterr() == ("", "")
    assert {**again, "seconds": 0} == {**report, "seconds": 0}


def test_what_the_model_prints_is_no_part_of_the_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("prune net.py:Prints --batch calib.pt --sparsity 0.5 --json -") == 0
    assert json.loads(capsys.readouterr().out)["command"] == "prune"


def test_two_networks_are_compared_on_one_input(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp("profile net.py:Net slim.safetensors --json -") == 0
    report = json.loads(capsys.readouterr().out)
    wanted = json.loads((here / "report.json").read_text())
    assert report["before"] == wanted["before"]
    assert report["reduction"] == wanted["reduction"]


def test_mask_has_the_fixed_form(here: Path) -> None:
    mask = json.loads((here / "mask.json").read_text())
    jsonschema.validate(mask, json.loads(SCHEMA.read_text()))
    assert list(mask) == [
        *("format", "version", "model", "method", "sparsity", "neurons", "layers", "floored", "fixed")
    ]
    assert (mask["format"], mask["version"]) == ("ranp-mask", 1)
    assert mask["model"]["spec"] == "net.py:Net"
    assert mask["model"]["args"] == {}
    assert (
        mask["method"].items() >= {"name": "ranp", "criterion": "mpmg-sum", "resource": "mem", "lambda": 11.0}.items()
    )
    assert {name: layer["neurons"] for name, layer in mask["layers"].items()} == NEURONS
    assert mask["fixed"] == {"head": "network output"}
    kept = sum(len(layer["kept"]) for layer in mask["layers"].values())
    assert mask["neurons"] == {"total": 33, "kept": kept}
    assert mask["sparsity"] == {"requested": 0.5, "achieved": pytest.approx(1 - kept / 33, abs=1e-6)}


def test_same_seed_same_bytes(here: Path, tmp_path: Path) -> None:
    again, scored, other = (tmp_path / name for name in ("again", "scored", "other"))
    for folder in (again, scored, other):
        folder.mkdir()
    end = "--resource mem -q -o {0}/slim.safetensors --mask {0}/mask.json"
    assert ranp(f"{PRUNE} {end.format(again)}") == 0
    assert ranp(f"prune net.py:Net --scores scores.safetensors --sparsity 0.5 {end.format(scored)}") == 0
    assert ranp(f"{PRUNE} --seed 1 {end.format(other)}") == 0
    for name in ("slim.safetensors", "mask.json"):
        assert (here / name).read_bytes() == (again / name).read_bytes()
        assert (here / name).read_bytes() != (other / name).read_bytes()
    assert (here / "mask.json").read_bytes() == (scored / "mask.json").read_bytes()


@pytest.mark.parametrize("init", ["keep", "glorot", "orthogonal", "factory"])
def test_refine_builds_what_prune_built(init: str, here: Path, tmp_path: Path) -> None:
    out = tmp_path / "refined.safetensors"
    assert ranp(f"refine net.py:Net --mask mask.json --init {init} -q -o {out}") == 0
    pruned, refined = (ranp_cli.load(path, "net.py:Net").state_dict() for path in ("slim.safetensors", out))
    assert {k: v.shape for k, v in pruned.items()} == {k: v.shape for k, v in refined.items()}
    assert torch.equal(pruned["dec.weight"], refined["dec.weight"]) == (init == "keep")
    if init == "keep":
        assert all(torch.equal(value, refined[name]) for name, value in pruned.items())


def test_option_beats_file_beats_default(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # inputs are meant from the folder of the file, outputs from here
    assert ranp(f"prune --config {here / 'prune.yaml'} --resource params --mask mask.json") == 0
    mask = json.loads(Path("mask.json").read_text())
    assert mask["layers"]["enc"]["neurons"] == 4
    assert (mask["method"]["resource"], mask["method"]["name"]) == ("params", "ranp")
    assert mask["sparsity"]["requested"] == 0.5


def test_noise_at_95_percent_leaves_a_whole_network(here: Path, tmp_path: Path) -> None:
    slim, report = tmp_path / "slim.safetensors", tmp_path / "report.json"
    assert ranp(f"prune net.py:Net --batch noise.pt --sparsity 0.95 -q -o {slim} --json {report}") == 0
    told = json.loads(report.read_text())
    assert set(told["floored"]) >= {"enc", "up", "dec"}
    assert all(layer["kept"] >= 1 for layer in told["layers"])
    model = ranp_cli.load(slim, "net.py:Net").train()
    out = model(torch.randn(2, 1, 8, 8, 8))
    assert out.shape == (2, 3, 8, 8, 8)
    out.sum().backward()


@pytest.mark.parametrize("kind", ["traced.pt", "scripted.pt"])
def test_torchscript_is_pruned(kind: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Index for index as the eager module; the slim TorchScript and the slim file compute the same."""
    slim, mask = tmp_path / "slim.pt", tmp_path / "mask.json"
    assert (
        ranp(f"prune {kind} --batch calib.pt --sparsity 0.5 --mask {mask} -o {slim} -o {tmp_path / 's.safetensors'}")
        == 0
    )
    assert "such a file is code" in capsys.readouterr().out
    dense = net(here)
    dense.load_state_dict(torch.jit.load(here / kind).state_dict())
    eager = ranp_cli.prune(dense, "calib.pt", sparsity=0.5)
    found = json.loads(mask.read_text())["layers"]
    if kind.startswith("scripted"):  # a trace in eval mode has its norms frozen, so other gradients
        assert found == eager.mask.layers
    else:
        assert {name: row["neurons"] for name, row in found.items()} == NEURONS
    x = torch.randn(2, 1, 8, 8, 8)
    loaded = ranp_cli.load(tmp_path / "s.safetensors", torch.jit.load(here / kind)).eval()
    script = torch.jit.load(slim).eval()
    assert torch.equal(loaded(x), script(x))
    assert all(p.requires_grad for p in (*script.parameters(), *loaded.parameters()))
    assert ranp_cli.profile(script, x).to_dict()["memory"]["before"]["train_peak_bytes"] > 0
    assert sum(p.numel() for p in script.parameters()) < sum(p.numel() for p in net(here).parameters())


def test_neuron_criterion_scores_each_layer(here: Path) -> None:
    scores = ranp_cli.score("net.py:Net", "calib.pt", criterion="neuron").layers
    assert {name: len(values) for name, values in scores.items()} == NEURONS


# -- load


@pytest.mark.parametrize("name", ["Net", *ODD_NETS])
def test_loaded_is_what_was_pruned(name: str, here: Path, tmp_path: Path) -> None:
    dense, path = net(here, name), here / f"{name}.pt"
    path = path if path.exists() else here / "calib.pt"
    batch = torch.load(path, weights_only=True)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    result = ranp_cli.prune(dense, batch, sparsity=0.5)
    result.save(tmp_path / "slim.safetensors")
    loaded = ranp_cli.load(tmp_path / "slim.safetensors", dense)
    assert type(loaded).__name__ == type(dense).__name__
    assert isinstance(loaded, type(net(here)))
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in dense.parameters()]
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in dense.parameters())
    for one, two in zip(outputs(result.model, batch), outputs(loaded, batch), strict=True):
        assert torch.equal(one, two)


def test_load_with_trust_builds_the_recorded_one(here: Path) -> None:
    generator = torch.get_rng_state()
    alone = ranp_cli.load("slim.safetensors", trust=True)
    assert torch.equal(torch.get_rng_state(), generator)
    given = ranp_cli.load("slim.safetensors", net(here))
    x = torch.randn(2, 1, 8, 8, 8)
    assert torch.equal(alone.eval()(x), given.eval()(x))
    assert type(alone) is type(given)


def test_load_refuses_what_does_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"made from another network: enc.weight was \(6, 1, 3, 3, 3\), is \(4, 1"):
        ranp_cli.load("slim.safetensors", net(here, width=4))
    with pytest.raises(BadInput, match="no such file"):
        ranp_cli.load("slim.safetensors", "absent.py:Net")
    ranp_cli.prune(net(here), "calib.pt", sparsity=0.5).save(tmp_path / "memory.safetensors")
    with pytest.raises(BadInput, match="records no model spec"):
        ranp_cli.load(tmp_path / "memory.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"net\.py:Net: no such file"):
        ranp_cli.load(here / "slim.safetensors", trust=True)


# -- writing


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_full_disk_leaves_the_old_file_whole(
    where: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "slim.safetensors"
    out.write_text("old")
    monkeypatch.setattr(where, full)
    assert ranp(f"{PRUNE} -q -o {out}") == 2
    assert "No space left on device; what was there is as it was" in error_line(capsys)
    assert os.listdir(tmp_path) == ["slim.safetensors"]
    assert out.read_text() == "old"


def test_read_only_folder_is_noticed_before_the_work(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as m:  # the tests may run as root, whom chmod does not stop
        m.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        assert ranp(f"prune absent.py:Net --batch calib.pt --sparsity 0.5 -o {tmp_path}/s.safetensors") == 2
        assert f"the folder {tmp_path} is read-only" in error_line(capsys)

    opened = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr("os.open", refuse)
    assert ranp(f"{PRUNE} -q --mask {tmp_path}/mask.json") == 2
    assert "Read-only file system" in error_line(capsys)
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_to_and_not_replaced_by_a_file(here: Path, tmp_path: Path) -> None:
    """As a device is: both are no regular files."""
    pipe, came = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert ranp(f"{PRUNE} -q --json {pipe}") == 0
    reader.join(10)
    assert json.loads(came[0])["command"] == "prune"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# -- exit codes


def test_keeping_nearly_everything_is_infeasible(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranp(f"{PRUNE} --keep '*'") == 3
    assert "only 0.0% of the neurons could be removed where 50.0% was asked" in error_line(capsys)
    assert ranp(f"{PRUNE} --keep '*' --allow-less -q") == 0


def test_failed_verification_writes_nothing(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ranp_cli.api import settle

    build = settle.slim_model

    def corrupt(*args: Any) -> Any:
        slim, changed = build(*args)
        with torch.no_grad():
            slim.dec.weight.mul_(1.1)
        return slim, changed

    monkeypatch.setattr(settle, "slim_model", corrupt)
    end = f"-o {tmp_path}/s.safetensors --json {tmp_path}/r.json"
    assert ranp(f"{PRUNE} {end} --mask {tmp_path}/m.json") == 4
    assert "slim(x) differs from masked(x)" in error_line(capsys)
    assert ranp(f"refine net.py:Net --mask mask.json {end}") == 4
    assert os.listdir(tmp_path) == []


def test_bug_of_ours(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug(*args: Any, **kwargs: Any) -> None:
        raise KeyError("our own\nfault")

    monkeypatch.setattr("ranp_cli.api.ranking.select", bug)
    monkeypatch.delenv("RANP_DEBUG", raising=False)
    assert ranp(PRUNE) == 1
    assert "a bug of ranp: KeyError" in error_line(capsys)
    monkeypatch.setenv("RANP_DEBUG", "1")
    assert ranp(PRUNE) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# -- in a process of its own

WITHOUT_TORCH = """
import contextlib, io, sys
from ranp_cli.cli import run
for argv in (["--help"], ["--version"], *([name, "--help"] for name in ("score", "prune", "refine", "profile")),
             ["profile", "slim.safetensors"], ["profile", "slim.safetensors", "--json", "-"]):
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        assert run(argv) == 0, argv
    assert "torch" not in sys.modules, argv
    assert "Example: ranp" in page.getvalue() or "--help" not in argv, argv
print(page.getvalue())
"""


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=120, **options)


def test_help_and_the_profile_of_a_slim_file_need_no_torch_and_no_source(home: Path, tmp_path: Path) -> None:
    (tmp_path / "slim.safetensors").write_bytes((home / "slim.safetensors").read_bytes())
    ran = process("-c", WITHOUT_TORCH, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    wanted = json.loads((home / "report.json").read_text())
    report = json.loads(ran.stdout)
    assert all(report[key] == wanted[key] for key in ("before", "after", "reduction", "layers", "sparsity", "neurons"))


def test_streams_and_exit_code_of_a_process(home: Path) -> None:
    env = {**os.environ, "NO_COLOR": "1"}
    ran = process("-m", "ranp_cli", *shlex.split(f"{PRUNE} --json -"), cwd=home, env=env)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["sparsity"]["requested"] == 0.5
    assert ran.stderr.startswith("ranp prune  net.py:Net")
    assert "\x1b" not in ran.stderr
    ran = process("-m", "ranp_cli", "prune", "--qq", cwd=home)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "ranp: error: No such option: --qq; see ranp --help\n"


# -- scores and masks belong to weights


def test_scores_of_other_weights_are_refused(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = tmp_path / "scores.safetensors"
    assert ranp(f"score net.py:Net --batch calib.pt --seed 1 -q -o {scores}") == 0
    assert ranp(f"prune net.py:Net --scores {scores} --sparsity 0.5 -q") == 2
    assert "the scores are of other weights" in error_line(capsys)
    assert ranp(f"prune net.py:Net --scores {scores} --sparsity 0.5 --seed 1 -q") == 0


def test_refine_takes_the_seed_of_the_mask(here: Path, tmp_path: Path) -> None:
    a, b, mask = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "m.json"
    assert ranp(f"{PRUNE} --seed 3 -q -o {a} --mask {mask}") == 0
    assert ranp(f"refine net.py:Net --mask {mask} -q -o {b}") == 0
    dense = net(here)
    first, second = (dict(ranp_cli.load(path, dense).named_parameters()) for path in (a, b))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_mask_of_another_network_says_what_differs(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranp("refine net.py:Net --model-arg width=7 --mask mask.json -q") == 2
    assert "the mask is of another network: layer enc has 7 neurons, 6 in the mask" in error_line(capsys)


@pytest.mark.parametrize("method", ["vanilla", "weighted", "random", "layerwise"])
def test_only_ranp_claims_a_resource(method: str, here: Path, tmp_path: Path) -> None:
    assert ranp(f"{PRUNE} --method {method} -q --mask {tmp_path / 'm.json'}") == 0
    how = json.loads((tmp_path / "m.json").read_text())["method"]
    assert "lambda" not in how
    assert how["resource"] == "none"
