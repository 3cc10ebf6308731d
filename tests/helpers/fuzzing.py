"""Damage files at random, from a seed: bytes, and the structure of what they hold.

`good_files` writes one good file of each kind, `mutant` damages one of them, `attempt` reads it as a user would and says
what went wrong, which is anything but success or one line with exit code 2 (3, 4 and 5 likewise say what is wrong).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ranp_cli as ranp
from ranp_cli.cli import run
from ranp_cli.core.errors import one_line
from ranp_cli.io.slim_file import to_bytes

NET = """
from torch import nn

def net(width=4, name="relu"):
    return nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU(), nn.Conv3d(width, 2, 1))
"""
CANARY = "CANARY"
SECONDS, GROWTH = 10.0, 1 << 30
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
    "", "x", "a" * 5000, "\x1b[31m\n\r\x00", "../../etc/passwd", "~nosuch/x", "0", "float32", "load", "__class__", [], {}, [[]],
    [0], [-1], [2**40, 2**40], [1.5], ["x"], {"": 0}, {"shape": [2**40], "dtype": "int64"}, {"spec": "os:system"},
    {"command": f"touch {CANARY}"}, "os:system", {"value": 1}, {"list": 1}, {"dict": []}, {"tuple": [1]}, {"..": {"x": 1}},
]  # fmt: skip
YAML_TOKENS = ["[" * 3000, "{" * 300, "&a [*a]", "*a", "&a", "!!int x", "!!python/object/apply:os.system ['touch CANARY']", "!!bool maybe", "!!timestamp 1",
               "2020-99-99", "9" * 5000, ".nan", "-.inf", "- - - -", ": :", "? ", "|", ">", "%YAML 9.9", "\x00", "\t", "<<: *a", "!!binary x",
               "!!set {a}", "0x" + "f" * 5000, "1:1:1", "~", "null", "@", "`", "'", '"', "{a: 1}", "[1, 2]", "os:system", "-1", "1e999"]  # fmt: skip


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# -- good files


def good_files() -> dict[str, bytes]:
    """One good file of each kind, by name; written in the current directory."""
    Path("net.py").write_text(NET)
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 4, 4, 4, generator=g), torch.randint(2, (2, 4, 4, 4), generator=g)
    torch.save([(x, y), {"input": x, "target": y}], "batch.pt")
    torch.save((x, y), "old.pt", _use_new_zipfile_serialization=False)
    np.savez("batch.npz", input=x.numpy(), target=y.numpy())
    np.savez_compressed("small.npz", input=x.numpy(), target=y.numpy())
    Path("batch.safetensors").write_bytes(to_bytes({"input": x, "target": y}, {}))
    assert run("prune net.py:net --batch batch.pt --sparsity 0.3 -q -o slim.safetensors --mask mask.json".split()) == 0
    assert run("score net.py:net --batch batch.pt -q -o scores.safetensors".split()) == 0
    sys.path.insert(0, ".")
    module = ranp.load("slim.safetensors", "net.py:net")
    sys.path.remove(".")
    torch.save({"state_dict": dense().state_dict(), "epoch": 3, "lr": [0.1, 0.2]}, "weights.pt")
    Path("weights.safetensors").write_bytes(to_bytes(dense().state_dict(), {}))
    write_onnx(Path("net.onnx"), module)
    Path("config.yaml").write_text(
        "model: net.py:net\nmodel-arg: {width: 4, name: relu}\ninput: [1, 1, 4, 4, 4]\nseed: 3\nquiet: true\n"
        "max-macs: 40G\ndepth: 1\noptimizer: adam\nbatch-size: 2\n"
    )
    Path("model-arg.txt").write_text("width=4")
    names = [
        p.name
        for p in Path().iterdir()
        if p.suffix in (".pt", ".npz", ".safetensors", ".json", ".onnx", ".yaml", ".txt")
    ]
    return {name: Path(name).read_bytes() for name in sorted(names)}


def dense() -> torch.nn.Module:
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.manual_seed(0)
    return space["net"]()


def write_onnx(path: Path, module: torch.nn.Module) -> None:
    """A small network as ONNX, made of nodes: Conv, Relu, a function with a Conv, and a shape that is computed."""
    from onnx import TensorProto, helper, numpy_helper

    w = numpy_helper.from_array(np.ones((4, 1, 3, 3, 3), np.float32), "a.weight")
    v = numpy_helper.from_array(np.ones((2, 4, 1, 1, 1), np.float32), "b.weight")
    shape = numpy_helper.from_array(np.array([1, -1], np.int64), "flat")
    inner = helper.make_function("own", "Block", ["x", "w"], ["y"], [helper.make_node("Conv", ["x", "w"], ["t"]), helper.make_node("Relu", ["t"], ["y"])],
                                 [helper.make_opsetid("", 17)])  # fmt: skip
    nodes = [helper.make_node("Conv", ["x", "a.weight"], ["h"], "/a/Conv", pads=[1] * 6), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("Block", ["r", "b.weight"], ["z"], domain="own"), helper.make_node("Reshape", ["z", "flat"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4, 4])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 128])], [w, v, shape])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)], functions=[inner], ir_version=8)  # fmt: skip
    path.write_bytes(model.SerializeToString())


# -- damage


def mutant(name: str, good: bytes, rng: random.Random) -> bytes:
    """A damaged form of a good file; half of them by bytes, half by what they hold."""
    by_kind: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": lambda d, r: dump(damage(json.loads(d), r)).encode(),
        ".safetensors": safetensors_mutant,
        ".yaml": yaml_mutant,
        ".txt": yaml_mutant,
        ".npz": zip_mutant,
        ".pt": zip_mutant,
        ".onnx": onnx_mutant,
    }
    if rng.random() < 0.4:
        return bytes_mutant(good, rng)
    with contextlib.suppress(zipfile.BadZipFile):  # torch.save of old
        return by_kind[Path(name).suffix](good, rng)
    return bytes_mutant(good, rng)


def bytes_mutant(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(max(1, len(data)))
        if rng.random() < 0.3:
            at = min(at, rng.randrange(200))
        some = min(len(data) - at, rng.choice((1, 4, 16, 100)))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + some] = bytes(rng.randrange(256) for _ in range(some))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + some]
        elif kind == 4:
            data[at:at] = data[at : at + some]
        elif kind == 5:
            data[at : at + some] = rng.choice((b"\0", b"\xff", b"\x7f")) * some
        else:
            data += rng.choice((b"\0", b"x", b"]", b"\n")) * rng.choice((1, 1000))
    return bytes(data)


def damage(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three of its parts changed, gone, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [(None, None), *walk(value)]
        holder, key = rng.choice(places)
        if holder is None:
            if rng.random() < 0.1:
                return rng.choice([*HOSTILE, deep(200), deep(900)])
            continue
        kind = rng.randrange(8)
        if kind <= 3:
            holder[key] = copy.deepcopy(rng.choice([*HOSTILE, deep(200)]))
        elif kind == 4:
            del holder[key]
        elif kind == 5:
            other, place = rng.choice(places[1:])
            with contextlib.suppress(LookupError):
                holder[key] = copy.deepcopy(other[place])
        elif kind == 6 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "..", "__class__", "0", "weight"))] = holder.pop(key)
        elif isinstance(holder, list):
            holder *= rng.choice((0, 2, 50))
        elif type(holder[key]) in (int, float):
            holder[key] = holder[key] * rng.choice((-1, 2, 1000)) + rng.choice((-1, 0, 1))
    return value


def walk(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from walk(value[key])


def dump(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 100_000


def safetensors_mutant(good: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", good[:8])
    header, body = json.loads(good[8 : 8 + length]), good[8 + length :]
    metadata = header["__metadata__"]
    if "ranp" in metadata and rng.random() < 0.7:
        metadata["ranp"] = dump(damage(json.loads(metadata["ranp"]), rng))
    elif rng.random() < 0.5:
        values = np.frombuffer(body, np.uint8).copy()
        values[rng.randrange(len(values))] ^= 1 << rng.randrange(8)
        body = values.tobytes()
    else:
        header = damage(header, rng)
    text = dump(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def yaml_mutant(good: bytes, rng: random.Random) -> bytes:
    text = good.decode()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(text))
        if rng.random() < 0.6:
            at = text.find(rng.choice("=:,\n"), at) + 1 or at
        text = text[:at] + rng.choice(YAML_TOKENS) + text[rng.choice((at, min(len(text), at + 2), max(at, text.find("\n", at)))) :]  # fmt: skip
    return text.encode()


def zip_mutant(good: bytes, rng: random.Random) -> bytes:
    """One member damaged, dropped, doubled, or made up of zeros that take no room; the archive itself is sound."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        chosen, kind = rng.choice(old.namelist()), rng.randrange(6)
        if rng.random() < 0.5:
            chosen = next((n for n in old.namelist() if n.endswith("data.pkl")), chosen)
        for name in old.namelist():
            data = old.read(name)
            if name == chosen and kind == 0:
                continue
            if name == chosen and kind in (1, 2, 3):
                data = bytes_mutant(data, rng)
            if name == chosen and kind == 4 and b"'shape': (" in data:
                data = data.replace(b"'shape': (2", rng.choice((b"'shape': (9", b"'shape': (-2", b"'shape': (2**40", b"'shape': ([2"))).replace(b"<f4", rng.choice((b"<f4", b"|O", b"<U9", b"<f2")))  # fmt: skip
            bomb = name == chosen and kind == 5
            new.writestr(name, bytes(100 << 20) if bomb and rng.random() < 0.1 else data, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)  # fmt: skip
    return out.getvalue()


