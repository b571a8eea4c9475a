"""A claim and the numbers that were found -> its verdict, by the rule at the head of the package."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunediff.claims.claim import CONTRADICTED, NOT_APPLICABLE, REPRODUCED, UNDERPOWERED, Claim, Condition

Look = Callable[[Any], "Number | str"]  # a finding, or {finding, where} -> its number, or why there is none


@dataclass(frozen=True)
class Number:
    """A number with its 95 % interval, where it has one, and what that is over."""

    value: float
    low: float | None = None
    high: float | None = None
    over: str = ""

    def less(self, other: Number) -> Number:
        """The difference. Its interval takes both as independent, which is too wide for two conditions of the same problems."""
        value = self.value - other.value
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Number(value)
        low = value - math.hypot(self.value - self.low, other.high - other.value)
        high = value + math.hypot(self.high - self.value, other.value - other.low)
        return Number(value, low, high, self.over)


@dataclass(frozen=True)
class Verdict:
    """One claim, judged: the word of VERDICTS, the effect with its interval where there is one, and why."""

    name: str
    claim: Claim
    word: str
    why: str
    effect: Number | None = None
    held: Mapping[str, str] = field(default_factory=dict)  # control -> holds, fails, or why it is not told
    of: str = ""  # the members of a sweep
    sweep: str = ""  # the folder of its runs, where several are compared

    def row(self) -> dict[str, Any]:
        """Its row of the table `claims`."""
        claim, effect, known = self.claim, self.effect, _known(self.claim)
        ends = [end + known if math.isfinite(end) else None for end in _bounds(claim)]
        return {
            "claim": self.name,
            "says": claim.says,
            "source": claim.source,
            "trust": claim.trust,
            "published": claim.published,
            "asked": asked_in_words(claim),
            "asked_low": ends[0],
            "asked_high": ends[1],
            "expected": claim.expected if claim.expected is None else claim.expected + known,
            "effect": None if effect is None else effect.value + known,
            "low": None if effect is None or effect.low is None else effect.low + known,
            "high": None if effect is None or effect.high is None else effect.high + known,
            "over": "" if effect is None else effect.over,
            "verdict": self.word,
            "why": self.why,
            "control": "; ".join(f"{name}: {said}" for name, said in self.held.items()),
            "learnt": claim.learnt.get(self.word, ""),
            "of": self.of,
            "digest": claim.digest,
        }


def judge(name: str, claim: Claim, looks: Sequence[Look], settings: Mapping[str, Any], of: str = "") -> Verdict:
    """Judges one claim by the findings of each seed: one number with its interval, or the mean of several seeds with Student's."""
    if unlike := next(_unlike(claim.only, settings), None):
        why = f"{unlike}{': ' + claim.elsewhere if claim.elsewhere else ''}"
        return Verdict(name, claim, NOT_APPLICABLE, why, of=of)
    effect = _effect(claim, looks)
    if isinstance(effect, str):
        return Verdict(name, claim, NOT_APPLICABLE, effect, of=of)
    word, why = _placed(claim, effect)
    held = {}
    for control, condition in claim.control.items():
        found = _effect(condition, looks)
        placed = (UNDERPOWERED, found) if isinstance(found, str) else _placed(condition, found)
        held[control] = {REPRODUCED: "holds", CONTRADICTED: "fails"}.get(placed[0], "is not told")
        held[control] += f" ({placed[1]})"
        if placed[0] == CONTRADICTED:
            word = NOT_APPLICABLE
            why = f"the control '{condition.says}' fails, so that the number says nothing; {why}"
        elif placed[0] == UNDERPOWERED and word in (REPRODUCED, CONTRADICTED):
            word, why = UNDERPOWERED, f"whether '{condition.says}' is not told: {placed[1]}"
    return Verdict(name, claim, word, why, effect, held, of)


