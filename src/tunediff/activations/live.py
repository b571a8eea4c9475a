"""A pair and its text -> blocks of activations [token, width], straight from the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tunediff.models import ModelPair
from tunediff.shapes import Precision, Refused, Rows, Stream
from tunediff.text import Batch, Text


class ActivationError(Refused):
    """Raised for activations that must not reach a dictionary, or cannot be stored."""


class Wanted(NamedTuple):
    """Request of a group of dictionaries for activations.

    tokens    least number of rows
    moments   true: with the moments of each token's sequence
    key       digest of models, text, streams and tokens, under which stored rows are kept
    rank      number of this process among the `processes` that share every batch
    """

    streams: Sequence[Stream]
    tokens: int
    moments: bool
    key: str
    rank: int = 0
    processes: int = 1


class ActivationSource(Iterator[Rows], Protocol):
    """Endless iterator over blocks of rows, from a position that can be saved. A block that another process holds is given
    without columns, [token, 0].

    streams   streams whose columns lie side by side in the rows
    broken    streams that gave a value that is not finite, each with the message for its readers
    """

    broken: dict[Stream, str]

    @property
    def streams(self) -> Sequence[Stream]: ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def harvest(
    pair: ModelPair,
    batch: Batch,
    streams: Sequence[Stream],
    *,
    dtype: torch.dtype = torch.float32,
    moments: bool = False,
    broken: dict[Stream, str] | None = None,
) -> Rows:
    """Activations of the kept tokens of one batch, with the moments of each token's sequence where asked for.

    A value that is not finite raises ActivationError, naming stream and document. With `broken` the message is stored
    there instead, and the other streams go on."""
    values = pair.read(batch, streams)
    device = values[0].device
    for stream, value in zip(streams, values, strict=True):
        if not (broken and stream in broken) and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).any(-1).nonzero()[0, 0])
            sentence = (
                f"{stream} gives a value that is not finite at token {int(batch.position[bad])} of document "
                f"{int(batch.document[bad])} (row number in the data). Half-precision overflow is the usual cause: try "
                f"model_pair.{stream.role}.dtype=bfloat16 or float32, or leave the document out."
            )
            if broken is None:
                raise ActivationError(sentence)
            broken[stream] = sentence
    rows = torch.cat([value.to(device, dtype) for value in values], dim=-1)
    if not moments:
        return Rows(rows)
    sequence = batch.sequence.to(device)
    return Rows(rows, torch.stack([_sequence_moments(value.to(device).float(), sequence) for value in values], dim=1))


def _sequence_moments(values: Tensor, sequence: Tensor) -> Tensor:
    """Mean and standard deviation [token, 2] over all entries of each token's sequence."""
    count = torch.bincount(sequence).to(values.dtype) * values.shape[1]
    total = torch.zeros_like(count).index_add_(0, sequence, values.sum(-1))
    mean = total / count.clamp(min=1)
    squares = torch.zeros_like(count).index_add_(0, sequence, (values - mean[sequence, None]).square().sum(-1))
    deviation = (squares / count.clamp(min=1)).sqrt()
    return torch.stack([mean[sequence], deviation[sequence]], dim=-1)


@dataclass(eq=False)
class LiveRows(Iterator[Rows]):
    """Rows straight from the models, one block per forward pass. With several processes each runs every `processes`-th
    block, and knows the length of the others from their tokens; with `distinct` the text begins again behind so many tokens."""

    pair: ModelPair
    text: Text
    streams: Sequence[Stream]
    dtype: torch.dtype
    moments: bool = False
    rank: int = 0
    processes: int = 1
    distinct: int | None = None

    def __post_init__(self) -> None:
        self.block = 0
        self.broken: dict[Stream, str] = {}
        self.begin()

    def begin(self) -> None:
        """Reads the text from its start."""
        self.seen, self.batches = 0, self.text.batches(self.pair.tokenizers, foreign=self.pair.foreign)

    def __next__(self) -> Rows:
        if self.distinct is not None and self.seen >= self.distinct:
            self.begin()
        batch, mine = next(self.batches), self.block % self.processes == self.rank
        self.block += 1
        self.seen += len(batch.token)
        if not mine:
            return Rows(torch.empty(len(batch.token), 0))
        return harvest(self.pair, batch, self.streams, dtype=self.dtype, moments=self.moments, broken=self.broken)

    def state_dict(self) -> dict[str, Any]:
        return {"text": self.batches.state_dict(), "block": self.block, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches.load_state_dict(state["text"])
        self.block, self.seen = state["block"], state["seen"]


@dataclass(frozen=True)
class Live:
    """Both models run while the dictionary trains; nothing is written.

    buffer       number of rows held for shuffling           dtype   precision of these rows
    fit_tokens   number of rows that statistics are fitted on
    distinct     tokens after which the text begins again, however long it is: the control of a loader that stops fetching; None: none
    """

    buffer: int
    dtype: Precision = "float32"
    fit_tokens: int = 20_000
    distinct: int | None = None

    def __post_init__(self) -> None:
        if self.distinct is not None and self.distinct < 1:
            raise Refused(f"activations.distinct={self.distinct}: at least 1 token, or null for all of the text.")

    def source(self, pair: ModelPair, text: Text, wanted: Wanted) -> ActivationSource:
        place = {"rank": wanted.rank, "processes": wanted.processes, "distinct": self.distinct}
        return LiveRows(pair, text, wanted.streams, dtype=getattr(torch, self.dtype), moments=wanted.moments, **place)

    def disk(self, tokens: int, width: int) -> int:
        """Bytes that are written to disk."""
        return 0
