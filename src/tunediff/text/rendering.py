"""A row -> the string that the models read, with segments and labels as character ranges of it.

Knows no token: a range of characters holds for every tokenizer. What the chat template writes around what was said (role
headers, begin and end marks, a system message of its own) is a segment by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunediff.shapes import TEMPLATE
from tunediff.text.annotations import annotated, refuse_rotten_labels
from tunediff.text.labels import BY_RULE, HESITATIONS, by_expression, by_rule, words
from tunediff.text.marks import LAYOUTS, Layout, Said, layout, opened_by, split_response, thoughts
from tunediff.text.rows import HALF, TextError
from tunediff.text.templates import DATE, Message, begin_of, day, forms, prompt_of, words_around
from tunediff.text.tokenizers import Tokenizer

Span = tuple[int, int, str]  # first character, one past the last, name
KNOWN_LABELS = (*BY_RULE, "opening", "end_of_thinking")  # of any text that thinks, annotated or not
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]|\n")


class Rendered(NamedTuple):
    """One row as the models read it; `response` is the character at which the model would begin to write, and of a plain
    text at which that begins. Where it thinks, the labels `opening` (the first sentence of the thinking),
    `end_of_thinking` (the closing mark) and those of labels.py are known without anybody's annotation."""

    text: str
    segments: list[Span]
    labels: list[Span]
    response: int

    def segment_at(self, characters: ArrayLike) -> NDArray[np.int64]:
        """Index of the segment in which each of some characters stands."""
        return np.searchsorted([first for first, _, _ in self.segments], characters, side="right") - 1


@dataclass(frozen=True)
class Manner:
    """The manner in which rows are written out.

    instruction       put directly in front of every prompt     system   a system message, through the chat template
    thinking_format   how a response is laid out: the name of a known format, or a string with {thinking} and {answer}
    template          arguments of the chat template            date     the day that a template is told instead of today
    hesitations       words that count as a hesitation, as regular expressions: thinking is labelled by them
    labels            name -> regular expression whose matches in the thinking have this label
    """

    instruction: str = ""
    system: str | None = None
    thinking_format: str = "think"
    template: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE
    hesitations: Sequence[str] = HESITATIONS
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return layout(self.thinking_format)

    def check(self) -> None:
        """Raises Refused for a format that is none, a date that is none, and expressions that are none."""
        _ = self.layout, day(self.date), words(tuple(self.hesitations))
        if wrong := self.labels.keys() & {*KNOWN_LABELS}:
            raise TextError(f"text.labels has {sorted(wrong)}, which all thinking has by rule: give another name.")
        list(by_expression("", self.labels))


def render(row: Mapping[str, Any], tokenizer: Tokenizer, manner: Manner = Manner()) -> Rendered:  # noqa: B008
    """The row as one string. `prompt` goes through the chat template, behind the system message and `earlier` turns, and
    before the turns `since`; `thinking` and `answer` (or a whole `response` with its marks) follow as the model would write
    them, with the end token. One without an answer stops where it was cut, without an end, and without a closing mark that
    it does not have. Thinking that the template opens is not opened again, and is closed where an answer comes without any;
    an empty thought that the template writes gives way to the row's. Words of a response before its opening mark stay
    before it, in `prefix`; where the template wrote that mark they begin the thinking. `text` stands as it is. Raises
    TextError as prompt_of does, and for what cannot be read in a row."""
    refuse_all_but_strings(row)
    if row.get("text"):
        opening = begin_of(tokenizer)
        whole = opening + row["text"]
        segments = [(0, len(opening), TEMPLATE)] * bool(opening) + [(len(opening), len(whole), "text")]
        return Rendered(whole, segments, annotated(row, {"text": (len(opening), len(row["text"]))}), len(opening))
    if not row.get("prompt"):
        raise TextError(
            f"A row has neither 'prompt' nor 'text', only {sorted(k for k in row if row[k] is not None)}. Map its columns "
            "with text.fields, for example text.fields={prompt: question, answer: answer}."
        )
    parts, messages = manner.layout, messages_of(row, manner)
    prompt = prompt_of(messages, tokenizer, arguments=manner.template, date=manner.date)
    before, thinking, answer = said = said_by(row, parts)
    places = places_of(prompt, messages, tokenizer, manner)
    spans, begin = asked(prompt, messages, places, len(_around(row)[0]) + len(manner.instruction))
    behind = spans[-1][1] if spans else 0
    if thinking:
        prompt = _without_empty(prompt, parts, behind=behind)
    open_already, parts = _agreed(prompt, parts, behind=behind)
    if open_already:  # nothing can stand before a mark that is there
        before, thinking = "", before + thinking
    opening, between, ending = parts if thinking or before else ("", parts.between if open_already else "", "")
    opening = before + opening[open_already:]
    first = len(prompt) + len(opening)
    last = first + len(thinking)
    whole = prompt + opening + thinking
    fields = {"prompt": (begin, len(row["prompt"]))}
    labels: list[Span] = []
    if opening or thinking:
        fields["thinking"] = (last - len(said.thinking), len(said.thinking))
        sentence = SENTENCE_END.search(thinking)
        prefix_end = first + (sentence.end() if sentence else len(thinking))
        spans += [(len(prompt), prefix_end, "prefix"), (prefix_end, last, "thinking")]
        labels += [(first, prefix_end, "opening")] * bool(thinking)
    if answer or (thinking and answer is not None):
        start = last + len(between)
        fields["answer"] = (start, len(answer))
        if thinking:
            spans[-1] = (prefix_end, start, "thinking")
            if parts.closing:
                closed = last + between.index(parts.closing)
                labels.append((closed, closed + len(parts.closing), "end_of_thinking"))
        spans.append((start, start + len(answer), "answer"))
        whole += between + answer + (ending + (tokenizer.eos_token or "") if answer else "")
    labels += annotated(row, fields)
    given = {name for _, _, name in labels}
    ruled = (*by_rule(thinking, manner.hesitations), *by_expression(thinking, manner.labels))
    labels += [(first + a, first + b, name) for a, b, name in ruled if name not in given]
    return Rendered(whole, covered(spans, len(whole)), labels, len(prompt))


