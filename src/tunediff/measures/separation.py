"""Separation of labelled tokens from the rest by scores: AUROC and average precision of many columns at once, with intervals.

Knows no model and no text; what chance reaches stands in shifts.py. Of latents only the active values are kept, so that a million tokens of a sparse dictionary fit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import scipy.sparse
import torch
from scipy.special import betaincinv, stdtrit
from torch import Tensor

from tunediff.measures.clustered import Bounded, Estimate, ratio

FEW = 5  # documents that carry an error, below which it says little about itself


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

    def of_latents(self, first: int, last: int) -> ActiveScores:
        """The scores of latents `first` to `last` - 1 alone."""
        here = ~self.is_zeros & (self.latent >= first) & (self.latent < last)
        kept = self.token[here], self.latent[here] - first, self.value[here]
        return ActiveScores(*kept, tokens=self.tokens, latents=last - first)

    def column(self, latent: int) -> Tensor:
        """Scores [token] of one latent."""
        here = (self.latent == latent) & ~self.is_zeros
        return torch.zeros(self.tokens).index_copy_(0, self.token[here], self.value[here])

    def auroc(self, truth: Tensor) -> Tensor:
        """AUROC [latent] for labels [token], or [latent, draw] for several [token, draw]: the chance that a labelled token
        outranks an unlabelled one, ties counted half (Mann-Whitney)."""
        given = truth.double().reshape(len(truth), -1)
        labelled = given.sum(0)
        over, of_zeros = self._ranks
        ranks = torch.from_numpy(over @ given.numpy()) + of_zeros[:, None] * labelled
        found = (ranks - labelled * (labelled + 1) / 2) / (labelled * (self.tokens - labelled))
        return found.float().reshape(self.latents, *truth.shape[1:])

    def influences(self, truth: Tensor, document: Tensor) -> Estimate:
        """AUROC of each latent, and what each document adds to it, of labels and documents [token] (Obuchowski 1997,
        Biometrics 53, "Nonparametric analysis of clustered ROC curve data"): the placements of its tokens among those of the
        other kind, less their mean."""
        hits, labelled = self._hits(truth)
        misses, rest = self.size - hits, self.tokens - labelled
        over = (
            rest - self._within(misses) + misses / 2
        ) / rest  # of a labelled token: the share of the others below it
        under = (self._within(hits) - hits / 2) / labelled  # of another: the share of the labelled above it
        value = self._by_latent(hits * over) / labelled
        zeros = self.group[self.is_zeros]  # in the order of the latents
        names, which = document.unique(return_inverse=True)
        counts = torch.bincount(which, weights=truth.double(), minlength=len(names)) / labelled
        others = torch.bincount(which, weights=(~truth).double(), minlength=len(names)) / rest
        found = torch.outer(counts, over[zeros] - value) + torch.outer(others, under[zeros] - value)
        active = ~self.is_zeros
        token, latent, group = self.token[active], self.latent[active], self.group[active]
        above = torch.where(
            truth[token],
            (over[group] - over[zeros][latent]) / labelled,
            (under[group] - under[zeros][latent]) / rest,
        )
        found.index_put_((which[token], latent), above, accumulate=True)
        return Estimate(value, found)

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

    @functools.cached_property
    def _ranks(self) -> tuple[scipy.sparse.csr_array, Tensor]:
        """Ranks from 1, ties at their mean: [latent, token] of the active scores, less that of the zeros [latent]."""
        ranks = (self.tokens - self._within(self.size) + (self.size + 1) / 2)[self.group]
        of_zeros, active = ranks[self.is_zeros], ~self.is_zeros
        latent, token = self.latent[active], self.token[active]
        over = (ranks[active] - of_zeros[latent], (latent.numpy(), token.numpy()))
        return scipy.sparse.csr_array(over, shape=(self.latents, self.tokens)), of_zeros

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
        """AUROC [column] for labels [token], or [column, draw] for several [token, draw]."""
        labelled, rest = truth.sum(0), (~truth).sum(0)
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


def separation(column: Tensor, truth: Tensor, document: Tensor) -> Bounded:
    """AUROC of one score [token] with its 95 % confidence interval over documents [token]."""
    found = ActiveScores.of([column[:, None]], 1).influences(truth, document)
    low, high = interval(found, min(len(document[side].unique()) for side in (truth, ~truth)))
    return float(found.value[0]), float(low[0]), float(high[0])


def within_documents(column: Tensor, truth: Tensor, document: Tensor) -> tuple[Bounded, int]:
    """AUROC of one score [token] over pairs of tokens of the same document alone, with its 95 % confidence interval over
    documents, and the number of documents that have both kinds. A document of L labelled and R other tokens weighs
    L R / (L + R + 1), as a stratum does in the test of van Elteren 1960 (Bulletin of the International Statistical
    Institute 37)."""
    reached, weights = [], []
    order = document.argsort(stable=True)
    for here in order.split(document.unique(return_counts=True)[1].tolist()):
        labelled, rest = int(truth[here].sum()), int((~truth[here]).sum())
        if labelled and rest:
            reached.append(float(auroc(column[here][None], truth[here])[0]))
            weights.append(labelled * rest / (labelled + rest + 1))
    if not reached:
        return (None, None, None), 0
    weight = torch.tensor(weights, dtype=torch.float64)
    found = ratio(torch.tensor(reached, dtype=torch.float64) * weight, weight)
    low, high = interval(found, len(reached))
    return (float(found.value), float(low), float(high)), len(reached)


def interval(found: Estimate, documents: int, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Confidence interval of AUROCs over so many documents: Student's t on the logit scale (Pepe 2003, The Statistical
    Evaluation of Medical Tests, 5.2), on which it stays between 0 and 1. Its degrees of freedom are the number of documents
    that carry the error, (sum e^2)^2 / sum e^4 of what each adds (the effective number of clusters of Carter, Schnepel and
    Steigerwald 2017, Review of Economics and Statistics 99:698): of a sparse latent a few do. Where fewer than FEW documents carry the error, as
    where nothing is ranked wrongly, it reaches at least as far as the exact interval of a share of so many documents (Clopper
    and Pearson 1934): none has a width of zero."""
    value = found.value
    if documents < 2:
        return torch.zeros_like(value), torch.ones_like(value)
    squares = found.influence.square()
    error = (squares.sum(0) * documents / (documents - 1)).sqrt()
    inside = value.clamp(1e-12, 1 - 1e-12)
    carry = squares.sum(0).square() / squares.square().sum(0).clamp(min=1e-300)
    quantile = torch.as_tensor(stdtrit(carry.clamp(1, documents - 1).numpy(), 0.5 + level / 2))
    reach = quantile * error / (inside * (1 - inside))
    low, high = (inside.logit() - reach).sigmoid(), (inside.logit() + reach).sigmoid()
    few = (carry < FEW) | (squares.sum(0).sqrt() < 1e-9)  # below it an error is rounding
    ranked, wrong = (
        value * documents,
        (1 - value) * documents,
    )  # of so many documents, as if each were all right or all wrong
    tail = 0.5 - level / 2
    least = torch.as_tensor(betaincinv(ranked.clamp(min=1e-9).numpy(), (wrong + 1).numpy(), tail))
    most = torch.as_tensor(betaincinv((ranked + 1).numpy(), wrong.clamp(min=1e-9).numpy(), 1 - tail))
    low, high = torch.where(few, torch.minimum(low, least), low), torch.where(few, torch.maximum(high, most), high)
    return torch.minimum(low, value), torch.maximum(high, value)
