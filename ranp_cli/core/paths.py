"""Where this package lies: tells its own code from the user's in a traceback."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def is_ours(file: str) -> bool:
    """Does a source file belong to this package? Its models and samples do not count: they stand for a user's code."""
    inside = file.startswith(str(PACKAGE) + os.sep)
    return inside and Path(file).relative_to(PACKAGE).parts[0] not in ("models", "samples")


def mask_beside(path: str | Path) -> Path:
    """Where the mask of a slim network goes: `slim.mask.json` beside `slim.safetensors`."""
    return Path(path).with_suffix(".mask.json")
