"""Graded responses of a changed model, of the whole one and of controls, all to the same problems -> what the change does to
how the model answers, and how much of that no control does.

A change is that of a mean; its interval is over problems, of which every one enters all sides (measures/clustered.py). Where
the controls are random draws that answered the problems in turn, such as random sets of latents, what they are compared with
is taken draw by draw. Knows no model and not what was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tunediff.evaluations.behaviour.conditions import draws_of, hesitation_rate, length, per_response
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.measures.clustered import Estimate, interval_columns, number
from tunediff.shapes import Finding

MEASURES: dict[str, tuple[str, Callable[[Sequence[Solved], Sequence[Solved] | None], Estimate]]] = {
    "accuracy": (
        "share of problems graded right",
        lambda solved, units: per_response(solved, [s.grade.correct for s in solved], units),
    ),
    "length": ("tokens a response", length),
    "hesitation": (
        "hesitations a response",
        lambda solved, units: hesitation_rate(solved, units, a_response=True),
    ),
    "hesitation_rate": ("hesitations per 1,000 tokens of response", hesitation_rate),
    "hesitating": (
        "share of responses with a hesitation",
        lambda solved, units: per_response(solved, [s.behaviour.hesitations > 0 for s in solved], units),
    ),
}


class Changed(NamedTuple):
    """The answers of a model, those of the whole one that it is a change of, and those of random controls, draws in turn."""

    own: Sequence[Solved]
    whole: Sequence[Solved] = ()
    control: Sequence[Solved] = ()

    def change(self, name: str) -> Estimate | None:
        """The change of a measure against the whole model; None where there is none."""
        return self._less(name, self.whole)

    def over_random(self, name: str) -> Estimate | None:
        """The change of a measure against the mean of the controls; None where there are none."""
        return self._less(name, self.control)

    def _less(self, name: str, others: Sequence[Solved]) -> Estimate | None:
        _, of = MEASURES[name]
        units = others if draws_of(others) else self.own
        return of(self.own, units) - of(others, units) if others else None


def told(where: str, changed: Changed) -> Iterator[Finding]:
    """Yields the findings <where>/<measure>_change and <where>/<measure>_over_random."""
    for name, (what, of) in MEASURES.items():
        change = changed.change(name)
        if change is not None:
            own, whole = (float(of(solved, None).value) for solved in (changed.own, changed.whole))
            meaning = f"{what}: {own:.4g} less {whole:.4g} of the whole model, on the same problems"
            over = "draws and problems" if draws_of(changed.own) else "problems"
            yield Finding(f"{where}/{name}_change", *change.skewed(), meaning, over=over)
    yield from over_random(where, changed)


def over_random(where: str, changed: Changed, control: str = "random") -> Iterator[Finding]:
    """Yields the findings <where>/<measure>_over_<control>."""
    for name, (what, _) in MEASURES.items():
        beyond = changed.over_random(name)
        if beyond is not None:
            draws = draws_of(changed.control)
            meaning = f"{what}: less that of {draws} random controls, which answered the same problems in turn"
            yield Finding(f"{where}/{name}_over_{control}", *beyond.skewed(), meaning, over="draws and problems")


def columns(changed: Changed) -> dict[str, float | None]:
    """Every measure, its change and what no control does, with their ends; None where there is nothing to compare with."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        found[name] = number(MEASURES[name][1](changed.own, None).value)
        for what, estimate in (("change", changed.change(name)), ("over_random", changed.over_random(name))):
            found |= interval_columns(f"{name}_{what}", (None, None, None) if estimate is None else estimate.skewed())
    return found
