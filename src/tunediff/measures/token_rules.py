"""Words around a token, or its place -> how well they tell a label without any model.

A rule is some discrete features of each token. Each value of a feature has the rate of the label where it was seen, smoothed
towards the rate over all tokens by so many imagined sightings, and the logarithms of their odds are added up (naive Bayes). Rule and
smoothing are chosen as a model's would be: by what is reached on folds that they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.measures.separation import auroc

SMOOTHING = (1.0, 10.0, 100.0)  # imagined sightings
Rule = Sequence[Tensor]  # features [token, n] of whole numbers from 0; the n of one feature share their rates


class FittedRule(NamedTuple):
    """The rule that was chosen: its name, its smoothing, and its scores [token] for all tokens."""

    name: str
    smoothing: float
    scores: Tensor


def scores_of(rule: Rule, truth: Tensor, fit_on: Tensor, smoothing: float) -> Tensor:
    """Scores [token] of a rule with the rates of the tokens `fit_on` [token] bool."""
    prior = truth[fit_on].double().mean().clamp(1e-6, 1 - 1e-6)
    found = torch.zeros(len(truth), dtype=torch.float64)
    for feature in rule:
        size, seen_at = int(feature.max()) + 1, feature[fit_on]
        labelled = truth[fit_on].double()[:, None].expand_as(seen_at)
        seen = torch.bincount(seen_at.flatten(), minlength=size).double()
        hits = torch.bincount(seen_at.flatten(), weights=labelled.flatten(), minlength=size)
        odds = ((hits + smoothing * prior) / (seen + smoothing)).logit() - prior.logit()
        found += odds[feature].sum(1)
    return found


def best_rule(rules: Mapping[str, Rule], truth: Tensor, select: Tensor, fold: Tensor) -> FittedRule:
    """The rule and smoothing with the highest AUROC on held-out folds [token] of the tokens `select` [token] bool, fitted on
    all of these."""
    best, found = -1.0, None
    for name, rule in rules.items():
        for smoothing in SMOOTHING:
            held_out = torch.zeros(len(truth), dtype=torch.float64)
            for one in fold[select].unique().tolist():
                held_out[fold == one] = scores_of(rule, truth, select & (fold != one), smoothing)[fold == one]
            reached = float(auroc(held_out[select][None], truth[select])[0])
            if reached > best:
                best, found = reached, (name, smoothing, rule)
    assert found is not None, "some rule was given"
    name, smoothing, rule = found
    return FittedRule(name, smoothing, scores_of(rule, truth, select, smoothing))
