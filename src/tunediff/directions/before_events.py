"""Mean of hidden vectors over windows before labelled events - their mean over a reference (arXiv 2507.12638, and the code of
its authors), with the sums that intervals and nulls are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.directions.direction import Direction, Place, Source
from tunediff.directions.means import RESPONSE, check_normalise, normalised, read, streams_at, told
from tunediff.directions.windows import Window, displaced, inside, windows
from tunediff.shapes import Refused
from tunediff.text import Batch

REFERENCES = ("tokens", "complement", "events")


class Sums:
    """Sums of the hidden vectors of one place.

    own    [group, 2, width] over windows, and over the reference        counts   [group, 2] of tokens
    drawn  [draw, width] over displaced windows                          drawn_counts   [draw]
    """

    def __init__(self, groups: int, draws: int):
        self.counts, self.drawn_counts = torch.zeros(groups, 2).double(), torch.zeros(draws).double()
        self.own: Tensor | None = None
        self.drawn: Tensor | None = None

    def add(self, weights: Tensor, drawn: Tensor, values: Tensor) -> None:
        """Adds values [token, width] by weights [group, 2, token] and [draw, token]."""
        own, others = weights @ values, drawn @ values
        self.own = own if self.own is None else self.own + own
        self.drawn = others if self.drawn is None else self.drawn + others
        self.counts, self.drawn_counts = self.counts + weights.sum(-1), self.drawn_counts + drawn.sum(-1)

    def difference(self, without: int | None = None) -> Tensor:
        """[width]: the mean over windows less that over the reference, without one of the groups."""
        assert self.own is not None, "refused where nothing was read"
        kept = [group for group in range(len(self.own)) if group != without]
        means = self.own[kept].sum(0) / self.counts[kept].sum(0)[:, None]
        return means[0] - means[1]

    def displaced(self) -> Tensor:
        """[draw, width]: the same of the windows of each draw of displaced events."""
        assert self.own is not None and self.drawn is not None, "refused where nothing was read"
        return self.drawn / self.drawn_counts[:, None] - (self.own.sum(0) / self.counts.sum(0)[:, None])[1]


@dataclass(frozen=True)
class Measured:
    """Sums that a difference of means is made of: role -> sums at each layer, and role -> provenance."""

    source: DifferenceOfMeans
    layers: list[int]
    sums: Mapping[str, list[Sums]]
    said: Mapping[str, dict[str, Any]]

    def direction(self, role: str) -> Direction:
        """The direction in one of the models."""
        vectors = {layer: one.difference().float() for layer, one in zip(self.layers, self.sums[role], strict=True)}
        return normalised(Direction(vectors, self.source.hookpoint, self.said[role]), self.source.normalise)


@dataclass(frozen=True, kw_only=True)
class DifferenceOfMeans(Source):
    """mean over windows before events - mean over a reference, both weighted by tokens: a token in two windows counts twice.

    label       label of the events: by rule (backtracks, hesitation_follows), of a labels column, or of an annotator
    offset, window, shift   tokens before an event, as in Window
    reference   tokens: all kept tokens of the segments; complement: those in no window; events: windows before all stretches
                labelled as one of `among`, as the paper has it for all of its sentences: not the complement, from which it
                differs by the factor 1 - n+/n
    among       labels of the reference's events; with reference=events alone
    segments    segments whose tokens count; None: all
    normalise   none, or unit: then a strength counts lengths of hidden vectors
    tokens      tokens of the text that are read
    """

    label: str
    offset: int = 12
    window: int = 4
    shift: int = -1
    reference: str = "tokens"
    among: Sequence[str] = ()
    segments: Sequence[str] | None = RESPONSE
    hookpoint: str = "resid_post"
    normalise: str = "none"
    tokens: int = 100_000

    def __post_init__(self) -> None:
        check_normalise(self.normalise)
        Window(self.offset, self.window, self.shift)
        if self.tokens < 1 or (self.segments is not None and not self.segments):
            raise Refused(
                f"direction.tokens={self.tokens}, direction.segments={self.segments}: give a number from 1, and null or some segments."
            )
        if self.reference not in REFERENCES:
            raise Refused(f"reference={self.reference}: choose {', '.join(REFERENCES)}.")
        if (self.reference == "events") != bool(self.among):
            raise Refused(
                f"reference={self.reference} and among={list(self.among)}: among names the events of reference=events."
            )

    def find(self, given: Place, role: str, layers: Sequence[int]) -> Direction:
        return self.measured(given, [role], layers).direction(role)

    def measured(
        self,
        given: Place,
        roles: Sequence[str],
        layers: Sequence[int],
        *,
        groups: int = 1,
        draws: int = 0,
        seed: int = 0,
    ) -> Measured:
        """Sums over windows and over the reference, of several models in one reading, by `groups` of documents; and over windows
        of events displaced at random within their documents, `draws` times. Raises Refused where there is no event, or no
        token of the reference."""
        streams = {role: streams_at(given.pair, role, self.hookpoint, layers) for role in roles}
        every = [stream for some in streams.values() for stream in some]
        window, found, outside, number = Window(self.offset, self.window, self.shift), 0, 0, 0
        made = {role: [Sums(groups, draws) for _ in some] for role, some in streams.items()}
        for batch, values in read(given.pair, given.text, every, self.tokens):
            usable = inside(batch, self.segments)
            begins = batch.beginning(self.label).nonzero()[:, 0]
            own = windows(batch, begins, window, usable)
            reference = self._reference(batch, window, usable, own.times)
            candidates, others = self._candidates(batch, usable), []
            for draw in range(draws):
                generator = randomness.generator(seed, "displaced events", draw, number)
                elsewhere = displaced(batch, begins, window, candidates, generator)
                others.append(windows(batch, elsewhere, window, usable).times)
            of_group = torch.nn.functional.one_hot(batch.question % groups, groups).T
            weights = torch.stack([own.times * of_group, reference * of_group], 1).double()
            drawn = torch.stack(others).double() if others else weights.new_zeros(0, len(batch.token))
            for sums, value in zip((one for some in made.values() for one in some), values, strict=True):
                sums.add(weights, drawn, value.double())
            found, outside, number = found + own.events, outside + own.outside, number + 1
        one = next(iter(made.values()))[0]
        if one.own is None or not one.counts.sum(0).all():
            raise Refused(self._nothing(found, outside, 0 if one.own is None else int(one.counts.sum(0)[1])))
        counted = {"events": found, "outside": outside}
        counted |= dict(zip(("window_tokens", "reference_tokens"), map(int, one.counts.sum(0)), strict=True))
        said = {role: told(self, given.pair, role, **counted) for role in roles}
        return Measured(self, list(layers), made, said)

    def _candidates(self, batch: Batch, usable: Tensor) -> Tensor:
        """[token] bool: where displaced events may begin. Against the windows of other events they are some of those: at any token
        they would hold what sets all events apart from the rest."""
        if self.reference != "events":
            return usable
        return torch.stack([batch.beginning(label) for label in self.among]).any(0)

    def _reference(self, batch: Batch, window: Window, usable: Tensor, own: Tensor) -> Tensor:
        if self.reference == "events":
            begins = [batch.beginning(label).nonzero()[:, 0] for label in self.among]
            return torch.stack([windows(batch, some, window, usable).times for some in begins]).sum(0)
        return (usable & (own == 0) if self.reference == "complement" else usable).long()

    def _nothing(self, found: int, outside: int, reference: int) -> str:
        where = f"tokens {self.shift - self.offset:+d} to {self.window - self.offset:+d} before '{self.label}'"
        if not found:
            left = f": the windows of {outside} events begin before their text does" if outside else ""
            return f"No event with {where} is in the {self.tokens:,} tokens that were read{left}. Choose another label, or read more tokens."
        return f"The reference {self.reference} of '{self.label}' has {reference} tokens: choose another one, or other segments."
