"""The text and the token ids of one response -> how it is written: its length, its hesitations, whether its thinking
came to an end, how much it repeats. Knows no model and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tunediff.shapes import Refused
from tunediff.text import HESITATIONS, LAYOUTS, Layout, thoughts
from tunediff.text.labels import words


class Behaviour(NamedTuple):
    """Measures of how one response is written. A field is None where it does not apply: no thinking, no token, fewer
    tokens than an n-gram has.

    tokens          its length                          closed       whether its thinking came to an end
    hesitations     how often it hesitates              repetition   share of 4-grams that occurred before in it
    distinct        different 2-grams as a share of all
    """

    tokens: int
    hesitations: int
    closed: bool | None
    repetition: float | None
    distinct: float | None


def behaviour(
    text: str,
    ids: Sequence[int],
    *,
    patterns: Sequence[str] = HESITATIONS,
    opened: str = "",
    layouts: Sequence[Layout] = LAYOUTS,
) -> Behaviour:
    """The measures of a response, from its text and its token ids without padding."""
    count = hesitations(text, patterns)
    return Behaviour(len(ids), count, closed(text, opened, layouts), repetition(ids), distinct(ids, 2))


def hesitations(text: str, patterns: Sequence[str] = HESITATIONS) -> int:
    """Number of times that one of these words or phrases occurs, capital letters or not: "Wait," counts, "waiter" does
    not. Each is a regular expression; where two overlap the first counts."""
    return sum(1 for _ in words(tuple(patterns)).finditer(text)) if patterns else 0


def closed(text: str, opened: str = "", layouts: Sequence[Layout] = LAYOUTS) -> bool | None:
    """True where the thinking was closed after it last began; `opened` is the mark with which the prompt began it. A closing
    mark alone says so as well. None without thinking."""
    found = thoughts(text, layouts, opened=opened)
    return found[-1].after is not None if found else None


def repetition(ids: Sequence[int], n: int = 4) -> float | None:
    """Share of n-grams that occurred before in the same response; None where it has none."""
    share = distinct(ids, n)
    return None if share is None else 1 - share


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Different n-grams as a share of all (Li et al. 2016, arXiv 1510.03055); None where there are none."""
    if n < 1:
        raise Refused(f"n={n}: an n-gram has at least 1 token.")
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None
