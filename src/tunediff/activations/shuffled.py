"""Blocks of rows -> shuffled batches for one or more readers, from a ring buffer whose order is drawn anew at each refill.

The rows of a batch depend on the source, the capacity and the seed alone. A reader takes its own streams of them and
leaves out the rows that it does not admit, so its rows never depend on the other readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunediff import processes, randomness
from tunediff.activations.controls import View
from tunediff.activations.live import ActivationError, ActivationSource
from tunediff.shapes import Rows, Stream


class Reader(NamedTuple):
    """A dictionary's request: the streams, in the order in which their columns lie side by side.

    admits    [token, width] -> mask [token]; rows outside it (attention sinks) never reach this reader
    moments   true: the moments of each token's sequence come with the values
    view      what is read in place of the rows of a batch, such as those of a control
    """

    streams: Sequence[Stream]
    admits: Callable[[Tensor], Tensor] | None = None
    moments: bool = False
    view: View | None = None


def select(rows: Rows, given: Sequence[Stream], wanted: Sequence[Stream], *, moments: bool) -> Rows:
    """Rows with the columns of the wanted streams, out of rows that hold the given ones."""
    pieces = dict(zip(given, rows.values.split([stream.width for stream in given], dim=-1), strict=True))
    values = torch.cat([pieces[stream] for stream in wanted], dim=-1)
    if not moments:
        return Rows(values)
    assert rows.moments is not None, "the source gives moments where a reader asks for them"
    return Rows(values, rows.moments[:, [given.index(stream) for stream in wanted]])


def take(source: ActivationSource, tokens: int) -> Rows:
    """The next `tokens` rows, for fitting statistics."""
    blocks, count = [], 0
    while count < tokens:
        blocks.append(next(source))
        count += len(blocks[-1].values)
    moments = None if blocks[0].moments is None else torch.cat([b.moments for b in blocks])[:tokens]
    return Rows(torch.cat([b.values for b in blocks])[:tokens], moments)


class Drawn:
    """One batch, as the places of its rows in the buffer; `of(reader)` gathers the rows of a reader."""

    def __init__(self, stream: ShuffledRows, places: Tensor):
        self.stream, self.places, self.step = stream, places, stream.next_step
        self._gathered: dict[Stream, Tensor] = {}

    def __len__(self) -> int:
        """Number of rows of the batch, over all readers and processes."""
        return len(self.places)

    def of(self, reader: int) -> Rows:
        """Rows [token, width] of a reader, in float32. Raises ActivationError where one of its streams broke."""
        stream, asked = self.stream, self.stream.readers[reader]
        for one in asked.streams:
            if one in stream.source.broken:
                raise ActivationError(stream.source.broken[one])
        here = self.places[stream.mine[self.places]]
        kept = stream.admitted[reader, here]
        values = torch.cat([self._column(one, here) for one in asked.streams], dim=-1).float()
        moments = None
        if asked.moments:
            order = [stream.source.streams.index(one) for one in asked.streams]
            held = (
                stream.moments
                if stream.moments is not None
                else torch.empty(0, len(stream.source.streams), 2, device=stream.device)
            )
            moments = held[here.to(held.device)][:, order]
        if not kept.all():
            index = kept.nonzero()[:, 0].to(values.device)
            values, moments = values[index], None if moments is None else moments[index]
        rows = Rows(values, moments)
        if asked.view is None:
            return rows
        return asked.view(rows, randomness.generator(stream.seed, "view of a batch", self.step, processes.rank()))

    def _column(self, one: Stream, here: Tensor) -> Tensor:
        if one not in self._gathered:
            column = self.stream.columns.get(one)
            if column is None:  # another process holds all rows so far
                return torch.empty(0, one.width, device=self.stream.device)
            self._gathered[one] = column[here.to(column.device)]
        return self._gathered[one]


def check_buffer(capacity: int, batch: int) -> None:
    """Raises ActivationError for a buffer of `capacity` rows that is too small to shuffle batches of `batch` rows."""
    if capacity < 2 * batch:
        raise ActivationError(f"activations.buffer={capacity} must hold at least two batches of {batch} tokens.")


class ShuffledRows:
    """Iterator over `steps` batches of `batch` rows on `device`. The buffer holds `capacity` rows; when half of them are
    used, their places are refilled and the order of all is drawn anew, so a batch is one gather per stream and no row is
    copied twice.

    With several processes the source gives rows without columns for a block that another process holds. They take their
    place in the order, and are left out of this process's part of each batch.
    """

    def __init__(
        self,
        source: ActivationSource,
        readers: Sequence[Reader],
        *,
        batch: int,
        capacity: int,
        steps: int,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        check_buffer(capacity, batch)
        self.source, self.readers, self.device = source, list(readers), device
        self.batch, self.capacity, self.steps = batch, capacity, steps
        self.seed = seed
        self.generator = randomness.generator(seed, "order of rows")
        self.columns: dict[Stream, Tensor] = {}
        self.moments: Tensor | None = None
        self.mine = torch.zeros(capacity, dtype=torch.bool)
        self.admitted = torch.ones(len(self.readers), capacity, dtype=torch.bool)
        self.order = torch.empty(0, dtype=torch.long)
        self.next_step = self.seen = self._first = 0
        self.dropped = [0] * len(self.readers)
        self._surplus: Rows | None = None

    def __len__(self) -> int:
        """Number of batches to come when an iteration starts."""
        return self.steps - self._first

    def __iter__(self) -> Iterator[Drawn]:
        while self.next_step < self.steps:
            if len(self.order) - self.batch < self.capacity // 2:
                self._refill()
            chosen, self.order = self.order[: self.batch], self.order[self.batch :]
            self.next_step += 1
            yield Drawn(self, chosen)

    def _refill(self) -> None:
        # A row keeps its place in memory until it is used. Drawing a new order moves indices instead of activations, and new
        # rows are mixed with the half that waits: the buffer shuffles over more than one filling, and copies a row once.
        waiting = torch.zeros(self.capacity, dtype=torch.bool)
        waiting[self.order] = True
        empty = (~waiting).nonzero()[:, 0]
        filled = 0
        while filled < len(empty):
            rows = self._next()
            room = len(empty) - filled
            if len(rows.values) > room:
                self._surplus = Rows(rows.values[room:], None if rows.moments is None else rows.moments[room:])
                rows = Rows(rows.values[:room], None if rows.moments is None else rows.moments[:room])
            self._put(rows, empty[filled : filled + len(rows.values)])
            filled += len(rows.values)
        order = torch.cat([self.order, empty])
        self.order = order[torch.randperm(len(order), generator=self.generator)]

    def _next(self) -> Rows:
        if self._surplus is not None:
            rows, self._surplus = self._surplus, None
            return rows
        return next(self.source)

    def _put(self, rows: Rows, places: Tensor) -> None:
        self.seen += len(places)
        held = rows.values.shape[1] > 0
        self.mine[places] = held
        if not held:
            return
        given = self.source.streams
        for one, values in zip(given, rows.values.split([s.width for s in given], dim=-1), strict=True):
            if one not in self.columns:
                self.columns[one] = values.new_empty(self.capacity, values.shape[1])
            self.columns[one][places.to(values.device)] = values
        if rows.moments is not None:
            if self.moments is None:
                self.moments = rows.moments.new_empty(self.capacity, *rows.moments.shape[1:])
            self.moments[places.to(self.moments.device)] = rows.moments
        for n, reader in enumerate(self.readers):
            if reader.admits is not None:
                kept = reader.admits(select(rows, given, reader.streams, moments=False).values).cpu()
                self.admitted[n, places] = kept
                self.dropped[n] += int((~kept).sum())

    def check(self, reader: int) -> None:
        """Raises ActivationError where a reader turns away more than half of the rows."""
        if self.seen > 100_000 and self.dropped[reader] > 0.5 * self.seen:
            raise ActivationError(
                f"{self.dropped[reader]:,} of {self.seen:,} tokens have norms above the limit for attention sinks: "
                "raise dictionary.normalisation.sink_multiple or set it to null."
            )

    def left_out(self, reader: int) -> str | None:
        """A sentence about the rows that a reader turned away, if any."""
        dropped = self.dropped[reader]
        return f"{dropped:,} of {self.seen:,} tokens were left out as attention sinks." if dropped else None

    def state_dict(self, *, rows: bool = True) -> dict[str, Any]:
        """The whole position, buffer included, with streams and readers in their order. Without `rows` only the counts,
        from which no training can go on."""
        if not rows:
            return {"counts": [self.next_step, self.seen], "dropped": self.dropped}
        return {
            "source": self.source.state_dict(),
            "streams": [tuple(stream) for stream in self.source.streams],
            "columns": [self.columns.get(stream) for stream in self.source.streams],
            "moments": self.moments,
            "mine": self.mine,
            "admitted": self.admitted,
            "order": self.order,
            "surplus": None if self._surplus is None else tuple(self._surplus),
            "generator": self.generator.get_state(),
            "counts": [self.next_step, self.seen],
            "dropped": self.dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any], readers: Sequence[int] | None = None) -> None:
        """Goes on from a position, which may have been saved with more streams and readers than there are now: `readers` are
        the numbers that the present readers had then."""
        # The buffer is a part of the position: rows drawn from the source and not used yet would otherwise be skipped.
        readers = range(len(self.readers)) if readers is None else readers
        self.next_step, self.seen = state["counts"]
        self._first = self.next_step
        self.dropped = [state["dropped"][n] for n in readers]
        if "columns" not in state:
            return
        then = [Stream(*stream) for stream in state["streams"]]
        now = list(self.source.streams)
        chosen = [then.index(stream) for stream in now]
        self.source.load_state_dict(state["source"])
        columns = {stream: state["columns"][n] for stream, n in zip(now, chosen, strict=True)}
        self.columns = {stream: c.clone().to(self.device) for stream, c in columns.items() if c is not None}
        moments = state["moments"] if any(reader.moments for reader in self.readers) else None
        self.moments = None if moments is None else moments[:, chosen].clone().to(self.device)
        self.mine, self.order = state["mine"].clone(), state["order"].clone()
        self.admitted = state["admitted"][list(readers)].clone()
        self._surplus = None
        if state["surplus"] is not None:
            values, moments = state["surplus"]
            surplus = Rows(values.to(self.device), None if moments is None else moments.to(self.device))
            held = surplus.values.shape[1] > 0
            self._surplus = select(surplus, then, now, moments=self.moments is not None) if held else surplus
        self.generator.set_state(state["generator"])
