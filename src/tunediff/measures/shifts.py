"""Labels at other places of their documents -> what chance reaches: the best column, and each.

A label comes in stretches, and some documents have more of it than others: shuffled over all tokens it would lose both, and
what is left to beat would be too little. So the labels of every document are shifted round within it, all by one random number of
tokens (a circular shift, the block permutation of a series that keeps its runs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from tunediff import randomness
from tunediff.measures.separation import ActiveScores, DenseScores

AT_ONCE = 25  # draws


class Chance(NamedTuple):
    """AUROCs for shifted labels of the tested tokens.

    best    [draw] of the column that was best for shifted labels of the choosing half      every   [column, draw]
    """

    best: Tensor
    every: Tensor

    def p_value(self, reached: float) -> float:
        """Share of the draws that reach as much by the same choice, the observation counted as one of them."""
        return float(((self.best >= reached).sum() + 1) / (len(self.best) + 1))

    def p_values(self, reached: Tensor) -> Tensor:
        """One-sided p-values [column]: each AUROC is measured from the mean of its own draws in their deviations, and compared
        with the draws of all columns together (the pooled permutation null of Storey and Tibshirani 2003, PNAS 100, 9440). A
        column that no shift moves has 1."""
        mean, deviation = self.every.mean(1), self.every.std(1)
        moves = deviation > 1e-9
        null = ((self.every - mean[:, None]) / deviation[:, None])[moves].flatten().sort().values
        as_much = len(null) - torch.searchsorted(null, (reached - mean) / deviation)
        return torch.where(moves, (as_much + 1).double() / (len(null) + 1), 1.0)


def shifted(truth: Tensor, document: Tensor, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields labels [token, draw] shifted round within documents, some draws at a time. Tokens of a document follow one
    another, whatever stands between them."""
    order = document.argsort(stable=True)
    counts = document.unique(return_counts=True)[1]
    which = torch.repeat_interleave(torch.arange(len(counts)), counts)
    start = (counts.cumsum(0) - counts)[which]
    place = torch.arange(len(order)) - start
    labels = truth[order]
    for first in range(0, draws, AT_ONCE):
        some = min(AT_ONCE, draws - first)
        offset = (torch.rand(len(counts), some, generator=generator) * counts[:, None]).long()[which]
        found = torch.empty(len(order), some, dtype=torch.bool)
        found[order] = labels[start[:, None] + (place[:, None] + offset) % counts[which][:, None]]
        yield found


def chance(
    first: ActiveScores | DenseScores,
    second: ActiveScores | DenseScores,
    chosen_on: tuple[Tensor, Tensor],
    tested_on: tuple[Tensor, Tensor],
    draws: int,
) -> Chance:
    """The AUROCs of shifted labels by the choice of the best column: `chosen_on` and `tested_on` are labels and documents
    [token] of either half, `first` and `second` its scores."""
    best, every = [], []
    halves = (
        shifted(*chosen_on, draws, randomness.generator(0, "shifts of the choosing half")),
        shifted(*tested_on, draws, randomness.generator(0, "shifts of the tested half")),
    )
    for labels, others in zip(*halves, strict=True):
        chosen, reached = first.auroc(labels).argmax(0), second.auroc(others)
        best.append(reached.gather(0, chosen[None])[0])
        every.append(reached)
    return Chance(torch.cat(best), torch.cat(every, dim=1))


def discoveries(p_values: Tensor) -> Tensor:
    """Benjamini and Hochberg's adjusted p-values (1995) of these, whatever their shape: calling all below 0.05 has a false
    discovery rate of at most 5 %."""
    return torch.from_numpy(false_discovery_control(p_values.flatten().numpy())).view_as(p_values)


def claims(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order of these: calling all below 0.05 has a chance of at most 5 % of any false
    call."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = largest
    return adjusted
