"""A pair and its text -> blocks of activations [token, width], straight from the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tunediff.models import ModelPair
from tunediff.shapes import Refused, Rows, Stream
from tunediff.text import Batch, Text


class ActivationError(Refused):
    """Activations that must not reach a dictionary, or cannot be stored."""


class Source(Protocol):
    """Blocks of rows without end, from a position that can be saved."""

    def __iter__(self) -> Iterator[Rows]: ...
    def __next__(self) -> Rows: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def harvest(
    pair: ModelPair,
    batch: Batch,
    streams: Sequence[Stream],
    *,
    dtype: torch.dtype = torch.float32,
    moments: bool = False,
) -> Rows:
    """Activations of the kept tokens of one batch, with the moments of each token's sequence where asked for.

    Raises ActivationError at the first value that is not finite, naming stream and document."""
    values = pair.read(batch, streams)
    device = values[0].device
    for stream, value in zip(streams, values, strict=True):
        if not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).any(-1).nonzero()[0, 0])
            raise ActivationError(
                f"{stream} gives a value that is not finite at token {int(batch.position[bad])} of document "
                f"{int(batch.document[bad])} (row number in the data). Half-precision overflow is the usual cause: try "
                f"model_pair.{stream.role}.dtype=bfloat16 or float32, or leave the document out."
            )
    rows = torch.cat([value.to(device, dtype) for value in values], dim=-1)
    if not moments:
        return Rows(rows)
    sequence = batch.sequence.to(device)
    return Rows(rows, torch.stack([_sequence_moments(value.to(device).float(), sequence) for value in values], dim=1))


def _sequence_moments(values: Tensor, sequence: Tensor) -> Tensor:
    """Mean and standard deviation over all entries of each token's sequence, [token, 2]."""
    count = torch.bincount(sequence).to(values.dtype) * values.shape[1]
    total = torch.zeros_like(count).index_add_(0, sequence, values.sum(-1))
    mean = total / count.clamp(min=1)
    squares = torch.zeros_like(count).index_add_(0, sequence, (values - mean[sequence, None]).square().sum(-1))
    deviation = (squares / count.clamp(min=1)).sqrt()
    return torch.stack([mean[sequence], deviation[sequence]], dim=-1)


class LiveRows:
    """Rows straight from the models, one block a forward pass."""

    def __init__(
        self, pair: ModelPair, text: Text, streams: Sequence[Stream], *, dtype: torch.dtype, moments: bool = False
    ):
        self.pair, self.streams, self.dtype, self.moments = pair, streams, dtype, moments
        self.batches = text.batches(pair.tokenizers)

    def __iter__(self) -> LiveRows:
        return self

    def __next__(self) -> Rows:
        return harvest(self.pair, next(self.batches), self.streams, dtype=self.dtype, moments=self.moments)

    def state_dict(self) -> dict[str, Any]:
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches.load_state_dict(state)


@dataclass(frozen=True)
class Live:
    """Both models run while the dictionary trains; nothing is written.

    buffer       rows held for shuffling        dtype   of these rows        fit_tokens   rows that statistics are fitted on
    """

    buffer: int
    dtype: str = "float32"
    fit_tokens: int = 20_000

    def source(
        self, pair: ModelPair, text: Text, streams: Sequence[Stream], *, tokens: int, moments: bool, key: str
    ) -> Source:
        return LiveRows(pair, text, streams, dtype=getattr(torch, self.dtype), moments=moments)
