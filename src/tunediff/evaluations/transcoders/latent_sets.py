"""A set of a transcoder adapter's latents, asked three ways what it does while a model writes (arXiv 2602.20904, section 5):

    necessity     the adapted model without the set                             compared with the whole adapter
    sufficiency   the hybrid with the set and the decoder biases alone          compared with the hybrid
    negation      the tuned model, with the set written `scale` times, and no bias, beside its own MLPs      with the tuned model

Each beside random sets of living latents, as many and more; sufficiency also with no latent at all, which is what the biases
do alone. Measures are means over problems; a change is that of a mean on the same problems. Random sets answer the problems
in turn (behaviour/solving.py), and what they are compared with is taken set by set. Every model is one of its own over the weights of the pair: no edit is switched on or off.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tunediff import randomness
from tunediff.benchmarks import Grader
from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.behaviour.changes import Changed, columns, told
from tunediff.evaluations.behaviour.conditions import draws_of
from tunediff.evaluations.behaviour.intervention import latents_table
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found, Problems
from tunediff.evaluations.behaviour.solving import Answered, Condition, Solved, in_turn
from tunediff.evaluations.given import LatentStatistics, Needs, Trained
from tunediff.evaluations.latents.selection import Selection, asked_for, choose
from tunediff.generation import Response
from tunediff.measures.clustered import interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, HYBRID, TUNED, Figure, Finding, Note, Refused, Table

NAME = "latent_sets"
NECESSITY, SUFFICIENCY, NEGATION = "necessity", "sufficiency", "negation"
COMPARED_WITH = {NECESSITY: ADAPTER, SUFFICIENCY: HYBRID, NEGATION: TUNED}  # also the roles of these models
WHOLE = {ADAPTER: "with the whole adapter", HYBRID: "tuned with the base's MLPs", TUNED: "tuned"}
TITLES = {NECESSITY: "adapter without {}", SUFFICIENCY: "hybrid with {} alone", NEGATION: "tuned with {} negated"}
CHOSEN, RANDOM, EMPTY = "chosen", "random", "empty"
SETS = {CHOSEN: "the set", RANDOM: "random latents ({:,}, {} draws)", EMPTY: "decoder biases"}


@dataclass(frozen=True)
class AskedSet:
    """One set, asked in one way; or random sets of one size, which answer in turn."""

    asked: str
    which: str
    draws: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        return len(self.draws[0])

    @property
    def name(self) -> str:
        if self.which == CHOSEN:
            return self.asked
        return f"{self.which}/{self.asked}" + (f"/{self.size}" if self.which == RANDOM else "")

    @property
    def condition(self) -> Condition:
        what = SETS[self.which].format(self.size, len(self.draws))
        against, title = COMPARED_WITH[self.asked], TITLES[self.asked].format(what)
        return Condition(self.name, title, ADAPTER, control=self.which != CHOSEN, reference=against, asked_as=TUNED)


@dataclass(kw_only=True)
class LatentSets(BehaviourEvaluation):
    """latents        the set: numbers, or an expression; None: as `chosen_by` chooses
    scale          factor of what the set writes into the tuned model
    draws          number of random sets of each size, which answer the problems in turn; 0: none
    control_sizes  sizes of random sets, times that of the set; the set is compared with those of size 1
    seed           seed of the random sets
    """

    chosen_by: Selection | None
    scale: float
    draws: int
    control_sizes: Sequence[int]
    latents: str | Sequence[int] | None = None
    seed: int = 0

    name = NAME
    needs = Needs.ADAPTER
    own_template = True

    def __post_init__(self):
        if any(times < 1 for times in self.control_sizes):
            raise Refused(
                f"{NAME}.control_sizes={list(self.control_sizes)}: each is a multiple of the set's size, from 1 on."
            )
        self.control_sizes = sorted(set(self.control_sizes))

    @property
    def asks_for(self) -> Mapping[str, int]:
        return asked_for(self.latents, self.chosen_by)

    def times_asked(self, pair: ModelPair) -> int:
        sets = 1 + len(self.control_sizes) * bool(self.draws)
        return len(WHOLE) + len(COMPARED_WITH) * sets + 1  # the last: the constant of the decoders alone

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        adapter = trained.adapter(NAME)
        seen = trained.statistics
        chosen = choose(trained, seen, self.latents, self.chosen_by)
        if not chosen:
            raise Refused(
                f"{NAME}: no latent is chosen, so that there is no set to ask about: give numbers, latents=[3,17]."
            )
        questions, notes = self.questions(adapter, seen, chosen)
        yield from (Note(f"{NAME}: {said}") for said in notes)
        places = [adapter.place_of(latent) for latent in chosen]
        where = {"layer": [layer for layer, _ in places], "within": [within for _, within in places]}
        yield Table(f"{NAME}_latents", {**latents_table(seen, chosen), **where})
        found = self.answers(trained, questions, (yield from self.asked(trained)))
        yield from self.side_by_side(found)
        rows = []
        for name in self.tasks:
            of_task = {key: solved for (task, key), (_, solved) in found.items() if task == name}
            rows += yield from _compared(name, questions, of_task)
        yield Table.of(NAME, rows)
        yield from figures(rows)

    def questions(
        self, adapter: TranscoderAdapter, seen: LatentStatistics, chosen: Sequence[int]
    ) -> tuple[list[AskedSet], list[str]]:
        """Every set asked in each way, and sentences about controls that cannot be drawn."""
        free = seen.alive.clone()
        free[list(chosen)] = False
        living, notes = free.nonzero()[:, 0], []
        sets: list[tuple[str, tuple[tuple[int, ...], ...]]] = [(CHOSEN, (tuple(chosen),))]
        generator = randomness.generator(self.seed, "sets of latents")
        for size in (times * len(chosen) for times in self.control_sizes if self.draws):
            if size > len(living):
                notes.append(
                    f"there are no random sets of {size:,} latents: beside the {len(chosen):,} chosen ones {len(living):,} fire "
                    "on the held-out text. Choose fewer, or smaller control_sizes."
                )
                continue
            drawn = (living[torch.randperm(len(living), generator=generator)[:size]] for _ in range(self.draws))
            sets.append((RANDOM, tuple(tuple(sorted(one.tolist())) for one in drawn)))
        made = [AskedSet(asked, *some) for asked in COMPARED_WITH for some in sets]
        if any(one.b_dec is not None for one in adapter.layers):
            made.append(AskedSet(SUFFICIENCY, EMPTY, ((),)))
        return made, notes

    def answers(self, trained: Trained, questions: Sequence[AskedSet], problems: Problems) -> Found:
        """The responses of the whole models and of each question's, by task and condition."""
        found = {}
        whole = [(None, Condition(role, title, role, asked_as=TUNED)) for role, title in WHOLE.items()]
        with Grader() as grader:
            for question, condition in [*whole, *((question, question.condition) for question in questions)]:
                # what a changed adapter wrote is scored by the model it is compared with
                scored_by = condition if question is None else replace(condition, role=COMPARED_WITH[question.asked])
                draws = len(question.draws) if question is not None and question.which == RANDOM else 0
                responses = self._responses(trained, question, condition, problems)
                for name, some in problems.items():
                    answers = self.graded(name, some, responses[name], grader, trained.pair.layouts)
                    measured = self.measured(trained, scored_by, answers, draws=draws)
                    found[name, condition.name] = Answered(condition, measured)
        return {(name, key): found[name, key] for name in problems for of, key in found if of == name}

    def _responses(
        self, trained: Trained, question: AskedSet | None, condition: Condition, problems: Problems
    ) -> dict[str, list[Response]]:
        """The responses to each task, those of a question by its sets in turn: one changed adapter is there at a time."""
        if question is None:
            return {name: self.respond(trained, name, some, condition) for name, some in problems.items()}
        found: dict[str, dict[int, Response]] = {name: {} for name in problems}
        for draw, numbers in enumerate(question.draws):
            asked = replace(trained, pair=self.model(trained, question.asked, numbers))
            for name, some in problems.items():
                for places in in_turn(len(some), len(question.draws))[draw : draw + 1]:
                    mine = self.respond(asked, name, [some[place] for place in places], condition)
                    found[name] |= zip(places, mine, strict=True)
        return {name: [found[name][place] for place in range(len(some))] for name, some in problems.items()}

    def model(self, trained: Trained, asked: str, numbers: Sequence[int]) -> ModelPair:
        """The pair with the model of a set, asked in one way, in the role adapter."""
        adapter = trained.adapter(NAME)
        if asked == NECESSITY:
            return trained.pair.with_adapter(adapter.without(numbers))
        if asked == SUFFICIENCY:
            return trained.pair.with_adapter(adapter.only(numbers))
        negated = adapter.only(numbers, scale=self.scale, bias=False)
        return trained.pair.with_adapter(negated, on=TUNED)