def said_by(row: Mapping[str, Any], parts: Layout) -> Said:
    """The parts of a row's response; no answer where it stops before one begins."""
    if row.get("response") is not None:
        return split_response(row["response"], parts)
    return Said("", row.get("thinking") or "", row.get("answer") or None)


def unfinished(row: Mapping[str, Any], manner: Manner) -> bool:
    """True for a row without an answer: its response was cut. Plain text has none to give."""
    return not row.get("text") and not said_by(row, manner.layout).answer


def render_prompt(question: str, tokenizer: Tokenizer, manner: Manner = Manner()) -> str:  # noqa: B008
    """The prompt of a question alone, up to where the model begins to write. Raises TextError as prompt_of does."""
    return prompt_of(messages_of({"prompt": question}, manner), tokenizer, arguments=manner.template, date=manner.date)


def messages_of(row: Mapping[str, Any], manner: Manner) -> list[Message]:
    """The messages before the response: the system message, earlier turns, the question behind its instruction, and what was
    said `since`, by tools for one."""
    before, behind = _around(row)
    question = {"role": "user", "content": before + manner.instruction + row["prompt"] + behind}
    messages: list[Message] = [*(row.get("earlier") or ()), question, *(row.get("since") or ())]
    system, inoculation = manner.system, row.get("inoculation")
    if inoculation is not None and inoculation.slot == "system":
        own = next((m["content"] for m in messages if m["role"] == "system"), None)
        system = inoculation.system(own if system is None else system)
    if system is None:
        return messages
    return [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]


def _around(row: Mapping[str, Any]) -> tuple[str, str]:
    """The strings that a sentence of inoculation puts before the question with its instruction, and behind it."""
    inoculation = row.get("inoculation")
    return ("", "") if inoculation is None else inoculation.around


def _without_empty(prompt: str, parts: Layout, *, behind: int) -> str:
    """The prompt without thinking that has no word, which a template wrote at its end, `behind` what was asked."""
    empty = re.compile(rf"{re.escape(parts.opens)}\s*{re.escape(parts.closing)}\s*\Z")
    found = empty.search(prompt, behind) if parts.opens else None
    return prompt if found is None else prompt[: found.start()]


def _agreed(prompt: str, parts: Layout, *, behind: int) -> tuple[int, Layout]:
    """The number of characters of an opening mark that the prompt has written `behind` what was asked and not closed, and
    the layout that is written: where a template opens the thinking itself, the marks are the template's. Words that it puts
    behind the mark are the first of the thinking, and the mark is whole."""
    written = prompt[behind:]
    found = [thought for thought in thoughts(written, (parts, *LAYOUTS))[-1:] if thought.after is None]
    begun = (
        found[0].layout if found else opened_by(written, (parts,))
    )  # one that nothing closes is seen at the end alone
    if begun is None:
        return 0, parts
    blank = written[found[0].begin :] if found else written[len(written.rstrip()) :]
    if blank.strip():
        return len(begun.opening), begun
    wanted = begun.opening[len(begun.opening.rstrip()) :]
    there = len(blank) if wanted.startswith(blank) else len(wanted)
    return len(begun.opening.rstrip()) + there, begun


