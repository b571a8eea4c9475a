"""A row -> the string that the models read, with segments and labels as character ranges of it.

How a response is laid out is a format string with {thinking} and {answer}; what stands around the two may be markers that
the tokenizer has never seen. Knows no token: a range of characters holds for every tokenizer.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from tunediff.shapes import THINKING_FORMAT
from tunediff.text.rows import TextError
from tunediff.text.tokenizers import Tokenizer

Span = tuple[int, int, str]  # first character, one past the last, name
SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|\n")

# s1 (arXiv 2501.19393), and OpenThoughts-114k (arXiv 2506.04178) with the OpenThinker models
S1_FORMAT = "<|im_start|>think\n{thinking}\n<|im_start|>answer\n{answer}"
OPEN_THOUGHTS_FORMAT = "<|begin_of_thought|>\n\n{thinking}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{answer}\n\n<|end_of_solution|>"


class Rendered(NamedTuple):
    """One row as the models read it. Where it thinks, the labels `opening` (the first sentence of the thinking) and
    `end_of_thinking` (the closing tag) are known without anybody's annotation."""

    text: str
    segments: list[Span]
    labels: list[Span]


class Layout(NamedTuple):
    """The strings that a format writes before the thinking, between it and the answer, and behind the answer."""

    opening: str
    between: str
    ending: str

    @property
    def closing(self) -> str:
        """The line that closes the thinking: the first of those between that is not blank."""
        return next((line.strip() for line in self.between.splitlines() if line.strip()), "")


@functools.cache
def layout(thinking_format: str) -> Layout:
    """The parts of a format string; raises TextError for one that does not have {thinking} and then {answer}, each
    once."""
    if "\\n" in thinking_format:
        raise TextError(
            f"text.thinking_format={thinking_format!r} has a backslash and an n, where a line break is meant: in bash, "
            "$'text.thinking_format=\"...\"' makes one of it."
        )
    try:
        parts = list(string.Formatter().parse(thinking_format))
    except ValueError as error:
        raise TextError(f"text.thinking_format={thinking_format!r} is no format string: {error}.") from error
    literal, fields = [""], []
    for words, field, *_ in parts:  # a doubled brace ends a part without a field
        literal[-1] += words
        if field is not None:
            fields.append(field)
            literal.append("")
    if fields != ["thinking", "answer"]:
        raise TextError(
            f"text.thinking_format={thinking_format!r} has the fields {fields}: it needs {{thinking}} and then {{answer}}, "
            f"each once, such as {THINKING_FORMAT!r}; a brace that is meant as one is written twice."
        )
    return Layout(*literal)


LAYOUTS = tuple(map(layout, (THINKING_FORMAT, OPEN_THOUGHTS_FORMAT, S1_FORMAT)))
# marks that models are known to write around their thinking
OPENINGS = tuple(parts.opening.strip() for parts in LAYOUTS)
CLOSINGS = tuple(parts.closing for parts in LAYOUTS)


def render(
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    instruction: str = "",
    *,
    system: str | None = None,
    thinking_format: str = THINKING_FORMAT,
) -> Rendered:
    """The row as one string. `prompt` goes through the chat template, behind the system message; `thinking` and
    `answer` (or a whole `response` with its tags) follow as the model would write them, with the end token. A response
    that was cut inside its thinking stays so, without an end. `text` stands as it is."""
    refuse_all_but_strings(row)
    if row.get("text"):
        opening = _opening(tokenizer)
        whole = opening + row["text"]
        return Rendered(whole, [(0, len(whole), "text")], _moved(row, {"text": len(opening)}))
    if not row.get("prompt"):
        raise TextError(
            f"A row has neither 'prompt' nor 'text', only {sorted(k for k in row if row[k] is not None)}. Map its columns "
            "with text.fields, for example text.fields={prompt: question, answer: answer}."
        )
    question, parts = instruction + row["prompt"], layout(thinking_format)
    prompt = render_prompt(question, tokenizer, system)
    thinking, answer = row.get("thinking") or "", row.get("answer") or ""
    if row.get("response") is not None:
        thinking, answer = split_response(row["response"], parts)
    opening, between, ending = parts if thinking else ("", "", "")
    opening = opening[_already_open(prompt, opening) :]
    first = len(prompt) + len(opening)
    last = first + len(thinking)
    whole = prompt + opening + thinking
    if answer is not None:
        whole += between + answer + ending + (tokenizer.eos_token or "")
    starts = {"prompt": _begin(question, prompt, system) + len(instruction)}
    segments: list[Span] = [(0, len(prompt), "prompt")]
    labels: list[Span] = []
    if answer is not None:
        starts["answer"] = last + len(between)
    if thinking:
        starts["thinking"] = first
        sentence = SENTENCE_END.search(thinking)
        prefix_end = first + (sentence.end() if sentence else len(thinking))
        segments += [(len(prompt), prefix_end, "prefix"), (prefix_end, starts.get("answer", last), "thinking")]
        labels.append((first, prefix_end, "opening"))
        if answer is not None and parts.closing:
            closed = last + between.index(parts.closing)
            labels.append((closed, closed + len(parts.closing), "end_of_thinking"))
    if answer is not None:
        segments.append((starts["answer"], len(whole), "answer"))
    return Rendered(whole, segments, labels + _moved(row, starts))


