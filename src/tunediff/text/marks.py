"""Marks around the thinking of a reasoning model: a format string with {thinking} and {answer}, and what a text says by it.

The formats that are known have names, such as think for R1's; another is written out. Whoever asks where thinking begins
and ends asks here: rendering, gates, budget forcing, grading and behaviour. Knows no token.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from tunediff.text.rows import TextError

FORMATS = {
    "think": "<think>\n{thinking}\n</think>\n\n{answer}",  # R1, line breaks included; Qwen3
    # OpenThoughts-114k (arXiv 2506.04178) and the OpenThinker models
    "open_thoughts": "<|begin_of_thought|>\n\n{thinking}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{answer}\n\n<|end_of_solution|>",
    "s1": "<|im_start|>think\n{thinking}\n<|im_start|>answer\n{answer}",  # arXiv 2501.19393
    "thinking": "<thinking>\n{thinking}\n</thinking>\n\n{answer}",
    "magistral": "[THINK]{thinking}[/THINK]{answer}",  # arXiv 2506.10910
    "gpt_oss": "<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant<|channel|>final<|message|>{answer}",
}


class Layout(NamedTuple):
    """The strings that a format writes before the thinking, between it and the answer, and behind the answer."""

    opening: str
    between: str
    ending: str

    @property
    def opens(self) -> str:
        """The opening mark without the white space around it; empty where nothing marks the beginning."""
        return self.opening.strip()

    @property
    def closing(self) -> str:
        """The line that closes the thinking: the first of those between that is not blank."""
        return next((line.strip() for line in self.between.splitlines() if line.strip()), "")


@functools.cache
def layout(thinking_format: str) -> Layout:
    """The parts of a format, known by its name or written out; raises TextError for one that is not known and does not
    have {thinking} and then {answer}, each once."""
    thinking_format = FORMATS.get(thinking_format, thinking_format)
    if "\\n" in thinking_format:
        raise TextError(
            f"thinking_format={thinking_format!r} has a backslash and an n, where a line break is meant: in bash, "
            "$'text.thinking_format=\"...\"' makes one of it."
        )
    try:
        parts = list(string.Formatter().parse(thinking_format))
    except ValueError as error:
        raise TextError(f"thinking_format={thinking_format!r} is no format string: {error}.") from error
    literal, fields = [""], []
    for words, field, *_ in parts:  # a doubled brace ends a part without a field
        literal[-1] += words
        if field is not None:
            fields.append(field)
            literal.append("")
    if fields != ["thinking", "answer"]:
        raise TextError(
            f"thinking_format={thinking_format!r} has the fields {fields}: it needs {{thinking}} and then {{answer}}, each "
            f"once, such as {FORMATS['think']!r}, or the name of one that is known: {', '.join(FORMATS)}. A brace that is "
            "meant as one is written twice."
        )
    return Layout(*literal)


LAYOUTS = tuple(map(layout, FORMATS))


class Thought(NamedTuple):
    """A stretch of thinking in a text: characters begin to end, and where what follows its closing mark begins; `end`
    is that of the text, and `after` None, where it is not closed."""

    begin: int
    end: int
    after: int | None
    layout: Layout


def thoughts(text: str, layouts: Sequence[Layout] = LAYOUTS, *, opened: str = "") -> list[Thought]:
    """The stretches of thinking in a response, in order. An opening mark is closed by its own closing mark alone, so that
    another one which the thinking mentions closes nothing. `opened` is the mark with which the prompt opened the thinking.
    Where that is not said and a closing mark stands before any that opens, the thinking began with the text."""
    closed = [parts for parts in layouts if parts.closing]
    known = [parts for parts in closed if parts.opens]
    found: list[Thought] = []
    opening = re.compile("|".join(re.escape(parts.opens) for parts in known) or "(?!)")
    here, current = 0, next((parts for parts in known if parts.opens == opened), None)
    if current is None:
        lone = [(place, n) for n, parts in enumerate(closed) if (place := text.find(parts.closing)) >= 0]
        place, n = min(lone, default=(len(text), 0))
        met = opening.search(text)
        if place < (len(text) if met is None else met.start()):
            current = closed[n]
    while True:
        if current is None:
            if (met := opening.search(text, here)) is None:
                return found
            current, here = next(parts for parts in known if parts.opens == met[0]), met.end()
        end = text.find(current.closing, here)
        if end < 0:
            return [*found, Thought(here, len(text), None, current)]
        found.append(Thought(here, end, end + len(current.closing), current))
        here, current = end + len(current.closing), None


def opened_by(prompt: str, layouts: Sequence[Layout] = LAYOUTS) -> Layout | None:
    """The layout of the thinking that a prompt opens itself at its end; None where it leaves that to the model."""
    end = prompt.rstrip()
    return next((parts for parts in layouts if parts.opens and end.endswith(parts.opens)), None)


class Said(NamedTuple):
    """A response in its parts: what stands before the mark that opens its thinking, the thinking, the answer behind it."""

    before: str
    thinking: str
    answer: str | None


def split_response(response: str, own: Layout) -> Said:
    """The parts of a whole response, in a layout of its own or a known one, as thoughts() finds them: of several stretches
    of thinking the first, and the others stand in the answer as they were written. No thinking where nothing marks any; no
    answer where it was opened and never closed. Words before the opening mark stay before it."""
    response = response.strip()
    found = thoughts(response, (own, *(parts for parts in LAYOUTS if parts != own)))
    if not found:
        return Said("", "", response)
    begin, end, after, parts = found[0]
    before, thinking = response[: max(0, begin - len(parts.opens))], response[begin:end].strip()
    if after is None:
        return Said(before, thinking, None)
    answer = _inside(response[after:], parts)
    return Said(before, thinking, answer) if thinking else Said("", "", before + answer)


def _inside(answer: str, parts: Layout) -> str:
    """An answer without the marks that stand around it."""
    before = parts.between.strip().removeprefix(parts.closing).strip()
    return answer.strip().removeprefix(before).removesuffix(parts.ending.strip()).strip()
