"""A row -> the string that the models read, with segments and labels as character ranges of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunediff.shapes import THINKING_FORMAT
from tunediff.text.rows import TextError

Span = tuple[int, int, str]  # first character, one past the last, name
SENTENCE_END = re.compile(r"[.!?。](?=\s|$)|\n")


class Rendered(NamedTuple):
    """One row as the models read it. Where it thinks, the labels `opening` (the first sentence of the thinking) and
    `end_of_thinking` (the closing tag) are known without anybody's annotation."""

    text: str
    segments: list[Span]
    labels: list[Span]


def render(row: Mapping[str, Any], tokenizer, instruction: str = "") -> Rendered:
    """The row as one string. `prompt` goes through the chat template; `thinking` and `answer` (or a whole `response`
    with its think tags) follow as the model would write them, with the end token. `text` stands as it is."""
    if row.get("text"):
        opening = _opening(tokenizer)
        whole = opening + row["text"]
        return Rendered(whole, [(0, len(whole), "text")], _moved(row, {"text": len(opening)}))
    if not row.get("prompt"):
        raise TextError(
            f"A row has neither 'prompt' nor 'text', only {sorted(row)}. Map its columns with text.fields, "
            "for example text.fields={prompt: question, answer: answer}."
        )
    prompt = render_prompt(instruction + row["prompt"], tokenizer)
    thinking, answer = row.get("thinking") or "", row.get("answer") or ""
    if row.get("response"):
        head, closed, tail = row["response"].partition("</think>")
        thinking, answer = (head.replace("<think>", "", 1).strip(), tail.strip()) if closed else ("", head.strip())
    body = THINKING_FORMAT.format(thinking=thinking, answer=answer) if thinking else answer
    opening = "<think>\n"
    if prompt.endswith(opening):  # newer R1 templates open the thinking themselves
        body = body.removeprefix(opening)
    whole = prompt + body + (tokenizer.eos_token or "")
    starts = {"prompt": prompt.find(row["prompt"]), "answer": len(prompt) + len(body) - len(answer)}
    segments: list[Span] = [(0, len(prompt), "prompt")]
    labels: list[Span] = []
    if thinking:
        starts["thinking"] = whole.index(thinking, len(prompt))
        sentence = SENTENCE_END.search(thinking)
        prefix_end = starts["thinking"] + (sentence.end() if sentence else len(thinking))
        segments += [(len(prompt), prefix_end, "prefix"), (prefix_end, starts["answer"], "thinking")]
        closing = whole.index("</think>", starts["thinking"] + len(thinking))
        labels += [(starts["thinking"], prefix_end, "opening"), (closing, closing + len("</think>"), "end_of_thinking")]
    segments.append((starts["answer"], len(whole), "answer"))
    return Rendered(whole, segments, labels + _moved(row, starts))


def render_prompt(question: str, tokenizer) -> str:
    """What a user asks, up to where the model begins to write; plainly where the tokenizer has no chat template."""
    if tokenizer.chat_template:
        message = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return _opening(tokenizer) + question + "\n\n"


def _opening(tokenizer) -> str:
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
    """Spans of labelled pieces of the thinking, each looked for after the one before; what is not there word for word is
    left out. What was found carries the label `annotated` as well, so that tokens nobody looked at can be left aside."""
    spans, here = [], 0
    for piece in pieces:
        words = (piece.get("text") or "").strip()
        first = thinking.find(words, here) if words else -1
        if first >= 0:
            here = first + len(words)
            spans += [("thinking", first, here, name) for name in (piece.get("label"), "annotated") if name]
    return spans
