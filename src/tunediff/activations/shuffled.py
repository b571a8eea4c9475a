"""Blocks of rows -> shuffled batches from a ring buffer whose order is drawn anew at each refill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tunediff.activations.live import ActivationError, Source
from tunediff.shapes import Rows


def take(source: Source, tokens: int) -> Rows:
    """The next `tokens` rows, for fitting statistics."""
    blocks, count = [], 0
    while count < tokens:
        blocks.append(next(source))
        count += len(blocks[-1].values)
    moments = None if blocks[0].moments is None else torch.cat([b.moments for b in blocks])[:tokens]
    return Rows(torch.cat([b.values for b in blocks])[:tokens], moments)


class ShuffledRows:
    """`steps` batches of `batch` rows. The buffer holds `capacity` rows; when half of them are used, their places are
    refilled and the order of all is drawn anew, so a batch is one gather and no row is copied twice.

    admits   [token, width] -> [token] bool; rows that it turns away (attention sinks) are counted in `dropped`
    """

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        capacity: int,
        steps: int,
        seed: int,
        admits: Callable[[Tensor], Tensor] | None = None,
    ):
        if capacity < 2 * batch:
            raise ActivationError(f"activations.buffer={capacity} must hold at least two batches of {batch} tokens.")
        self.source, self.admits = source, admits
        self.batch, self.capacity, self.steps = batch, capacity, steps
        self.generator = torch.Generator().manual_seed(seed)
        self.values: Tensor | None = None
        self.moments: Tensor | None = None
        self.order = torch.empty(0, dtype=torch.long)
        self.next_step = self.seen = self.dropped = 0
        self._surplus: Rows | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Rows]:
        while self.next_step < self.steps:
            if len(self.order) - self.batch < self.capacity // 2:
                self._refill()
            chosen, self.order = self.order[: self.batch], self.order[self.batch :]
            self.next_step += 1
            place = chosen.to(self.values.device)
            yield Rows(self.values[place].float(), None if self.moments is None else self.moments[place])

    def _refill(self) -> None:
        waiting = torch.zeros(self.capacity, dtype=torch.bool)
        waiting[self.order] = True
        empty = (~waiting).nonzero()[:, 0]
        filled = 0
        while filled < len(empty):
            rows = self._admitted()
            room = len(empty) - filled
            if len(rows.values) > room:
                self._surplus = Rows(rows.values[room:], None if rows.moments is None else rows.moments[room:])
                rows = Rows(rows.values[:room], None if rows.moments is None else rows.moments[:room])
            if self.values is None:
                self.values = rows.values.new_empty(self.capacity, rows.values.shape[1])
                self.moments = (
                    None if rows.moments is None else rows.moments.new_empty(self.capacity, *rows.moments.shape[1:])
                )
            place = empty[filled : filled + len(rows.values)].to(self.values.device)
            self.values[place] = rows.values
            if self.moments is not None:
                self.moments[place] = rows.moments
            filled += len(rows.values)
        order = torch.cat([self.order, empty])
        self.order = order[torch.randperm(len(order), generator=self.generator)]

    def _admitted(self) -> Rows:
        if self._surplus is not None:
            rows, self._surplus = self._surplus, None
            return rows
        rows = next(self.source)
        self.seen += len(rows.values)
        if self.admits is None:
            return rows
        kept = self.admits(rows.values)
        self.dropped += int((~kept).sum())
        if self.seen > 100_000 and self.dropped > 0.5 * self.seen:
            raise ActivationError(
                f"{self.dropped:,} of {self.seen:,} tokens have norms above the limit for attention sinks: "
                "raise dictionary.normalisation.sink_multiple or set it to null."
            )
        return Rows(rows.values[kept], None if rows.moments is None else rows.moments[kept])

    def state_dict(self) -> dict[str, Any]:
        """The whole position, buffer included."""
        return {
            "source": self.source.state_dict(),
            "values": self.values,
            "moments": self.moments,
            "order": self.order,
            "surplus": None if self._surplus is None else tuple(self._surplus),
            "generator": self.generator.get_state(),
            "counts": (self.next_step, self.seen, self.dropped),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.values = None if state["values"] is None else state["values"].clone()
        self.moments = None if state["moments"] is None else state["moments"].clone()
        self.order = state["order"].clone()
        self._surplus = None if state["surplus"] is None else Rows(*state["surplus"])
        self.generator.set_state(state["generator"])
        self.next_step, self.seen, self.dropped = state["counts"]
