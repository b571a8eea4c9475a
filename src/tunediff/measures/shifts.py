"""Labels at other places, and of other documents -> what chance reaches: the best column, and each.

A label comes in stretches, and some documents have more of it than others: shuffled over all tokens it would lose both, and
what is left to beat would be too little. It also has its places, such as never at the start and always before the answer,
which a latent of those places tells without knowing the label. No one null keeps all of this, so that there are two, and
what is found must beat both:

    shifted     the labels of every document are shifted round within it, all by one random number of tokens (a circular shift,
                the block permutation of a series that keeps its runs): keeps how much of the label a document has
    exchanged   documents of the same segments and of like length take over each other's labels, one in ALIKE its own, segment by segment at
                the same share of its tokens: keeps where in a document the label is, and that documents are the units of chance

Shifts alone call labels found that only have their places; bench/nulls.py counts how many.
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
ALIKE = 5  # documents of like length that exchange their labels


class Track(NamedTuple):
    """A label: its flags, and of each token the document and the segment [token]."""

    truth: Tensor
    document: Tensor
    segment: Tensor


class Chance(NamedTuple):
    """AUROCs for labels of the tested tokens that are shifted, and exchanged; of both the stricter counts.

    best    [null, draw] of the column that was best for such labels of the choosing half      every   [null, column, draw]
    """

    best: Tensor
    every: Tensor

    @property
    def mean(self) -> float:
        """The mean of what chance reaches."""
        return float(self.best.mean(1).max())

    @property
    def p95(self) -> float:
        """Its 95 % quantile."""
        return float(self.best.quantile(0.95, dim=1).max())

    def p_value(self, reached: float) -> float:
        """Share of the draws that reach as much by the same choice, the observation counted as one of them."""
        return float(((self.best >= reached).sum(1).max() + 1) / (self.best.shape[1] + 1))

    def p_values(self, reached: Tensor) -> Tensor:
        """One-sided p-values [column]: each AUROC is measured from the mean of its own draws in their deviations, and compared
        with the draws of all columns together (the pooled permutation null of Storey and Tibshirani 2003, PNAS 100, 9440). A
        column that no draw moves has 1."""
        return torch.stack([_pooled(draws, reached) for draws in self.every]).amax(0)


def _pooled(draws: Tensor, reached: Tensor) -> Tensor:
    mean, deviation = draws.mean(1), draws.std(1)
    moves = deviation > 1e-9
    null = ((draws - mean[:, None]) / deviation[:, None])[moves].flatten().sort().values
    as_much = len(null) - torch.searchsorted(null, (reached - mean) / deviation)
    return torch.where(moves, (as_much + 1).double() / (len(null) + 1), 1.0)


def shifted(track: Track, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields labels [token, draw] shifted round within documents, some draws at a time. Tokens of a document follow one
    another, whatever stands between them."""
    order = track.document.argsort(stable=True)
    counts = track.document.unique(return_counts=True)[1]
    which = torch.repeat_interleave(torch.arange(len(counts)), counts)
    start = (counts.cumsum(0) - counts)[which]
    place = torch.arange(len(order)) - start
    labels = track.truth[order]
    for some in _some(draws):
        offset = (torch.rand(len(counts), some, generator=generator) * counts[:, None]).long()[which]
        found = torch.empty(len(order), some, dtype=torch.bool)
        found[order] = labels[start[:, None] + (place[:, None] + offset) % counts[which][:, None]]
        yield found


def exchanged(track: Track, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields labels [token, draw] of other documents, some draws at a time: one that has the same segments, among those of like
    length. A token takes over the flag that lies at its share of the segment."""
    segment = track.segment.long()
    segments = int(segment.max()) + 1
    order = (track.document * segments + segment).argsort(stable=True)
    documents, which = track.document[order].unique(return_inverse=True)
    labels, segment = track.truth[order], segment[order]
    counts = torch.zeros(len(documents), segments, dtype=torch.long)
    counts.index_put_((which, segment), torch.ones_like(which), accumulate=True)
    start = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    share = (torch.arange(len(order)) - start[which, segment] + 0.5) / counts[which, segment]
    sorted_by, group = alike(counts)
    for some in _some(draws):
        drawn = (group[:, None] + torch.rand(len(group), some, generator=generator, dtype=torch.float64)).argsort(0)
        source = torch.empty_like(drawn)
        source[sorted_by] = sorted_by[drawn]
        of = source[which], segment[:, None]
        found = torch.empty(len(order), some, dtype=torch.bool)
        found[order] = labels[start[of] + (share[:, None] * counts[of]).long()]
        yield found


def alike(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Documents in an order in which those of the same segments and of like length stand together, and the number of the group
    of each [document] in that order; of their tokens [document, segment]."""
    kind = (counts > 0).unique(dim=0, return_inverse=True)[1]
    by_length = counts.sum(1).argsort(stable=True)
    order = by_length[kind[by_length].argsort(stable=True)]
    sizes = kind.unique(return_counts=True)[1]
    group, so_far = [], 0
    for size in sizes.tolist():
        groups = max(1, round(size / ALIKE))
        group.append(so_far + torch.arange(size) * groups // size)
        so_far += groups
    return order, torch.cat(group)


def _some(draws: int) -> Iterator[int]:
    for first in range(0, draws, AT_ONCE):
        yield min(AT_ONCE, draws - first)


def chance(
    first: ActiveScores | DenseScores,
    second: ActiveScores | DenseScores,
    chosen_on: Track,
    tested_on: Track,
    draws: int,
) -> Chance:
    """The AUROCs of labels that mean nothing, by the choice of the best column: of the labels of either half and its scores,
    `first` and `second`, so many draws of each null."""
    nulls = (
        (
            shifted(chosen_on, draws, randomness.generator(0, "shifts of the choosing half")),
            shifted(tested_on, draws, randomness.generator(0, "shifts of the tested half")),
        ),
        (
            exchanged(chosen_on, draws, randomness.generator(0, "exchanges of the choosing half")),
            exchanged(tested_on, draws, randomness.generator(0, "exchanges of the tested half")),
        ),
    )
    best, every = [], []
    for halves in nulls:
        for labels, others in zip(*halves, strict=True):
            chosen, reached = first.auroc(labels).argmax(0), second.auroc(others)
            best.append(reached.gather(0, chosen[None])[0])
            every.append(reached)
    return Chance(torch.cat(best).view(2, draws), torch.cat(every, dim=1).unflatten(1, (2, draws)).transpose(0, 1))


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
