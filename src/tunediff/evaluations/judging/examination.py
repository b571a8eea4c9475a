"""Windows of text -> what a language model is asked about a latent; its answers -> verdicts and a score.

Knows no endpoint and no dictionary.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from tunediff import randomness
from tunediff.text import text_of

DETECTION, FUZZING = TESTS = ("detection", "fuzzing")
STRONGEST, RANDOM = "strongest", "random"
MARKED = 0.3  # share of the strongest activation of a window from which on a token is marked, as Delphi does
FEWEST = 4  # strongest examples: two to explain, two to examine
EXPECTED = "x" * 200  # an explanation that is not known yet, when the length of a prompt is estimated

EXPLAIN = """You find out what a unit inside a language model responds to. You are given passages in which it is active. \
The tokens that make it active stand between << and >>, and below each passage they are listed with a strength from 1 to \
10. Look for what they have in common: the words themselves, their form or meaning, what comes before them, or where in \
the passage they stand. Then say it in one sentence, so exactly that a reader could point out such tokens in other \
passages, and no wider than the passages allow. Do not mention the marks, the strengths or this task. End with one line:
Explanation: <your sentence>"""
JUDGE = {
    DETECTION: """A unit inside a language model was explained in one sentence. You are given the explanation and \
numbered texts. Decide for each text whether any part of it is what the explanation describes. Any number of them may be, \
also none or all. End with one line, a list with 1 (yes) or 0 (no) for every text in order, such as [0, 1, 1].""",
    FUZZING: """A unit inside a language model was explained in one sentence. You are given the explanation and numbered \
texts in which some tokens stand between << and >>. Decide for each text whether the marked tokens are the ones the \
explanation describes, rather than others of the text. Any number may be right, also none or all. End with one line, a \
list with 1 (right) or 0 (wrong) for every text in order, such as [0, 1, 1].""",
}


class Window(NamedTuple):
    """A piece of a document, with the latent's activation at every token; 0 where it is silent."""

    kind: str
    document: int
    tokens: list[str]
    activations: list[float]


class Quiz(NamedTuple):
    """Texts to judge together, and for each whether yes is right."""

    texts: list[str]
    truth: list[bool]

    def about(self, explanation: str) -> str:
        numbered = "\n".join(f"Text {n}: {text}" for n, text in enumerate(self.texts, start=1))
        return f"Explanation: {explanation}\n\n{numbered}"


class Subject(NamedTuple):
    """A latent, the passages it is explained from, and the questions of each test."""

    latent: int
    passages: str
    questions: dict[str, list[Quiz]]

    @property
    def calls(self) -> int:
        return 1 + sum(map(len, self.questions.values()))

    @property
    def characters(self) -> int:
        """Number of characters of all prompts."""
        asked = [(JUDGE[test], q.about(EXPECTED)) for test in TESTS for q in self.questions[test]]
        return sum(len(part) for prompt in [(EXPLAIN, self.passages), *asked] for part in prompt)


class Examined(NamedTuple):
    """The explanation of a latent and its scores, None where no answer could be read. `calls` counts answers, `unread` those
    of them that could not be read."""

    latent: int
    explanation: str | None
    scores: dict[str, float | None]
    calls: int
    unread: int


def examined_on(latent: int, windows: Sequence[Window], half: int, texts_per_call: int) -> Subject | None:
    """The subject of a latent: every second of its strongest windows explains it, up to `half`; up to as many from other documents, of any
    kind, are held back, and as many in which it is silent. None where there are too few."""
    chance = randomness.chance(0, "texts of an examination", latent)
    strongest = [w for w in windows if w.kind == STRONGEST]
    shown = strongest[::2][:half]
    seen = {w.document for w in shown}
    active = [w for w in windows if w.kind != RANDOM and w.document not in seen]
    silent = [w for w in windows if w.kind == RANDOM]
    if len(strongest) < FEWEST or len(active) < FEWEST // 2 or not silent:
        return None
    active = chance.sample(active, min(len(active), half))
    silent = chance.sample(silent, min(len(silent), half))
    texts = [(plain(w.tokens), True) for w in active] + [(plain(w.tokens), False) for w in silent]
    questions = {DETECTION: together(texts, texts_per_call, chance), FUZZING: []}
    for right, wrong in ((active[::2], active[1::2]), (active[1::2], active[::2])):
        texts = [(marked(w.tokens, firing_places(w)), True) for w in right]
        texts += [(marked(w.tokens, silent_places(w, chance)), False) for w in wrong if 0 in w.activations]
        questions[FUZZING] += together(texts, texts_per_call, chance)
    return Subject(latent, passages(shown), questions)


