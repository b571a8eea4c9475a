"""The marks around the thinking of one response, followed token by token as it grows."""

from __future__ import annotations

from collections.abc import Sequence

from tunediff.text import Layout, Tokenizer, opened_by


class ThinkingMarks:
    """The thinking that is open, and where it was: an opening mark is closed by its own closing mark alone.

    now     the layout whose thinking is open; None where none is
    spans   [first, last] numbers of tokens of the response: of the one that completes an opening mark, or 0 where the prompt
            opened it, and of the one that completes the closing mark, None where that has not come
    """

    def __init__(self, tokenizer: Tokenizer, layouts: Sequence[Layout], opened: str = ""):
        self.tokenizer = tokenizer
        self.layouts = [parts for parts in layouts if parts.opens and parts.closing]
        self.now = next((parts for parts in self.layouts if parts.opens == opened), None)
        self.spans: list[list[int | None]] = [] if self.now is None else [[0, None]]
        self.tail = reach(layouts)
        self._seen = self._since = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Looks at the tokens of the response that are new since the last time."""
        for count in range(self._seen + 1, len(ids) + 1):
            text = self.tokenizer.decode(ids[max(self._since, count - self.tail) : count])
            if self.now is None:
                self.now = next((parts for parts in self.layouts if parts.opens in text), None)
                if self.now is not None:
                    self.spans.append([count - 1, None])
                    self._since = count
            elif self.now.closing in text:
                self.spans[-1][1] = count - 1
                self.now, self._since = None, count
        self._seen = len(ids)


def reach(layouts: Sequence[Layout]) -> int:
    """Tokens that a mark is at most spelled with: no tokenizer takes more than one for each of its letters."""
    return 1 + max(len(mark) for parts in layouts for mark in (parts.opens, parts.closing))


def opening_of(tokenizer: Tokenizer, prompt: Sequence[int], layouts: Sequence[Layout]) -> str:
    """The mark with which a prompt opens the thinking itself at its end, or an empty string."""
    begun = opened_by(tokenizer.decode(prompt[-2 * reach(layouts) :]), layouts)
    return "" if begun is None else begun.opens
