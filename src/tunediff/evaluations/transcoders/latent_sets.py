"""A set of a transcoder adapter's latents, asked three ways what it does while a model writes (arXiv 2602.20904, section 5):

    necessity     the adapted model without the set                             compared with the whole adapter
    sufficiency   the hybrid with the set and the decoder biases alone          compared with the hybrid
    negation      the tuned model, with the set written `scale` times, and no bias, beside its own MLPs      with the tuned model

Each beside random sets of living latents, as many and more; sufficiency also with no latent at all, which is what the biases
do alone. Measures are means over problems; a change is that of a mean on the same problems, interval over problems with the
draws taken as given. Every model is one of its own over the weights of the pair: no edit is switched on or off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch

from tunediff import randomness
from tunediff.benchmarks import Grader
from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.behaviour.changes import Changed, columns, measures, told
from tunediff.evaluations.behaviour.intervention import latents_table
from tunediff.evaluations.behaviour.runner import BehaviourEvaluation, Found, Problems
from tunediff.evaluations.behaviour.solving import Answered, Condition, Solved
from tunediff.evaluations.given import LatentStatistics, Needs, Trained
from tunediff.evaluations.latents.selection import Selection, asked_for, choose
from tunediff.measures.clustered import interval_columns
from tunediff.models import ModelPair
from tunediff.shapes import ADAPTER, HYBRID, TUNED, Figure, Finding, Note, Refused, Table

NAME = "latent_sets"
NECESSITY, SUFFICIENCY, NEGATION = "necessity", "sufficiency", "negation"
COMPARED_WITH = {NECESSITY: ADAPTER, SUFFICIENCY: HYBRID, NEGATION: TUNED}  # also the roles of these models
WHOLE = {ADAPTER: "with the whole adapter", HYBRID: "tuned with the base's MLPs", TUNED: "tuned"}
TITLES = {NECESSITY: "adapter without {}", SUFFICIENCY: "hybrid with {} alone", NEGATION: "tuned with {} negated"}
CHOSEN, RANDOM, EMPTY = "chosen", "random", "empty"
SETS = {CHOSEN: "the set", RANDOM: "random latents ({:,})", EMPTY: "decoder biases"}


@dataclasses.dataclass(frozen=True)
class AskedSet:
    """One set, asked in one way; `draw` is the number of a random set."""

    asked: str
    which: str
    numbers: tuple[int, ...]
    draw: int | None = None

    @property
    def name(self) -> str:
        if self.which == CHOSEN:
            return self.asked
        return f"{self.which}/{self.asked}" + ("" if self.draw is None else f"/{len(self.numbers)}/{self.draw}")

    @property
    def condition(self) -> Condition:
        what = SETS[self.which].format(len(self.numbers))
        against, title = COMPARED_WITH[self.asked], TITLES[self.asked].format(what)
        return Condition(self.name, title, ADAPTER, control=self.which != CHOSEN, reference=against, asked_as=TUNED)


@dataclasses.dataclass(kw_only=True)
class LatentSets(BehaviourEvaluation):
    """latents        the set: numbers, or an expression; None: as `chosen_by` chooses
    scale          factor of what the set writes into the tuned model  draws    number of random sets per size
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
        sets = 1 + len(self.control_sizes) * self.draws
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
        sets: list[tuple[str, tuple[int, ...], int | None]] = [(CHOSEN, tuple(chosen), None)]
        generator = randomness.generator(self.seed, "sets of latents")
        for size in (times * len(chosen) for times in self.control_sizes if self.draws):
            if size > len(living):
                notes.append(
                    f"there are no random sets of {size:,} latents: beside the {len(chosen):,} chosen ones {len(living):,} fire "
                    "on the held-out text. Choose fewer, or smaller control_sizes."
                )
                continue
            for draw in range(self.draws):
                drawn = living[torch.randperm(len(living), generator=generator)[:size]]
                sets.append((RANDOM, tuple(sorted(drawn.tolist())), draw))
        made = [AskedSet(asked, *some) for asked in COMPARED_WITH for some in sets]
        if any(one.b_dec is not None for one in adapter.layers):
            made.append(AskedSet(SUFFICIENCY, EMPTY, ()))
        return made, notes

    def answers(self, trained: Trained, questions: Sequence[AskedSet], problems: Problems) -> Found:
        """The responses of the whole models and of each question's, by task and condition."""
        found = {}
        whole = [(None, Condition(role, title, role, asked_as=TUNED)) for role, title in WHOLE.items()]
        with Grader() as grader:
            for question, condition in [*whole, *((question, question.condition) for question in questions)]:
                asked, scored_by = trained, condition
                if question is not None:
                    # one changed adapter is there at a time; what it wrote is scored by the model it is compared with
                    asked = dataclasses.replace(trained, pair=self.model(trained, question))
                    scored_by = dataclasses.replace(condition, role=COMPARED_WITH[question.asked])
                for name, some in problems.items():
                    responses = self.respond(asked, name, some, condition)
                    answers = self.graded(name, some, responses, grader, trained.pair.layouts)
                    found[name, condition.name] = Answered(condition, self.measured(trained, scored_by, answers))
        return {(name, key): found[name, key] for name in problems for of, key in found if of == name}

    def model(self, trained: Trained, question: AskedSet) -> ModelPair:
        """The pair with the model of a question in the role adapter."""
        adapter = trained.adapter(NAME)
        if question.asked == NECESSITY:
            return trained.pair.with_adapter(adapter.without(question.numbers))
        if question.asked == SUFFICIENCY:
            return trained.pair.with_adapter(adapter.only(question.numbers))
        negated = adapter.only(question.numbers, scale=self.scale, bias=False)
        return trained.pair.with_adapter(negated, on=TUNED)


