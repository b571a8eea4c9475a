"""One text -> its tokens under one tokenizer or two, which of them stand for each other, and the pieces it is cut into.

All of it takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tunediff.text.tokenizers import Tokenizer, encode, touching

LONG = ("cut", "first", "keep_prompt")  # what becomes of a row that is longer than the context


@dataclass(frozen=True)
class Aligned:
    """ids, offsets   of each tokenizer: [token] ids, and [token, 2] first character and one past the last
    pairs     [pair, tokenizer] indices of tokens that stand for each other, in order
    foreign   [pair] true where a token touches a mark that the two models read differently
    """

    ids: tuple[np.ndarray, ...]
    offsets: tuple[np.ndarray, ...]
    pairs: np.ndarray
    foreign: np.ndarray

    @classmethod
    def of(cls, text: str, tokenizers: Sequence[Tokenizer], *, marks: re.Pattern | None) -> Aligned:
        """Tokens of two tokenizers that end with the same character are paired; where a character is spelled in several,
        they are paired in order from the last, one to one."""
        encoded = [encode(tokenizer, text) for tokenizer in tokenizers]
        ids = tuple(np.array(one["input_ids"], dtype=np.int64) for one in encoded)
        offsets = tuple(np.array(one["offset_mapping"], dtype=np.int64).reshape(-1, 2) for one in encoded)
        pairs = np.arange(len(ids[0]))[:, None] if len(ids) == 1 else _paired(offsets[0][:, 1], offsets[1][:, 1])
        spans = [found.span() for found in marks.finditer(text)] if marks else []
        foreign = np.zeros(len(pairs), dtype=bool)
        for m, each in enumerate(offsets):
            foreign |= touching(each, spans)[pairs[:, m]]
        return cls(ids, offsets, pairs, foreign)


def _paired(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """[pair, 2] indices of tokens with the same end, from ends that never fall."""
    from_last = np.searchsorted(mine, mine, side="right") - 1 - np.arange(len(mine))
    other = np.searchsorted(theirs, mine, side="right") - 1 - from_last
    there = (other >= 0) & (theirs[np.maximum(other, 0)] == mine) if len(theirs) else np.zeros(len(mine), dtype=bool)
    return np.stack([np.flatnonzero(there), other[there]], axis=1)


class Piece(NamedTuple):
    """One sequence of a text: of each tokenizer its tokens from `begins` to `ends`, behind its first `before`."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    before: tuple[int, ...]


def pieces(whole: Aligned, context: int, long: str, *, prompt: int) -> Iterator[Piece]:
    """The text in pieces that end at the same character, each of at most `context` tokens of every tokenizer. With keep_prompt each
    begins with the tokens of the first `prompt` characters; a prompt of more than half the context is cut as the rest, or
    a row would become many times as long as it is."""
    count = len(whole.ids[0])
    asked = int(np.searchsorted(whole.offsets[0][:, 0], prompt)) if long == "keep_prompt" else 0
    if 2 * max(_same_characters(whole, m, [asked])[0] for m in range(len(whole.ids))) > context:
        asked = 0
    begin = 0
    while begin < count:
        before = asked if begin else 0
        end = min(begin + context - before, count)
        for m in range(1, len(whole.ids)):
            end = _whole_characters(whole, min(end, _last_that_fits(whole, m, before, begin, context)))
        end = max(end, begin + 1)
        bounds = [_same_characters(whole, m, (before, begin, end)) for m in range(len(whole.ids))]
        yield Piece(*(tuple(each[n] for each in bounds) for n in (1, 2, 0)))
        begin = count if long == "first" else end


def _last_that_fits(whole: Aligned, m: int, before: int, begin: int, context: int) -> int:
    """The number of tokens of the first tokenizer up to which a piece has no more than `context` tokens of another."""
    theirs = whole.offsets[m][:, 1]
    repeated, first = _same_characters(whole, m, (before, begin))
    last = first + context - repeated
    if last >= len(theirs):
        return len(whole.ids[0])
    return int(np.searchsorted(whole.offsets[0][:, 1], theirs[last], side="left"))


def _whole_characters(whole: Aligned, end: int) -> int:
    """A number of tokens of the first tokenizer, or the next lower one that parts no character."""
    mine = whole.offsets[0][:, 1]
    parted = 0 < end < len(mine) and mine[end - 1] == mine[end]
    return int(np.searchsorted(mine, mine[end], side="left")) if parted else end


def _same_characters(whole: Aligned, m: int, bounds: Sequence[int]) -> tuple[int, ...]:
    """Numbers of tokens of the first tokenizer as those of another, up to the same character."""
    if m == 0:
        return tuple(bounds)
    mine, theirs = whole.offsets[0][:, 1], whole.offsets[m][:, 1]
    return tuple(int(np.searchsorted(theirs, mine[n - 1], side="right")) if n else 0 for n in bounds)
