"""A model's output -> the answer that it gives, as text, and the rule that read it. Pure text, no algebra.

Only what stands after the last end of thinking (`</think>`, or the mark of s1 or OpenThoughts) is read. Its last complete box comes first; then an answer that it states ("The
answer is 42", "#### 42"); then the last complete box of the closed thinking, where the written answer was cut or forgot
it; then the output of a program; last the concluding sentence. Thinking that was cut gives no answer at all, not even
by a box: it might have changed its mind. Where the model ended by itself without closing it, its last box counts: a base
model whose prompt opens the thinking never closes it. What a model invents after its answer, a next turn or question or
the same lines again, is not read; special tokens mark turns, so they stand in the text. Nothing here knows the gold.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunediff.benchmarks.choices import chosen, option
from tunediff.benchmarks.corrections import corrected, settled_denials
from tunediff.benchmarks.languages import in_english
from tunediff.benchmarks.notation import argument
from tunediff.benchmarks.sentences import LONGEST, sentences, settled
from tunediff.text import LAYOUTS, Layout, thoughts

READ = {
    "boxed": "the last complete box after the thinking, or several that are one list",
    "stated": 'what follows the last "the answer is", "Answer:" or "####"',
    "boxed_in_thinking": "the last complete box of the thinking; no text after it states an answer, or the model ended in it",
    "program_output": "the last line that a program of the output printed",
    "concluding_number": "the number of the concluding sentence",
    "concluding_expression": "the formula of the concluding sentence",
    "concluding_sentence": "the concluding sentence, which holds no number or formula",
    "unfinished": "cut inside the thinking or before an answer was stated, or ended inside the thinking without a box",
    "no_answer": "ended without one",
}


Reader = Callable[[str], str | None]  # of a short text


class Answer(NamedTuple):
    text: str | None
    rule: str


def read(
    output: str,
    *,
    kind: str = "math",
    finished: bool = True,
    opened: str = "",
    layouts: Sequence[Layout] = LAYOUTS,
    choices: Sequence[str] = (),
) -> Answer:
    """The answer of one output. `finished`: the model ended by itself, so the last sentence is whole. `opened`: the mark
    with which the prompt opened the thinking. `layouts`: how thinking may be marked. `kind`: math, boolean or choice; or
    word, where the concluding sentence is wanted whole, for the answer may be its subject ("Ada is the tallest").
    `choices`: those of a choice, which it may name word for word."""
    output, ended = _own_turn(output)
    finished = finished or ended
    thinking, said = _after_thinking(output, opened, layouts)
    text = functools.partial(chosen, choices=choices) if choices else _READERS[kind]
    if _cut_in_box(thinking if said is None else said):
        return Answer(None, "unfinished")
    if said is None:
        boxed = boxes(_before_invention(thinking, after=r"\\boxed")[0]) if finished else None
        answer = text(boxed) if boxed else None
        return Answer(answer, "boxed_in_thinking" if answer else "unfinished")
    if not output.strip():
        return Answer(None, "no_answer")
    said, went_on = _before_invention(said, after=r"\d|\\boxed" if kind == "math" else r"\S")
    finished = finished or went_on
    said, printed = _without_programs(said)
    boxed, after_box = _boxed(said)
    translated = settled_denials(in_english(said, kind))
    later = in_english(said[after_box:], kind) if boxed else translated
    for rule, found in (
        ("stated", _corrected(later, kind, text, finished) if boxed else None),
        ("boxed", boxed),
        ("stated", _corrected(translated, kind, text, finished) or _stated(translated, kind, text)),
        ("boxed_in_thinking", boxes(thinking)),
        ("program_output", printed),
    ):
        if found and (answer := text(found)):
            return Answer(answer, rule)
    if not finished:
        return Answer(None, "unfinished")
    return _concluding(translated, kind, text)


def boxes(text: str) -> str | None:
    """The content of the last complete box; where the last ones are joined by a comma or an "and", theirs as a list."""
    return _boxed(text)[0]


def _boxed(text: str) -> tuple[str | None, int]:
    """That content, and where the last box ends."""
    found: list[tuple[int, int, str]] = []
    place = 0
    while opening := re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*").search(text, place):
        content, place = argument(text, opening.end())
        if content is not None and (content := _unboxed(content).strip()):
            found.append((opening.start(), place, content))
        place = max(place, opening.end())
    if not found:
        return None, 0
    answers = [found[-1][2]]
    for (_, end, content), (begin, _, _) in zip(found[-2::-1], found[:0:-1], strict=False):
        if not _JOINED.fullmatch(text[end:begin]):
            break
        if content not in answers:
            answers.insert(0, content)
    return ", ".join(answers), found[-1][1]


def truth(text: str) -> str | None:
    """ "true" or "false": the last yes, no, true or false that is not part of a phrase such as "no one"."""
    found = list(_TRUTH.finditer(text))
    if not found:
        return None
    word = found[-1]["word"].lower()
    return "true" if (word in ("yes", "true")) != bool(found[-1]["negated"]) else "false"


# -- what is read

# Of Qwen (im), DeepSeek (full-width bars), Llama 2 and Mistral (s, INST), Llama 3 (header, eot, eom, text) and Gemma (turn).
# Not every token in such brackets: some open the thinking.
_TURN = re.compile(
    r"<\|im_start\|>(?!(?:think|answer)\b)|<\|(?:im_end|endoftext|(?:begin|end)_of_text|eo[tm]_id|(?:start|end)_header_id)\|>"
    r"|<｜(?:User|Assistant|(?:begin|end)▁of▁sentence)｜>|</s>|\[/?INST\]|<(?:start|end)_of_turn>"
)
_HEADER = re.compile(
    r"\s*(?:<｜begin▁of▁sentence｜>|<\|begin_of_text\|>|<s>)?\s*"
    r"(?:<\|im_start\|>assistant\b|<｜Assistant｜>|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model\b)?"
)


def _own_turn(output: str) -> tuple[str, bool]:
    """The output without a header of its own and up to the end of its turn, and whether that came."""
    output = _HEADER.sub("", output, count=1)  # it matches at the beginning, if only nothing
    end = _TURN.search(output)
    return (output[: end.start()], True) if end else (output, False)


def _after_thinking(output: str, opened: str, layouts: Sequence[Layout]) -> tuple[str, str | None]:
    """The thinking and what is said after it; where the thinking is open at the end, that and None."""
    found = thoughts(output, layouts, opened=opened)
    if not found:
        return "", output
    begin, end, after, _ = found[-1]
    return (output[begin:end], None) if after is None else (output[:after], output[after:])


_NEXT = re.compile(
    r"(?im)^\W{0,40}(?:question|problem|exercise|example|q|user|human|student|instruction|assistant)\s*\d*\s*[:.]"
    r"|^you are an? (?:ai|helpful) assistant"
)


def _before_invention(text: str, after: str) -> tuple[str, bool]:
    """Up to the next problem that the model asks itself `after` something that may be an answer, or to where it goes
    round in a circle; and whether its last sentence is whole and meant: one that only repeats a result is, one of a
    circle of several results is not."""
    answered = re.search(after, text)
    for found in _NEXT.finditer(text, answered.end()) if answered else ():
        return text[: found.start()], True
    pieces = re.finditer(r"[^\n]*?(?:[.!?](?=\s)|\n|$)", text)
    words = [(piece[0].strip(), piece.start()) for piece in pieces if len(piece[0].strip()) > 3]
    threes = [tuple(word for word, _ in words[place : place + 3]) for place in range(len(words) - 2)]
    last = threes[-2:-1] or threes  # the very last piece may be cut
    # a problem is restated and a sum is checked; but who says at the end for the third time the same goes in a circle
    if last and sum(map(len, last[0])) >= 30 and threes.count(last[0]) >= 3:
        begun: dict[tuple[str, ...], int] = {}  # where each was said first
        again = next(place for place, three in enumerate(threes) if begun.setdefault(three, place) < place)
        return text[: words[again][1]], len({settled(piece)[0] for piece in last[0]}) == 1
    return text, False


def _without_programs(text: str) -> tuple[str, str | None]:
    """The text outside fenced blocks, and the last line printed where no words with a number follow it."""
    printed = None
    between = text.split("```")
    for block in between[1::2]:
        head, _, body = block.partition("\n")
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        language = re.match(r"\w*", head)
        if (
            language
            and language[0].lower() in ("output", "", "text", "plaintext")
            and lines
            and not re.search(r"[A-Za-z]\s{0,9}\(|import", body)
        ):
            printed = lines[-1].rpartition(":")[2].strip()
    return "\n".join(between[::2]), printed


# -- boxes


_JOINED = re.compile(
    r"[\s$\\()\[\].]*(?:,|;|and|or|,\s*and|,\s*or|\\text\{\s*(?:,\s*)?(?:and|or)\s*\}|\\quad)[\s$\\()\[\]]*(?:[A-Za-z](?:_\w)?\s*=\s*)?"
)


def _cut_in_box(text: str) -> bool:
    """True where the text breaks off inside a box, in the line that opens it."""
    *_, opening = [None, *re.finditer(r"\\(?:boxed|fbox)\s*(?=\{|$)", text)]
    if opening is None:
        return False
    content, _ = argument(text, opening.end())
    return content is None and "\n" not in text[opening.end() :].strip()


def _unboxed(text: str) -> str:
    """The text without the commands of boxes in it and their braces, up to one that does not close."""
    dropped: list[tuple[int, int]] = []
    for opening in re.finditer(r"\\(?:boxed|fbox|framebox)\s*(?=\{)", text):
        content, end = argument(text, opening.end())
        if content is None:
            break
        dropped += [(opening.start(), opening.end() + 1), (end - 1, end)]
    kept, place = [], 0
    for begin, end in sorted(dropped):
        kept.append(text[place:begin])
        place = end
    return "".join([*kept, text[place:]])


# -- sentences


STATED = 50  # of so many statements the last that can be read counts
_STATED = re.compile(
    r"(?i)(?:####\s*(?P<marked>[^\n]+)|\b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b[^.\n:=]{0,60}?(?:\s(?:is|are|was|would be|should be|must be)\b(?!\s+(?:not|in)\b)|\s*[:=])"
    r"[\s:*]*(?P<rest>[^\n]+))"
)
_TRUTH = re.compile(r"(?i)(?P<negated>\bnot\s+)?\b(?P<word>yes|true|false|no(?=\s*(?:[.,;:!*)}\"'\n]|$)))\b")


def _corrected(text: str, kind: str, reader: Reader, finished: bool) -> str | None:
    """The answer that replaces an earlier one, or what the text states after that."""
    found = corrected(text, kind, reader, finished)
    if found is None:
        return None
    *_, last = [-1, *(each.start() for each in _STATED.finditer(text))]
    answer, begin = found
    stated = last > begin or (not answer and _STATED.search(text, begin))
    return _stated(text[begin:], kind, reader) if stated else answer or None


def _stated(text: str, kind: str, reader: Reader) -> str | None:
    """The last answer that the text calls one."""
    text = re.sub(r"(?<![\w)])\*\*|\*\*(?![\w(])", "", text)
    for found in list(_STATED.finditer(text))[: -STATED - 1 : -1]:
        lines = sentences(found["marked"] or found["rest"])
        if not lines:
            continue
        if kind == "word":
            return found["marked"] or found["rest"]
        if kind != "math":
            if reader(lines[0]):
                return lines[0]
            continue
        answer, _ = settled(lines[-1] if found["marked"] else lines[0])
        if answer is not None:
            return answer
        if len(lines[0].split()) <= 4:
            return lines[0].rstrip(".")
    return None


def _concluding(text: str, kind: str, reader: Reader) -> Answer:
    """The answer of the last sentences: of math the number or formula of the last that has one, else the sentence."""
    last = sentences(text)[-3:]
    if kind == "math":
        for sentence in reversed(last):
            answer, rule = settled(sentence)
            if len(sentence) > LONGEST:
                break  # it concludes something that nobody can read: what stood before it would be a guess
            if answer is not None:
                return Answer(answer, rule)
    if kind == "boolean":
        answer = truth(text)
    elif kind == "choice":
        answer = next(filter(None, map(reader, reversed(last))), None)
    else:
        answer = last[-1] if last else None
    if answer is None:
        return Answer(None, "no_answer")
    return Answer(answer.rstrip(".") if kind == "math" else answer, "concluding_sentence")


_READERS = {"math": str.strip, "word": str.strip, "boolean": truth, "choice": option}