def onnx_mutant(good: bytes, rng: random.Random) -> bytes:
    """One field of a message anywhere in the model changed."""
    import onnx

    model = onnx.ModelProto.FromString(good)
    message, places = model, []

    def collect(message: Any) -> None:
        for field, value in message.ListFields():
            places.append((message, field))
            for each in value if is_list(value) else [value]:
                if hasattr(each, "ListFields"):
                    collect(each)

    collect(model)
    message, field = rng.choice(places)
    value = getattr(message, field.name)
    if is_list(value) and rng.random() < 0.5:
        if rng.random() < 0.5:
            del value[rng.randrange(len(value))]
        else:
            value.append(value[0]) if not hasattr(value[0], "ListFields") else value.add().CopyFrom(value[0])
    elif is_list(value) and not hasattr(value[0], "ListFields"):
        value[0] = hostile_of(value[0], rng)
    elif not is_list(value) and not hasattr(value, "ListFields"):
        with contextlib.suppress(ValueError):  # no such number of an enumeration
            setattr(message, field.name, hostile_of(value, rng))
    else:
        message.ClearField(field.name)
    return model.SerializeToString()


def is_list(value: Any) -> bool:
    return hasattr(value, "append") and not isinstance(value, (str, bytes))


def hostile_of(value: Any, rng: random.Random) -> Any:
    if isinstance(value, str):
        return rng.choice(("", "x", "a.weight", "z", "Loop", "ConstantOfShape", "own", "Block", "Einsum", "Attention"))
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value * 2))
    return type(value)(rng.choice((0, 1, 2, 3, 7, 16, 100, 2**31 - 1)) * rng.choice((1, 1, -1)))


