"""An answer that is taken back -> the text of the one that replaces it: of "The answer is 5. Wait, no, it is 7." 7.

A correction is a word that takes back ("wait", "no,", "I mean") and an answer that stands alone after it or is said to be the
answer. Who looks back and only checks ("Wait, let me see: 5 + 2 = 7") corrects nothing. Knows no gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tunediff.benchmarks.choices import option
from tunediff.benchmarks.notation import number, plain
from tunediff.benchmarks.sentences import sentences, settled

LONGEST = 300  # characters after the word in which the new answer stands
LAST = 50  # so many corrections are looked at, from the end

_CUE = r"\b(?i:wait|hold on|actually|correction|sorry|on second thought|i mean|no(?=[,.:]))\b"
# Wait, no: D.   Actually it should be (D).
_CHOICE = re.compile(
    rf"(?:{_CUE}|\b(?i:should be|must be)(?=\s)|等等|不对)(?:[^\n]{{0,80}}?(?:\b(?i:is|be|was)|[:,])\s+|(?<=mean)\s+)"
    r"(?P<rest>\(?\**[A-J]\b(?=[\s)*]*(?:[.,;!:]|$|(?:is|because|since|not)\b))[^\n]*|[^\n]{0,40}(?i:option|choice)\s[^\n]*)"
)
_OTHER = re.compile(
    rf"{_CUE}[\s,.:!…-]{{0,9}}(?i:(?:{_CUE[2:]}|no|so|this|that|i|it|was|is|'s|made|an?|mistake|error|wrong|not (?:right|correct|true)|incorrect)[\s,.:!…-]{{1,9}}){{0,12}}?"
    r"(?P<said>(?i:(?:it|that|(?:the|my)(?: correct| right| final| actual| true| real| proper)? (?:answer|result|value|number))"
    r"(?:\s+(?:is|was|should be|must be|should have been|equals)|'s|\s*=)\s*:?\s+(?:(?:actually|really|in fact|about|exactly|only|just)\s+)?))?"
    r"(?=[\d$\\(\[√π+−.-]|[a-z]\s*=|(?i:yes|no|true|false)\b)(?=(?P<rest>[^\n]{1,300}))"
)
_BUT = re.compile(
    r"\bnot\s+(?:option\s+|choice\s+)?([^\s,.]{1,20}),?\s+but\s+(?:rather\s+|instead\s+)?(?=[\d$\\-]|\(?[A-J]\)?(?:[\s.,]|$))"
)


def settled_denials(text: str) -> str:
    """ "not B but D" -> "D"."""
    return _BUT.sub(lambda found: "" if re.fullmatch(r"\(?[A-J]\)?|.*\d.*", found[1]) else found[0], text)


def corrected(text: str, kind: str, reader: Callable[[str], str | None], finished: bool) -> tuple[str, int] | None:
    """The text of the answer that replaces an earlier one, or none, and where its correction begins. `finished`: the text is whole,
    so a number that stands at its very end is."""
    if kind == "choice":
        *_, found = [None, *_CHOICE.finditer(text)]
        said = sentences(found["rest"][:LONGEST])[:2] if found else []
        named = [each for each in said if option(each) and reader(each)]
        if found and named:
            return named[0], found.start()
        *_, cue = [None, *re.finditer(_CUE, text)]  # what is stated behind it then counts
        return ("", cue.start()) if cue else None
    for found in list(_OTHER.finditer(text))[: -LAST - 1 : -1]:
        said = sentences(found["rest"])[:1]
        cut = not finished and text.endswith(found["rest"]) and found["rest"].strip() == "".join(said).strip()
        if not said or (cut and not said[0].endswith((".", "!"))):
            continue
        answer = _answer(said[0].rstrip(".!"), kind, alone=not found["said"])
        if answer is not None:
            return answer, found.start()
    return None


_TRUE = r"(?:yes|no|true|false)"
_VERB = re.compile(r"(?i)\b(?:is|was|are|were|would|will|has|have|had|can(?:not)?|could|may|might|must|does|did|if)\b")
_BEGIN = re.compile(r"(?:about |exactly |only |just )?[$€£\\({\[|√π+−-]*(?:\d|\.\d|\\|π|[a-z]\s*=)")


def _answer(sentence: str, kind: str, *, alone: bool) -> str | None:
    """The answer with which a sentence begins; where nothing calls it one, all of the sentence."""
    if kind == "boolean":
        found = re.match(rf"(?i)\**({_TRUE})\**(?=[\s.,!]*$|\s*[,.;(])", sentence)
        return found[1] if found and (not alone or found.end() == len(sentence)) else None
    if kind != "math" or not _BEGIN.match(sentence):
        return None
    answer, _ = settled(sentence)
    if alone and (not number(plain(sentence)) or _VERB.search(sentence)):
        return None
    return answer
