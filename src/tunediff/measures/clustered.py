"""Sums over the tokens of each document -> a number and its interval, with whole documents as the units of chance.

Tokens of one document are not independent, so that an interval which counts tokens is far too narrow. Here every
document gives one number, its influence on the value, and the interval is that of their sum: the clustered standard
error of Miller 2024 (arXiv 2411.00640, "Clustered standard errors") for clusters of unequal size, with the small-sample factor
D / (D - 1) and Student's t at D - 1 degrees of freedom for D documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

# a value, its lower and its upper bound, as a finding has them
Bounded = tuple[float | None, float | None, float | None]


class DocumentSums:
    """Sums over the tokens of every document, in the order in which documents are first met. A document may go on in the
    next batch."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def documents(self) -> list[int]:
        """Indices of the documents."""
        return list(self._sums)

    def add(self, rows: Tensor, documents: Tensor) -> None:
        """Adds rows [token, ...] of tokens of these documents [token]."""
        self.merge(by_document(rows, documents))

    def merge(self, sums: Mapping[int, Tensor]) -> None:
        """Adds sums of whole documents."""
        for document, part in sums.items():
            self._sums[document] = self._sums[document] + part if document in self._sums else part

    def stacked(self) -> Tensor:
        """Sums [document, ...] of all documents."""
        return torch.stack(list(self._sums.values()))


def by_document(rows: Tensor, documents: Tensor) -> dict[int, Tensor]:
    """Index of a document -> sum [...] of its rows, from rows [token, ...] of tokens of these documents [token]."""
    return {document: rows[documents == document].sum(0) for document in documents.unique().tolist()}


class Estimate(NamedTuple):
    """A number that documents have given, in float64; means of such numbers over the same documents are taken entry by
    entry, on both fields.

    value       [...]             influence   [document, ...], what each document adds to value - its expectation
    """

    value: Tensor
    influence: Tensor

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference of two numbers over the same documents: it pairs them."""
        return Estimate(self.value - other.value, self.influence - other.influence)

    def __rsub__(self, constant: float) -> Estimate:
        return Estimate(constant - self.value, -self.influence)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lower and upper bound [...] of the confidence interval at a level such as 0.99; NaN for fewer than two documents."""
        documents = len(self.influence)
        if documents < 2:
            return torch.full_like(self.value, torch.nan), torch.full_like(self.value, torch.nan)
        error = (self.influence.square().sum(0) * documents / (documents - 1)).sqrt()
        reach = float(stdtrit(documents - 1, 0.5 + level / 2)) * error
        return self.value - reach, self.value + reach

    def bounded(self, level: float = 0.95, *, least: float = -inf, most: float = inf) -> Bounded:
        """Value and confidence interval of a finding, None where they are not defined; bounds are clamped to what the measure
        can be, from `least` to `most`."""
        low, high = self.interval(level)
        return number(self.value), number(low.clamp(min=least)), number(high.clamp(max=most))


def interval_columns(name: str, bounded: Bounded) -> dict[str, float | None]:
    """A value and its bounds as the columns <name>, <name>_low and <name>_high of a table."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), bounded, strict=True))


def number(value: Tensor) -> float | None:
    """The value of a finding: None where it is not defined, such as a rate over no token."""
    return float(value) if torch.isfinite(value) else None


def ratio(sums: Tensor, counts: Tensor) -> Estimate:
    """The sum of `sums` [document, ...] divided by the sum of `counts` [document, ...]: a mean over tokens where `counts` are
    tokens. Trailing axes broadcast."""
    total = counts.sum(0)
    value = sums.sum(0) / total
    return Estimate(value, (sums - value * counts) / total)


@torch.enable_grad()
def of_sums(measure: Callable[[Mapping[str, Tensor]], Tensor], sums: Tensor, names: Sequence[str]) -> Estimate:
    """One number that `measure` makes of named sums over all documents, of sums [document, name]. The influence of a
    document is its sums times the derivative of the measure (the delta method), which for a ratio is what `ratio` gives."""
    totals = sums.sum(0).requires_grad_()
    value = measure(dict(zip(names, totals, strict=True)))
    (slope,) = torch.autograd.grad(value, totals)
    used = slope != 0  # a sum that the measure does not take may be undefined
    return Estimate(value.detach(), sums[:, used] @ slope[used])


def mean_of(values: Tensor, *, least: float, most: float) -> Bounded:
    """Mean of independent values [n], each from `least` to `most`, with its 95 % confidence interval; None for what so few
    do not give."""
    if not len(values):
        return None, None, None
    return ratio(values.double(), torch.ones(len(values), dtype=torch.float64)).bounded(least=least, most=most)
