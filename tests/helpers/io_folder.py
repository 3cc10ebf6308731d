"""A folder with the files that a user would name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ranp_cli.core.errors import BadInput

MODEL = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, classes=2, *, bias=True):
        super().__init__(nn.Conv3d(1, classes, 1, bias=bias))
class Needs(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
def make(classes=3): return Net(classes)
def open_ended(**options): return Net(**options)
def by_place(classes, /): return Net(classes)
def nothing(): return 5
def fails(): raise ValueError("two\\nlines")
def leaves(): raise SystemExit(3)
ready = Net(4)
number = 7
_private = Net
"""


def message(function: Callable[..., Any], *args: Any) -> str:
    """The one line that `function` refuses `args` with."""
    with pytest.raises(BadInput) as caught:
        function(*args)
    text = str(caught.value)
    assert text.splitlines() == [text]
    assert len(text) < 600
    return text


X, Y = torch.ones(2, 1, 3), torch.tensor([0, 1])


torch.manual_seed(0)
