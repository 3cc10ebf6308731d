"""Snapshot a module before a forward pass and restore what the pass changed, so that every mini-batch meets the same model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ModuleSnapshot:
    """Of a twin of `model`: its buffers, attributes, and the parameters that its forward writes (`written`, by name).

    Power iterations, moving averages and counters then start anew each time, and the order of the mini-batches, and
    which process comes to them, do not show.
    """

    def __init__(self, twin: nn.Module, model: nn.Module, written: Iterable[str] = ()) -> None:
        own, parameters = dict(model.named_buffers()), dict(model.named_parameters())
        self.values: list[tuple[Tensor, Tensor]] = [  # of the twin, and what it is to be
            (t, own[name]) for name, t in twin.named_buffers() if name in own
        ]
        mine = dict(twin.named_parameters())
        self.values += [(mine[name], parameters[name]) for name in written if name in mine]
        self.memory = [(p, p.data) for p in mine.values()]
        self.places: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for module, given in zip(twin.modules(), model.modules(), strict=True):
            if isinstance(module, torch.jit.ScriptModule):  # its attributes are compiled in
                continue
            self.places += [(module._buffers, dict(module._buffers)), (vars(module), dict(vars(module)))]
            for key, value in vars(given).items():
                there = vars(module).get(key)
                if isinstance(value, Tensor) and isinstance(there, Tensor) and there.shape == value.shape:
                    self.values.append((there, value))

    @torch.no_grad()
    def restore(self) -> None:
        for place, entries in self.places:
            for key in [key for key in place if key not in entries]:
                del place[key]
            place.update(entries)
        for p, data in self.memory:
            if p.data_ptr() != data.data_ptr():
                p.data = data
        for t, value in self.values:
            t.detach().copy_(value.detach())