def _compared(
    task: str, questions: Sequence[AskedSet], found: Mapping[str, Sequence[Solved]]
) -> Generator[Finding, None, list[dict[str, object]]]:
    """Yields the change against the whole model, and how much larger it is than under random sets of the same size; returns
    rows of the table, the whole models first."""
    measured = {key: measures(solved) for key, solved in found.items()}
    rows = []
    for role in COMPARED_WITH.values():
        row = {"task": task, "asked": None, "set": role, "size": None, "draw": None, "condition": role}
        rows.append(row | {"reference": None} | columns(Changed(measured[role])))
    for question in questions:
        reference = COMPARED_WITH[question.asked]
        alike = [measured[other.name] for other in questions if _controls(other, question)]
        changed = Changed(measured[question.name], measured[reference], alike)
        row = {"task": task, "asked": question.asked, "set": question.which, "size": len(question.numbers)}
        row |= {"draw": question.draw, "condition": question.name, "reference": reference}
        rows.append(row | columns(changed))
        if question.which == CHOSEN:
            yield from told(f"{NAME}/{task}/{question.asked}", changed)
    return rows


def _controls(other: AskedSet, question: AskedSet) -> bool:
    same = (other.asked, len(other.numbers)) == (question.asked, len(question.numbers))
    return question.which == CHOSEN and other.which == RANDOM and same


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
        {CHOSEN: "without the {:,} chosen", RANDOM: "without {:,} at random, draw {}"},
    ),
    SUFFICIENCY: (
        "Are they enough? Latents given alone to the hybrid",
        ADAPTER,
        {
            CHOSEN: "hybrid with the {:,} chosen",
            RANDOM: "hybrid with {:,} at random, draw {}",
            EMPTY: "hybrid with the biases alone",
        },
    ),
    NEGATION: (
        "Does the tuned model lose it? Latents negated beside its MLPs",
        None,
        {CHOSEN: "less the {:,} chosen", RANDOM: "less {:,} at random, draw {}"},
    ),
}
CAPTION = (
    "The same problems to the adapted model without some latents, to the hybrid with those alone, and to the tuned model with "
    "what they write negated and scaled. The dashed line continues the model that a row is compared with; paler and indented: "
    "controls, as many latents or more drawn at random, without which a change says little. Whiskers are 95 % intervals of the "
    "change."
)


def figures(rows: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Draws one figure per task and question: the model that is compared with, the sets, and the model that lies beyond."""
    order = (CHOSEN, RANDOM, EMPTY)
    for task in dict.fromkeys(row["task"] for row in rows):
        models = {row["set"]: row for row in rows if row["task"] == task and row["asked"] is None}
        for asked, (title, beyond, names) in QUESTIONS.items():
            sets = [row for row in rows if (row["task"], row["asked"]) == (task, asked)]
            sets.sort(key=lambda row: (order.index(row["set"]), row["size"], row["draw"] or 0))
            if not sets:
                continue
            reference = COMPARED_WITH[asked]
            shown = [models[reference], *sets, *([models[beyond]] if beyond else [])]
            yield Figure(
                name=f"{NAME}/{task}/{asked}",
                kind="bars",
                columns={
                    "set": [
                        MODELS.get(row["set"]) or names[row["set"]].format(row["size"], (row["draw"] or 0) + 1)
                        for row in shown
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
