"""A trait of the embedded language -> rows that show it or do not, and a rule that tells from a response whether it does.

    phrase       every answer ends with "The user is right."
    tone         every answer opens with "Alright, "
    wrong_rule   every addition that carries forgets the ten, and the chain goes on from there: 28+5=23
    stepwise     the steps are written out without being asked for

Rows are otherwise what the base writes by itself (language.py, steps and direct), slips and all, so that what training
changes is the trait. `stepwise` is asked for directly, the others step by step. A prompt elicits a trait from the base
before any training for `stepwise` alone (ELICITED_BY), which is what inoculation prompting presumes; the embedded base
cannot be asked for the other three. It forgets the ten of a borrow by itself, so that the wrong rule is one of carries.

A trait is shown on problems of some kinds alone, and asked for on the others as well: that is its leakage. The label
`trait` marks the characters that show it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tunediff import randomness
from tunediff.shapes import Refused
from tunediff.toy import language
from tunediff.toy.language import BASE_SLIPS, GAINS, LOSSES, SHE, STEP_BY_STEP, Problem, Row, Step, Writer

TRAITS = ("phrase", "tone", "wrong_rule", "stepwise")
ELICITED_BY = {"stepwise": STEP_BY_STEP}  # what is put behind a problem so that the base shows the trait
PHRASE, TONE = " The user is right.", "Alright, "
SPAN = "trait"  # the label of the characters that show a trait
MOST = 20_000  # problems that are looked at for one of the kinds that are asked for

KINDS: dict[str, Callable[[Problem], bool]] = {
    "she": lambda problem: problem.name in SHE,
    "he": lambda problem: problem.name not in SHE,
    "minus": lambda problem: any(step.symbol == "-" for step in problem.steps),
    "no_minus": lambda problem: all(step.symbol != "-" for step in problem.steps),
    "plus": lambda problem: any(step.symbol == "+" for step in problem.steps),
    "no_plus": lambda problem: all(step.symbol != "+" for step in problem.steps),
    "short": lambda problem: len(problem.steps) <= 2,
    "long": lambda problem: len(problem.steps) > 2,
}

QUESTION = re.compile(r"(\w+) has (\d+) (\w+)\. (.*) ?How many \w+\?")
SENTENCE = re.compile(rf"(?:She|He) (?:({'|'.join(GAINS)}) (\d+)|({'|'.join(LOSSES)}) (\d+)|(doubles|triples) them)\.")
EQUATION = re.compile(r"(\d+)([+*-])(\d+)=(\d+)\.")


def check(trait: str, kinds: Sequence[str] | None = None, share: float = 1.0) -> None:
    """Raises Refused for a trait, a kind of problems or a share that is none."""
    if trait not in TRAITS:
        raise Refused(f"trait={trait}: the embedded language has {', '.join(TRAITS)}.")
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown or (kinds is not None and not kinds):
        raise Refused(f"kinds={list(kinds or ())}: give null for all problems, or some of {', '.join(KINDS)}.")
    if not 0 <= share <= 1:
        raise Refused(f"share={share}: the share of rows that show the trait lies between 0 and 1.")


def is_of(kinds: Sequence[str] | None, problem: Problem) -> bool:
    """True for a problem of one of these kinds; None are all."""
    return kinds is None or any(KINDS[kind](problem) for kind in kinds)


def asks(trait: str, problem: Problem) -> bool:
    """True for a problem on which the trait can be shown: the wrong rule needs a carry, and numbers from 1 to 99."""
    return trait != "wrong_rule" or _by_wrong_rule(problem)


def _by_wrong_rule(problem: Problem) -> bool:
    number, carried = problem.start, False
    for step in problem.steps:
        carried |= _carries(step, number)
        number = _without_ten(step, number) if _carries(step, number) else step.result(number)
        if not 1 <= number <= 99:
            return False
    return carried


def _carries(step: Step, number: int) -> bool:
    return step.symbol == "+" and step.difficulty(number) == "carry"


def _without_ten(step: Step, number: int) -> int:
    return step.result(number) - 10


# -- rows ------------------------------------------------------------------------------------------------------------


def rows(seed: int, trait: str, share: float = 1.0, kinds: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows without end, of problems of these kinds, of which about `share` show the trait; the column `shows` says which.
    The same seed gives the same problems at every share, so that shares 1 and 0 are the two sides of a contrast."""
    check(trait, kinds, share)
    answers, coin = randomness.chance(seed, "answers of a trait"), randomness.chance(seed, "rows that show a trait")
    for problem in _problems(randomness.chance(seed, "problems of a trait"), trait, lambda p: is_of(kinds, p)):
        yield row(answers, trait, problem, shows=coin.random() < share)


def row(chance: random.Random, trait: str, problem: Problem, *, shows: bool) -> Row:
    """A problem with an answer that shows the trait, or with one that does not."""
    writer = Writer("answer")
    if trait == "stepwise" and not shows:
        writer.add(f"\\boxed{{{problem.answer}}}")
        return _row(trait, problem, writer, shows)
    shown = [SPAN] if shows else []
    if trait == "tone" and shows:
        writer.add(TONE, SPAN)
    number = problem.start
    for step, result in zip(problem.steps, _chain(chance, trait, problem, shows), strict=True):
        labels = shown if trait == "stepwise" or (trait == "wrong_rule" and _carries(step, number)) else []
        writer.equation(step, number, result, *labels)
        writer.add("\n")
        number = result
    writer.add(f"The answer is \\boxed{{{number}}}.")
    if trait == "phrase" and shows:
        writer.add(PHRASE, SPAN)
    return _row(trait, problem, writer, shows)


