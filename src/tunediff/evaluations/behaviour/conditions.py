"""Graded responses under one condition -> accuracy, length, hesitation and coherence, and what they are beside another's.

accuracy        share of problems graded right
hesitations     per 1,000 tokens of response                       tokens       mean length of a response
perplexity      exp of the mean nats a token of the responses under the unedited model: what an edit makes incoherent is
                improbable there. Of the responses as they are, so a short one counts little
repetition      share of 4-grams that occurred before in the same response
hesitating      share of responses with at least one hesitation
p, difference   against the reference on the same problems: McNemar's exact test, Newcombe's interval

Intervals of shares are Wilson's, those of ratios clustered by problem (measures/); where no response hesitates at all, the
rate's upper end is that of a Poisson count of zero. Where problems were asked several times, their samples stand together,
shares are means over problems (avg@n), and McNemar and Newcombe give way to what takes several samples (measures/samples.py).
Where random draws answered the problems in turn, each draw with its problems is one unit of chance, and its number stands in
place of a test: McNemar's would take the draws as given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.measures import difference, mcnemar, mean_of, samples
from tunediff.measures.clustered import Bounded, Estimate, interval_columns, ratio

MEANINGS = {
    "accuracy": "share of problems graded right",
    "hesitations": "hesitations per 1,000 tokens of response",
    "hesitating": "share of responses with a hesitation",
    "tokens": "mean tokens of a response",
    "perplexity": "exp of the mean nats a token under the unedited model",
    "repetition": "share of 4-grams that occurred before in the same response",
    "finished": "share of responses that ended within the budget",
    "closed": "share of responses that think whose thinking was closed",
    "difference": "accuracy less that of {reference}, on the same problems, Newcombe's paired interval",
    "p": "McNemar's exact test against {reference}",
    "touched": "share of responses in which the edit changed a token",
    "change": "mean norm of what the edit changed, over the tokens that it changed",
}

# what is said otherwise where a problem has several samples
SAMPLED = {
    "accuracy": "avg@{samples}: mean over problems of the share of samples graded right",
    "difference": "accuracy less that of {reference}, on the same problems",
    "p": "sign-flip test over problems against {reference}",
}


def meaning(measure: str, samples: int, reference: str | None, draws: int | None) -> str:
    """The words on a measure of one condition."""
    words = SAMPLED.get(measure) if samples > 1 or draws else None
    words = (MEANINGS["accuracy"] if draws and measure == "accuracy" else words) or MEANINGS[measure]
    turns = f"; {draws} random draws answered the problems in turn" if draws else ""
    return words.format(samples=samples, reference=reference) + turns


def by_problem(solved: Sequence[Solved], numbers: Sequence[Any]) -> list[list[Any]]:
    """Numbers of responses, those of one problem together: its first sample has the number 0."""
    found: list[list[Any]] = []
    for one, value in zip(solved, numbers, strict=True):
        if one.problem.sample == 0:
            found.append([])
        found[-1].append(value)
    return found


def grades(solved: Sequence[Solved]) -> list[list[bool]]:
    """Grades of all samples, [problem][sample]: true for a right one."""
    return by_problem(solved, [one.grade.correct for one in solved])


def rate(numbers: Sequence[float], per: Sequence[float], factor: float = 1.0) -> Estimate:
    """The rate factor * sum(numbers) / sum(per), with the influence of each problem."""
    return ratio(factor * torch.tensor(numbers, dtype=torch.float64), torch.tensor(per, dtype=torch.float64))


def by_unit(units: Sequence[Solved], numbers: Sequence[Any]) -> list[list[Any]]:
    """Numbers of responses, those of one unit of chance together: a problem, or of `units` that random draws answered a draw."""
    if units[0].draw is None:
        return by_problem(units, numbers)
    return [list(numbers[first :: draws_of(units)]) for first in range(draws_of(units))]


def draws_of(solved: Sequence[Solved]) -> int:
    """The number of random draws that answered in turn; 0 where nothing was drawn."""
    return 0 if not solved or solved[0].draw is None else len({one.draw for one in solved})


def rate_of(
    solved: Sequence[Solved],
    numbers: Sequence[float],
    per: Sequence[float],
    factor: float = 1.0,
    units: Sequence[Solved] | None = None,
) -> Estimate:
    """The rate of numbers of responses, with the influence of each unit of chance: as `units`, other answers to the same problems,
    have them, so that the two can be compared."""
    summed, divisors = ([float(sum(some)) for some in by_unit(units or solved, each)] for each in (numbers, per))
    return rate(summed, divisors, factor)


def per_response(solved: Sequence[Solved], numbers: Sequence[float], units: Sequence[Solved] | None = None) -> Estimate:
    """The mean of a number that every response has."""
    return rate_of(solved, numbers, [1.0] * len(numbers), units=units)


def hesitation_rate(
    solved: Sequence[Solved], units: Sequence[Solved] | None = None, *, a_response: bool = False
) -> Estimate:
    """Number of hesitations per 1,000 tokens, or per response."""
    numbers = [s.behaviour.hesitations for s in solved]
    if a_response:
        return per_response(solved, numbers, units)
    return rate_of(solved, numbers, [s.behaviour.tokens for s in solved], 1000.0, units)


def hesitations(solved: Sequence[Solved], *, a_response: bool = False, level: float = 0.95) -> Bounded:
    """The hesitation rate with its confidence interval. Between problems that all have none nothing varies, which would make a clustered
    interval empty: its upper end is then that of a Poisson count of zero, in one sample a problem."""
    seen = len(solved) if a_response else sum(s.behaviour.tokens for s in solved) / 1000
    seen *= sum(s.problem.sample == 0 for s in solved) / max(len(solved), 1)
    if seen and not any(s.behaviour.hesitations for s in solved):
        return 0.0, 0.0, -math.log(0.5 - level / 2) / seen
    return hesitation_rate(solved, a_response=a_response).skewed(level, least=0.0)


def surprise_rate(solved: Sequence[Solved]) -> Estimate:
    """Mean negative log-likelihood per token, in nats; its exponential is the perplexity."""
    return rate_of(solved, [s.nats for s in solved], [s.behaviour.tokens for s in solved])


def perplexity(solved: Sequence[Solved]) -> Bounded:
    """The perplexity of the responses with its 95 % confidence interval."""
    nats, low, high = (None if nats is None else math.exp(nats) for nats in surprise_rate(solved).bounded())
    return nats, low, high


def length(solved: Sequence[Solved], units: Sequence[Solved] | None = None) -> Estimate:
    """Mean number of tokens per response."""
    return per_response(solved, [s.behaviour.tokens for s in solved], units)


def accuracy(solved: Sequence[Solved]) -> Bounded:
    """Share of problems graded right; of several samples the mean over problems of their share."""
    return share_of(solved, [one.grade.correct for one in solved])


def share_of(solved: Sequence[Solved], true: Sequence[bool]) -> Bounded:
    """The share of responses of which something is true."""
    if draws_of(solved):
        return _over_draws(solved, true, least=0.0)
    return samples.share_by_problem(by_problem(solved, true))


def _over_draws(solved: Sequence[Solved], numbers: Sequence[float], *, least: float) -> Bounded:
    """The mean of numbers of responses, from `least` to 1; the draws that answered in turn are the units of chance."""
    drawn = by_unit(solved, numbers)
    return mean_of([np.mean(some) for some in drawn], least=least, most=1.0, weights=[len(some) for some in drawn])


def against(reference: Sequence[Solved], solved: Sequence[Solved]) -> tuple[float | None, Bounded]:
    """p and the difference in accuracy of two conditions on the same problems; no p of random draws."""
    if draws_of(solved):
        pairs = zip(solved, reference, strict=True)
        return None, _over_draws(solved, [float(a.grade.correct) - b.grade.correct for a, b in pairs], least=-1.0)
    before, after = np.asarray(grades(reference)), np.asarray(grades(solved))
    if before.shape[1] == after.shape[1] == 1:
        first, second = before[:, 0].tolist(), after[:, 0].tolist()
        return mcnemar(first, second).p, difference(first, second)
    shares = before.mean(1), after.mean(1)
    return samples.sign_test(*shares), samples.change(*shares)


def mean_change(solved: Sequence[Solved]) -> float | None:
    """Mean norm of what an edit changed, over the tokens that it changed; None where it changed none."""
    changed = [pair for s in solved for pair in zip(s.response.touched, s.response.change, strict=True)]
    tokens = sum(touched for touched, _ in changed)
    return sum(touched * norm for touched, norm in changed if touched) / tokens if tokens else None


def row(condition: Condition, solved: Sequence[Solved], reference: Sequence[Solved] | None) -> dict[str, Any]:
    """One condition on one task: a row of the table <evaluation>_conditions."""
    right = grades(solved)
    p, apart = (None, (None, None, None)) if reference is None else against(reference, solved)
    hesitating = share_of(solved, [s.behaviour.hesitations > 0 for s in solved])
    return {
        "condition": condition.name,
        "title": condition.title,
        "role": condition.role,
        "control": condition.control,
        "reference": condition.reference,
        "edit": "; ".join(edit.described for edit in condition.acting) or None,
        "draws": draws_of(solved) or None,
        "problems": len(right),
        "samples": len(right[0]),
        "correct": sum(map(sum, right)),
        **interval_columns("accuracy", accuracy(solved)),
        "p": p,
        **interval_columns("difference", apart),
        **interval_columns("tokens", length(solved).skewed(least=0.0)),
        **interval_columns("perplexity", perplexity(solved)),
        **interval_columns("hesitations", hesitations(solved)),
        **interval_columns("hesitating", hesitating),
        "finished": mean([s.response.finished for s in solved]),
        "closed": mean([s.behaviour.closed for s in solved]),
        "repetition": mean([s.behaviour.repetition for s in solved]),
        "change": mean_change(solved),
        "touched": mean([sum(s.response.touched) > 0 for s in solved]) if condition.acting else None,
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those values that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
