"""The fingerprint by which a mask, a slim file and scores recognise a network."""

from __future__ import annotations

import hashlib
import json

from torch import nn
from torch.nn.parameter import is_lazy

from .errors import BadInput


def fingerprint(model: nn.Module) -> str:
    """sha256 of the sorted (parameter name, shape) list, as JSON without blanks."""
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy:
        raise BadInput(f"{lazy} is uninitialized (a lazy module); run the model once on an input in the factory")
    rows = sorted([name, list(p.shape)] for name, p in model.named_parameters())
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