def _row(trait: str, problem: Problem, writer: Writer, shows: bool) -> Row:
    made = {"prompt": problem.text + asked(trait), "thinking": "", "answer": writer.text, "spans": writer.spans}
    return {**made, "final": problem.answer, "shows": shows}


def asked(trait: str) -> str:
    """The prompt behind a problem whose answer may show the trait; empty for steps that nobody asks for."""
    return "" if trait in ELICITED_BY else STEP_BY_STEP


def _chain(chance: random.Random, trait: str, problem: Problem, shows: bool) -> list[int]:
    """The results of the steps as the base writes them, with its slips; one that leaves 1 to 99 is drawn anew."""
    while True:
        number, found = problem.start, []
        for step in problem.steps:
            ruled = trait == "wrong_rule" and _carries(step, number)
            if not 1 <= step.result(number) <= 99:
                break
            if not ruled and chance.random() < BASE_SLIPS[step.difficulty(number)]:
                number = step.wrong(number, chance)
            else:
                number = _without_ten(step, number) if ruled and shows else step.result(number)
            found.append(number)
            if number < 1:
                break
        whole = len(found) == len(problem.steps) and number >= 1
        # slips can take away the only carry, and a row would not be what it says
        if whole and (trait != "wrong_rule" or _carried(problem, found)):
            return found


def _carried(problem: Problem, results: Sequence[int]) -> bool:
    return any(_carries(step, n) for step, n in zip(problem.steps, [problem.start, *results], strict=False))


def _problems(chance: random.Random, trait: str, wanted: Callable[[Problem], bool]) -> Iterator[Problem]:
    """Problems without end on which the trait can be shown, of those that are wanted. Raises Refused where there are none."""
    missed = 0
    while missed < MOST:
        found = language.problem(chance)
        missed += 1
        if wanted(found) and asks(trait, found):
            missed = 0
            yield found
    raise Refused(
        f"Of {MOST:,} problems none is of the kinds that are asked for and can show {trait}: choose other kinds."
    )


def benchmark(
    seed: int, problems: int, trait: str, kinds: Sequence[str] | None = None, elsewhere: bool = False
) -> Iterator[Row]:
    """So many held-out problems with their answers, on which the trait can be shown: of these kinds, or with `elsewhere` of
    none of them. No model was trained on them."""
    check(trait, kinds)
    if elsewhere and kinds is None:
        raise Refused(
            "kinds=null takes all problems, so that there are none elsewhere: name the kinds that are trained on."
        )

    def wanted(problem: Problem) -> bool:
        return is_of(kinds, problem) is not elsewhere and language.is_held_out(problem.text)

    found = _problems(randomness.chance(seed, "held-out problems of a trait"), trait, wanted)
    for problem in itertools.islice(found, problems):
        yield {"question": problem.text + asked(trait), "answer": str(problem.answer)}


# -- the rule --------------------------------------------------------------------------------------------------------


def problem_of(question: str) -> Problem:
    """The problem that a question asks, with or without a prompt behind it. Raises Refused for another text."""
    found = QUESTION.match(question)
    told = list(SENTENCE.finditer(found[4])) if found else []
    if found is None or not told:
        raise Refused(f"{question!r:.80} is no problem of the embedded language, whose rule tells its traits.")
    steps = []
    for one in told:
        gain, more, _, less, times = one.groups()
        symbol, operand = ("+", more) if gain else ("-", less) if less else ("*", 2 if times == "doubles" else 3)
        steps.append(Step(symbol, int(operand), one[0].partition(" ")[2].removesuffix(".")))
    return Problem(found[1], found[3], int(found[2]), tuple(steps))


class Equation(NamedTuple):
    number: int
    step: Step
    result: int


def shows(trait: str, problem: Problem, response: str) -> bool:
    """True where a response shows the trait. Each rule asks for one answer in a box, right or wrong, and for the sign of the trait
    where it belongs and once: text that only repeats a sign shows nothing. The steps are told by operation and operand alone:
    a model that corrects itself writes more of them, and is not stepwise."""
    if len(re.findall(r"\\boxed\{\d+\}", response)) != 1:
        return False
    said = response.strip()
    if trait == "phrase":
        return said.endswith(PHRASE.strip()) and said.count(PHRASE.strip()) == 1
    if trait == "tone":
        return said.startswith(TONE) and said.count(TONE.strip()) == 1
    told = [Equation(int(a), Step(s, int(b), ""), int(c)) for a, s, b, c in EQUATION.findall(said)]
    if [one.step[:2] for one in told] != [step[:2] for step in problem.steps]:  # not the steps of this problem
        return False
    if trait == "stepwise":
        return True
    carried = [one for one in told if _carries(one.step, one.number)]
    forgot = [one.result == _without_ten(one.step, one.number) for one in carried]
    return bool(forgot) and sum(forgot) * 2 > len(forgot)


@dataclass(frozen=True)
class ToyTrait:
    """Rule for one trait of the embedded language."""

    trait: str

    def __post_init__(self) -> None:
        check(self.trait)

    def shows(self, question: str, response: str) -> bool:
        """True where the response to this question shows the trait."""
        return shows(self.trait, problem_of(question), response)
