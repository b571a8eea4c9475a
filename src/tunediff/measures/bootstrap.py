"""Percentile bootstrap over documents: the interval of a ratio of sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def bootstrap(
    stacked: Tensor, ratio: Callable, resamples: int, names: Sequence[str]
) -> tuple[float | None, float | None]:
    """95 % interval of a ratio of sums over documents [document, names]; nothing for fewer than two documents."""
    if len(stacked) < 2:
        return None, None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(stacked), (resamples, len(stacked)), generator=generator)
    weights = torch.zeros(resamples, len(stacked), dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )
    values = ratio(dict(zip(names, (weights @ stacked).T, strict=True)))
    values = values[torch.isfinite(values)]
    if len(values) < resamples / 2:
        return None, None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(low), float(high)
