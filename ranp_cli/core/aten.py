"""What torch itself says of an op, by its schema, tags and kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

MOVES = set(  # without a rule; they move, pick, compare or add up numbers and multiply none
    "aten.allclose aten.bincount aten.block_diag aten.bucketize aten.cummax aten.cummin aten.diagonal_scatter "
    "aten.embedding_bag aten._embedding_bag aten._embedding_bag_forward_only aten.gather aten.histc aten.index_add "
    "aten.index_copy aten.index_fill aten.index_put aten.index_reduce aten.isin aten._linalg_check_errors "
    "aten.masked_scatter aten.masked_select aten.multinomial aten.nonzero aten.put aten.rot90 aten.scatter "
    "aten.scatter_add aten.scatter_reduce aten.searchsorted aten.select_scatter aten.slice_scatter aten.take aten.trace "
    "aten._unique2 aten.unique_consecutive aten.unique_dim".split()
)


@cache
def op_name(func: Any) -> str:
    """`aten.relu_.default` -> `aten.relu`: the overloads and the in-place form share a rule."""
    name = func._schema.name.replace("::", ".")
    result: str = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return result


@cache
def is_composite(func: Any) -> bool:
    """Is the op made of other ops, and has it no kernel of its own?"""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def costs_nothing(func: Any) -> bool:
    """Of an op without a rule: is it a view, element-wise by torch's own word, or one that only moves numbers?"""
    return shares_memory(func) or torch.Tag.pointwise in func.tags or op_name(func) in MOVES


def shares_memory(func: Any) -> bool:
    """Is the first output a view of an input, not written to?"""
    returns = func._schema.returns
    info = returns[0].alias_info if returns else None
    return bool(info and (not info.is_write or func._schema.name == "aten::as_strided_"))  # that writes no element


def writes(func: Any, k: int) -> bool:
    returns = func._schema.returns
    info = returns[min(k, len(returns) - 1)].alias_info if returns else None
    return bool(info and info.is_write)


@cache
def writes_any(func: Any) -> bool:
    """Does the op write to one of its arguments?"""
    return any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
