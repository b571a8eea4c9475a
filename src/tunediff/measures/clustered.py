"""A ratio of sums over tokens -> its value and its interval, with whole documents as the units of chance.

Tokens of one document are not independent, so that an interval which counts tokens is far too narrow. Here every
document gives one number, its influence on the ratio, and the interval is that of their sum: the clustered standard
error of Miller 2024 (arXiv 2411.00640, "Clustered standard errors") for clusters of unequal size, with the small-sample factor
D / (D - 1) and Student's t at D - 1 degrees of freedom for D documents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor


class Estimate(NamedTuple):
    """A number that documents have given, in float64; differences and means of such numbers over the same documents are
    taken entry by entry, on both fields.

    value       [...]             influence   [document, ...], what each document adds to value - its expectation
    """

    value: Tensor
    influence: Tensor

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bound [...] at a level such as 0.99; not a number for fewer than two documents."""
        documents = len(self.influence)
        if documents < 2:
            return torch.full_like(self.value, torch.nan), torch.full_like(self.value, torch.nan)
        error = (self.influence.square().sum(0) * documents / (documents - 1)).sqrt()
        reach = float(stdtrit(documents - 1, 0.5 + level / 2)) * error
        return self.value - reach, self.value + reach

    def bounded(self, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
        """Of one number: its value and both bounds as a finding has them, None where they are not defined."""
        return number(self.value), *map(number, self.interval(level))


def number(value: Tensor) -> float | None:
    """None where it is not defined, such as a rate over no token."""
    return float(value) if torch.isfinite(value) else None


def ratio(sums: Tensor, counts: Tensor) -> Estimate:
    """sum of `sums` [document, ...] over the sum of `counts` [document, ...], both over documents: a mean over tokens
    where `counts` are tokens. Trailing axes broadcast."""
    total = counts.sum(0)
    value = sums.sum(0) / total
    return Estimate(value, (sums - value * counts) / total)


def mean_of(values: Tensor) -> tuple[float | None, float | None, float | None]:
    """Mean of independent values [n] with its 95 % interval; None for what so few do not give."""
    if not len(values):
        return None, None, None
    return ratio(values.double(), torch.ones(len(values), dtype=torch.float64)).bounded()
