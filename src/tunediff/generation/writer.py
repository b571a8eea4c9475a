"""One response as it grows: which token stands where the model would write another, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from tunediff import randomness
from tunediff.edits import ThinkingMarks
from tunediff.generation.responses import Decoding
from tunediff.text import LAYOUTS, Layout, Tokenizer, encode

ROUND = 24  # tokens that are looked at beside those of a stop string


class Writer:
    """name     of the prompt, for the seed       ends   tokens that end a response
    opened     the mark with which its prompt began the thinking, or ""      layouts    how thinking may be marked"""

    def __init__(
        self,
        name: str,
        decoding: Decoding,
        tokenizer: Tokenizer,
        ends: Set[int],
        *,
        opened: str = "",
        layouts: Sequence[Layout] = LAYOUTS,
    ):
        self.decoding, self.tokenizer, self.ends = decoding, tokenizer, ends
        self.thinking = ThinkingMarks(tokenizer, layouts, opened)
        self.ids: list[int] = []
        self.finished = self.ended = False
        self.extended = 0
        self.forced: list[int] = []
        drawn = randomness.generator(decoding.seed, "responses", name)
        draws = torch.rand(decoding.budget, generator=drawn, dtype=torch.float64)
        self.draws: list[float] = draws.tolist() if decoding.temperature > 0 else []

    @property
    def draw(self) -> float:
        """The random number in [0, 1) that decides the next token."""
        return self.draws[len(self.ids)]

    def take(self, token: int) -> int:
        """The token that is written where the model would write `token`."""
        if self.ended:
            return token
        if self.decoding.forces:
            token = self._instead_of(token)
        if token in self.ends:
            self.finished = self.ended = True
            return token
        self.ids.append(token)
        if self.decoding.forces:
            self.thinking.follow(self.ids)
        if any(stop in self._text(self.ids[-ROUND - len(stop) :]) for stop in self.decoding.stop):
            self.ids = before_stop(self.ids, self.decoding.stop, self.tokenizer)
            self.finished = self.ended = True
        self.ended |= len(self.ids) == self.decoding.budget
        return token

    def _instead_of(self, token: int) -> int:
        if self.forced:
            return self.forced.pop(0)
        if (now := self.thinking.now) is None:
            return token
        at_end = token in self.ends or self._text([*self.ids[-self.thinking.tail :], token]).rstrip().endswith(
            now.closing
        )
        if at_end and self.extended < self.decoding.extensions:
            self.extended += 1
            return self._force(self.decoding.extension)
        limit = self.decoding.think_at_most
        if not at_end and limit is not None and len(self.ids) >= limit:
            return self._force(now.between + self.decoding.conclusion)
        return token

    def _force(self, text: str) -> int:
        self.forced = list(encode(self.tokenizer, text)["input_ids"])
        return self.forced.pop(0)

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def before_stop(ids: Sequence[int], stops: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """The tokens before the first of the stop strings that occurs."""
    kept, text = list(ids), tokenizer.decode(ids)
    places = [text.index(stop) for stop in stops if stop in text]
    while places and len(tokenizer.decode(kept)) > min(places):
        kept.pop()
    return kept
