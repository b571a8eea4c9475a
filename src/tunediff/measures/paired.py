"""Right and wrong answers -> accuracies and what a budget of tokens buys, with intervals. Knows no model, tokenizer or
benchmark; the units of chance are problems.

Wilson 1927 (JASA 22:209) for one accuracy; McNemar 1947 (Psychometrika 12:153), exact, and Newcombe 1998 (Statistics in
Medicine 17:2635, method 10) for two models on the same problems; the percentile bootstrap of Efron 1979 for curves and
for what an adapter recovers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtri  # scipy.stats takes 0.4 s to import

from tunediff import randomness
from tunediff.shapes import Refused


class Interval(NamedTuple):
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


class Paired(NamedTuple):
    """Problems that only the first or only the second solved, and the chance of a split at least as uneven."""

    only_first: int
    only_second: int
    p: float


class Recovered(NamedTuple):
    """The share of a change that an adapter recovers: 0 where it is the base, 1 where it is the fully tuned model.

    share    recovered share with its confidence interval; None where the change cannot be told from none
    change   mean of full less base         gone   number of `draws` in which it was none or went the other way
    """

    share: Interval | None
    change: float
    gone: int
    draws: int


# -- accuracy --------------------------------------------------------------------------------------------------------


def wilson(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    if not 0 <= successes <= trials or trials < 1:
        raise Refused(
            f"{successes} successes of {trials} trials are no share: give 0 to {max(trials, 1)} of at least 1."
        )
    z, share = float(ndtri(0.5 + level / 2)), successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((middle + sign * reach) / (1 + z * z / trials) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def share(successes: int, trials: int, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """A share and its score interval; None without a trial."""
    return (successes / trials, *wilson(successes, trials, level)) if trials else (None, None, None)


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


def recovery(
    base: ArrayLike, adapter: ArrayLike, full: ArrayLike, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Recovered:
    """The ratio (adapter - base) / (full - base) of the means of values [problem], all three on the same problems and in every draw
    on the same drawn ones; the order of the problems changes nothing.

    The percentile bootstrap, since answers are right or wrong and lengths are skewed, where Fieller's interval takes both
    differences for normal. A draw in which the change is gone has no ratio and stands beyond both ends, so that the
    interval is bounded while these are fewer than each tail: as Fieller's is while the change differs from none."""
    values = [np.asarray(each, np.float64) for each in (base, adapter, full)]
    shapes = [each.shape for each in values]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not values[0].size:
        raise Refused(f"Values of shapes {shapes} cannot be paired: give one a problem, of the same problems.")
    if not np.isfinite(values).all():
        raise Refused("Some values are not finite: leave the problem out for all three models.")
    tail = (1 - level) / 2
    if tail * (draws - 1) < 1:
        raise Refused(
            f"draws={draws} leave none beyond the ends of a {level:.0%} interval: at least {round(1 / tail) + 1}."
        )
    below, part, whole = np.stack(values)[:, np.lexsort(values)]
    changes = np.stack([part - below, whole - below], 1)
    mean, drawn = changes.mean(0), _drawn(changes, draws, seed)
    kept = drawn[:, 1] * mean[1] > 0
    gone = int(draws - kept.sum())
    if gone > int(tail * (draws - 1)):
        return Recovered(None, float(mean[1]), gone, draws)
    ratios = np.sort(drawn[kept, 0] / drawn[kept, 1])
    place = int(tail * (draws - 1)) - gone  # of the end among those that have a ratio, counted from either side
    share = Interval(float(mean[0] / mean[1]), float(ratios[place]), float(ratios[-1 - place]))
    return Recovered(share, float(mean[1]), gone, draws)


# -- what a budget of tokens buys ------------------------------------------------------------------------------------


class BudgetCurve(NamedTuple):
    """Accuracy against the budget of tokens that a response may have. None where the budgets do not determine it.

    best            largest accuracy over budgets, chosen and measured on the same problems, so somewhat too high
    per_token       slope of the straight line through the accuracies, in percentage points per token
    per_1000_tokens the same line, in percentage points per 1,000 tokens
    per_doubling    slope against log2 of the budget, in percentage points per doubling
    area            area under the curve over log2 of the budget, as a share of the whole: 0 to 1, the mean height
    """

    best: Interval
    per_token: Interval | None
    per_1000_tokens: Interval | None
    per_doubling: Interval | None
    area: Interval | None


