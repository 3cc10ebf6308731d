"""A `_target_` mapping in a YAML as MODEL, as hydra has them: a network and its arguments, without a framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..io.code_args import built_target
from .common import Output, Slim, Step

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Target:
    """A network that a mapping describes. It has no mini-batches and no loss of its own, and no file to take back."""

    spec: str
    mapping: Mapping[str, Any]
    suffixes: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        return []

    def network(self, seed: int) -> nn.Module:
        from torch import nn

        from ..core.contexts import seeded

        with seeded(seed):
            network = built_target(self.mapping, f"model {self.spec}")
        if not isinstance(network, nn.Module):
            raise BadInput(
                f"model {self.spec}: makes a {type(network).__name__}, wants an nn.Module; give FILE#ID for a part of it"
            )
        return network

    def step(self) -> Step:
        return Step()

    def batches(self, limit: int | None, seed: int, where: str = "") -> None:
        return None

    def keys(self) -> None:
        return None

    def loss(self) -> None:
        return None

    def check_output(self, path: str) -> None:
        raise BadInput(f"{path}: {self.spec} takes no such file; give a .safetensors name")

    def output(self, slim: Slim, path: str) -> Output:
        raise BadInput(f"{path}: {self.spec} takes no such file; give a .safetensors name")