def _unlike(only: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in only.items():
        allowed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if settings.get(key) not in allowed:
            yield f"reported of {key}={', '.join(map(str, allowed))}, and here it is {settings.get(key)}"


def _effect(condition: Condition, looks: Sequence[Look]) -> Number | str:
    found = []
    for look in looks:
        first = look(condition.finding)
        against = condition.against
        exact = float(against) if isinstance(against, int | float) else None
        second = look(against) if exact is None else Number(exact, exact, exact)
        for one in (first, second):
            if isinstance(one, str):
                return one
        assert isinstance(first, Number) and isinstance(second, Number)
        if not math.isfinite(first.value - second.value):
            return f"{condition.finding} less {condition.against} is no number"
        found.append(first.less(second))
    return found[0] if len(found) == 1 else over_seeds([one.value for one in found])


def over_seeds(values: Sequence[float]) -> Number:
    """The mean of at least two seeds with its 95 % interval, Student's t. Seeds that are all alike have none: a count that
    happened to be 0 three times is not 0 for sure."""
    if len({*values}) == 1:
        return Number(values[0], over=f"{len(values)} seeds, all alike")
    from scipy.stats import t as student  # which takes its time, and a command line is read without it

    middle = statistics.fmean(values)
    reach = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Number(middle, middle - reach, middle + reach, f"{len(values)} seeds")


def _known(condition: Condition) -> float:
    """The number that a finding is held against: effects are told as the finding itself then. 0 where that is a finding too."""
    return float(condition.against) if isinstance(condition.against, int | float) else 0.0


def _bounds(condition: Condition) -> tuple[float, float]:
    """The ends between which the effect has to lie."""
    if condition.relation == "near":
        assert condition.expected is not None
        return condition.expected - condition.least, condition.expected + condition.least
    return (condition.least, math.inf) if condition.relation == "above" else (-math.inf, -condition.least or 0.0)


def asked_in_words(condition: Condition) -> str:
    """The place where a finding has to lie: between two numbers, or above or below one."""
    ends = [end + _known(condition) + 0.0 for end in _bounds(condition) if math.isfinite(end)]
    return f"{ends[0]:.4g} to {ends[1]:.4g}" if len(ends) == 2 else f"{condition.relation} {ends[0]:.4g}"


def _placed(condition: Condition, effect: Number) -> tuple[str, str]:
    """The word of the effect alone, with the sentence that says why."""
    lowest, highest = _bounds(condition)
    ends = [end for end in (lowest, highest) if math.isfinite(end)]
    asked = asked_in_words(condition)
    known = _known(condition)
    if effect.low is None or effect.high is None or not math.isfinite(effect.high - effect.low):
        missing = f"it is that of {effect.over}" if "alike" in effect.over else "several seeds give one"
        return UNDERPOWERED, f"{effect.value + known:.4g} has no interval, and {asked} is asked; {missing}"
    said = f"{effect.value + known:.4g} ({effect.low + known:.4g} to {effect.high + known:.4g}), {asked} is asked"
    if lowest < effect.low and effect.high < highest:
        return REPRODUCED, said
    if effect.high < lowest or effect.low > highest or effect.low == effect.high:
        return CONTRADICTED, said
    gap = min(abs(effect.value - end) for end in ends)
    # the wider side decides: a half-width shrinks as the root of the sample
    reach = max(effect.value - effect.low, effect.high - effect.value)
    if gap < 1e-9 * max(1.0, abs(effect.value)):  # but for rounding
        return UNDERPOWERED, f"{said}; it lies at the bound itself, and no sample would tell"
    return UNDERPOWERED, f"{said}; {_sample(effect, (reach / gap) ** 2)} would tell, were the effect what it is here"


def _sample(effect: Number, times: float) -> str:
    first, _, unit = effect.over.partition(" ")
    if unit == "seeds" and first.isdigit():
        return f"about {max(int(first) + 1, math.ceil(int(first) * times)):,} seeds"
    return f"about {times:.2g} times as many {effect.over or 'examples'}"
