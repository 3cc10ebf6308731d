"""The folder that the command lines of these tests work in."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import BAD_NETS, BATCHES, MASKS, NETS, ODD_NETS, PRUNE, TEXTS, Evil, net, ranp, seed
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    torch.set_num_threads(threads)
    return home


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """That folder, as the current directory."""
    monkeypatch.chdir(home)
    return home
