"""Token ids of a batch as far as they are known, and which of them the next forward pass computes.

In scoring everything is known at once; in generation a column is added at every step. What a gate asks about a token
depends on that token and those before it alone, so both give the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.edits.thinking import ThinkingMarks, opening_of
from tunediff.text import LAYOUTS, Layout, Tokenizer, padded
from tunediff.text.patterns import DOTALL, compiled

NEVER = 2**62  # a column that no response has
Ids = Sequence[Sequence[int]]  # of several prompts or responses
Device = torch.device | str


class Sequences:
    """ids, real, response   [batch, position]: token ids; which of them are no padding; which of those answer the prompt
    opened                   of each row the mark with which the prompt itself opened the thinking, or ""
    layouts                  how thinking may be marked
    first                    the column where the next forward pass begins
    moments                  by edit, [batch, stream, 2]: of each row's prompt, for dictionaries that need them
    """

    def __init__(
        self, tokenizer: Tokenizer, ids: Tensor, real: Tensor, response: Tensor, *, layouts: Sequence[Layout] = LAYOUTS
    ):
        self.tokenizer, self.layouts, self.first = tokenizer, layouts, 0
        self.ids, self.real, self.response = ids, real.bool(), response.bool()
        self._special = torch.tensor(sorted(set(tokenizer.all_special_ids)), device=ids.device)
        asked = [row[known & ~given].tolist() for row, known, given in zip(ids, self.real, self.response, strict=True)]
        self.opened = [opening_of(tokenizer, row, layouts) for row in asked]
        self._marks = [ThinkingMarks(tokenizer, layouts, opened) for opened in self.opened]
        self.moments: dict[int, Tensor] = {}
        # of each row: the columns of its response, the ids there, and by pattern the column of its match, or how many
        # tokens were searched in vain
        self._places: list[list[int]] = [[] for _ in ids]
        self._written: list[list[int]] = [[] for _ in ids]
        self._matches: list[dict[tuple[str, int], int]] = [{} for _ in ids]
        self._searched: list[dict[tuple[str, int], int]] = [{} for _ in ids]
        self._take_down(self.ids, self.response, first=0)

    @classmethod
    def of_prompts(
        cls, tokenizer: Tokenizer, prompts: Ids, device: Device = "cpu", *, layouts: Sequence[Layout] = LAYOUTS
    ) -> Sequences:
        """Prompts padded on the left, so that every response begins in the same column."""
        ids, real = padded(prompts, "left")
        return cls(tokenizer, ids.to(device), real.to(device), torch.zeros_like(real).to(device), layouts=layouts)

    @classmethod
    def of_responses(
        cls,
        tokenizer: Tokenizer,
        prompts: Ids,
        responses: Ids,
        device: Device = "cpu",
        *,
        layouts: Sequence[Layout] = LAYOUTS,
    ) -> Sequences:
        """Whole sequences, for scoring: padded on the left before the prompts, on the right after the responses."""
        known = cls.of_prompts(tokenizer, prompts, device, layouts=layouts)
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
        self.moments = {edit: moments[rows] for edit, moments in self.moments.items()}
        kept = rows.tolist()
        self.opened, self._marks = ([values[row] for row in kept] for values in (self.opened, self._marks))
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

    @property
    def thinking(self) -> Tensor:
        """True from the token that completes an opening mark, or from the start of the response where the prompt opened the
        thinking, up to and with the token that completes its closing mark."""
        inside = torch.zeros_like(self.response)
        for row, (marks, ids, places) in enumerate(zip(self._marks, self._written, self._places, strict=True)):
            marks.follow(ids)
            for first, last in marks.spans:
                inside[row, places[first : None if last is None else last + 1]] = True
        return self.new(inside)

    def _columns(self) -> Tensor:
        return torch.arange(self.first, self.ids.shape[1], device=self.ids.device)[None]

    def _found(self, pattern: str, *, first: int) -> Tensor:
        """[batch, 1]: the column with which the first tokens match; NEVER where none does."""
        key, expression = (pattern, first), compiled(pattern, DOTALL, "AfterMatch.pattern")
        for row, ids in enumerate(self._written):
            if key in self._matches[row]:
                continue
            end = min(first, len(ids))
            for count in range(self._searched[row].get(key, 0) + 1, end + 1):
                if expression.search(self.tokenizer.decode(ids[:count])):
                    self._matches[row][key] = self._places[row][count - 1]
                    break
            self._searched[row][key] = end
        found = [matches.get(key, NEVER) for matches in self._matches]
        return torch.tensor(found, device=self.ids.device)[:, None]
