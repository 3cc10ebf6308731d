"""Every bit of the records at the end of an archive, flipped one at a time: refused in words of ours, or read as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ranp_cli.core.errors import BadInput
from ranp_cli.io.batches import load_batches

END = 22 + 20 + 56  # bytes: the end record, the locator and record of large archives, which torch writes always


@pytest.mark.parametrize("name", ["batch.pt", "batch.npz"])
def test_the_end_of_an_archive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = torch.rand(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    if name.endswith(".pt"):
        torch.save((x, y), name)
    else:
        np.savez(name, input=x.numpy(), target=y.numpy())
    good, refused = Path(name).read_bytes(), 0
    for bit in range(8 * (len(good) - END), 8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        Path(name).write_bytes(data)
        try:
            assert torch.equal(load_batches(name).first.args[0], x)
        except BadInput:
            refused += 1
    assert refused > 100
