"""Graded responses of a changed model, of the whole one and of controls, all to the same problems -> what the change does to
how the model answers, and how much of that no control does.

A change is that of a mean; its interval is over problems, of which every one enters all sides (measures/clustered.py). The
controls, such as random sets of latents, are taken as given. Knows no model and not what was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from tunediff.evaluations.behaviour.conditions import hesitation_rate, length, per_response
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.measures.clustered import Bounded, Estimate, interval_columns, number
from tunediff.shapes import Finding

Measures = Mapping[str, Estimate]


MEASURES: dict[str, tuple[str, Callable[[Sequence[Solved]], Estimate]]] = {
    "accuracy": (
        "share of problems graded right",
        lambda solved: per_response(solved, [s.grade.correct for s in solved]),
    ),
    "length": ("tokens a response", length),
    "hesitation": ("hesitations a response", lambda solved: hesitation_rate(solved, a_response=True)),
    "hesitation_rate": ("hesitations per 1,000 tokens of response", hesitation_rate),
    "hesitating": (
        "share of responses with a hesitation",
        lambda solved: per_response(solved, [s.behaviour.hesitations > 0 for s in solved]),
    ),
}


def measures(solved: Sequence[Solved]) -> Measures:
    """Every measure of one model's responses."""
    return {name: of(solved) for name, (_, of) in MEASURES.items()}


class Changed(NamedTuple):
    """A model, the whole one that it is a change of, and others that were changed otherwise."""

    own: Measures
    whole: Measures | None = None
    controls: Sequence[Measures] = ()

    def change(self, name: str) -> Estimate | None:
        """The change of a measure against the whole model; None where there is none."""
        return None if self.whole is None else self.own[name] - self.whole[name]

    def over_random(self, name: str) -> Estimate | None:
        """The change of a measure against the mean of the controls; None where there are none."""
        if not self.controls:
            return None
        values, influences = zip(*(one[name] for one in self.controls), strict=True)
        return self.own[name] - Estimate(torch.stack(values).mean(0), torch.stack(influences).mean(0))


def told(where: str, changed: Changed) -> Iterator[Finding]:
    """Yields the findings <where>/<measure>_change and <where>/<measure>_over_random."""
    for name, (what, _) in MEASURES.items():
        change, beyond = changed.change(name), changed.over_random(name)
        if change is not None and changed.whole is not None:
            values = (
                f"{float(changed.own[name].value):.4g} less {float(changed.whole[name].value):.4g} of the whole model"
            )
            meaning = f"{what}: {values}, on the same problems; interval over problems"
            yield Finding(f"{where}/{name}_change", *bounded(change), meaning)
        if beyond is not None:
            meaning = f"{what}: less the mean of {len(changed.controls)} random controls; interval over problems"
            yield Finding(f"{where}/{name}_over_random", *bounded(beyond), meaning)


def columns(changed: Changed) -> dict[str, float | None]:
    """Every measure, its change and what no control does, with their ends; None where there is nothing to compare with."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        found[name] = number(changed.own[name].value)
        for what, estimate in (("change", changed.change(name)), ("over_random", changed.over_random(name))):
            found |= interval_columns(f"{name}_{what}", (None, None, None) if estimate is None else bounded(estimate))
    return found


def bounded(estimate: Estimate) -> Bounded:
    """The value with its confidence interval; without one where no two problems differ, which says nothing of chance."""
    if not estimate.influence.any():
        return number(estimate.value), None, None
    return estimate.bounded()
