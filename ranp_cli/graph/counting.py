"""What a network costs, read off one shadow run. True counts, and the paper's counting beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core.contexts import each

if TYPE_CHECKING:
    from .trace import Tracer


MIB = 2**20


@dataclass
class PaperCounting:
    """The authors' counting of one forward pass, by calls of leaf modules."""

    elements: int = 0  # output by every call of a leaf module
    flops: float = 0

    @classmethod
    def watching(cls, model: nn.Module) -> PaperCounting:
        """A count that fills itself when `model`, a shadow, runs."""
        count = cls()
        for module in model.modules():
            if not any(True for _ in module.children()):
                module.register_forward_hook(count._see)
        return count

    def _see(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outs = list(each(Tensor, output))
        n = sum(t.numel() for t in outs)
        self.elements += n
        if not outs:
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            window = math.prod(module.kernel_size)
            fan = window * (module.out_channels if module.transposed else module.in_channels) // module.groups
            moved = args[0].numel() if module.transposed else n
            self.flops += moved * fan + (n if module.bias is not None else 0)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self.flops += 4 * n
        elif isinstance(module, nn.Linear):
            self.flops += 2 * n * module.in_features
        elif isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
            rank = next(
                k for k, kind in enumerate((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), 1) if isinstance(module, kind)
            )
            size = module.kernel_size
            self.flops += n * ((size**rank if isinstance(size, int) else math.prod(size)) + 1)
        elif isinstance(module, nn.modules.pooling._AdaptiveAvgPoolNd):
            self.flops += n * (args[0].numel() // n + 1)
        elif isinstance(module, nn.Softmax):
            self.flops += 3 * outs[0].shape[1 if module.dim is None else module.dim] - 1


@dataclass(frozen=True)
class Costs:
    """Of one sample in eval mode. `macs`: true multiply-adds; `flops` = 2 * macs.

    `activation_bytes`: everything the ops of a forward pass allocate. `peak_forward_bytes`: the most that is alive at
    once in inference: parameters, buffers, the input and the tensors between ops.
    """

    params: int
    params_bytes: int
    macs: int
    activation_bytes: int
    peak_forward_bytes: int
    paper: dict[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "params": self.params,
            "params_bytes": self.params_bytes,
            "macs": self.macs,
            "flops": 2 * self.macs,
            "activation_bytes": self.activation_bytes,
            "peak_forward_bytes": self.peak_forward_bytes,
        }
        if self.paper is not None:
            out["paper"] = self.paper
        return out


def costs(model: nn.Module, tracer: Tracer, paper: PaperCounting | None, samples: int) -> Costs:
    """The costs of one sample, from a run in eval mode over `samples` samples."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    params = sum(p.numel() for p in parameters)
    held = sum(t.numel() * t.element_size() for t in (*parameters, *buffers))
    return Costs(
        params=params,
        params_bytes=sum(p.numel() * p.element_size() for p in parameters),
        macs=sum(op.flops for op in tracer.ops) // 2 // samples,
        activation_bytes=sum(op.new_bytes for op in tracer.ops) // samples,
        peak_forward_bytes=held + tracer.peak_bytes // samples,
        paper=None
        if paper is None
        else {
            "param_mb": round(params * 4 / MIB, 4),
            "gflops": round(paper.flops / samples / 1e9, 4),
            "memory_mb": round(paper.elements / samples * 4 / MIB, 4),
        },
    )