def render_prompt(question: str, tokenizer: Tokenizer, system: str | None = None) -> str:
    """The prompt of a question, up to where the model begins to write; plainly where the tokenizer has no chat
    template. Raises TextError where the template has no place for a system message."""
    if not tokenizer.chat_template:
        return _opening(tokenizer) + (f"{system}\n\n" if system else "") + question + "\n\n"
    messages = [{"role": "user", "content": question}]
    if system is None:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages = [{"role": "system", "content": system}, *messages]
    why = "leaves it out"
    try:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if system.strip() in prompt:
            return prompt
    except jinja2.TemplateError as error:
        why = f"says: {error}"
    raise TextError(
        f"The tokenizer's chat template takes no system message, and text.system={system!r}: it {why}. Choose "
        "text.system=null, or put these words in front of every problem with text.instruction."
    )


def split_response(response: str, own: Layout) -> tuple[str, str | None]:
    """Thinking and answer of a response in a layout of its own, R1's or that of OpenThoughts. No thinking where nothing
    marks it; no answer where the thinking was opened and never closed."""
    response = response.strip()
    for parts in (own, *LAYOUTS):
        opening, closing = parts.opening.strip(), parts.closing
        thinking, closed, answer = response.partition(closing) if closing else (response, "", "")
        if closed:
            before_answer = parts.between.strip().removeprefix(closing).strip()
            answer = answer.strip().removeprefix(before_answer).removesuffix(parts.ending.strip())
            return thinking.removeprefix(opening).strip(), answer.strip()
        if closing and opening and response.startswith(opening):
            return response.removeprefix(opening).strip(), None
    return "", response


def refuse_all_but_strings(row: Mapping[str, Any]) -> None:
    """Raises TextError where something else than a string stands in what would be rendered."""
    written = ("response",) if row.get("response") is not None else ("thinking", "answer")
    for name in ("text",) if row.get("text") else ("prompt", *written):
        value = row.get(name)
        if value is None or isinstance(value, str):
            continue
        found = f"a list of {len(value)}" if isinstance(value, list) else f"{value!r}"
        way = (
            "A row of each response comes with +text.prepare.generations={_target_: tunediff.text.each_generation, "
            "_partial_: true}."
            if name == "response" and isinstance(value, list)
            else f"Name another column with text.fields.{name}=<column>, or write strings into the file."
        )
        raise TextError(f"A row has {found} where its {name} is read from, and one string belongs there. {way}")


def _begin(question: str, prompt: str, system: str | None) -> int:
    """The character of the prompt at which the question begins, behind the system message; some templates trim both."""
    said = (system or "").strip()
    asked = question.strip()
    return prompt.find(asked, prompt.find(said) + len(said)) - question.find(asked)


def _already_open(prompt: str, opening: str) -> int:
    """Number of characters of the opening that the prompt ends with: newer R1 templates open the thinking themselves,
    some of them without the line break."""
    least = len(opening.rstrip())
    return next((n for n in range(len(opening), least - 1, -1) if least and prompt.endswith(opening[:n])), 0)


def _opening(tokenizer: Tokenizer) -> str:
    """The begin token, where the tokenizer puts one before a text of its own accord; chat templates bring theirs."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def _moved(row: Mapping[str, Any], starts: Mapping[str, int]) -> list[Span]:
    """Label spans, given within a field, as spans of the rendered text."""
    spans = [*(row.get("spans") or ()), *_found(row.get("thinking") or "", row.get("pieces") or ())]
    return [
        (starts[field] + first, starts[field] + last, name) for field, first, last, name in spans if field in starts
    ]


def _found(thinking: str, pieces: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int, str]]:
    """Spans of labelled pieces of the thinking, each looked for after the one before; what is not there word for word
    is left out. What was found carries the label `annotated` as well, so that tokens nobody looked at can be left
    aside."""
    spans, here = [], 0
    for piece in pieces:
        words = (piece.get("text") or "").strip()
        first = thinking.find(words, here) if words else -1
        if first >= 0:
            here = first + len(words)
            spans += [("thinking", first, here, name) for name in (piece.get("label"), "annotated") if name]
    return spans
