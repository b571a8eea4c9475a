"""Labels that any reasoning trace has without an annotator, by rule, as spans of its thinking.

    step_end             where a sentence ends: its last character that is no white space
    hesitation           the first character of a match of the pair's expressions, such as "Wait" or "Hold on": as tokens
                         the one that begins it
    hesitation_follows   the end of a sentence behind which the next begins with such a match
    backtracks           a sentence that begins with one, or that takes back what was said ("That's wrong", "Let me recheck")

A rule sees words, not intentions: "Wait for the bus" is a hesitation to it, and a correction without such words is none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from tunediff.text.patterns import IGNORECASE, Pattern, compiled

BY_RULE = ("step_end", "hesitation", "hesitation_follows", "backtracks")
HESITATIONS = ("wait", "hmm+", "alternatively", "hold on")  # regular expressions of whole words

# of one line, up to a run of marks with white space behind it, or with a Chinese one at its end, which takes none; each
# run is looked at once
_END = (
    r"(?<![.!?。？！…])(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?。？！…]++(?:(?<=[。？！])[”」』）]*+|[\"')\]*”]*+(?=\s|$))"
)
_SENTENCE = re.compile(rf"\S.*?(?:{_END}|$)")
_BEFORE = r"(?:(?:oh|but|so|and|no|okay|ok|well|actually|then)\b[,.!]?\s+){0,3}"
_TAKEN_BACK = (
    r"(?:(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right|not correct|a mistake)"
    r"|(?:that|this|it) (?:isn't|wasn't|can't be|cannot be) (?:right|correct)|i (?:made|must have made) an? (?:mistake|error)"
    r"|let me (?:re-?check|double[- ]check|re-?consider|re-?think|start over|try again|backtrack)|scratch that)"
)


def words(patterns: tuple[str, ...]) -> Pattern:
    """A regular expression for any of these as whole words, capital letters or not. Raises Refused for what is none."""
    return compiled(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", IGNORECASE, "hesitations")


@functools.lru_cache
def _begins(patterns: tuple[str, ...]) -> tuple[Pattern, Pattern]:
    """Expressions for a sentence that begins with a hesitation, and for one that goes back."""
    hesitates = rf"{_BEFORE}(?<!\w)(?:{'|'.join(patterns)})(?!\w)" if patterns else r"(?!)"
    back = rf"{hesitates}|{_BEFORE}{_TAKEN_BACK}"
    return compiled(hesitates, IGNORECASE, "hesitations"), compiled(back, IGNORECASE, "hesitations")


def by_rule(thinking: str, patterns: Sequence[str] = HESITATIONS) -> list[tuple[int, int, str]]:
    """The spans of a thinking, each (first character, one past the last, label)."""
    patterns = tuple(patterns)
    starts = [found.start() for found in words(patterns).finditer(thinking)] if patterns else []
    spans = [(start, start + 1, "hesitation") for start in starts]
    hesitates, goes_back = _begins(patterns)
    before = None
    for first, last in sentences(thinking):
        spans.append((last - 1, last, "step_end"))
        if before is not None and hesitates.match(thinking, first):
            spans.append((before - 1, before, "hesitation_follows"))
        if goes_back.match(thinking, first):
            spans.append((first, last, "backtracks"))
        before = last
    return spans


def by_expression(thinking: str, expressions: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """The spans of a thinking that match, for expressions by the label that they give. Raises Refused for what is no expression."""
    for name, expression in expressions.items():
        pattern = compiled(expression, 0, f"text.labels.{name}")
        yield from ((*found.span(), name) for found in pattern.finditer(thinking) if found.end() > found.start())


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """First character and one past the last of each sentence; a line break ends one as well."""
    here = 0
    for line in text.splitlines(keepends=True):
        for found in _SENTENCE.finditer(line.rstrip()):
            yield here + found.start(), here + found.end()
        here += len(line)
