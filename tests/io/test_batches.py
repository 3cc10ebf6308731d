"""Mini-batches in whatever form they are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from io_folder import X, Y, message
from safetensors.torch import save_file
from torch import nn

from ranp_cli.io.batches import Batch, Batches, load_batches


def drain(source: Any, limit: int | None = None) -> list[Batch]:
    return list(load_batches(source, limit))


NAN, INF = torch.tensor([[1.0], [torch.nan]]), torch.tensor([[torch.inf], [1.0]])


class Stream(torch.utils.data.IterableDataset):
    """Three mini-batches, of unknown number beforehand."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X, Y)] * 3)


# source, and for each mini-batch (args, names of kwargs)
BATCHES = [
    ((X, Y), [(1, [])]),
    ([X, Y], [(1, [])]),
    ({"input": X, "target": Y}, [(1, [])]),
    ({"x": X, "y": Y, "spacing": 3}, [(1, [])]),
    ([(X, Y)], [(1, [])]),
    ([(X, Y), [X, Y]], [(1, []), (1, [])]),
    ([{"x": X, "y": Y}, (X, Y), {"input": X, "target": Y}], [(1, [])] * 3),
    (((X, X), Y), [(2, [])]),
    (([X, X], Y), [(1, [])]),
    (({"left": X, "right": X, "scale": 2}, Y), [(0, ["left", "right", "scale"])]),
    (({"x": X}, Y), [(0, ["x"])]),
    ((X, {"boxes": Y}), [(1, [])]),
    ([((X, X), Y), ({"left": X}, Y)], [(2, []), (0, ["left"])]),
    ((X.numpy(), Y.numpy()), [(1, [])]),
    (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=1), [(1, [])] * 2),
    (torch.utils.data.DataLoader(Stream(), batch_size=None), [(1, [])] * 3),
    (lambda: (X, Y), [(1, [])]),
    (lambda: iter([(X, Y)] * 2), [(1, [])] * 2),
    (Batch((X,), {}, Y), [(1, [])]),
]


# source, what the message says after "batch"
BAD_BATCHES = [
    ([], ": is an empty list; wants (input, target), {'input': ..., 'target': ...} or a list of them"),
    ((X,), ": is a tuple of 1 Tensor; wants (input, target)"),
    ([(X,)], ", mini-batch 0: has no target; wants (input, target)"),
    ([(X, Y), (X,)], ", mini-batch 1: has no target; wants (input, target)"),
    ((X, None), ", mini-batch 0: has no target; wants (input, target)"),
    ({"x": X}, ", mini-batch 0: has no target; wants (input, target)"),
    ({"image": X, "label": Y}, ", mini-batch 0: is a dict with the keys 'image', 'label'; wants {'input': ..."),
    (["a", "b", "c"], ": is a list of 3 str; wants (input, target)"),
    ((X, Y, Y), ": is a tuple of 3 Tensor; wants (input, target)"),
    ([(X, Y), (X, Y, Y)], ", mini-batch 1: is a tuple of 3 Tensor; wants (input, target)"),
    ([(X, Y), "c", (X, Y)], ", mini-batch 1: is an object of type str; wants (input, target)"),
    (X, ": is a tensor of shape (2, 1, 3); wants (input, target)"),
    (5, ": is an object of type int; wants (input, target)"),
    (
        ("a", Y),
        ", mini-batch 0: the input is an object of type str; wants a tensor, or a tuple, list or dict with tensors",
    ),
    (([[1.0, 2.0]], Y), ", mini-batch 0: the input is a list of 1 list; wants a tensor"),
    (((X, object()), Y), ", mini-batch 0: the input is an object of type object; wants a tensor"),
    ((np.array(["a", "b"]), Y), ", mini-batch 0: the input is an array of <U1; wants numbers"),
    ((X[:0], Y[:0]), ", mini-batch 0: the input is empty: its shape is (0, 1, 3); give at least one sample"),
    ((X, Y[:0]), ", mini-batch 0: the target is empty: its shape is (0,)"),
    ((NAN, Y), ", mini-batch 0: the input has 1 NaN or infinite values of 2; clean the data"),
    ([(X, Y), ((X, INF), Y)], ", mini-batch 1: the input has 1 NaN or infinite values of 2"),
    ((X.to_sparse(), Y), ", mini-batch 0: the input is a torch.sparse_coo tensor; make it dense: tensor.to_dense()"),
    ({"x": None, "y": Y}, ", mini-batch 0: the input is None; wants a tensor"),
    ((X, INF), ", mini-batch 0: the target has 1 NaN or infinite values of 2"),
    ((X, Y[:1]), ", mini-batch 0: 2 samples in the input, 1 in the target; make axis 0 agree"),
    (torch.utils.data.TensorDataset(X, Y), ": is a Dataset of single samples; wrap it: DataLoader("),
    (lambda: None, ": is None; wants (input, target)"),
    (lambda: 1 / 0, f": ZeroDivisionError: division by zero ({__file__}:"),
    (lambda: (1 / n for n in (1, 0)), ", mini-batch 0: is an object of type float; wants (input, target)"),
    (lambda: ((X, Y) for n in (1, 0) if 1 / n), f", mini-batch 1: ZeroDivisionError: division by zero ({__file__}:"),
    (lambda: iter(()), ": gives no mini-batch at all; wants at least one (input, target)"),
]


