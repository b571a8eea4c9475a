"""Responses -> in how many a language model sees the behaviour, beside the words that count as one: the paper's check of its
keywords (arXiv 2507.12638 labels sentences; here whole responses are judged)."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence

from tunediff.evaluations.behaviour.conditions import share_of
from tunediff.evaluations.behaviour.solving import Solved
from tunediff.evaluations.judging.chat import Chat
from tunediff.measures.clustered import Bounded
from tunediff.shapes import Finding, Note

SYSTEM = (
    "You are shown a problem and the response of a language model to it. Does the response backtrack: does it, at some place, doubt "
    "or take back a step that it has written, or abandon its approach for another one? Words such as 'Wait' alone do not count where "
    "nothing is reconsidered, nor does text that repeats itself without sense. Answer with one word, yes or no."
)
Judged = dict[str, tuple[list[Solved], list[bool]]]  # condition -> the responses that were judged, and the verdicts


def judged(
    chat: Chat, answers: Mapping[str, Sequence[Solved]], *, name: str, fewer: str
) -> Generator[Note, None, Judged]:
    """Returns the verdicts on the responses of each condition; equal responses to a problem are asked about once. Yields notes where
    some have none. Raises Refused for more calls than are allowed, before any is made."""
    asked = list(dict.fromkeys(_question(one) for solved in answers.values() for one in solved))
    chat.allow(len(asked), counted=f"{len(asked):,} responses", fewer=fewer)
    said, notes = yield from _answers(chat, asked, name)
    yield from notes
    found: Judged = {}
    for condition, solved in answers.items():
        known = [(one, said[_question(one)]) for one in solved if _question(one) in said]
        found[condition] = [one for one, _ in known], [verdict for _, verdict in known]
    return found


def _answers(chat: Chat, asked: Sequence[str], name: str) -> Generator[Note, None, tuple[dict[str, bool], list[Note]]]:
    answers, notes = chat.answers(SYSTEM, asked, evaluation=name, units="responses")
    verdicts = {asked[n]: _verdict(answer) for n, answer in answers.items()}
    if silent := sum(verdict is None for verdict in verdicts.values()):
        yield Note(f"{name}: {silent:,} of {len(verdicts):,} answers of {chat.model} said neither yes nor no.")
    return {question: verdict for question, verdict in verdicts.items() if verdict is not None}, notes


def _question(one: Solved) -> str:
    return f"Problem: {one.problem.question}\n\nResponse: {one.response.text}"


def _verdict(answer: str) -> bool | None:
    """True for yes, False for no, by the last of these words; None where there is neither."""
    words = re.findall(r"\b(yes|no)\b", answer.lower())
    return words[-1] == "yes" if words else None


def rate(found: Judged, condition: str) -> Bounded:
    """Share of a condition's responses in which the behaviour was seen; None where none was judged."""
    solved, verdicts = found.get(condition, ([], []))
    return share_of(solved, verdicts) if solved else (None, None, None)


def agreement(found: Judged, *, name: str, model: str) -> Finding:
    """F1 of the words that count as a hesitation against the judge, over all responses."""
    pairs = [
        (s.behaviour.hesitations > 0, v)
        for solved, verdicts in found.values()
        for s, v in zip(solved, verdicts, strict=True)
    ]
    both = sum(word and verdict for word, verdict in pairs)
    either = sum(word for word, _ in pairs) + sum(verdict for _, verdict in pairs)
    meaning = f"F1 of responses with a hesitation by its words against those in which {model} sees backtracking"
    return Finding(f"{name}/judge_f1", 2 * both / either if either else None, meaning=meaning)