def scaling(
    correct: ArrayLike, budgets: Sequence[int], *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> BudgetCurve:
    """The curve of right answers [problem, budget]. Intervals by the bootstrap over problems: a problem drawn twice counts twice
    at every budget."""
    answers, tokens = _by_budget(correct, budgets)
    curves = _drawn(answers, draws, seed)
    return _with_intervals(_measures(answers.mean(0)[None], tokens), _measures(curves, tokens), level)


def scaling_difference(
    first: ArrayLike,
    second: ArrayLike,
    budgets: Sequence[int],
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> BudgetCurve:
    """Every measure of the second less that of the first, both on the same problems [problem, budget] and in every draw
    on the same drawn ones."""
    (one, tokens), (other, _) = _by_budget(first, budgets), _by_budget(second, budgets)
    if one.shape != other.shape:
        raise Refused(
            f"Answers to {len(one)} and {len(other)} problems cannot be paired: give both models the same ones."
        )
    curves = _drawn(np.concatenate([one, other], 1), draws, seed)
    measured, drawn = (
        _measures(both[:, len(tokens) :], tokens) - _measures(both[:, : len(tokens)], tokens)
        for both in (np.concatenate([one.mean(0), other.mean(0)])[None], curves)
    )
    return _with_intervals(measured, drawn, level)


def _by_budget(correct: ArrayLike, budgets: Sequence[int]) -> tuple[NDArray, NDArray]:
    """Right answers [problem, budget] and budgets, from the smallest to the largest."""
    answers, tokens = np.asarray(correct, np.float64), np.asarray(budgets, np.float64)
    if answers.ndim != 2 or tokens.ndim != 1 or answers.shape[1] != len(tokens) or answers.size == 0:
        raise Refused(f"Right answers of shape {answers.shape} are not [problem, budget] of {tokens.size} budgets.")
    if (tokens <= 0).any() or len(set(tokens)) < len(tokens):
        raise Refused(f"The budgets {list(budgets)} are token counts: each above 0, none twice.")
    order = np.argsort(tokens)
    return answers[:, order], tokens[order]


def resampled(values: NDArray, *, draws: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of values [problem] with the percentile bootstrap over problems."""
    means = _drawn(values[:, None], draws, seed)[:, 0]
    return Interval(float(values.mean()), *np.quantile(means, (0.5 - level / 2, 0.5 + level / 2)).tolist())


def _drawn(answers: NDArray, draws: int, seed: int) -> NDArray:
    """Means [draw, column] of `answers` [problem, column] over as many problems, drawn with replacement."""
    problems = len(answers)
    chosen = randomness.numpy_generator(seed, "resampled problems").integers(
        0, problems, (draws, problems), dtype=np.int32
    )
    places = chosen + problems * np.arange(draws)[:, None]
    times = np.bincount(places.ravel(), minlength=draws * problems).reshape(draws, problems)
    return times.astype(np.float64) @ answers / problems


def _measures(curves: NDArray, tokens: NDArray) -> NDArray:
    """The fields of BudgetCurve [measure, draw] for accuracies [draw, budget]; the best alone for one budget."""
    best = curves.max(1)
    if len(tokens) < 2:
        return best[None]
    doublings = np.log2(tokens)
    per_token = 100 * _slopes(curves, tokens)
    heights = (curves[:, 1:] + curves[:, :-1]) / 2
    area = heights @ np.diff(doublings) / (doublings[-1] - doublings[0])
    return np.stack([best, per_token, 1000 * per_token, 100 * _slopes(curves, doublings), area])


def _slopes(curves: NDArray, places: NDArray) -> NDArray:
    """Slopes of the least-squares lines through accuracies [draw, budget] at these places."""
    centred = places - places.mean()
    rises = curves - curves[:, :1]  # so that a flat curve has the slope 0, not a rounding of it
    return rises @ (centred / (centred @ centred))


def _with_intervals(measured: NDArray, drawn: NDArray, level: float) -> BudgetCurve:
    """The curve of measures [measure, 1] with the intervals of those drawn [measure, draw]."""
    ends = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2), axis=1)
    found = [Interval(*each) for each in np.stack([measured[:, 0], *ends], 1).tolist()]
    return BudgetCurve(*found, *[None] * (len(BudgetCurve._fields) - len(found)))