@pytest.mark.parametrize(("source", "shapes"), BATCHES)
def test_batches(source: Any, shapes: list[Any]) -> None:
    batches = load_batches(source)
    assert [(len(batch.args), list(batch.kwargs)) for batch in batches] == shapes
    assert [(len(batch.args), list(batch.kwargs)) for batch in batches] == shapes, "iterable again"
    assert batches.length in (len(shapes), None)
    assert len(drain(source, 1)) == 1
    assert load_batches(source, 1).length in (1, None)


@pytest.mark.parametrize(("source", "says"), BAD_BATCHES)
def test_bad_batches(source: Any, says: str) -> None:
    assert message(drain, source).startswith(f"batch{says}")


@pytest.mark.parametrize("limit", [0, -1])
def test_bad_limit(limit: int) -> None:
    assert message(load_batches, (X, Y), limit) == f"batch_limit={limit}: wants at least 1; leave it out to use all"


def test_a_generator_is_streamed_once() -> None:
    made: list[int] = []

    def stream() -> Iterator[Any]:
        for index in range(5):
            made.append(index)
            yield X * index, Y

    batches = load_batches(stream(), limit=3)
    assert (batches.length, made) == (None, [])
    assert batches.first.args[0].max() == 0
    assert batches.first is batches.first
    assert made == [0]
    iterator = iter(batches)
    next(iterator), next(iterator)
    assert made == [0, 1]
    assert len(list(iterator)) == 1
    assert made == [0, 1, 2]
    assert "this iterator is used up; give a list, or a function" in message(list, batches)
    assert batches.first.args[0].max() == 0
    assert load_batches(batches) is batches


# numpy dtype -> torch dtype as input, as target
DTYPES = [
    ("float64", torch.float32, torch.float32),
    (">f8", torch.float32, torch.float32),
    (">f4", torch.float32, torch.float32),
    ("float16", torch.float16, torch.float16),
    ("uint8", torch.uint8, torch.int64),
    (">i2", torch.int16, torch.int64),
    ("uint16", torch.uint16, torch.int64),
    ("int64", torch.int64, torch.int64),
    ("bool", torch.bool, torch.bool),
]


@pytest.mark.parametrize(("dtype", "as_input", "as_target"), DTYPES)
def test_dtypes(dtype: str, as_input: torch.dtype, as_target: torch.dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)[:, ::-1]
    array.flags.writeable = False
    batch = load_batches((array, array)).first
    assert (batch.args[0].dtype, batch.target.dtype) == (as_input, as_target)
    assert batch.target[0].tolist() == array[0].tolist()


def test_float64_tensors_and_structures_stay() -> None:
    batch = load_batches({"x": (X.double(), None), "y": {"map": Y.int(), "name": "a"}}).first.to("cpu")
    assert batch.args[0].dtype == torch.float64
    assert batch.args[1] is None
    assert batch.target["map"].dtype == torch.int64
    assert batch.target["name"] == "a"


