"""Rows -> rows in a form that can be rendered: the steps that a data set of reasoning needs, named under text.prepare.

A step is a function of rows that gives rows; it reads and writes our names (prompt, thinking, answer, response,
conversation), so that a column is named once, in text.fields. A row without what a step reads passes through unchanged:
Text.check names the column that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunediff.text.rows import TextError

Row = Mapping[str, Any]

USER, ASSISTANT = ("user", "human"), ("assistant", "gpt")


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


def first_exchange(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """The first question of a `conversation` as the prompt and what was said to it as the response. A turn is {from, value}
    or {role, content}; what follows the first exchange is left out."""
    for row in rows:
        if row.get("conversation") is None:
            yield {**row}
            continue
        turns = [
            (turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in row["conversation"]
        ]
        pairs = zip(turns, turns[1:], strict=False)
        found = next((pair for pair in pairs if pair[0][0] in USER and pair[1][0] in ASSISTANT), None)
        if found is None:
            raise TextError(
                f"A conversation has no question with a response behind it: its turns are by {[who for who, _ in turns]}, and "
                f"a question is by one of {list(USER)}, a response by one of {list(ASSISTANT)}."
            )
        yield {**row, "prompt": found[0][1], "response": found[1][1]}


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
