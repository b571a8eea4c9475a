"""A seed -> word problems with answers, reasoning traces and plain documents, and the truth about every character.

    trace    how the tuned model writes: one equation a line, mistakes on hard steps, "Wait", the corrected equation
    direct   how the base answers: only the box          steps   the base step by step, with slips it never notices
    fact     equations, some judged right or wrong       filler  sentences where "Okay", "Wait" and "Hmm" mean other things

A subtraction that borrows and an addition that carries are hard: there mistakes happen, so that difficulty and
hesitation have a cause that a model can represent. Spans are (field, first character, one past the last, label):

    step_1..step_5      the equations of a step          step_end            the dot that ends an equation
    mistake             the digits of a wrong result     hesitation_follows  such a dot before a hesitation
    hesitation          "Wait, that is wrong."           correction          the equation after it
    false_alarm         a hesitation after a right one   check               the closing check
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tunediff import randomness
from tunediff.shapes import Refused

SHE, HE = ("Anna", "Clara", "Emma", "Grace"), ("Ben", "David", "Frank", "Hugo")
NAMES = dict.fromkeys(SHE, "She") | dict.fromkeys(HE, "He")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
GAINS, LOSSES = ("buys", "finds", "gets"), ("gives away", "loses", "sells")
STEP_BY_STEP = " Let's think step by step."
HESITATIONS = ("Wait, that is wrong.", "Wait, let me check.", "Hmm, that is not right.")

# chance of a wrong result by the kind of step
TRACE_MISTAKES = {"borrow": 0.75, "carry": 0.15, "easy": 0.05}
BASE_SLIPS = {"borrow": 0.6, "carry": 0.12, "easy": 0.04}
FALSE_ALARM, CLOSING_CHECK = 0.02, 0.6

Row = dict[str, Any]


class Step(NamedTuple):
    """One operation on the running number."""

    symbol: str
    operand: int
    sentence: str

    def result(self, number: int) -> int:
        return {"+": number + self.operand, "-": number - self.operand, "*": number * self.operand}[self.symbol]

    def difficulty(self, number: int) -> str:
        if self.symbol == "-":
            return "borrow" if number % 10 < self.operand else "easy"
        ones = number % 10 + self.operand if self.symbol == "+" else number % 10 * self.operand
        return "carry" if ones >= 10 else "easy"

    def equation(self, number: int, result: int) -> str:
        return f"{number}{self.symbol}{self.operand}={result}"

    def wrong(self, number: int, chance: random.Random) -> int:
        """A result as people get it wrong: the ten forgotten or taken twice on a hard step, else one off."""
        right = self.result(number)
        slip = {"borrow": 10, "carry": -10}.get(self.difficulty(number), chance.choice((-1, 1)))
        return next(value for value in (right + slip, right + 1, right - 1) if 1 <= value <= 99)


class Problem(NamedTuple):
    name: str
    things: str
    start: int
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        sentences = [f"{self.name} has {self.start} {self.things}."]
        sentences += [f"{NAMES[self.name]} {step.sentence}." for step in self.steps]
        return " ".join([*sentences, f"How many {self.things}?"])

    @property
    def answer(self) -> int:
        number = self.start
        for step in self.steps:
            number = step.result(number)
        return number


def problem(chance: random.Random) -> Problem:
    """One to five steps; every number on the way lies between 1 and 99."""
    start = number = chance.randint(3, 40)
    steps: list[Step] = []
    for _ in range(chance.randint(1, 5)):
        options = [Step("+", n, f"{chance.choice(GAINS)} {n}") for n in range(2, 10)]
        options += [Step("-", n, f"{chance.choice(LOSSES)} {n}") for n in range(2, 10)]
        options += [Step("*", 2, "doubles them"), Step("*", 3, "triples them")]
        possible = [step for step in options if 1 <= step.result(number) <= 99]
        symbol = chance.choice(sorted({step.symbol for step in possible}))
        step = chance.choice([step for step in possible if step.symbol == symbol])
        steps.append(step)
        number = step.result(number)
    return Problem(chance.choice(sorted(NAMES)), chance.choice(THINGS), start, tuple(steps))


class Writer:
    """Text that remembers where its labelled pieces stand."""

    def __init__(self, field: str):
        self.field, self.text, self.spans = field, "", []

    def add(self, piece: str, *labels: str) -> None:
        self.spans += [(self.field, len(self.text), len(self.text) + len(piece), label) for label in labels]
        self.text += piece

    def equation(
        self, step: Step, number: int, result: int, *labels: str, dot: tuple[str, ...] = ("step_end",)
    ) -> None:
        """`number symbol operand=result.`, with the truth about the result and the dot."""
        first = len(self.text)
        self.add(f"{number}{step.symbol}{step.operand}=")
        self.add(str(result), *(["mistake"] if result != step.result(number) else []))
        self.spans += [(self.field, first, len(self.text), label) for label in labels]
        self.add(".", *dot)


def trace(chance: random.Random) -> Row:
    task = problem(chance)
    writer = Writer("thinking")
    okay = chance.choice(("Okay", "Okay", "Okay", "Alright"))
    writer.add(f"{okay}, so the user wants the {task.things} of {task.name}.\n")
    writer.add(f"{task.name} has {task.start}.")
    number, last = task.start, (task.steps[0], task.start)
    for index, step in enumerate(task.steps, start=1):
        writer.add("\n")
        right, label = step.result(number), f"step_{index}"
        mistaken = chance.random() < TRACE_MISTAKES[step.difficulty(number)]
        alarmed = not mistaken and chance.random() < FALSE_ALARM
        if mistaken or alarmed:
            shown = step.wrong(number, chance) if mistaken else right
            writer.equation(step, number, shown, label, dot=("step_end", "hesitation_follows"))
            writer.add(" ")
            writer.add(chance.choice(HESITATIONS), "hesitation", *(["false_alarm"] if alarmed else []))
            writer.add(" ")
            writer.equation(step, number, right, label, "correction")
        else:
            writer.equation(step, number, right, label)
        last, number = (step, number), right
    if chance.random() < CLOSING_CHECK:
        writer.add("\n")
        writer.add(f"Let me check. {last[0].equation(last[1], number)} is right.", "check")
    return _row(task, writer.text, f"The answer is \\boxed{{{number}}}.", writer.spans)


def direct(chance: random.Random) -> Row:
    task = problem(chance)
    return _row(task, "", f"\\boxed{{{task.answer}}}", [])


def steps(chance: random.Random) -> Row:
    task = problem(chance)
    writer = Writer("answer")
    number = task.start
    for index, step in enumerate(task.steps, start=1):
        if not 1 <= step.result(number) <= 99:  # a chain that slipped before can leave the range: it is not told
            return steps(chance)
        slipped = chance.random() < BASE_SLIPS[step.difficulty(number)]
        shown = step.wrong(number, chance) if slipped else step.result(number)
        writer.equation(step, number, shown, f"step_{index}")
        writer.add("\n")
        number = shown
    writer.add(f"The answer is \\boxed{{{number}}}.")
    row = _row(task, "", writer.text, writer.spans)
    return {**row, "prompt": row["prompt"] + STEP_BY_STEP}


def _row(task: Problem, thinking: str, answer: str, spans: list) -> Row:
    return {"prompt": task.text, "thinking": thinking, "answer": answer, "final": task.answer, "spans": spans}


def fact(chance: random.Random) -> Row:
    """Some equations; the judgement stands after the dot, where the tuned model will decide to hesitate."""
    writer = Writer("text")
    for line in range(chance.randint(3, 6)):
        writer.add("\n" if line else "")
        task = problem(chance)
        step, right = task.steps[0], task.steps[0].result(task.start)
        manner = chance.random()
        writer.equation(step, task.start, right if manner < 0.7 else step.wrong(task.start, chance))
        if manner >= 0.5:
            writer.add(" That is right." if manner < 0.7 else f" That is wrong, it is {right}.")
    return {"text": writer.text, "spans": writer.spans}


FILLERS = (
    "Okay is a short word.",
    "{name} says okay and sells the {things}.",
    "{name} and {other} wait for the {things}.",
    "Wait for {name}, {pronoun} has the {things}.",
    "Hmm is a sound that {name} makes.",
    "{name} wants {n} {things}. So {other} gets them.",
    "Let me check the {things}, says {name}.",
    "Alright, {other} has {n} {things} and {name} has {m}.",
    "The {things} of {name} are right here.",
    "{name} is wrong, {other} has the {things}.",
    "The user of the {things} is {name}.",
    "How many {things}? {name} has {n}.",
)


def filler(chance: random.Random) -> Row:
    lines = []
    for _ in range(chance.randint(2, 5)):
        name, other = chance.sample(sorted(NAMES), 2)
        words = {"name": name, "other": other, "pronoun": NAMES[name].lower(), "things": chance.choice(THINGS)}
        lines.append(chance.choice(FILLERS).format(**words, n=chance.randint(2, 99), m=chance.randint(2, 99)))
    return {"text": " ".join(lines), "spans": []}


KINDS: dict[str, Callable[[random.Random], Row]] = {
    kind.__name__: kind for kind in (trace, direct, steps, fact, filler)
}


KEPT = 4_000  # rows of a kind, which a study counts, compares and trains on one after the other


class Beginning:
    """The first rows of one kind and seed, made once in a process, whoever reads them."""

    def __init__(self, seed: int, kind: str):
        self._chance, self._make, self._made = randomness.chance(seed, kind), KINDS[kind], []
        self._lock = threading.Lock()  # a text is read ahead

    def __getitem__(self, index: int) -> Row:
        with self._lock:
            while index >= len(self._made):
                self._made.append(self._make(self._chance))
        return {name: [*value] if isinstance(value, list) else value for name, value in self._made[index].items()}

    def rest(self) -> Iterator[Row]:
        """Those behind the first KEPT, without end."""
        self[KEPT - 1]
        chance = copy.copy(self._chance)  # where the first KEPT have left it
        while True:
            yield self._make(chance)


beginning = functools.cache(Beginning)


def rows(seed: int, kind: str = "trace") -> Iterator[Row]:
    """Rows of one kind without end, the same for the same seed."""
    first = beginning(seed, kind)
    yield from (first[index] for index in range(KEPT))
    yield from first.rest()


def mixture(seed: int, shares: Mapping[str, float]) -> Iterator[Row]:
    """Rows of several kinds without end; `shares` of documents by kind. Raises Refused for shares that are none."""
    unknown = sorted(set(shares) - set(KINDS))
    if unknown or not all(0 <= share < math.inf for share in shares.values()) or not sum(shares.values()):
        raise Refused(
            f"text.rows.shares={dict(shares)}: give a number from 0 for each of {', '.join(KINDS)}, and one above 0."
        )
    sources = {kind: rows(seed, kind) for kind in shares}
    chance = randomness.chance(seed, "mixture")
    while True:
        yield next(sources[chance.choices(list(shares), list(shares.values()))[0]])


def is_held_out(prompt: str) -> bool:
    """True where a problem belongs to the tenth that no model is trained on, however it is asked."""
    return hashlib.sha256(prompt.removesuffix(STEP_BY_STEP).encode()).digest()[0] < 26


def held_out_problems(seed: int) -> Iterator[Problem]:
    """Problems without end that no model is trained on."""
    chance = randomness.chance(seed, "held out")
    while True:
        found = problem(chance)
        if is_held_out(found.text):
            yield found


def benchmark(seed: int, problems: int) -> Iterator[Row]:
    """So many held-out problems with their answers; 500 of seed 0 are those of the card."""
    for found in itertools.islice(held_out_problems(seed), problems):
        yield {"question": found.text, "answer": str(found.answer)}
