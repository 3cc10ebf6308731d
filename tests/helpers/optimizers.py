"""The optimisers whose memory is estimated, as torch has them."""

from __future__ import annotations

import torch

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-3),
    "sgd-momentum": lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
