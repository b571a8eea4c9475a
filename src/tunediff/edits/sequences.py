"""Token ids of a batch as far as they are known, and which of them the next forward pass computes.

In scoring everything is known at once; in generation a column is added at every step. What a gate asks about a token
depends on that token and those before it alone, so both give the same answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.text import LAYOUTS, Layout, Tokenizer, padded

NEVER = 2**62  # a column that no response has
Ids = Sequence[Sequence[int]]  # of several prompts or responses
Device = torch.device | str
TAG = 24  # tokens that a tag is at most spelled with


class Sequences:
    """ids, real, response   [batch, position]: token ids; which of them are no padding; which of those answer the prompt
    opened                   whether the prompt itself opened the thinking, [batch] bool
    first                    the column where the next forward pass begins
    moments                  by edit, [batch, stream, 2]: of each row's prompt, for dictionaries that need them
    """

    def __init__(self, tokenizer: Tokenizer, ids: Tensor, real: Tensor, response: Tensor):
        self.tokenizer, self.first = tokenizer, 0
        self.ids, self.real, self.response = ids, real.bool(), response.bool()
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)), device=ids.device)
        asked = [row[known & ~given].tolist() for row, known, given in zip(ids, self.real, self.response, strict=True)]
        self.opened = torch.tensor([thinking_opened(tokenizer, row) is not None for row in asked], device=ids.device)
        self.moments: dict[int, Tensor] = {}
        # of each row: the columns of its response, the ids there, and by pattern the column of its match, or how many
        # tokens were searched in vain
        self._places: list[list[int]] = [[] for _ in ids]
        self._written: list[list[int]] = [[] for _ in ids]
        self._matches: list[dict[tuple[str, int | None], int]] = [{} for _ in ids]
        self._searched: list[dict[tuple[str, int | None], int]] = [{} for _ in ids]
        self._take_down(self.ids, self.response, first=0)

    @classmethod
    def of_prompts(cls, tokenizer: Tokenizer, prompts: Ids, device: Device = "cpu") -> Sequences:
        """Prompts padded on the left, so that every response begins in the same column."""
        ids, real = padded(prompts, "left")
        return cls(tokenizer, ids.to(device), real.to(device), torch.zeros_like(real).to(device))

    @classmethod
    def of_responses(cls, tokenizer: Tokenizer, prompts: Ids, responses: Ids, device: Device = "cpu") -> Sequences:
        """Whole sequences, for scoring: padded on the left before the prompts, on the right after the responses."""
        known = cls.of_prompts(tokenizer, prompts, device)
        ids, real = padded(responses, "right")
        known.extend(ids.to(device), real.to(device))
        known.first = 0
        return known

    def extend(self, ids: Tensor, real: Tensor) -> None:
        """Adds columns of a response [batch, n]; the next forward pass computes them."""
        self.first = self.ids.shape[1]
        real = real.bool()
        self._take_down(ids, real, first=self.first)
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.real, self.response = torch.cat([self.real, real], dim=1), torch.cat([self.response, real], dim=1)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows [n] of the batch."""
        self.ids, self.real, self.response = self.ids[rows], self.real[rows], self.response[rows]
        self.opened = self.opened[rows]
        self.moments = {edit: moments[rows] for edit, moments in self.moments.items()}
        kept = rows.tolist()
        self._places, self._written = ([values[row] for row in kept] for values in (self._places, self._written))
        self._matches, self._searched = ([values[row] for row in kept] for values in (self._matches, self._searched))

    def _take_down(self, ids: Tensor, response: Tensor, *, first: int) -> None:
        for row, (tokens, given) in enumerate(zip(ids.tolist(), response.tolist(), strict=True)):
            self._places[row] += [first + column for column, here in enumerate(given) if here]
            self._written[row] += [token for token, here in zip(tokens, given, strict=True) if here]

    # -- of the columns that the next forward pass computes: [batch, new position] -------------------------------------

    def new(self, known: Tensor) -> Tensor:
        return known[:, self.first :]

    @property
    def special(self) -> Tensor:
        return torch.isin(self.new(self.ids), self._special)

    @property
    def number(self) -> Tensor:
        """Number of each token in the response, from 0; negative in the prompt."""
        return self.new(self.response.cumsum(1) - 1).masked_fill(~self.new(self.response), -1)

    def matched(self, pattern: str, *, within: int) -> Tensor:
        """True where the response up to and with a token has matched a regular expression, in its first `within`
        tokens; what has matched once has matched."""
        return (self._columns() >= self._found(pattern, first=within)) & self.new(self.response)

    def after(self, tags: Sequence[str], *, itself: bool) -> Tensor:
        """True where one of the tags stands in the response before a token; `itself`: or ends with it."""
        found = self._found("|".join(map(re.escape, tags)), last=TAG)
        return (self._columns() >= found + (not itself)) & self.new(self.response)

    def _columns(self) -> Tensor:
        return torch.arange(self.first, self.ids.shape[1], device=self.ids.device)[None]

    def _found(self, pattern: str, *, first: int | None = None, last: int | None = None) -> Tensor:
        """[batch, 1]: the column with which the first tokens, or the last ones up to it, match; NEVER where none
        does."""
        key, expression = (pattern, first), re.compile(pattern, re.DOTALL)
        for row, ids in enumerate(self._written):
            if key in self._matches[row]:
                continue
            end = len(ids) if first is None else min(first, len(ids))
            for count in range(self._searched[row].get(key, 0) + 1, end + 1):
                text = self.tokenizer.decode(ids[max(0, count - last) if last else 0 : count])
                if expression.search(text):
                    self._matches[row][key] = self._places[row][count - 1]
                    break
            self._searched[row][key] = end
        found = [matches.get(key, NEVER) for matches in self._matches]
        return torch.tensor(found, device=self.ids.device)[:, None]


def thinking_opened(tokenizer: Tokenizer, prompt: Sequence[int]) -> Layout | None:
    """The layout of the thinking that a prompt opens itself; None where it leaves that to the model."""
    text = tokenizer.decode(prompt[-TAG:]).rstrip()
    return next((parts for parts in LAYOUTS if text.endswith(parts.opening.strip())), None)
