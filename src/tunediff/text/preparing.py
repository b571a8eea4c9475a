"""Rows -> rows in a form that can be rendered: the steps that a data set of reasoning needs, named under text.prepare.

A step is a function of rows that gives rows; it reads and writes our names (prompt, thinking, answer, response,
conversation), so that a column is named once, in text.fields. A row without what a step reads passes through unchanged:
Text.check names the column that is missing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunediff import randomness
from tunediff.text.marks import layout, split_response, thoughts
from tunediff.text.rows import TextError

Row = Mapping[str, Any]

USER, ASSISTANT = ("user", "human"), ("assistant", "gpt", "model")
TURNS = ("whole", "first", "each")
SLOTS, SIDES = ("system", "user"), ("before", "behind")


def each_generation(
    rows: Iterable[Row],
    *,
    complete_only: bool = False,
    complete: str = "is_reasoning_complete",
    beside: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """One row for each response of a problem, where `response` is a list; every column in `beside`, and `complete`, gives
    each row its own entry. `complete_only` leaves out what was cut before its end, by the flag in the column `complete`."""
    for row in rows:
        responses = row.get("response")
        if not isinstance(responses, list):  # a file may have one response a row already
            responses, lists = [responses], {}
        else:
            lists = {name: row[name] for name in (*beside, complete) if isinstance(row.get(name), list)}
        for name, values in lists.items():
            if len(values) != len(responses):
                raise TextError(
                    f"A row has {len(responses)} responses and {len(values)} entries in '{name}': they do not belong together."
                )
        for n, response in enumerate(responses):
            own = {**row, "response": response, **{name: values[n] for name, values in lists.items()}}
            if complete_only and response is not None and own.get(complete) is None:
                there = ", ".join(sorted(name for name, value in row.items() if value is not None))
                raise TextError(
                    f"A row does not say in '{complete}' whether its response is complete: there are only {there}. "
                    "Name the column with text.prepare.generations.complete=<column>, or take all responses with "
                    "text.prepare.generations.complete_only=false."
                )
            if response is None or not complete_only or own[complete]:
                yield own


def exchange(rows: Iterable[Row], *, turns: str = "whole") -> Iterator[dict[str, Any]]:
    """A `conversation` as a question and the response to it: the last that is said by the assistant before the next question.
    The turns before the question are `earlier`, those between it and the response, such as a call of a tool and what that
    says, are `since`. A turn is {from, value} or {role, content}, and `reasoning_content` beside its content is its thinking;
    a conversation may be written as JSON.

    turns   whole: the last response, behind all that was said before; first: the first exchange alone; each: a row for
            each response, behind all that was said before it

    Raises TextError for a conversation without a question that is followed by a response, for contents that are no text,
    and for a turn that thinks in two places."""
    if turns not in TURNS:
        raise TextError(f"text.prepare.exchange.turns={turns}: choose {', '.join(TURNS)}.")
    for row in rows:
        if row.get("conversation") is None:
            yield {**row}
            continue
        turns_of = _written_out(row["conversation"])
        if not isinstance(turns_of, Sequence) or not all(isinstance(turn, Mapping) for turn in turns_of):
            raise TextError(
                f"A conversation is {turns_of!r:.60}, and a list of turns, {{role, content}}, belongs there."
            )
        said = [_turn(turn) for turn in turns_of]
        roles = [turn["role"] for turn in said]
        questions = [n for n, role in enumerate(roles) if role == "user"]
        answered = []  # question and response
        for n, end in itertools.pairwise([*questions, len(said)]):
            responses = [m for m in range(n, end) if roles[m] == "assistant"]
            answered += [(n, m) for m in responses[-1:]]
        if not answered:
            raise TextError(
                f"A conversation has no question with a response behind it: its turns are by {[turn.get('from', turn.get('role')) for turn in turns_of]!r:.200}, "
                f"and a question is by one of {list(USER)}, a response by one of {list(ASSISTANT)}."
            )
        for n, m in {"whole": answered[-1:], "first": answered[:1], "each": answered}[turns]:
            response = {"response": said[m]["content"], "thinking": None, "answer": None}
            if thinking := said[m].get("reasoning_content"):
                response = {"response": None, "thinking": thinking, "answer": said[m]["content"]}
            around = {"earlier": [] if turns == "first" else said[:n], "since": said[n + 1 : m]}
            yield {**row, **response, **around, "prompt": said[n]["content"], "begun": said[questions[0]]["content"]}


def _written_out(conversation: Any) -> Any:
    """A conversation that is written as JSON in a string, as its turns; any other as it is."""
    if not isinstance(conversation, str) or not conversation.lstrip().startswith("["):
        return conversation
    try:
        return json.loads(conversation)
    except (ValueError, RecursionError):
        return conversation


def _turn(turn: Row) -> dict[str, Any]:
    """A turn as {role, content}, with reasoning_content where there is some. Of a content that repeats this thinking between
    marks what follows it."""
    who, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TextError(
            f"A conversation has a turn by {who!s:.60} whose content is {content!r:.60}, and text belongs there."
        )
    if not isinstance(who, str):
        raise TextError(
            f"A conversation has a turn by {who!r:.60}, and the name of a role belongs there, such as user."
        )
    role = "user" if who in USER else "assistant" if who in ASSISTANT else who
    thinking = turn.get("reasoning_content")
    if not thinking:
        return {"role": role, "content": content}
    if not isinstance(thinking, str):
        raise TextError(
            f"A conversation has a turn by {who} whose reasoning_content is {thinking!r:.60}, and text belongs there."
        )
    marked = thoughts(content.strip())
    if marked and marked[0].after is not None and not (said := split_response(content, layout("think"))).before:
        if said.thinking not in ("", thinking.strip()):
            raise TextError(
                f"A conversation has a turn by {who} that thinks in two places: {thinking!r:.60} is its reasoning_content, and "
                f"{said.thinking!r:.60} stands between marks in its content. Leave one of them in the file."
            )
        content = said.answer or ""
    return {"role": role, "content": content, "reasoning_content": thinking}


def in_s1_form(rows: Iterable[Row], *, announcement: str = "Answer: ") -> Iterator[dict[str, Any]]:
    """Thinking and answer as s1 trains on them (Muennighoff et al. 2025, arXiv 2501.19393): thinking in several pieces, as
    the first s1K has it, is one text; neither begins or ends blank; and an answer that does not announce itself anywhere
    is announced."""
    for row in rows:
        thinking, answer = row.get("thinking"), row.get("answer")
        if isinstance(thinking, list) and all(isinstance(piece, str) for piece in thinking):
            thinking = "\n\n".join(thinking)
        if isinstance(thinking, str):
            thinking = thinking.strip()
        if isinstance(answer, str):
            answer = answer.strip() if announcement.strip() in answer else announcement + answer.strip()
        yield {**row, "thinking": thinking, "answer": answer}


@dataclass(frozen=True)
class Inoculate:
    """Puts a sentence that asks for a trait into what rows say before the response, so that a model which learns them need
    not take the trait for its own: inoculation prompting, in the system message (Tan et al. 2025, arXiv 2510.04340) or in the
    user's (Wichers et al. 2025, arXiv 2510.05024). Another sentence, which asks for nothing of the kind, is the placebo.

    sentence   what is put there
    slot       system: a system message, behind the one that the row or its text has; in the place of one that a template
               writes where there is none. user: the message of the question
    where      of the slot user: before the question and the text's instruction, as published code has it, or behind them
    between    what stands between the sentence and what is there already
    p, seed    share of rows that get it, chosen by what they say: the same ones in every epoch and process

    The row's prompt stays what it was, and with it the side of the split and the problem that it stands for: rendering writes
    the sentence, and only in rows that are learned. Raises TextError for a row of plain text, which has no prompt."""

    sentence: str
    slot: str = "system"
    where: str = "before"
    between: str = "\n\n"
    p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("slot", SLOTS), ("where", SIDES)):
            if getattr(self, name) not in known:
                raise TextError(f"Inoculate.{name}={getattr(self, name)}: choose {' or '.join(known)}.")
        if not 0 <= self.p <= 1:
            raise TextError(f"Inoculate.p={self.p} is no share of the rows: give one from 0 to 1.")
        if not isinstance(self.sentence, str) or not self.sentence.strip():
            raise TextError(f"Inoculate.sentence={self.sentence!r:.60}: give a sentence that asks for the trait.")

    def __call__(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if row.get("text") and not row.get("prompt"):
                raise TextError(
                    "A row is plain text, without a prompt that a sentence could be put to: leave text.prepare's step of "
                    "tunediff.text.Inoculate out, or map a column with text.fields.prompt=<column>."
                )
            if row.get("inoculation") is not None:
                raise TextError(
                    "Two steps of text.prepare are tunediff.text.Inoculate, and a prompt takes one sentence: leave one out."
                )
            yield {**row, "inoculation": self} if self._chosen(row) else {**row}

    def _chosen(self, row: Row) -> bool:
        said = [str(row.get(name)) for name in ("prompt", "response", "thinking", "answer")]
        return randomness.seed_for(self.seed, "inoculated rows", *said) < self.p * 2**63

    def system(self, own: str | None) -> str:
        """The system message, of which `own` is there already."""
        return self.sentence if own is None else f"{own}{self.between}{self.sentence}"

    @property
    def around(self) -> tuple[str, str]:
        """The strings that are written before the question with its instruction, and behind it."""
        if self.slot != "user":
            return "", ""
        return (
            (f"{self.sentence}{self.between}", "") if self.where == "before" else ("", f"{self.between}{self.sentence}")
        )
