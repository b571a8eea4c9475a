"""Directions that are differences of means of hidden vectors.

    contrasting texts  mean over responses of one kind - mean over responses of the other   (persona vectors, arXiv 2507.21509)
    of the pair        mean of h_tuned - h_base over the same tokens                        (its bias; arXiv 2510.13900)

Both models read the same tokens (teacher forcing), so that a direction of the base comes from the tuned model's traces too.
All read the training side of a text, whose problems no held-out number is taken on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunediff.directions.direction import Direction, Place, Source, check_layers
from tunediff.directions.windows import inside
from tunediff.models import ModelPair
from tunediff.shapes import BASE, TUNED, Refused, Stream
from tunediff.text import Batch, Text

RESPONSE = ("prefix", "thinking", "answer")
TOKENS_PER_BATCH = 4096
MOST = 20_000  # responses that are read where none is named; a made-up text has no end


def check_normalise(normalise: str) -> None:
    """Raises Refused for a word that says nothing of a length."""
    if normalise not in ("none", "unit"):
        raise Refused(f"direction.normalise={normalise}: choose none or unit.")


def normalised(direction: Direction, normalise: str) -> Direction:
    """The direction as it is (none), or of length 1 (unit)."""
    check_normalise(normalise)
    return direction.units if normalise == "unit" else direction


@torch.no_grad()
def read(
    pair: ModelPair, text: Text, streams: Sequence[Stream], tokens: int | None
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches of the training side of a text with the hidden vectors [token, width] of each stream, until so many tokens are
    read; a smaller text is read once, as one with None is."""
    source = text.batches(pair.tokenizers, tokens_per_batch=TOKENS_PER_BATCH, foreign=pair.foreign)
    seen = 0
    while tokens is None or seen < tokens:
        batch = next(source)
        if source.epoch > 0:
            return
        seen += len(batch.token)
        yield batch, [value.float().cpu() for value in pair.read(batch, streams)]


def streams_at(pair: ModelPair, role: str, hookpoint: str, layers: Sequence[int]) -> list[Stream]:
    """The places of one model at these layers. Raises Refused for a layer or hookpoint that it has not."""
    check_layers(pair, role, layers)
    return pair.streams(hookpoint, list(layers), reads=role)


@dataclass(frozen=True, kw_only=True)
class ContrastingTexts(Source):
    """mean over responses that show a trait - mean over responses that do not, each response the mean of its tokens (persona
    vectors, arXiv 2507.21509, section 2.2).

    shows, shows_not   texts, whose training sides are read        responses   of each; None: all, of a text that has an end
    segments           segments whose tokens count
    """

    shows: Text
    shows_not: Text
    responses: int | None = 500
    segments: Sequence[str] = ("answer",)
    hookpoint: str = "resid_post"
    normalise: str = "none"

    def __post_init__(self) -> None:
        check_normalise(self.normalise)
        if self.responses is not None and self.responses < 1:
            raise Refused(
                f"direction.responses={self.responses}: give a number from 1, or null for all of a text that has an end."
            )

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        streams = streams_at(given.pair, role, self.hookpoint, layers)
        means, counts = zip(
            *(self._mean(given.pair, text, streams) for text in (self.shows, self.shows_not)), strict=True
        )
        vectors = {s.layer: (means[0][n] - means[1][n]).float() for n, s in enumerate(streams)}
        said = told(self, given.pair, role, responses_with=counts[0], responses_without=counts[1])
        return normalised(Direction(vectors, self.hookpoint, said), self.normalise)

    def _mean(self, pair: ModelPair, text: Text, streams: Sequence[Stream]) -> tuple[list[Tensor], int]:
        sums: dict[int, Tensor] = {}
        for batch, values in read(pair, text, streams, None):
            usable = inside(batch, self.segments)
            for document in batch.document[usable].unique().tolist():
                here = usable & (batch.document == document)
                own = torch.stack([torch.cat([v[here].double().sum(0), here.sum().double()[None]]) for v in values])
                sums[document] = sums[document] + own if document in sums else own
            if self.responses is None and len(sums) > MOST:
                raise Refused(
                    f"direction.responses=null reads a text to its end, and this one has more than {MOST:,}: name a number."
                )
            if self.responses is not None and len(sums) >= self.responses:
                break
        if not sums:
            raise Refused(f"A text of contrasting responses has no token in its {', '.join(self.segments)}.")
        rows = torch.stack(list(sums.values())[: self.responses])
        return list((rows[..., :-1] / rows[..., -1:]).mean(0)), len(rows)


@dataclass(frozen=True, kw_only=True)
class PairDifference(Source):
    """mean over tokens of h_tuned - h_base on the same tokens (the mean that arXiv 2510.13900 reads by position)."""

    segments: Sequence[str] | None = None
    hookpoint: str = "resid_post"
    normalise: str = "none"
    tokens: int = 50_000
    needs_pair = True

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        total: Tensor | None = None
        count = 0
        for batch, apart in differences(given, self.hookpoint, layers, self.tokens):
            usable = inside(batch, self.segments)
            sums = torch.stack([value[usable].sum(0) for value in apart])
            total, count = sums if total is None else total + sums, count + int(usable.sum())
        if total is None or not count:
            raise Refused(f"The text has no token in its {', '.join(self.segments or ('segments',))}.")
        vectors = {layer: (total[n] / count).float() for n, layer in enumerate(layers)}
        return normalised(Direction(vectors, self.hookpoint, told(self, given.pair, role, read=count)), self.normalise)


def differences(
    given: Place, hookpoint: str, layers: Sequence[int], tokens: int
) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches with h_tuned - h_base [token, width] in float64 at each layer. Raises Refused for models of unequal widths."""
    pair = given.pair
    streams = [stream for role in (BASE, TUNED) for stream in streams_at(pair, role, hookpoint, layers)]
    base, tuned = streams[: len(layers)], streams[len(layers) :]
    if [stream.width for stream in base] != [stream.width for stream in tuned]:
        raise Refused(f"The models have other widths at {hookpoint}: their difference is no vector.")
    for batch, values in read(pair, given.text, streams, tokens):
        halves = zip(values[: len(layers)], values[len(layers) :], strict=True)
        yield batch, [after.double() - before.double() for before, after in halves]


def told(source: Any, pair: ModelPair, role: str, **counts: int) -> dict[str, Any]:
    """The provenance of a direction: its source with those of its settings that are plain values, the model that was read, and
    what was counted."""
    listed = {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in vars(source).items()
    }
    settings = {name: value for name, value in listed.items() if isinstance(value, str | int | float | list | None)}
    return {"source": type(source).__name__, **settings, "role": role, "model": pair.source(role).described, **counts}
