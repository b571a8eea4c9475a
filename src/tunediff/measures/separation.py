"""Separation of labelled tokens from the rest by scores: AUROC and average precision of many columns at once, with intervals.

Knows no model and no text. Of latents only the active values are kept, so that a million tokens of a sparse dictionary fit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from tunediff import randomness


class ActiveScores:
    """Scores [token, latent] of which most are zero, sorted once and asked for many labels, shuffled ones too.

    token, latent, value  [n]: place and value of each score that is not zero; negative ones rank below the zeros
    """

    def __init__(self, token: Tensor, latent: Tensor, value: Tensor, *, tokens: int, latents: int):
        self.tokens, self.latents = tokens, latents
        # one entry for all zeros of a latent, of token -1
        every = torch.arange(latents)
        token = torch.cat([token, torch.full_like(every, -1)])
        latent, value = torch.cat([latent, every]), torch.cat([value.float(), torch.zeros(latents)])
        order = torch.argsort(value, descending=True, stable=True)
        order = order[torch.argsort(latent[order], stable=True)]
        self.token, self.latent, self.value = token[order], latent[order], value[order]
        begins = torch.ones(len(order), dtype=torch.bool)  # of values that are equal
        begins[1:] = (self.latent[1:] != self.latent[:-1]) | (self.value[1:] != self.value[:-1])
        self.group = begins.cumsum(0) - 1
        self.group_latent = self.latent[begins]
        self.is_zeros = self.token < 0
        weights = torch.ones(len(order), dtype=torch.float64)
        weights[self.is_zeros] = (tokens + 1 - torch.bincount(self.latent, minlength=latents)).double()
        self.size = self._by_group(weights)

    @classmethod
    def of(cls, blocks: Iterable[Tensor], latents: int) -> ActiveScores:
        """The scores of blocks [token, latent], one after the other."""
        places, values, tokens = [torch.empty(0, 2, dtype=torch.long)], [torch.empty(0)], 0
        for block in blocks:
            found = block.nonzero()
            values.append(block[found[:, 0], found[:, 1]].cpu())
            places.append(found.cpu() + torch.tensor([tokens, 0]))
            tokens += len(block)
        place = torch.cat(places)
        return cls(place[:, 0], place[:, 1], torch.cat(values), tokens=tokens, latents=latents)

    def of_tokens(self, chosen: Tensor) -> ActiveScores:
        """The scores of the tokens of a mask [token] alone."""
        here = ~self.is_zeros & chosen[self.token]
        number = chosen.cumsum(0) - 1
        return ActiveScores(
            number[self.token[here]],
            self.latent[here],
            self.value[here],
            tokens=int(chosen.sum()),
            latents=self.latents,
        )

    def column(self, latent: int) -> Tensor:
        """Scores [token] of one latent."""
        here = (self.latent == latent) & ~self.is_zeros
        return torch.zeros(self.tokens).index_copy_(0, self.token[here], self.value[here])

    def auroc(self, truth: Tensor) -> Tensor:
        """AUROC [latent]: the chance that a labelled token outranks an unlabelled one, ties counted half (Mann-Whitney)."""
        hits, labelled = self._hits(truth)
        misses, rest = self.size - hits, self.tokens - labelled
        below = rest - self._within(misses) + misses / 2
        return self._by_latent(hits * below).div(labelled * rest).float()

    def average_precision(self, truth: Tensor) -> Tensor:
        """Average precision [latent]: the precision at each distinct score, from the highest down, weighted by the recall it adds."""
        hits, labelled = self._hits(truth)
        precision = self._within(hits) / self._within(self.size)
        return self._by_latent(hits * precision).div(labelled).float()

    def _hits(self, truth: Tensor) -> tuple[Tensor, int]:
        """Labelled tokens in every group of equal scores, and all of them."""
        labelled, marks = int(truth.sum()), truth.double()[self.token]
        marks[self.is_zeros] = 0.0
        found = torch.zeros(self.latents, dtype=torch.float64).index_add_(0, self.latent, marks)
        marks[self.is_zeros] = labelled - found
        return self._by_group(marks), labelled

    def _by_group(self, values: Tensor) -> Tensor:
        return torch.zeros(len(self.group_latent), dtype=torch.float64).index_add_(0, self.group, values)

    def _by_latent(self, values: Tensor) -> Tensor:
        return torch.zeros(self.latents, dtype=torch.float64).index_add_(0, self.group_latent, values)

    def _within(self, values: Tensor) -> Tensor:
        """Running sums of a latent's groups, from its highest score down."""
        whole, totals = values.cumsum(0), self._by_latent(values).cumsum(0)
        return whole - torch.cat([totals.new_zeros(1), totals[:-1]])[self.group_latent]


