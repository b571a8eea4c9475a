"""Blocks of rows -> shuffled batches for one or more readers, from a ring buffer whose order is drawn anew at each refill.

Which rows a batch holds depends on the source, the capacity and the seed alone. A reader takes its own streams of
them and leaves out the rows that it does not admit, so what one reader gets never depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunediff.activations.live import ActivationError, ActivationSource
from tunediff.shapes import Rows, Stream


class Reader(NamedTuple):
    """Who reads: the streams, in the order they are put side by side.

    admits    [token, width] -> [token] bool; rows that it turns away (attention sinks) never reach this reader
    moments   whether the moments of each token's sequence come with the values
    """

    streams: Sequence[Stream]
    admits: Callable[[Tensor], Tensor] | None = None
    moments: bool = False


def select(rows: Rows, given: Sequence[Stream], wanted: Sequence[Stream], *, moments: bool) -> Rows:
    """The columns of the wanted streams out of rows that hold the given ones."""
    pieces = dict(zip(given, rows.values.split([stream.width for stream in given], dim=-1), strict=True))
    values = torch.cat([pieces[stream] for stream in wanted], dim=-1)
    return Rows(values, rows.moments[:, [given.index(stream) for stream in wanted]] if moments else None)


def take(source: ActivationSource, tokens: int) -> Rows:
    """The next `tokens` rows, for fitting statistics."""
    blocks, count = [], 0
    while count < tokens:
        blocks.append(next(source))
        count += len(blocks[-1].values)
    moments = None if blocks[0].moments is None else torch.cat([b.moments for b in blocks])[:tokens]
    return Rows(torch.cat([b.values for b in blocks])[:tokens], moments)


class Drawn:
    """One batch: the places of its rows in the buffer. `of(reader)` gathers what that reader takes."""

    def __init__(self, stream: ShuffledRows, places: Tensor):
        self.stream, self.places = stream, places
        self._gathered: dict[Stream, Tensor] = {}

    def __len__(self) -> int:
        """Rows of the batch, over all readers and processes."""
        return len(self.places)

    def of(self, reader: int) -> Rows:
        """[token, width] in float32; raises ActivationError where one of the reader's streams broke."""
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
        return Rows(values, moments)

    def _column(self, one: Stream, here: Tensor) -> Tensor:
        if one not in self._gathered:
            column = self.stream.columns.get(one)
            if column is None:  # another process holds all rows so far
                return torch.empty(0, one.width, device=self.stream.device)
            self._gathered[one] = column[here.to(column.device)]
        return self._gathered[one]


class ShuffledRows:
    """`steps` batches of `batch` rows on `device`. The buffer holds `capacity` rows; when half of them are used, their places are
    refilled and the order of all is drawn anew, so a batch is one gather a stream and no row is copied twice.

    A source of several processes gives rows without columns for what another process holds: they take their place in
    the order, and are left out of this process's part of each batch.
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
        if capacity < 2 * batch:
            raise ActivationError(f"activations.buffer={capacity} must hold at least two batches of {batch} tokens.")
        self.source, self.readers, self.device = source, list(readers), device
        self.batch, self.capacity, self.steps = batch, capacity, steps
        self.generator = torch.Generator().manual_seed(seed)
        self.columns: dict[Stream, Tensor] = {}
        self.moments: Tensor | None = None
        self.mine = torch.zeros(capacity, dtype=torch.bool)
        self.admitted = torch.ones(len(self.readers), capacity, dtype=torch.bool)
        self.order = torch.empty(0, dtype=torch.long)
        self.next_step = self.seen = self._first = 0
        self.dropped = [0] * len(self.readers)
        self._surplus: Rows | None = None

    def __len__(self) -> int:
        """Batches that are still to come when an iteration starts."""
        return self.steps - self._first

    def __iter__(self) -> Iterator[Drawn]:
        while self.next_step < self.steps:
            if len(self.order) - self.batch < self.capacity // 2:
                self._refill()
            chosen, self.order = self.order[: self.batch], self.order[self.batch :]
            self.next_step += 1
            yield Drawn(self, chosen)

    def _refill(self) -> None:
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
        """Raises ActivationError where a reader turns away most of what there is."""
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
        """The whole position, buffer included; streams and readers by their order. Without `rows` it is one to tell of,
        not to go on from."""
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
        """Goes on from a position. It may have been saved with more streams than are read now,
        and with more readers: `readers` are the numbers that this stream's readers had then."""
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
        wanted = any(reader.moments for reader in self.readers) and state["moments"] is not None
        self.moments = state["moments"][:, chosen].clone().to(self.device) if wanted else None
        self.mine, self.order = state["mine"].clone(), state["order"].clone()
        self.admitted = state["admitted"][list(readers)].clone()
        self._surplus = None
        if state["surplus"] is not None:
            surplus = Rows(*(None if part is None else part.to(self.device) for part in state["surplus"]))
            held = surplus.values.shape[1] > 0
            self._surplus = select(surplus, then, now, moments=self.moments is not None) if held else surplus
        self.generator.set_state(state["generator"])
