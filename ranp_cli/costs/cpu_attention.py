"""What torch's attention on a CPU allocates and frees inside itself: blocks of scores, for each thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLASH = "aten._scaled_dot_product_flash_attention_for_cpu"
HEADS, LAYER = "aten._native_multi_head_attention", "aten._transformer_encoder_layer_fwd"
BLOCKS = ((768, 256), (192, 64), (0, 32))  # queries from so many on -> in a block
KEYS = 512  # in a block


def attention_workspace(name: str, args: Any) -> int:
    """Bytes besides operands and results, of `FLASH`, its backward, or a layer in one op; read off the allocator, torch 2.13."""
    if name == LAYER:
        return max(
            scored(args[0], args[2]), args[0].numel() // args[0].shape[-1] * args[14].shape[0] * args[0].element_size()
        )
    if name == HEADS:
        return scored(args[0], args[4])
    backward = name.endswith("backward")
    q, k = args[1:3] if backward else args[:2]
    heads, queries, keys = q.shape[1], q.shape[2], min(KEYS, k.shape[2])
    rows = min(queries, next(block for least, block in BLOCKS if queries >= least))
    scores, wide = rows * keys, max(4, q.element_size())
    if backward:
        lanes = 2 * scores * (wide + (q.element_size() if q.element_size() < wide else 0))
        return torch.get_num_threads() * lanes + rows * wide + (q.numel() * q.element_size() if heads > 1 else 0)
    halves = scores * q.element_size() if q.element_size() < wide else 0
    return torch.get_num_threads() * ((scores + 2 * rows + rows * q.shape[3]) * wide + halves)


def scored(x: Tensor, heads: int) -> int:
    """Queries, keys and values of all places, and the scores of each place with each, for each head."""
    return (3 * x.numel() + x.shape[0] * heads * x.shape[1] ** 2) * x.element_size()