class DenseScores:
    """Scores [column, token] of which many are not zero, ranked once and asked for many labels, shuffled ones too."""

    def __init__(self, values: Tensor):
        self.values = values

    def of_tokens(self, chosen: Tensor) -> DenseScores:
        """The scores of the tokens of a mask [token] alone."""
        return DenseScores(self.values[:, chosen])

    def column(self, number: int) -> Tensor:
        """Scores [token] of one column."""
        return self.values[number]

    def auroc(self, truth: Tensor) -> Tensor:
        """AUROC [column]."""
        labelled, rest = truth.sum(), (~truth).sum()
        return ((self._ranks @ truth.double() - labelled * (labelled + 1) / 2) / (labelled * rest)).float()

    @functools.cached_property
    def _ranks(self) -> Tensor:
        return torch.cat([average_ranks(some).double() for some in self.values.split(64)])


def average_ranks(values: Tensor) -> Tensor:
    """Ranks [column, token] from 1, ties at their mean."""
    values = values.contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).float() / 2


def auroc(scores: Tensor, truth: Tensor) -> Tensor:
    """AUROC [column] of dense scores [column, token]."""
    return DenseScores(scores).auroc(truth)


def shuffled_auroc(
    first: ActiveScores | DenseScores,
    second: ActiveScores | DenseScores,
    chosen_on: Tensor,
    tested_on: Tensor,
    shuffles: int,
) -> Tensor:
    """AUROC [shuffle] on one half, of the column that is best for shuffled labels of the other: the permutation null of a
    column that was chosen. `chosen_on` and `tested_on` [token] bool are the labels of either half."""
    generator = randomness.generator(0, "shuffled labels")
    found, columns = [], {}
    for _ in range(shuffles):
        shuffled, other = (t[torch.randperm(len(t), generator=generator)] for t in (chosen_on, tested_on))
        best = int(first.auroc(shuffled).argmax())
        if best not in columns:
            columns[best] = second.column(best)
        found.append(auroc(columns[best][None], other)[0])
    return torch.stack(found)


def rule_auroc(values: Tensor, truth: Tensor, select: Tensor, test: Tensor) -> tuple[float, float]:
    """AUROC on `select` and on `test` of the rate of the label given the value [token], which is learned on `select`."""
    size = int(values.max()) + 1
    seen = torch.bincount(values[select], minlength=size).double()
    hits = torch.bincount(values[select], weights=truth[select].double(), minlength=size)
    prior = truth[select].double().mean()
    score = ((hits + prior) / (seen + 1))[values]
    chosen_on, tested = (float(auroc(score[side][None], truth[side])[0]) for side in (select, test))
    return chosen_on, tested


def delong_interval(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """95 % confidence interval of an AUROC (DeLong, DeLong and Clarke-Pearson 1988), taking tokens as independent."""
    labelled, rest = scores[truth].double(), scores[~truth].double()

    def placement(values: Tensor, against: Tensor) -> Tensor:
        ordered = against.sort().values
        twice = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)  # ties count half
        return twice / 2 / len(against)

    over, under = placement(labelled, rest), placement(rest, labelled)
    error = (over.var() / len(over) + under.var() / len(under)).sqrt()
    middle = over.mean()
    return float((middle - 1.96 * error).clamp(min=0)), float((middle + 1.96 * error).clamp(max=1))