# file, what is in it (see `write`), number of mini-batches, or what the message says
BATCH_FILES = [
    ("b.pt", (X, Y), 1),
    ("b.pt", [(X, Y), {"x": X, "y": Y}], 2),
    ("b.pt", X, ": holds a tensor of shape (2, 1, 3); wants (input, target)"),
    ("b.pt", {"x": X}, ", mini-batch 0: has no target"),
    ("b.pt", nn.ReLU(), ": is a pickle that wants to run code (torch.nn.modules.activation.ReLU) and is refused"),
    ("b.pt", b"PK\3\4and so on", ": is empty or cut off in the middle"),
    ("b.pt", b"\x80\2and so on", ": is damaged ("),
    ("b.npz", {"x": X, "y": Y}, 1),
    ("b.npz", {"input.1": X, "target.1": Y, "input.0": X, "target.0": Y, "affine": X}, 2),
    ("b.npz", {"input.0": X, "target.0": Y, "input.1": X}, ", mini-batch 1: has no target"),
    ("b.npz", {"input.0": X, "target": Y}, ": has keys with and without numbers; number all"),
    (
        "b.npz",
        {"image": X, "label": Y},
        ": wants the keys input and target, or input.0, target.0, input.1, ...; it has image, label",
    ),
    ("b.npz", {"x": np.array([None, None]), "y": Y}, ": holds Python objects, which are pickles; save arrays"),
    ("b.npz", b"PK\3\4and so on", ": is damaged or cut off ("),
    ("b.npz", b"hello", ": is not an .npz file; write it with numpy.savez"),
    ("b.safetensors", {"input": X, "target": Y}, 1),
    ("b.safetensors", {f"{name}.{i}": X for i in range(11) for name in "xy"}, 11),
    ("b.safetensors", {"input": X}, ", mini-batch 0: has no target"),
    ("b.safetensors", b"hello, hello", ": is not safetensors, or cut off ("),
    ("b.py:batches", "batches = [(1., 2)]", ", mini-batch 0: the input is an object of type float"),
    ("b.py:batches", "import torch\ndef batches(): yield torch.ones(1), torch.ones(1)", 1),
    ("b.py:batches", "import torch\nbatches = [torch.ones(1)] * 2", 1),
    (
        "b.py:batches",
        "def batches(n): yield",
        ": TypeError: batches() missing 1 required positional argument: 'n'; check",
    ),
    ("b.py:batches", "batches = 5", ": is an object of type int; wants (input, target)"),
    ("b.py:batch", "def batches(): pass", ": there is no 'batch' in it; did you mean 'batches'? (known: batches)"),
    ("b.py", "def batches(): pass", ": which name in that file? Say b.py:NAME (it offers: batches)"),
    ("absent.npz", None, ": no such file (looked in "),
    ("absent.txt", None, ": no such file (looked in "),
    ("b.txt", b"", ": wants a .pt, .safetensors or .npz file, or file.py:Name"),
]


def write(path: Path, content: Any) -> None:
    """Bytes and text as they are, everything else in the way of the suffix."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".npz":
        np.savez(path, **{key: np.asarray(value) for key, value in content.items()})
    elif content is not None:
        save_file({key: value.clone() for key, value in content.items()}, path)


@pytest.mark.parametrize(("spec", "content", "result"), BATCH_FILES)
def test_batch_files(folder: Path, spec: str, content: Any, result: int | str) -> None:
    if content is not None:
        write(folder / spec.split(":")[0], content)
    if isinstance(result, int):
        assert len(drain(spec)) == result
        assert len(drain(folder / spec)) == result
        assert len(drain(spec, 1)) == 1
    else:
        assert message(drain, spec).startswith(f"batch {spec}{result}")


def test_numbered_batches_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "b.npz", {f"{name}.{index}": X * index for index in (10, 2, 0, 1) for name in "xy"})
    assert [int(batch.args[0].max()) for batch in load_batches(tmp_path / "b.npz")] == [0, 1, 2, 10]


def test_batches_has_a_readable_length_before_anything_is_made() -> None:
    assert Batches("batch", [1, 2, 3], 2).length == 2