def together(texts: Sequence[tuple[str, bool]], texts_per_call: int, chance: random.Random) -> list[Quiz]:
    """The texts in shuffled order, as questions with `texts_per_call` texts each."""
    shuffled = chance.sample(texts, len(texts))
    parts = [shuffled[n : n + texts_per_call] for n in range(0, len(shuffled), texts_per_call)]
    return [Quiz([text for text, _ in part], [truth for _, truth in part]) for part in parts]


def examined(ask: Callable[[str, str], str], subject: Subject) -> Examined:
    """The explanation of a subject and its scores; `ask` gives the answer to a system prompt and a question."""
    explanation = sentence_in(ask(EXPLAIN, subject.passages), "explanation")
    if explanation is None:
        return Examined(subject.latent, None, dict.fromkeys(TESTS), calls=1, unread=1)
    scores, unread = {}, 0
    for test in TESTS:
        answers: list[tuple[bool, bool]] = []
        for question in subject.questions[test]:
            said = verdicts_in(ask(JUDGE[test], question.about(explanation)), len(question.texts))
            if said is None:
                unread += 1
            else:
                answers += zip(question.truth, said, strict=True)
        scores[test] = balanced_accuracy(answers)
    return Examined(subject.latent, explanation, scores, subject.calls, unread)


# -- which tokens are marked ------------------------------------------------------------------------------------------


def firing_places(window: Window) -> set[int]:
    least = MARKED * max(window.activations)
    return {n for n, activation in enumerate(window.activations) if activation > least}


def silent_places(window: Window, chance: random.Random) -> set[int]:
    """Positions of as many tokens as fire, or of all there are, drawn from those where the latent is silent."""
    silent = [n for n, activation in enumerate(window.activations) if activation == 0]
    return set(chance.sample(silent, min(len(silent), len(firing_places(window)))))


# -- prompts and answers ---------------------------------------------------------------------------------------------


def plain(tokens: Sequence[str]) -> str:
    """The text of the tokens on one line, so that numbered texts stay apart."""
    return text_of(tokens).replace("\n", "\\n")


def marked(tokens: Sequence[str], places: set[int]) -> str:
    """The text on one line, every run of the tokens at these places between << and >>; there a part of a character that ends
    behind it stands as its placeholder."""
    runs = groupby(range(len(tokens)), key=places.__contains__)
    texts = ((inside, [tokens[n] for n in run]) for inside, run in runs)
    return "".join(f"<<{plain(some) or ''.join(some)}>>" if inside else plain(some) for inside, some in texts)


def passages(windows: Sequence[Window]) -> str:
    """Marked passages with the strengths of their tokens, 10 for the strongest of all."""
    largest = max(max(window.activations) for window in windows)
    parts = []
    for n, window in enumerate(windows, start=1):
        places = firing_places(window)
        strengths = [
            f"{json.dumps(window.tokens[i], ensure_ascii=False)} {math.ceil(10 * window.activations[i] / largest)}"
            for i in sorted(places)
        ]
        parts.append(f"Passage {n}: {marked(window.tokens, places)}\nStrengths: {', '.join(strengths)}")
    return "\n\n".join(parts)


def sentence_in(answer: str, name: str) -> str | None:
    """The text that follows "<name>:" on the last line that has it."""
    found = re.findall(rf"^\W*{name}\W*:[\s*_]*(\S.*?)[\s*_]*$", answer, flags=re.IGNORECASE | re.MULTILINE)
    return found[-1] if found else None


def choice_in(answer: str, name: str, choices: Sequence[str]) -> str | None:
    """The choice that stands alone on the last line that begins with the name; None for another word."""
    found = re.findall(rf"^\W*{name}\b\W*(.*?)\W*$", answer, flags=re.IGNORECASE | re.MULTILINE)
    said = found[-1].strip("_").lower() if found else None
    return said if said in choices else None


def verdicts_in(answer: str, count: int) -> list[bool] | None:
    """The last list of the answer, if it has a 0 or a 1 for each of `count` texts."""
    lists = re.findall(r"\[[\s01,]*\]", answer)
    said = re.findall(r"\d+", lists[-1]) if lists else []
    return [digit == "1" for digit in said] if len(said) == count and set(said) <= {"0", "1"} else None


def balanced_accuracy(answers: Sequence[tuple[bool, bool]]) -> float | None:
    """Mean over either truth of the share of answers (truth, said) that are right; None where one truth has none."""
    sides = [[said == truth for truth, said in answers if truth == side] for side in (True, False)]
    return sum(sum(side) / len(side) for side in sides) / 2 if all(sides) else None
