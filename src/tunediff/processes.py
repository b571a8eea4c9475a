"""Sums over the processes that train one dictionary together. With one process every function gives back what it got."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if count() > 1 else 0


def summed(values: Tensor) -> Tensor:
    return _reduced(values, "SUM")


def smallest(values: Tensor) -> Tensor:
    return _reduced(values, "MIN")


def any_of(flags: Tensor) -> Tensor:
    """[...] bool: whether it is true in one of them."""
    return flags if count() == 1 else _reduced(flags.int(), "MAX").bool()


def _reduced(values: Tensor, operation: str) -> Tensor:
    if count() == 1:
        return values
    values = values.contiguous().clone()
    dist.all_reduce(values, op=getattr(dist.ReduceOp, operation))
    return values


def kth_largest(scores: Tensor, kept: int) -> Tensor:
    """The `kept`-th largest of the flat scores of all processes; the smallest where there are fewer."""
    here = min(kept, scores.numel())
    largest = torch.topk(scores, here, sorted=False).values
    if count() == 1:
        return largest.min()
    mine = torch.full((kept,), -torch.inf, device=scores.device, dtype=scores.dtype)
    mine[:here] = largest
    everyone = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(everyone, mine)
    return torch.cat(everyone).topk(kept).values[-1]