# -- reading


def attempt(name: str, data: bytes, codes: tuple[int, ...] = (0, 2, 3, 4, 5)) -> str | None:
    """Read the file as its kind is read; what went wrong (another exit code, say), or None."""
    path = f"bad.{name}"
    Path(path).write_bytes(data)
    kind = name.partition(".")[0]
    words = {
        "slim": ["profile", path],
        "scores": ["prune", "net.py:net", "--scores", path, "--sparsity", "0.3", "-q"],
        "mask": ["refine", "net.py:net", "--mask", path, "-q"],
        "config": ["profile", "--config", path],
        "batch": ["score", "net.py:net", "--batch", path, "-q"],
        "small": ["score", "net.py:net", "--batch", path, "-q"],
        "old": ["score", "net.py:net", "--batch", path, "-q"],
        "weights": [
            "profile",
            "net.py:net",
            "-q",
            "--weights",
            path,
            *(["--weights-key", "state_dict"] * name.endswith(".pt")),
        ],
        "net": ["profile", path],
        "model-arg": ["profile", "net.py:net", "--model-arg", data.decode(errors="replace").replace("\0", "")],
    }[kind]
    start, before = time.monotonic(), grown()
    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(words)
            if kind == "slim":
                with contextlib.suppress(ranp.BadInput):
                    ranp.load(path)
                try:
                    ranp.load(path, dense())
                except ranp.RanpError as error:
                    if len(str(error)) > 300:
                        return f"load: a message of {len(str(error))} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {one_line(error)}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        os.unlink(path)
    lines = err.getvalue().splitlines()
    if code not in codes:
        return f"exit {code}: {lines[-1:]}"
    if code == 2 and (len(lines) != 1 or len(lines[0]) > 300):
        return f"{len(lines)} lines, {[len(line) for line in lines]} characters: {lines[:2]}"
    if os.path.exists(CANARY):
        os.unlink(CANARY)
        return "it ran a command"
    if grown() - before > GROWTH:
        return f"{(grown() - before) >> 20} MiB taken"
    return None if time.monotonic() - start < SECONDS else "more than 10 s"


def too_long(signum: int, frame: Any) -> None:
    raise TimeoutError("more than 10 s")


def grown() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def fuzz(files: dict[str, bytes], count: int, seed: int) -> list[str]:
    """Damage and read `count` files; what went wrong, with what makes it happen again."""
    problems = []
    names = sorted(files)
    for index in range(seed, seed + count):
        name, rng = names[index % len(names)], random.Random(index)
        problem = attempt(name, mutant(name, files[name], rng))
        if problem:
            problems.append(f"{name}, seed {index}: {problem}")
    return problems
