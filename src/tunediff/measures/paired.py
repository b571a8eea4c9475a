"""Right and wrong answers to the same problems -> what two models differ by, what an adapter recovers, and what a budget of
tokens buys, with intervals. Knows no model, tokenizer or benchmark; the units of chance are problems.

McNemar 1947 (Psychometrika 12:153), exact, and Newcombe 1998 (Statistics in Medicine 17:2635, method 10) for two models on
the same problems; Fieller's interval (clustered.py) for what is recovered; slopes, areas and the largest accuracy of a curve
are means over problems of numbers with bounds (shares.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr  # scipy.stats takes 0.4 s to import

from tunediff.measures.clustered import quotient, ratio
from tunediff.measures.shares import mean_of, wilson
from tunediff.shapes import Refused


class Interval(NamedTuple):
    """A number and its confidence interval, whose ends are None where no two problems differ."""

    value: float
    low: float | None
    high: float | None


class Paired(NamedTuple):
    """Problems that only the first or only the second solved, and the chance of a split at least as uneven."""

    only_first: int
    only_second: int
    p: float


class Recovered(NamedTuple):
    """The share of a change that an adapter recovers: 0 where it is the base, 1 where it is the fully tuned model.

    share    recovered share with its confidence interval; None where the change cannot be told from none
    change   mean of full less base
    """

    share: Interval | None
    change: float


# -- two models ------------------------------------------------------------------------------------------------------


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """The exact two-sided test that two models solve equally many of the same problems: of those that one alone solves,
    half fall to each. p is 1 where there are none."""
    _, only_first, only_second, _ = _cross(first, second)
    smaller, discordant = min(only_first, only_second), only_first + only_second
    return Paired(only_first, only_second, min(1.0, 2 * float(bdtr(smaller, discordant, 0.5))))


def difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Interval:
    """Accuracy of the second less that of the first on the same problems, with Newcombe's paired score interval: the two
    Wilson intervals, put together under the correlation of the two models over problems."""
    both, only_first, only_second, neither = _cross(first, second)
    problems = both + only_first + only_second + neither
    shares = np.array([both + only_second, both + only_first]) / problems
    (low_2, high_2), (low_1, high_1) = (wilson(both + only, problems, level) for only in (only_second, only_first))
    margins = math.prod((both + only_first, only_second + neither, both + only_second, only_first + neither))
    excess = both * neither - only_first * only_second
    if excess > 0:  # Newcombe's continuity correction, for positive correlation alone
        excess = max(excess - problems / 2, 0)
    correlation = excess / math.sqrt(margins) if margins else 0.0
    down = _together(shares[0] - low_2, high_1 - shares[1], correlation)
    up = _together(high_2 - shares[0], shares[1] - low_1, correlation)
    value = (only_second - only_first) / problems
    return Interval(value, value - down, value + up)


def _together(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))


def _cross(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, int, int]:
    """Problems solved by both, by the first alone, by the second alone, by neither."""
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise Refused(f"Answers to {a.shape} and {b.shape} problems cannot be paired: give both models the same ones.")
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


# -- what an adapter recovers ---------------------------------------------------------------------------------------


def recovery(base: ArrayLike, adapter: ArrayLike, full: ArrayLike, *, level: float = 0.95) -> Recovered:
    """The ratio (adapter - base) / (full - base) of the means of values [problem], all three on the same problems, whose
    interval is without ends where the adapter's change is the same share of the full one's on every problem."""
    values = [torch.as_tensor(np.asarray(each, np.float64)) for each in (base, adapter, full)]
    shapes = [tuple(each.shape) for each in values]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not values[0].numel():
        raise Refused(f"Values of shapes {shapes} cannot be paired: give one a problem, of the same problems.")
    if not all(each.isfinite().all() for each in values):
        raise Refused("Some values are not finite: leave the problem out for all three models.")
    below, part, whole = values
    partly, wholly = (ratio(each - below, torch.ones_like(below)) for each in (part, whole))
    value, low, high = quotient(partly, wholly, level)
    return Recovered(None if value is None else Interval(value, low, high), float(wholly.value))


# -- what a budget of tokens buys ------------------------------------------------------------------------------------


class BudgetCurve(NamedTuple):
    """Accuracy against the budget of tokens that a response may have. None where the budgets do not determine it.

    best            accuracy at the budget where it is largest, chosen on every other problem and measured on the rest
    per_token       slope of the straight line through the accuracies, in percentage points per token
    per_1000_tokens the same line, in percentage points per 1,000 tokens
    per_doubling    slope against log2 of the budget, in percentage points per doubling
    area            area under the curve over log2 of the budget, as a share of the whole: 0 to 1, the mean height
    """

    best: Interval
    per_token: Interval | None = None
    per_1000_tokens: Interval | None = None
    per_doubling: Interval | None = None
    area: Interval | None = None


def scaling(correct: ArrayLike, budgets: Sequence[int], *, level: float = 0.95) -> BudgetCurve:
    """The curve of shares of right answers [problem, budget]. Every measure is the mean of what each problem has."""
    return _curve(*_of_problems(*_by_budget(correct, budgets)), level)


def scaling_difference(
    first: ArrayLike, second: ArrayLike, budgets: Sequence[int], *, level: float = 0.95
) -> BudgetCurve:
    """The measures of the second model less those of the first, on the same problems."""
    one, other = (_by_budget(correct, budgets) for correct in (first, second))
    if len(one[0]) != len(other[0]):
        raise Refused(
            f"Answers to {len(one[0])} and {len(other[0])} problems cannot be paired: give both models the same ones."
        )
    (before, low, high), (after, _, _) = (_of_problems(*each) for each in (one, other))
    apart = [second - first for first, second in zip(before, after, strict=True)]
    return _curve(apart, low - high, high - low, level)


def _by_budget(correct: ArrayLike, budgets: Sequence[int]) -> tuple[NDArray, NDArray]:
    """Right answers [problem, budget] and budgets, from the smallest to the largest."""
    answers, tokens = np.asarray(correct, np.float64), np.asarray(budgets, np.float64)
    if answers.ndim != 2 or tokens.ndim != 1 or answers.shape[1] != len(tokens) or answers.size == 0:
        raise Refused(f"Right answers of shape {answers.shape} are not [problem, budget] of {tokens.size} budgets.")
    if (tokens <= 0).any() or len(set(tokens)) < len(tokens):
        raise Refused(f"The budgets {list(budgets)} are token counts: each above 0, none twice.")
    order = np.argsort(tokens)
    return answers[:, order], tokens[order]


def _of_problems(answers: NDArray, tokens: NDArray) -> tuple[list[NDArray], NDArray, NDArray]:
    """The fields of BudgetCurve, each [problem], and the least and most [measure] that each can be of a problem; the best alone
    for one budget. The best is of the problems that it was not chosen on, where there is a choice."""
    low, high = np.zeros(1), np.ones(1)
    if len(tokens) < 2 or len(answers) < 2:
        return [answers[:, -1]], low, high
    best = answers[1::2, answers[::2].sum(0).argmax()]  # of equal ones the smallest budget
    doublings = np.log2(tokens)
    steps = np.diff(doublings) / (doublings[-1] - doublings[0])
    lines = np.stack([100 * _line(tokens), 100_000 * _line(tokens), 100 * _line(doublings)])
    weights = np.concatenate([lines, (np.append(steps, 0) + np.append(0, steps))[None] / 2])
    low = np.append(low, weights.clip(max=0).sum(1))
    high = np.append(high, weights.clip(min=0).sum(1))
    rises = answers - answers[:, :1]  # so that a flat curve has the slope 0, not a rounding of it
    return [best, *(lines @ rises.T), weights[3] @ answers.T], low, high


def _line(places: NDArray) -> NDArray:
    """The weights of accuracies at these places whose sum is the slope of the least-squares line through them."""
    centred = places - places.mean()
    return centred / (centred @ centred)


def _curve(values: Sequence[NDArray], low: NDArray, high: NDArray, level: float) -> BudgetCurve:
    """The curve of measures, each [problem], that have these bounds."""
    bounds = zip(values, low, high, strict=True)
    found = [mean_of(each, least=least, most=most, level=level) for each, least, most in bounds]
    return BudgetCurve(*(Interval(float(value or 0.0), *ends) for value, *ends in found))
