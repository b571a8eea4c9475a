"""Graded responses under one condition -> accuracy, length, hesitation and coherence, and what they are beside another's.

accuracy        share of problems graded right (Wilson interval)
hesitations     per 1,000 tokens of response                       tokens       mean length of a response
perplexity      exp of the mean nats a token of the responses under the unedited model: what an edit makes incoherent is
                improbable there. Of the responses as they are, so a short one counts little
repetition      share of 4-grams that occurred before in the same response
hesitating      share of responses with at least one hesitation (Wilson interval)
p, difference   against the reference on the same problems: McNemar's exact test, Newcombe's interval

Intervals of ratios are clustered by problem (measures/clustered.py); where no response hesitates at all, the rate's
upper end is that of a Poisson count of zero. Where problems were asked several times, their samples stand together, shares are
means over problems (avg@n), and Wilson, McNemar and Newcombe give way to what takes several samples (measures/samples.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.measures import difference, mcnemar, samples
from tunediff.measures.clustered import Bounded, Estimate, interval_columns, number, ratio

NO_EVENT = -math.log(0.025)  # events expected at most, at 95 % two-sided, where none was seen

MEANINGS = {
    "accuracy": "share of problems graded right, Wilson interval",
    "hesitations": "hesitations per 1,000 tokens of response, interval over problems",
    "hesitating": "share of responses with a hesitation, Wilson interval",
    "tokens": "mean tokens of a response, interval over problems",
    "perplexity": "exp of the mean nats a token under the unedited model, interval over problems",
    "repetition": "share of 4-grams that occurred before in the same response",
    "finished": "share of responses that ended within the budget",
    "closed": "share of responses that think whose thinking was closed",
    "difference": "accuracy less that of {reference}, on the same problems, Newcombe's paired interval",
    "p": "McNemar's exact test against {reference}",
    "touched": "share of responses in which the edit changed a token",
    "change": "mean norm of what the edit changed, over the tokens that it changed",
}

OVER_PROBLEMS = "bootstrap over problems, Wilson interval where all are alike"

# what is said otherwise where a problem has several samples
SAMPLED = {
    "accuracy": f"avg@{{samples}}: mean over problems of the share of samples graded right, {OVER_PROBLEMS}",
    "hesitating": f"share of responses with a hesitation, {OVER_PROBLEMS}",
    "difference": "accuracy less that of {reference}, on the same problems, bootstrap over problems",
    "p": "sign-flip test over problems against {reference}",
}


def meaning(measure: str, samples: int, reference: str | None) -> str:
    """The words on a measure of one condition."""
    words = SAMPLED.get(measure) if samples > 1 else None
    return (words or MEANINGS[measure]).format(samples=samples, reference=reference)


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


def rate_of(solved: Sequence[Solved], numbers: Sequence[float], per: Sequence[float], factor: float = 1.0) -> Estimate:
    """The rate of numbers of responses, with the influence of each problem."""
    summed, divisors = ([float(sum(some)) for some in by_problem(solved, each)] for each in (numbers, per))
    return rate(summed, divisors, factor)


def per_response(solved: Sequence[Solved], numbers: Sequence[float]) -> Estimate:
    """The mean of a number that every response has."""
    return rate_of(solved, numbers, [1.0] * len(numbers))


def hesitation_rate(solved: Sequence[Solved], *, a_response: bool = False) -> Estimate:
    """Number of hesitations per 1,000 tokens, or per response."""
    numbers = [s.behaviour.hesitations for s in solved]
    if a_response:
        return per_response(solved, numbers)
    return rate_of(solved, numbers, [s.behaviour.tokens for s in solved], 1000.0)


def hesitations(solved: Sequence[Solved], *, a_response: bool = False) -> Bounded:
    """The hesitation rate with its 95 % confidence interval. Between problems that all have none nothing varies, which would make a clustered
    interval empty: its upper end is then that of a Poisson count of zero, in one sample a problem."""
    seen = len(solved) if a_response else sum(s.behaviour.tokens for s in solved) / 1000
    seen *= sum(s.problem.sample == 0 for s in solved) / max(len(solved), 1)
    if seen and not any(s.behaviour.hesitations for s in solved):
        return 0.0, 0.0, NO_EVENT / seen
    return hesitation_rate(solved, a_response=a_response).bounded(least=0.0)


def surprise_rate(solved: Sequence[Solved]) -> Estimate:
    """Mean negative log-likelihood per token, in nats; its exponential is the perplexity."""
    return rate_of(solved, [s.nats for s in solved], [s.behaviour.tokens for s in solved])


def perplexity(solved: Sequence[Solved]) -> Bounded:
    """The perplexity of the responses with its 95 % confidence interval."""
    nats = surprise_rate(solved)
    low, high = nats.interval(0.95)
    return number(nats.value.exp()), number(low.exp()), number(high.exp())


def length(solved: Sequence[Solved]) -> Estimate:
    """Mean number of tokens per response."""
    return per_response(solved, [s.behaviour.tokens for s in solved])


def accuracy(solved: Sequence[Solved]) -> Bounded:
    """Share of problems graded right; of several samples the mean over problems of their share."""
    return samples.share_by_problem(grades(solved))


def against(reference: Sequence[Solved], solved: Sequence[Solved]) -> tuple[float, Bounded]:
    """p and the difference in accuracy of two conditions on the same problems."""
    before, after = np.asarray(grades(reference)), np.asarray(grades(solved))
    if before.shape[1] == after.shape[1] == 1:
        first, second = before[:, 0].tolist(), after[:, 0].tolist()
        return mcnemar(first, second).p, difference(first, second)
    shares = before.mean(1), after.mean(1)
    return samples.sign_test(*shares), samples.change(*shares)


def row(condition: Condition, solved: Sequence[Solved], reference: Sequence[Solved] | None) -> dict[str, Any]:
    """One condition on one task: a row of the table <evaluation>_conditions."""
    right = grades(solved)
    p, apart = (None, (None, None, None)) if reference is None else against(reference, solved)
    hesitating = by_problem(solved, [s.behaviour.hesitations > 0 for s in solved])
    changed = [pair for s in solved for pair in zip(s.response.touched, s.response.change, strict=True)]
    tokens = sum(touched for touched, _ in changed)
    return {
        "condition": condition.name,
        "title": condition.title,
        "role": condition.role,
        "control": condition.control,
        "reference": condition.reference,
        "edit": "; ".join(edit.described for edit in condition.edits) or None,
        "problems": len(right),
        "samples": len(right[0]),
        "correct": sum(map(sum, right)),
        **interval_columns("accuracy", accuracy(solved)),
        "p": p,
        **interval_columns("difference", apart),
        **interval_columns("tokens", length(solved).bounded(least=0.0)),
        **interval_columns("perplexity", perplexity(solved)),
        **interval_columns("hesitations", hesitations(solved)),
        **interval_columns("hesitating", samples.share_by_problem(hesitating)),
        "finished": mean([s.response.finished for s in solved]),
        "closed": mean([s.behaviour.closed for s in solved]),
        "repetition": mean([s.behaviour.repetition for s in solved]),
        "change": sum(touched * norm for touched, norm in changed if touched) / tokens if tokens else None,
        "touched": mean([sum(s.response.touched) > 0 for s in solved]) if condition.edits else None,
    }


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those values that are defined; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
