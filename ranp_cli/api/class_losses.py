"""Losses by class: what a network makes of each class of integer targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..core.contexts import each
from ..io.losses import IGNORE, IGNORE_TOO


class Tally:
    """Cross-entropy and right answers, added up by the target's class over mini-batches.

    The first output of shape (N, C, *S) for a target of shape (N, *S) or (N, 1, *S) counts, whatever the loss is; an
    output of one channel is taken for the logit of class 1 of two. Other outputs and targets add nothing.

    Args:
        ignore_index: places with this target do not count; None: those of -100, and of 255 where that is no class.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self.loss, self.right, self.places = np.zeros(0), np.zeros(0), np.zeros(0)

    def add(self, output: Any, target: Any) -> None:
        found = logits_of(output, target)
        if found is None:
            return
        logits, labels = found
        classes = logits.shape[1]
        counted = (labels >= 0) & (labels < classes) & (labels != self.ignore_index)
        if self.ignore_index is None and classes <= IGNORE_TOO:
            counted &= labels != IGNORE_TOO
        places = labels.masked_fill(~counted, IGNORE)
        losses = functional.cross_entropy(logits, places, ignore_index=IGNORE, reduction="none")
        here = counted.flatten().cpu()
        rows = labels.flatten().cpu()[here]
        right = (logits.argmax(1) == labels).flatten().cpu()[here]

        def summed(weights: Tensor) -> np.ndarray:  # on the CPU, where the order of the sum is always the same
            return torch.bincount(rows, weights.double(), minlength=classes).numpy()

        sums = summed(losses.flatten().cpu()[here]), summed(right), summed(torch.ones(len(rows)))
        for name, new in zip(("loss", "right", "places"), sums, strict=True):
            old = getattr(self, name)
            setattr(
                self, name, np.pad(old, (0, max(0, classes - len(old)))) + np.pad(new, (0, max(0, len(old) - classes)))
            )

    def by_class(self) -> list[dict[str, Any]]:
        """`class`, mean `loss` and share that is `right`, of each class that occurs."""
        return [
            {"class": k, "loss": self.loss[k] / n, "right": self.right[k] / n} for k, n in enumerate(self.places) if n
        ]

    def worst(self) -> dict[str, Any] | None:
        """The class with the highest mean loss; None where there are no classes or only one."""
        rows = self.by_class()
        return max(rows, key=lambda row: row["loss"]) if len(rows) > 1 else None


def logits_of(output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
    """(logits (N, C, *S), labels (N, *S)) of the first output that fits an integer target, C at least 2; else None."""
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        return None
    for t in each(Tensor, output):
        if not t.is_floating_point() or t.ndim < 2:
            continue
        wanted = (t.shape[0], *t.shape[2:])
        labels = target.squeeze(1) if target.ndim == t.ndim and target.shape[1] == 1 else target
        if tuple(labels.shape) == wanted:
            logits = t.detach().float()
            return (torch.cat([torch.zeros_like(logits), logits], 1) if t.shape[1] == 1 else logits), labels
    return None
