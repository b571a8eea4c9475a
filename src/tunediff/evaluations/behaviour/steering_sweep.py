"""Steering along latents at many strengths behind several gates: how often the behaviour shows, and whether the text holds.

Asks two questions of a study of R1 ("Under the Hood of a Reasoning Model", Goodfire 2025), which gives examples and no
numbers. Does steering work only once a prefix has been written ("Okay, so the user ...")? Then gates differ. And is there
an oversteering dip: the behaviour rises with the strength, falls back towards the unsteered one, and only then does the
text break down? The verdict for each gate, from the rate B of the behaviour with intervals over problems:

    present        B rises, and at a larger, still coherent strength it has fallen by more than half of the rise
    absent         B rises, and at every larger, still coherent strength it keeps more than half of the rise
    underpowered   B does not rise beyond doubt, no larger strength is coherent, or the intervals leave both open

Coherent: the perplexity of the responses under the unedited model is at most `collapse` times that without steering, and
at most `repetition` of their 4-grams occurred before: a text that goes in circles is very probable.
Intervals are 95 % together over the strengths of a gate (Bonferroni).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tunediff.edits import Add, Edit, Gate
from tunediff.evaluations.behaviour.conditions import (
    accuracy,
    hesitation_rate,
    hesitations,
    mean,
    perplexity,
    surprise_rate,
)
from tunediff.evaluations.behaviour.intervention import UNEDITED
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, never_touched
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.evaluations.latents.edits import check_role, role_of
from tunediff.evaluations.latents.selection import Selection, asked_for, choose
from tunediff.evaluations.latents.steering import steering_parts
from tunediff.measures.clustered import Estimate, interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, TUNED, Figure, Finding, Note, Refused, Table

UNITS = {"latent_maximum": "maxima of the latent", "residual_norm": "mean norms of the stream"}


class DipVerdict(NamedTuple):
    word: str
    why: str


@dataclass(kw_only=True)
class SteeringSweep(BehaviourEvaluation):
    """role          the model that is steered, as in Intervention
    latents       the latents along whose decoder rows it is steered, as in Intervention
    chosen_by     how latents are chosen where they are None
    strengths     log-spaced strengths, in units of `unit`       gates        name -> the tokens at which the edit acts
    behind        names of the gates that are tried; None: all
    unit          latent_maximum: each latent's largest activation on held-out text; residual_norm: the mean norm of the
                  hidden vectors there, shared among the latents; not for those of a transcoder adapter
    collapse      factor of the unsteered perplexity above which a text counts as broken down
    repetition    share of repeated 4-grams above which it does
    draws         number of random directions, the control, which answer the problems in turn; 0: none
    seed          seed of the random directions

    The first of the tasks is used; the behaviour is hesitation.
    """

    role: str | None
    strengths: Sequence[float]
    gates: Mapping[str, Gate]
    behind: Sequence[str] | None
    chosen_by: Selection | None
    latents: int | str | Sequence[int] | None = None
    unit: str = "latent_maximum"
    collapse: float = 3.0
    repetition: float = 0.5
    draws: int = 20
    seed: int = 0

    name = "steering_sweep"

    def __post_init__(self):
        unknown = set(self.behind or ()) - set(self.gates)
        if unknown:
            raise Refused(f"steering_sweep.behind names {sorted(unknown)}; the gates are {', '.join(self.gates)}.")
        if self.unit not in UNITS:
            raise Refused(f"steering_sweep.unit={self.unit}: choose {' or '.join(UNITS)}.")
        check_role(self.role, setting="steering_sweep")
        if not self.strengths or not self.gates or any(strength <= 0 for strength in self.strengths):
            raise Refused("steering_sweep needs at least one gate, and strengths above 0; 0 is always measured.")
        self.strengths = sorted(self.strengths)
        self.gates = {name: self.gates[name] for name in self.behind or self.gates}
        self.tasks = dict(itertools.islice(self.tasks.items(), 1))

    @property
    def asks_for(self) -> Mapping[str, int]:
        return asked_for(self.latents, self.chosen_by)

    def times_asked(self, pair: ModelPair) -> int:
        return 1 + (2 if self.draws else 1) * len(self.gates) * len(self.strengths)

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        role = role_of(trained, self.role, setting="steering_sweep")
        seen = trained.statistics
        chosen = choose(trained, seen, self.latents, self.chosen_by)
        yield Note(f"steering_sweep: along latents {', '.join(map(str, chosen))} of the {role} model")
        found = self.solved(trained, (yield from self.asked(trained)), self.conditions(trained, role, seen, chosen))
        yield from never_touched("steering_sweep", found)
        (name,) = self.tasks
        plain = found[name, UNEDITED].solved
        rows, verdicts = [], []
        for gate in self.gates:
            for kind in ("latents", *(["random_direction"] if self.draws else [])):
                curve = [found[name, f"{gate}/{kind}/{strength:g}"].solved for strength in self.strengths]
                steps = zip((0.0, *self.strengths), (plain, *curve), strict=True)
                rows += [point(gate, kind, strength, solved) for strength, solved in steps]
                if kind == "latents":
                    verdicts.append((yield from self._verdict(gate, plain, curve)))
        table = Table.of("steering_sweep", rows)
        yield table
        yield from figures(table.columns, Table.of("verdicts", verdicts).columns, self.unit)

    def conditions(self, trained: Trained, role: str, seen: LatentStatistics, chosen: Sequence[int]) -> list[Condition]:
        own, drawn = steering_parts(trained, role, seen, chosen, unit=self.unit, draws=self.draws, seed=self.seed)
        asked_as = TUNED if role == ADAPTER else None
        made = [Condition(UNEDITED, f"{role}, unedited", role, asked_as=asked_as)]
        for gate, opens in self.gates.items():
            for strength in self.strengths:
                behind = opens.of(trained.dictionary)
                steered, *controls = (
                    tuple(Edit(at, part, Add(strength), behind) for at, part in places) for places in (own, *drawn)
                )
                title = f"{gate}, latents, strength {strength:g}"
                name = f"{gate}/latents/{strength:g}"
                made.append(Condition(name, title, role, steered, False, UNEDITED, asked_as))
                if controls:
                    title = f"{gate}, {len(controls)} random directions, strength {strength:g}"
                    name, turns = f"{gate}/random_direction/{strength:g}", tuple(controls)
                    made.append(Condition(name, title, role, (), True, UNEDITED, asked_as, drawn=turns))
        return made

    def _verdict(
        self, gate: str, plain: Sequence[Solved], curve: Sequence[Sequence[Solved]]
    ) -> Generator[Finding | Note, None, dict[str, Any]]:
        """Yields what is found behind a gate, and returns it as a row."""
        where, peak, strength = f"steering_sweep/{gate}", (None, None, None), None
        rates = [hesitation_rate(solved) for solved in curve]
        fine = coherent(plain, curve, collapse=self.collapse, repetition=self.repetition)
        if usable := from_peak_on(rates, fine):
            level = 1 - 0.05 / len(curve)  # so that it holds for whichever strength is the largest
            peak, strength = hesitations(curve[usable[0]], level=level), self.strengths[usable[0]]
            meaning = (
                "largest rate while the text is coherent, hesitations per 1,000 tokens; its interval is wide enough for whichever "
                "strength that is (Bonferroni)"
            )
            yield Finding(f"{where}/peak", *peak, meaning, over="problems")
            meaning = f"strength of that peak, in units of {self.unit}"
            yield Finding(f"{where}/peak_strength", strength, meaning=meaning)
        found = dip(hesitation_rate(plain), rates, fine)
        verdict, value = f"oversteering dip {found.word}; {found.why}", {"present": 1.0, "absent": 0.0}.get(found.word)
        yield Note(f"steering_sweep, {gate}: {verdict}")
        yield Finding(f"{where}/dip", value, meaning="oversteering dip: 1 present, 0 absent, null underpowered")
        row = {"gate": gate, **interval_columns("peak", peak), "peak_strength": strength}
        return row | {"dip": value, "verdict": verdict}


def coherent(
    plain: Sequence[Solved], curve: Sequence[Sequence[Solved]], *, collapse: float, repetition: float
) -> list[bool]:
    """True for responses at a strength that the unedited model finds at most `collapse` times as perplexing as its own, and that
    repeat at most this share of their 4-grams."""
    limit = surprise_rate(plain).value.exp() * collapse
    return [
        bool(surprise_rate(solved).value.exp() <= limit) and (repeated(solved) or 0.0) <= repetition for solved in curve
    ]


def figures(columns: dict[str, list], verdicts: Mapping[str, list], unit: str) -> Iterator[Figure]:
    """Draws the curves, and below them the verdict for each gate."""
    section = "Steering, from weak to strong"
    beside = {"random": [kind != "latents" for kind in columns["kind"]], "plain": [not s for s in columns["strength"]]}
    yield Figure(
        name="steering_sweep/curves",
        kind="lines",
        columns=columns | beside,
        x="strength",
        y=["behaviour", "perplexity", "accuracy"],
        section=section,
        title="Steering",
        caption="The axis of strengths is logarithmic and begins with 0, no edit, which the dashed level continues. Bands are "
        "95 % intervals over problems, of random directions over these with their problems.",
        group="gate",
        control="random",
        rule="plain",
        log=["strength", "perplexity"],
        words={
            "behaviour": "hesitations per 1,000 tokens",
            "perplexity": "perplexity of the responses",
            "random": "random direction",
            "strength": f"strength, in {UNITS[unit]}",
        },
    )
    yield Figure(
        name="steering_sweep/peaks",
        kind="intervals",
        columns=verdicts,
        x="gate",
        y=["peak", "peak_strength"],
        section=section,
        title="What the sweep found, gate by gate",
        group="gate",
        words={"peak": "hesitations at the peak", "peak_strength": "strength at the peak", "dip": "oversteering dip"},
    )


def dip(plain: Estimate, rates: Sequence[Estimate], coherent: Sequence[bool]) -> DipVerdict:
    """The verdict on the rates at rising strengths, on the same problems as the plain rate; the file defines it at its head."""
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


def point(gate: str, kind: str, strength: float, solved: Sequence[Solved]) -> dict[str, object]:
    """One row of the table steering_sweep."""
    return {
        "gate": gate,
        "kind": kind,
        "strength": strength,
        **interval_columns("behaviour", hesitations(solved)),
        **interval_columns("perplexity", perplexity(solved)),
        "repetition": repeated(solved),
        "distinct": mean([s.behaviour.distinct for s in solved]),
        **interval_columns("accuracy", accuracy(solved)),
        "tokens": mean([float(s.behaviour.tokens) for s in solved]),
        "touched": None if strength == 0 else mean([float(sum(s.response.touched) > 0) for s in solved]),
    }


def repeated(solved: Sequence[Solved]) -> float | None:
    return mean([s.behaviour.repetition for s in solved])
