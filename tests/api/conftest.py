"""Fixtures that several files of this folder share."""

from __future__ import annotations

import pytest
import torch
from compared_nets import FIT, batch


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "fit.py").write_text(FIT)
    torch.save(batch(), tmp_path / "calib.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path
