"""Strongest examples of a unit -> does it stand for one thing, for something broad, or for several things? A language model
sorts units of several kinds, without being told which kind a unit is of.

    0 monosemantic    1 broad    2 polysemantic          the three classes of arXiv 2511.06739, asked in our own words
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tunediff import randomness
from tunediff.evaluations.judging.autointerp import windows_of
from tunediff.evaluations.judging.chat import Chat
from tunediff.evaluations.judging.examination import FEWEST, choice_in, passages, sentence_in
from tunediff.evaluations.lora.units import Kind, Unit
from tunediff.measures import mean_of, share
from tunediff.shapes import Finding, Note, Table

CLASSES = ("monosemantic", "broad", "polysemantic")
QUESTION = """You judge how clearly a unit inside a language model stands for something. You are given the passages in which \
it is most active. The tokens that make it active stand between << and >>, and below each passage they are listed with a \
strength from 1 to 10. Decide between three classes:
0: one specific thing explains nearly all of the passages: a word or form, a topic, a role in the sentence or the argument.
1: the passages have something in common, but it is so wide that it would fit a great deal of other text as well.
2: the passages fall into several groups that have nothing to do with each other, or nothing holds them together.
If you hesitate between 0 and 1, ask whether a reader could find such tokens in new text from your description alone. Do not \
mention the marks, the strengths or this task. End with two lines:
Reason: <one sentence: what the unit stands for, or why it cannot be said>
Class: <0, 1 or 2>"""


class JudgedUnit(NamedTuple):
    kind: str
    unit: Unit
    passages: str


def sort_units(chat: Chat, kinds: Sequence[Kind], *, units: int, seed: int) -> Iterator[Finding | Table | Note]:
    """Asks about `units` living units of each kind. Raises Refused where the endpoint gives no answer at all; once it has
    answered, what is known is reported."""
    subjects = [subject for kind in kinds for subject in _subjects(kind, units, chat.judge.examples, seed)]
    short = sum(min(units, int(kind.alive.sum())) for kind in kinds) - len(subjects)
    if short:
        yield Note(f"unit_comparison passed over {short} units: fewer than {FEWEST} held-out documents activate them.")
    questions = [subject.passages for subject in subjects]
    answers, notes = chat.answers(QUESTION, questions, evaluation="unit_comparison", units="units")
    yield from notes
    said = [(subjects[n], verdict_in(answer)) for n, answer in answers.items()]
    rows = [
        {"kind": of.kind, **of.unit._asdict(), "class": verdict and verdict[0], "reason": verdict and verdict[1]}
        for of, verdict in said
    ]
    if rows:
        yield Table.of("unit_classes", rows)
    for kind in kinds:
        yield from _findings(chat.model, kind, [verdict for of, verdict in said if of.kind == kind.name])


def verdict_in(answer: str) -> tuple[int, str] | None:
    """The class and its reason, "" where none is given; None without one class in the last line that names it."""
    named = choice_in(answer, "class", ("0", "1", "2"))
    return None if named is None else (int(named), sentence_in(answer, "reason") or "")


def _subjects(kind: Kind, units: int, examples: int, seed: int) -> Iterator[JudgedUnit]:
    """The units with enough examples among `units` living ones, drawn by the seed."""
    alive = kind.alive.nonzero()[:, 0]
    drawn = (
        alive[torch.randperm(len(alive), generator=randomness.generator(seed, "judged units"))][:units].sort().values
    )
    numbers = [kind.numbers[n] for n in drawn.tolist()]
    windows = windows_of(kind.reads, numbers, strongest=examples, silent=0)
    for n, number in zip(drawn.tolist(), numbers, strict=True):
        if len(windows[number]) >= FEWEST:
            yield JudgedUnit(kind.name, kind.units[n], passages(windows[number]))


def _findings(model: str, kind: Kind, given: Sequence[tuple[int, str] | None]) -> Iterator[Finding]:
    where = f"unit_comparison/{kind.name}/judged"
    classes = [verdict[0] for verdict in given if verdict is not None]
    how = f"of {len(classes)} {kind.what}, drawn among the living and judged by {model}"
    for number, name in enumerate(CLASSES):
        count = classes.count(number)
        meaning = f"share {how}, that are {name}; Wilson interval over units"
        yield Finding(f"{where}/{name}", *share(count, len(classes)), meaning, over="units")
    meaning = f"mean class {how}: 0 monosemantic, 1 broad, 2 polysemantic; interval over units"
    yield Finding(f"{where}/mean_class", *mean_of(torch.tensor(classes), least=0.0, most=2.0), meaning, over="units")
    meaning = "answers of the judge that could not be read: no line 'Class:' with 0, 1 or 2. They are left out"
    yield Finding(f"{where}/unreadable", len(given) - len(classes), meaning=meaning)
