"""Somebody's regular expression -> its matches, in a time that grows with the text alone.

An expression such as (a+)+b tries every way to part a run of letters, which ends in no lifetime. Here each one has seconds of the
processor for the whole of a process, and some more with each character it is given. Knows no torch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import regex

from tunediff.shapes import Refused

SECONDS = 5.0  # of the processor, beyond what its texts give
EACH = 5e-6  # seconds more for a character, twenty times what plain words take
SHORT = 200  # characters that a match at one place looks at

IGNORECASE, DOTALL = regex.IGNORECASE, regex.DOTALL


class Pattern:
    """A compiled regular expression. Raises Refused, whatever is asked, where it takes longer than any text needs."""

    def __init__(self, expression: str, flags: int, of: str):
        self.expression, self.of, self.left = expression, of, SECONDS
        try:
            self._compiled: Any = regex.compile(expression, flags)
        except (regex.error, RecursionError, OverflowError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise Refused(f"{of} is no regular expression: {expression!r:.80}, {why}.") from error

    @property
    def groups(self) -> int:
        return self._compiled.groups

    def search(self, text: str) -> Any:
        return self._within(len(text), self._compiled.search, text)

    def match(self, text: str, first: int) -> Any:
        """The match that begins with this character; None where there is none."""
        return self._within(SHORT, self._compiled.match, text, first)

    def fullmatch(self, text: str) -> Any:
        return self._within(len(text), self._compiled.fullmatch, text)

    def finditer(self, text: str) -> list[Any]:
        return self._within(len(text), lambda *given, **limit: list(self._compiled.finditer(*given, **limit)), text)

    def _within(self, characters: int, find: Callable[..., Any], *given: Any) -> Any:
        allowed, begun = self.left + EACH * characters, time.thread_time()
        try:
            found = find(*given, timeout=max(allowed, 0.0))
        except TimeoutError as error:
            raise self._too_long() from error
        self.left = min(SECONDS, allowed - (time.thread_time() - begun))
        if self.left < 0:  # a little too long for each of many texts
            raise self._too_long()
        return found

    def _too_long(self) -> Refused:
        return Refused(
            f"{self.of}, {self.expression!r:.80}, takes longer than any text needs: in it one piece of text can be read in many "
            "ways, as in (a+)+. Write it without."
        )


@functools.lru_cache
def compiled(expression: str, flags: int = 0, of: str = "The regular expression") -> Pattern:
    """The pattern of an expression, one for a process. `of` names the setting. Raises Refused for what is none."""
    return Pattern(expression, flags, of)
