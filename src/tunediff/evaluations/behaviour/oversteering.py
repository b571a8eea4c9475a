"""The rates of a behaviour at rising strengths of an edit -> does it rise, fall again while the text holds, and break down?

The oversteering dip of "Under the Hood of a Reasoning Model" (Goodfire 2025), which gives examples and no numbers:

    present        B rises, and at a larger, still coherent strength it has fallen by more than half of the rise
    absent         B rises, and at every larger, still coherent strength it keeps more than half of the rise
    underpowered   B does not rise beyond doubt, no larger strength is coherent, or the intervals leave both open

Coherent: the perplexity of the responses under the unedited model is at most `collapse` times that without steering, and
at most `repetition` of their 4-grams occurred before: a text that goes in circles is very probable.
Intervals are 95 % together over the strengths of a gate, and of two gates over all pairs of theirs (Bonferroni).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tunediff.evaluations.behaviour.changes import Changed
from tunediff.evaluations.behaviour.conditions import hesitation_rate, length, mean, surprise_rate
from tunediff.evaluations.behaviour.direction_claim import beyond_random
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.measures.clustered import Estimate
from tunediff.shapes import Finding

A_1000 = "hesitations per 1,000 tokens"


class DipVerdict(NamedTuple):
    word: str
    why: str


@dataclass(frozen=True)
class Curve:
    """The responses behind one gate at rising strengths, on the same problems as the plain ones.

    solved   [strength][problem]    random   the same of random directions; empty where there are none
    fine     [strength] whether the text is coherent
    """

    plain: Sequence[Solved]
    solved: Sequence[Sequence[Solved]]
    random: Sequence[Sequence[Solved]]
    fine: Sequence[bool]

    @functools.cached_property
    def rates(self) -> list[Estimate]:
        return [hesitation_rate(solved) for solved in self.solved]

    @functools.cached_property
    def from_peak_on(self) -> list[int]:
        return from_peak_on(self.rates, self.fine)


def of_one(where: str, curve: Curve) -> Iterator[Finding]:
    """Yields what a gate's curve does, each a difference on the same problems: <where>/rise, rise_over_random, past_peak,
    past_peak_less_half, length, length_over_random, most, most_nats and strongest_nats, those that it determines."""
    plain, rates, level = hesitation_rate(curve.plain), curve.rates, 1 - 0.05 / len(curve.solved)

    def found(name: str, estimate: Estimate, meaning: str, over: str = "problems") -> Finding:
        return Finding(f"{where}/{name}", *estimate.bounded(level), f"{meaning}; Bonferroni over strengths", over=over)

    if usable := curve.from_peak_on:
        peak, *beyond = usable
        top = rates[peak]
        yield found("rise", top - plain, f"{A_1000} at the peak, less those without steering")
        if curve.random:
            more = beyond_random(curve.solved[peak], curve.random[peak])
            meaning = f"{A_1000} at the peak, less those under one more random direction of this length"
            if more is not None:
                yield found("rise_over_random", more, meaning, "draws and problems")
        if beyond:
            low = min((rates[n] for n in beyond), key=lambda rate: float(rate.value))
            where_to = "where the rate is least beyond its peak and the text still coherent"
            yield found("past_peak", low - plain, f"{A_1000} {where_to}, less those without steering")
            half = Estimate((top.value + plain.value) / 2, (top.influence + plain.influence) / 2)
            yield found("past_peak_less_half", low - half, f"{A_1000} {where_to}, less half way up to the peak")
    if any(curve.fine):
        last = max(n for n, fine in enumerate(curve.fine) if fine)
        own, meaning = curve.solved[last], "tokens of a response at the largest coherent strength"
        yield found("length", length(own) - length(curve.plain), f"{meaning}, less those without steering")
        if curve.random:
            more = Changed(own, control=curve.random[last]).over_random("length")
            assert more is not None
            meaning += ", less those under random directions of this length"
            yield found("length_over_random", more, meaning, "draws and problems")
    usual, last = surprise_rate(curve.plain), len(rates) - 1
    most = max(range(len(rates)), key=lambda n: float(torch.nan_to_num(rates[n].value, nan=-1.0)))
    yield found(
        "most", rates[most] - plain, f"{A_1000} where they are most, coherent or not, less those without steering"
    )
    for name, n, which in (
        ("most_nats", most, "the largest rate, coherent or not"),
        ("strongest_nats", last, "the largest strength"),
    ):
        meaning = f"nats a token of the responses at {which}, under the unedited model, less those without steering"
        yield found(name, surprise_rate(curve.solved[n]) - usual, meaning)


def between(where: str, curves: Mapping[str, Curve]) -> Iterator[Finding]:
    """Yields for any two gates of which each has a peak <where>/<later>_less_<earlier>/rise, on the same problems."""
    for (first, one), (second, other) in itertools.combinations(curves.items(), 2):
        if one.from_peak_on and other.from_peak_on:
            more = other.rates[other.from_peak_on[0]] - one.rates[one.from_peak_on[0]]
            level = 1 - 0.05 / (len(one.solved) * len(other.solved))
            meaning = f"{A_1000} at the peak behind {second}, less those at the peak behind {first}; Bonferroni over strengths"
            yield Finding(f"{where}/{second}_less_{first}/rise", *more.bounded(level), meaning, over="problems")


def coherent(
    plain: Sequence[Solved], curve: Sequence[Sequence[Solved]], *, collapse: float, repetition: float
) -> list[bool]:
    """True for responses at a strength that the unedited model finds at most `collapse` times as perplexing as its own, and that
    repeat at most this share of their 4-grams."""
    limit = surprise_rate(plain).value.exp() * collapse
    return [
        bool(surprise_rate(solved).value.exp() <= limit) and (repeated(solved) or 0.0) <= repetition for solved in curve
    ]


def dip(plain: Estimate, rates: Sequence[Estimate], coherent: Sequence[bool]) -> DipVerdict:
    """The verdict on the rates at rising strengths, on the same problems as the plain rate, as the head of the file defines it."""
    level = 1 - 0.05 / len(rates)

    def surely(first: Estimate, second: Estimate, share: float = 0.0) -> tuple[bool, bool]:
        """Two bools: first lies surely above the level that is `share` of the way from second to the peak; surely below it."""
        target = Estimate(
            (1 - share) * second.value + share * top.value, (1 - share) * second.influence + share * top.influence
        )
        low, high = (first - target).interval(level)
        return bool(low > 0), bool(high < 0)

    usable = from_peak_on(rates, coherent)
    if not usable:
        return DipVerdict("underpowered", "no strength leaves the text coherent")
    peak, *beyond = usable
    top = rates[peak]
    if not surely(top, plain)[0]:
        return DipVerdict("underpowered", "the behaviour does not rise beyond doubt at any coherent strength")
    if not beyond:
        return DipVerdict("underpowered", "no strength beyond the peak leaves the text coherent, or none was tried")
    fallen = [surely(rates[n], plain, share=0.5) for n in beyond]
    if any(below for _, below in fallen):
        return DipVerdict("present", "beyond the peak more than half of the rise is lost while the text is coherent")
    if all(above for above, _ in fallen):
        return DipVerdict("absent", "beyond the peak more than half of the rise stays at every coherent strength")
    return DipVerdict("underpowered", "beyond the peak the intervals leave open whether half of the rise is lost")


def from_peak_on(rates: Sequence[Estimate], coherent: Sequence[bool]) -> list[int]:
    """Indices of the largest rate at which the text is coherent, and of all coherent ones beyond it."""
    usable = [n for n, fine in enumerate(coherent) if fine and torch.isfinite(rates[n].value)]
    peak = max(usable, key=lambda n: float(rates[n].value), default=0)
    return [n for n in usable if n >= peak]


def repeated(solved: Sequence[Solved]) -> float | None:
    return mean([s.behaviour.repetition for s in solved])
