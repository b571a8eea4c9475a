"""The verdict on the claim of "Reasoning-Finetuning Repurposes Latent Representations in Base Models" (arXiv 2507.12638), that
the direction of the base raises backtracking in the tuned model and not in the base:

    holds           it raises the rate in the tuned model at a coherent strength, beyond random directions as well, in the base
                    at none, and in the tuned model surely by more than in the base
    does not hold   it raises the rate in the base too; or raises it at no strength in the tuned model and surely lowers it at
                    one; or raises it nowhere there by half of what the tuned model's own direction does
    underpowered    the intervals leave it open

Intervals are 95 % together over the strengths of a direction in a model (Bonferroni). A direction is one, and random ones differ
among each other: held against their mean, every one of them would differ from it beyond doubt once there are problems enough. So it
is held against one more of them: a prediction interval, whose variance is that of a draw and of the mean of D draws, D + 1 times
that of the mean. It errs on the wide side, for each draw answers few problems, whose noise counts as that of the draws: fewer
draws or more problems make it narrower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tunediff.evaluations.behaviour.changes import Changed
from tunediff.evaluations.behaviour.conditions import draws_of
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.measures.clustered import Estimate


class Verdict(NamedTuple):
    word: str
    why: str


class Step(NamedTuple):
    """The effect of a direction on one model at one strength.

    change    of the rate against no steering, on the same problems      coherent   whether the text holds
    beyond    the same against one more random direction of this length; None where there are none"""

    change: Estimate
    beyond: Estimate | None
    coherent: bool


def step_of(plain: Sequence[Solved], solved: Sequence[Solved], chance: Sequence[Solved], fine: bool) -> Step:
    change = Changed(solved, plain).change("hesitation_rate")
    assert change is not None  # there is always the unsteered model
    return Step(change, beyond_random(solved, chance), fine)


def beyond_random(own: Sequence[Solved], chance: Sequence[Solved]) -> Estimate | None:
    """The hesitation rate less that of random draws, which answered the same problems in turn; its interval is that of the
    difference from one more draw. None where there are none."""
    mean = Changed(own, control=chance).over_random("hesitation_rate")
    return None if mean is None else mean._replace(influence=mean.influence * math.sqrt(draws_of(chance) + 1))


def claim(tuned: Sequence[Step], base: Sequence[Step], own: Sequence[Step]) -> Verdict:
    """The verdict on the paper's claim, as the head of the file defines it: from what the direction of the base does to the tuned
    model and to the base at the same strengths, and what the tuned model's own does to the tuned model (may be empty)."""
    level = 1 - 0.05 / len(tuned)

    def rises(step: Step) -> bool:
        beyond = step.beyond is None or step.beyond.sign(level) > 0
        return step.coherent and step.change.sign(level) > 0 and beyond

    if any(rises(step) for step in base):
        return Verdict("does not hold", "it raises the rate in the base as well")
    held = [step for step in base if step.coherent]
    for n, step in enumerate(tuned):
        if rises(step):
            beside = base[n] if base[n].coherent else (held[-1] if held else None)
            if beside is not None and (step.change - beside.change).sign(level) > 0:
                return Verdict(
                    "holds", "it raises the rate in the tuned model, and surely by less, if at all, in the base"
                )
    if any(rises(step) for step in tuned):
        return Verdict("underpowered", "it raises the rate in the tuned model, but the base is not told apart from it")
    strong = max((step for step in own if rises(step)), key=lambda step: float(step.change.value), default=None)
    usable = [step for step in tuned if step.coherent]
    if not usable:
        return Verdict("underpowered", "no strength leaves the text of the tuned model coherent")
    if any(step.change.sign(level) < 0 for step in usable):
        return Verdict(
            "does not hold", "it raises the rate in the tuned model at no strength, and lowers it beyond doubt"
        )
    if strong is None:
        return Verdict(
            "underpowered", "no direction raises the rate in the tuned model beyond doubt, not its own either"
        )
    half = strong.change._replace(value=strong.change.value / 2, influence=strong.change.influence / 2)
    if all((step.change - half).sign(level) < 0 for step in usable):
        return Verdict(
            "does not hold", "it raises the rate in the tuned model by less than half of what that model's own does"
        )
    return Verdict("underpowered", "the intervals leave open whether it raises the rate in the tuned model")
