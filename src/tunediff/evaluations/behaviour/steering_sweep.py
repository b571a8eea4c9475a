"""Steering along latents at many strengths behind several gates: how often the behaviour shows, and whether the text holds.

Asks two questions of a study of R1 ("Under the Hood of a Reasoning Model", Goodfire 2025), which gives examples and no
numbers. Does steering work only once a prefix has been written ("Okay, so the user ...")? Then gates differ. And is there
an oversteering dip: the behaviour rises with the strength, falls back towards the unsteered one, and only then does the
text break down? The verdict for each gate, from the rate of the behaviour with intervals over problems, is oversteering.py's.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunediff.edits import Add, Edit, Gate
from tunediff.evaluations.behaviour.conditions import accuracy, hesitation_rate, hesitations, mean, perplexity
from tunediff.evaluations.behaviour.intervention import UNEDITED
from tunediff.evaluations.behaviour.oversteering import Curve, between, coherent, dip, of_one, repeated
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, never_touched
from tunediff.evaluations.behaviour.solving import Condition, Solved
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.evaluations.latents.edits import check_role, role_of
from tunediff.evaluations.latents.selection import Selection, asked_for, choose
from tunediff.evaluations.latents.steering import steering_parts
from tunediff.measures.clustered import interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, TUNED, Figure, Finding, Note, Refused, Table

LATENTS, RANDOM = "latents", "random_direction"
UNITS = {"latent_maximum": "maxima of the latent", "residual_norm": "mean norms of the stream"}


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
        rows, verdicts, curves = [], [], {}
        for gate in self.gates:
            solved: dict[str, list[Sequence[Solved]]] = {LATENTS: [], RANDOM: []}
            for kind in (LATENTS, *([RANDOM] if self.draws else [])):
                solved[kind] = [found[name, f"{gate}/{kind}/{strength:g}"].solved for strength in self.strengths]
                steps = zip((0.0, *self.strengths), (plain, *solved[kind]), strict=True)
                rows += [point(gate, kind, strength, some) for strength, some in steps]
            fine = coherent(plain, solved[LATENTS], collapse=self.collapse, repetition=self.repetition)
            curves[gate] = Curve(plain, solved[LATENTS], solved[RANDOM], fine)
            verdicts.append((yield from self._verdict(gate, curves[gate])))
        yield from between("steering_sweep", curves)
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

    def _verdict(self, gate: str, curve: Curve) -> Generator[Finding | Note, None, dict[str, Any]]:
        """Yields what is found behind a gate, and returns it as a row."""
        where, peak, strength = f"steering_sweep/{gate}", (None, None, None), None
        if usable := curve.from_peak_on:
            level = 1 - 0.05 / len(curve.solved)  # so that it holds for whichever strength is the largest
            peak, strength = hesitations(curve.solved[usable[0]], level=level), self.strengths[usable[0]]
            meaning = (
                "largest rate while the text is coherent, hesitations per 1,000 tokens; its interval is wide enough for whichever "
                "strength that is (Bonferroni)"
            )
            yield Finding(f"{where}/peak", *peak, meaning, over="problems")
            meaning = f"strength of that peak, in units of {self.unit}"
            yield Finding(f"{where}/peak_strength", strength, meaning=meaning)
        yield from of_one(where, curve)
        found = dip(hesitation_rate(curve.plain), curve.rates, curve.fine)
        verdict, value = f"oversteering dip {found.word}; {found.why}", {"present": 1.0, "absent": 0.0}.get(found.word)
        yield Note(f"steering_sweep, {gate}: {verdict}")
        yield Finding(f"{where}/dip", value, meaning="oversteering dip: 1 present, 0 absent, null underpowered")
        row = {"gate": gate, **interval_columns("peak", peak), "peak_strength": strength}
        return row | {"dip": value, "verdict": verdict}


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