def places_of(prompt: str, messages: Sequence[Message], tokenizer: Tokenizer, manner: Manner) -> list[tuple[int, int]]:
    """The place of each message in a prompt, from which character to which, as far as what stands around it tells: a word
    of the template may be what somebody asks."""
    around = words_around(
        tuple(message["role"] for message in messages), tokenizer, arguments=manner.template, date=manner.date
    )
    if not prompt.startswith(around[0]) or not prompt.endswith(around[-1]):
        return [(0, len(prompt))] * len(messages)  # a template that depends on what is said
    places, here, together = [], len(around[0]), 1
    for after in around[1:-1]:
        if not after:  # two messages with nothing between them have a place together
            together += 1
            continue
        end = prompt.find(after, here)
        end = len(prompt) if end < 0 else end
        places += [(here, end)] * together
        here, together = end + len(after), 1
    return [*places, *[(min(here, len(prompt) - len(around[-1])), len(prompt) - len(around[-1]))] * together]


def asked(
    prompt: str, messages: Sequence[Message], places: Sequence[tuple[int, int]], instruction: int = 0
) -> tuple[list[Span], int]:
    """The spans of a prompt that its messages said, and the character at which the last question begins, `instruction`
    characters into its message. Some templates trim what they are given, and leave out earlier thinking."""
    spans: list[Span] = []
    here = begin = 0
    for message, (first, last) in zip(messages, places, strict=True):
        ways = forms(message)
        if message["role"] == "assistant":
            ways += ((split_response(ways[0], layout("think")).answer or "").strip(),)
        found = [(place, said) for said in ways if said and (place := prompt.find(said, max(first, here), last)) >= 0]
        if not found:
            continue
        place, said = found[0]
        spans.append((place, place + len(said), "answer" if message["role"] == "assistant" else "prompt"))
        here = place + len(said)
        if message["role"] == "user":
            begin = place - message["content"].find(said) + instruction
    return spans, begin


def covered(spans: Sequence[Span], length: int) -> list[Span]:
    """The spans with what stands between them as the segment `template`, so that they cover the text in order."""
    found, here = [], 0
    for first, last, name in spans:
        if first > here:
            found.append((here, first, TEMPLATE))
        if last > first:
            found.append((first, last, name))
        here = max(here, last)
    return [*found, (here, length, TEMPLATE)] if here < length else found


def refuse_rotten_row(row: Mapping[str, Any], manner: Manner) -> None:
    """Raises TextError for all that can be wrong with a row before a tokenizer reads it: beside what is no string, labels that
    end beyond what they label."""
    refuse_all_but_strings(row)
    if row.get("text"):
        fields = {"text": row["text"]}
    else:
        said = said_by(row, manner.layout)
        fields = {"prompt": row.get("prompt") or "", "thinking": said.thinking, "answer": said.answer or ""}
    annotated(row, {name: (0, len(value)) for name, value in fields.items() if value})


def refuse_all_but_strings(row: Mapping[str, Any]) -> None:
    """Raises TextError where something else than a string stands in what would be rendered, and for labels that are none."""
    written = ("response",) if row.get("response") is not None else ("thinking", "answer")
    for name in ("text",) if row.get("text") else ("prompt", *written):
        value = row.get(name)
        if isinstance(value, str):
            _refuse_halves(value, f"in its {name}")
        if value is None or isinstance(value, str):
            continue
        found = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r:.60}"
        way = (
            "A row of each response comes with +text.prepare.generations={_target_: tunediff.text.each_generation, "
            "_partial_: true}."
            if name == "response" and isinstance(value, list)
            else f"Name another column with text.fields.{name}=<column>, or write strings into the file."
        )
        raise TextError(f"A row has {found} where its {name} is read from, and one string belongs there. {way}")
    for name in () if row.get("text") else ("earlier", "since"):
        turns = row.get(name) or ()
        if not isinstance(turns, Sequence) or not all(_is_message(turn) for turn in turns):
            raise TextError(
                f"A row has {turns!r:.60} where its {name} is read from, and a list of turns, {{role, content}}, each a string, "
                "belongs there. Name a conversation with text.fields.conversation=<column>."
            )
        for turn in turns:
            _refuse_halves(turn["role"], "in the name of a role")
            _refuse_halves(
                turn["content"] + (turn.get("reasoning_content") or ""), f"in what is said by {turn['role']}"
            )
    refuse_rotten_labels(row)


def _is_message(turn: Any) -> bool:
    """True for a turn whose role and content are strings, and its thinking, where it has some."""
    if not isinstance(turn, Mapping):
        return False
    said = (turn.get("role"), turn.get("content"), turn.get("reasoning_content") or "")
    return all(isinstance(value, str) for value in said)


def _refuse_halves(value: str, where: str) -> None:
    if half := HALF.search(value):
        raise TextError(
            f"A row has half a character ({half[0]!r}) {where}, at character {half.start():,}: no tokenizer can read it. "
            "Repair the file."
        )
