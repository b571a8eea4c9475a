"""Strongest examples of a unit -> does it stand for one thing, for something broad, or for several things? A language model
sorts units of several kinds, without being told which kind a unit is of.

    0 monosemantic    1 broad    2 polysemantic          the three classes of arXiv 2511.06739, asked in our own words

Held-out text is sent to the endpoint that was given; where none is, nothing is asked and nothing is found.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tunediff.benchmarks import wilson
from tunediff.evaluations.autointerp import windows_of
from tunediff.evaluations.chat import Chat, each
from tunediff.evaluations.examination import FEWEST, passages
from tunediff.evaluations.intervals import mean_of
from tunediff.evaluations.units import Kind, Unit
from tunediff.shapes import Finding, Note, Refused, Table

log = logging.getLogger(__name__)

SETTING = "evaluation.unit_comparison.judge"
KINDS = 3  # adapters, neurons, latents
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


class Subject(NamedTuple):
    kind: str
    unit: Unit
    passages: str


class Judge:
    """endpoint        address of an OpenAI-compatible interface; null: nobody is asked       model   its name there
    units           of each kind, drawn among the living
    examples        of each unit, its strongest
    key_variable    environment variable that holds the key; null: none is sent
    most_calls      of one evaluation; more are refused before anything is asked             at_once   calls under way
    timeout         seconds for one answer                              retries   when the endpoint is busy
    answer_tokens   the longest answer, thoughts included

    Raises Refused before a model is loaded where calls could be more than `most_calls`, or address, model or key are none."""

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        model: str | None = None,
        units: int = 50,
        examples: int = 10,
        key_variable: str | None = None,
        most_calls: int = 500,
        at_once: int = 4,
        timeout: float = 120.0,
        retries: int = 5,
        answer_tokens: int = 2000,
    ):
        self.units, self.examples, self.at_once, self.chat = units, examples, at_once, None
        if endpoint is None:
            return
        if model is None:
            raise Refused(f"{SETTING}.endpoint={endpoint} is asked for no model: name it, {SETTING}.model=<...>.")
        if units < 1 or examples < FEWEST:
            raise Refused(f"{SETTING} needs units=1 or more and examples={FEWEST} or more.")
        if KINDS * units > most_calls:
            raise Refused(
                f"{SETTING} would call {model} up to {KINDS * units:,} times ({units:,} units of each of {KINDS} kinds), more "
                f"than {SETTING}.most_calls={most_calls:,}. Judge fewer {SETTING}.units, or allow more calls."
            )
        self.chat = Chat(
            endpoint,
            model,
            setting=SETTING,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            answer_tokens=answer_tokens,
        )

    def sort(self, kinds: Sequence[Kind], *, seed: int) -> Iterator[Finding | Table | Note]:
        """Raises Refused where the endpoint gives no answer at all; once it has answered, what is known is reported."""
        if self.chat is None:
            return
        subjects = [subject for kind in kinds for subject in self._subjects(kind, seed)]
        short = sum(min(self.units, int(kind.alive.sum())) for kind in kinds) - len(subjects)
        if short:
            yield Note(
                f"unit_comparison passed over {short} units: fewer than {FEWEST} held-out documents activate them."
            )
        characters = sum(len(QUESTION) + len(subject.passages) for subject in subjects)
        log.info(
            "unit_comparison: %s calls of %s at %s, about %s prompt tokens (characters / 4); answers come on top",
            *(f"{len(subjects):,}", self.chat.model, self.chat.endpoint, f"{characters // 4:,}"),
        )
        said, failure = each(self._ask, subjects, at_once=self.at_once, title="judging units", unit="unit")
        if failure is not None and not said:
            raise failure
        if failure is not None:
            yield Note(f"unit_comparison stopped with {len(said)} of {len(subjects)} units judged: {failure}")
        columns: dict[str, list] = defaultdict(list)
        for n, verdict in said.items():
            named = {"kind": subjects[n].kind, **subjects[n].unit._asdict()}
            read = (
                {"class": None, "reason": None}
                if verdict is None
                else dict(zip(("class", "reason"), verdict, strict=True))
            )
            for name, value in (named | read).items():
                columns[name].append(value)
        if columns:
            yield Table("unit_classes", dict(columns))
        for kind in kinds:
            given = [verdict for n, verdict in said.items() if subjects[n].kind == kind.name]
            yield from self._findings(kind, given)

    def _subjects(self, kind: Kind, seed: int) -> Iterator[Subject]:
        """Of a sample of living units those with enough examples."""
        alive = kind.alive.nonzero()[:, 0]
        drawn = (
            alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))][: self.units].sort().values
        )
        numbers = [kind.numbers[n] for n in drawn.tolist()]
        windows = windows_of(kind.reads, numbers, strongest=self.examples, silent=0)
        for n, number in zip(drawn.tolist(), numbers, strict=True):
            if len(windows[number]) >= FEWEST:
                yield Subject(kind.name, kind.units[n], passages(windows[number]))

    def _ask(self, subject: Subject) -> tuple[int, str] | None:
        return verdict_in(self.chat.ask(QUESTION, subject.passages))

    def _findings(self, kind: Kind, given: Sequence[tuple[int, str] | None]) -> Iterator[Finding]:
        where = f"unit_comparison/{kind.name}/judged"
        classes = [verdict[0] for verdict in given if verdict is not None]
        how = f"of {len(classes)} {kind.what}, drawn among the living and judged by {self.chat.model}"
        for number, name in enumerate(CLASSES):
            count = classes.count(number)
            share = (count / len(classes), *wilson(count, len(classes))) if classes else (None, None, None)
            yield Finding(f"{where}/{name}", *share, f"share {how}, that are {name}; Wilson interval over units")
        meaning = f"mean class {how}: 0 monosemantic, 1 broad, 2 polysemantic; interval over units"
        yield Finding(f"{where}/mean_class", *mean_of(torch.tensor(classes)), meaning)
        meaning = "answers of the judge that could not be read: no line 'Class:' with 0, 1 or 2. They are left out"
        yield Finding(f"{where}/unreadable", len(given) - len(classes), meaning=meaning)


def verdict_in(answer: str) -> tuple[int, str] | None:
    """The class and its reason, "" where none is given; None without one class in the last line that names it."""
    named = re.findall(r"^\W*class\b\W*(.*?)\W*$", answer, flags=re.IGNORECASE | re.MULTILINE)
    if not named or named[-1] not in {"0", "1", "2"}:
        return None
    reasons = re.findall(r"^\W*reason\b\W*:[\s*_]*(\S.*?)[\s*_]*$", answer, flags=re.IGNORECASE | re.MULTILINE)
    return int(named[-1]), reasons[-1] if reasons else ""