def _compared(
    task: str, questions: Sequence[AskedSet], found: Mapping[str, Sequence[Solved]]
) -> Generator[Finding, None, list[dict[str, object]]]:
    """Yields the change against the whole model, and how much larger it is than under random sets of the same size; returns
    rows of the table, the whole models first."""
    rows = []
    for role in COMPARED_WITH.values():
        row = {"task": task, "asked": None, "set": role, "size": None, "draws": None, "condition": role}
        rows.append(row | {"reference": None} | columns(Changed(found[role])))
    for question in questions:
        reference = COMPARED_WITH[question.asked]
        control = AskedSet(question.asked, RANDOM, question.draws).name if question.which == CHOSEN else ""
        changed = Changed(found[question.name], found[reference], found.get(control, ()))
        row = {"task": task, "asked": question.asked, "set": question.which, "size": question.size}
        row |= {"draws": draws_of(found[question.name]) or None, "condition": question.name, "reference": reference}
        rows.append(row | columns(changed))
        if question.which == CHOSEN:
            yield from told(f"{NAME}/{task}/{question.asked}", changed)
    return rows


# -- how it is drawn -------------------------------------------------------------------------------------------------

SHOWN = {
    "hesitation_rate": "hesitations per 1,000 tokens",
    "hesitating": "share that hesitates",
    "length": "tokens a response",
    "accuracy": "accuracy",
}
MODELS = {ADAPTER: "adapted model", HYBRID: "hybrid, no adapter", TUNED: "tuned model"}
# what is asked: title, the model that lies beyond, and how the chosen, the random and the empty set are called in it
QUESTIONS = {
    NECESSITY: (
        "Are they needed? Latents taken out of the adapted model",
        HYBRID,
        {CHOSEN: "without the {:,} chosen", RANDOM: "without {:,} at random, {} draws"},
    ),
    SUFFICIENCY: (
        "Are they enough? Latents given alone to the hybrid",
        ADAPTER,
        {
            CHOSEN: "hybrid with the {:,} chosen",
            RANDOM: "hybrid with {:,} at random, {} draws",
            EMPTY: "hybrid with the biases alone",
        },
    ),
    NEGATION: (
        "Does the tuned model lose it? Latents negated beside its MLPs",
        None,
        {CHOSEN: "less the {:,} chosen", RANDOM: "less {:,} at random, {} draws"},
    ),
}
CAPTION = (
    "The same problems to the adapted model without some latents, to the hybrid with those alone, and to the tuned model with "
    "what they write negated and scaled. The dashed line continues the model that a row is compared with; paler and indented: "
    "controls, as many latents or more drawn at random, without which a change says little. Whiskers are 95 % intervals of the "
    "change, over problems; of random sets over these with their problems."
)


def figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Draws one figure per task and question: the model that is compared with, the sets, and the model that lies beyond."""
    order = (CHOSEN, RANDOM, EMPTY)
    for task in dict.fromkeys(row["task"] for row in rows):
        models = {row["set"]: row for row in rows if row["task"] == task and row["asked"] is None}
        for asked, (title, beyond, names) in QUESTIONS.items():
            sets = [row for row in rows if (row["task"], row["asked"]) == (task, asked)]
            sets.sort(key=lambda row: (order.index(row["set"]), row["size"]))
            if not sets:
                continue
            reference = COMPARED_WITH[asked]
            shown = [models[reference], *sets, *([models[beyond]] if beyond else [])]
            yield Figure(
                name=f"{NAME}/{task}/{asked}",
                kind="bars",
                columns={
                    "set": [
                        MODELS.get(row["set"]) or names[row["set"]].format(row["size"], row["draws"]) for row in shown
                    ],
                    **{name: [value[name] for value in map(_around, shown)] for name in _around(shown[0])},
                    "model": [row["set"] if row["set"] in MODELS else "set" for row in shown],
                    "random": [row["set"] in order[1:] for row in shown],
                    "compared": [row["set"] == reference for row in shown],
                },
                x="set",
                y=list(SHOWN),
                section="Latent sets: needed, enough, negated",
                title=f"{title}, {task}",
                caption=CAPTION,
                group="model",
                control="random",
                rule="compared",
                words=SHOWN,
            )


def _around(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The measures of a row, each with the confidence interval of its change laid around it."""
    found = {}
    for name in SHOWN:
        value, change = row[name], row.get(f"{name}_change")
        ends = [row.get(f"{name}_change_{end}") for end in ("low", "high")]
        low, high = (None if None in (value, change, end) else value - change + end for end in ends)
        found |= interval_columns(name, (value, low, high))
    return found
