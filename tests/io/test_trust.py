"""What a data file may do: nothing but be read, whole and as it was written, or be refused in one line."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.documents import parse_yaml
from ranp_cli.core.errors import is_out_of_memory, memory_advice
from ranp_cli.core.reading import bound
from ranp_cli.io.batches import load_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trust"))
    fuzzing.good_files()
    yield Path.cwd()
    os.chdir(here)


def edit(path: str, change: Callable[[dict[str, Any], dict[str, Any]], Any], out: str = "bad.safetensors") -> str:
    """The file with its document and header changed."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["ranp"])
    change(document, header)
    header["__metadata__"]["ranp"] = json.dumps(document)
    text = json.dumps(header).encode()
    Path(out).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return out


def no_digest(document: dict[str, Any], header: Any) -> None:
    document.pop("digest")


@pytest.mark.parametrize(
    "more", ["--tree", "--input 1x1x8x8x8", "--time", "--optimizer adam", "--batch-size 4", "--amp"]
)
def test_a_recorded_spec_is_never_run(folder, capsys, more):
    def evil(document, header):
        document["model"] |= {"spec": "os:system", "args": {"command": "touch CANARY"}}

    path = edit("slim.safetensors", evil)
    assert run(["profile", path, "-q", *more.split()]) == 2
    assert f"ranp profile {path} --model os:system --model-arg 'command=touch CANARY'" in capsys.readouterr().err
    with pytest.raises(ranp.BadInput, match=r"'os:system', is a note.*trust=True"):
        ranp.load(path)
    assert not Path("CANARY").exists()
    assert run(["profile", "slim.safetensors", "-q", "--model", "net.py:net", *more.split()]) == 0


def test_every_flipped_bit_of_a_tensor_is_noticed(folder):
    dense = fuzzing.dense()
    for name, read in (("slim", lambda path: ranp.load(path, dense)), ("scores", ranp.Scores.of)):
        data = Path(f"{name}.safetensors").read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        read(f"{name}.safetensors")
        for place in range(start, len(data), 7):
            bad = bytearray(data)
            bad[place] ^= 1 << place % 8
            Path("bad.safetensors").write_bytes(bad)
            with pytest.raises(ranp.BadInput, match="digest"):
                read("bad.safetensors")


# without a digest, as version 0.1 wrote them
NOT_WHOLE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "lost": (lambda d, h: h.update(zz=h.pop("3.bias")), "lacks the tensors: 3.bias"),
    "left over": (lambda d, h: d["aliases"].update(zz="3.bias"), "aliases that the model has not: zz"),
    "another dtype": (lambda d, h: h["0.bias"].update(dtype="I32"), "0.bias is torch.int32"),
    "swapped": (lambda d, h: h.update({"0.bias": h["3.bias"], "3.bias": h["0.bias"]}), "bias has"),
    "a method": (lambda d, h: d.update(attributes={"0": {"forward": 1}}), "'0.forward' = 1 is not one"),
    "a module": (lambda d, h: d.update(attributes={"..": {"in_channels": 1}}), "is not one that refining sets"),
    "a lie": (lambda d, h: d["attributes"].setdefault("0", {}).update(out_channels=1), "out_channels' = 1 is not one"),
}


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_load_is_strict(folder, case):
    change, says = NOT_WHOLE[case]
    ranp.load(edit("slim.safetensors", no_digest), fuzzing.dense())
    path = edit("slim.safetensors", lambda d, h: (no_digest(d, h), change(d, h)))
    with pytest.raises(ranp.BadInput, match=says):
        ranp.load(path, fuzzing.dense())


@pytest.mark.parametrize("key", ["params", "params_bytes", "macs", "peak_forward_bytes"])
def test_a_gate_is_not_lied_to(folder, capsys, key):
    path = edit("slim.safetensors", lambda d, h: d["profile"]["after"].update({key: 1}))
    assert run(["profile", path, "--max-params", "1", "-q"]) == 2
    assert "records" in capsys.readouterr().err
    assert run(["profile", "slim.safetensors", "--max-params", "1", "-q"]) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_are_finite(folder, value):
    path = edit("scores.safetensors", no_digest)
    data = bytearray(Path(path).read_bytes())
    data[-8:] = struct.pack("<d", value)
    Path(path).write_bytes(data)
    with pytest.raises(ranp.BadInput, match="NaN or infinite"):
        ranp.Scores.of(path)


def test_pipes_and_devices_are_refused_at_once(folder, capsys):
    os.mkfifo("pipe.safetensors")
    started = time.monotonic()
    for words in ("profile pipe.safetensors", "refine net.py:net --mask /dev/zero", "profile --config /dev/zero",
                  "score net.py:net --batch pipe.safetensors", "profile net.py:net --weights pipe.safetensors"):  # fmt: skip
        assert run(words.split()) == 2
        assert "a pipe, a socket or a device" in capsys.readouterr().err
    assert time.monotonic() - started < 5


def test_what_is_read_is_bounded(folder, monkeypatch, capsys):
    monkeypatch.setenv("RANP_MAX_READ", "1K")
    assert bound() == 1024
    assert run(["profile", "slim.safetensors"]) == 2
    assert "set RANP_MAX_READ to read more" in capsys.readouterr().err
    monkeypatch.setenv("RANP_MAX_READ", "much")
    with pytest.raises(ranp.BadInput, match="wants a size in bytes"):
        bound()


def test_small_files_do_not_unfold(folder):
    torch.save((torch.zeros(1).expand(1 << 30, 1), torch.zeros(1)), "wide.pt")
    np.savez_compressed("deep.npz", input=np.zeros(1 << 28, np.uint8), target=np.zeros(1))
    for path in ("wide.pt", "deep.npz"):
        with pytest.raises(ranp.BadInput, match=r"it declares .* in a file of"):
            load_batches(path)
    parts: Any = 0
    for _ in range(60):
        parts = [parts, parts]
    torch.save(parts, "laughs.pt")
    with pytest.raises(ranp.BadInput, match="holds more than"):
        load_batches("laughs.pt")


def test_aliases_of_yaml(folder):
    assert parse_yaml("a: &w [1, 2]\nb: *w", "x") == {"a": [1, 2], "b": [1, 2]}
    laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
    for text, says in ((laughs, "aliases"), ("x: &a [*a]", "part of itself"), ("[" * 20_000, "nested too deep")):
        with pytest.raises(ranp.BadInput, match=says):
            parse_yaml(text, "x")


def test_functions_of_onnx_that_grow(folder):
    model = onnx.load("net.onnx")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for k in range(40):
        calls = [
            helper.make_node(f"F{k - 1}" if k else "Relu", ["x"], [f"y{n}"], domain="own" if k else "") for n in "ab"
        ]
        model.functions.append(helper.make_function("own", f"F{k}", ["x"], ["ya"], calls, opsets))
    model.graph.node.append(helper.make_node("F39", ["y"], ["z"], domain="own"))
    Path("grow.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ranp.BadInput, match="more than 100,000 nodes"):
        ranp.profile("grow.onnx")


def test_out_of_memory_says_how_much():
    for error, amount in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 243000000 bytes."), "232 MiB"),
        (np._core._exceptions._ArrayMemoryError((1 << 30,), np.dtype("u1")), "1.00 GiB"),
        (MemoryError(), "out of memory; "),
    ):
        assert is_out_of_memory(error)
        assert amount in memory_advice(error)
    assert not is_out_of_memory(RuntimeError("a shape is wrong"))
