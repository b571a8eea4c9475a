"""Known directions -> activations of two made-up models: a source without models and text, whose truth can be asked for.

Every event fires on its own share of the tokens and writes one direction into each model:

    shared       the same in both                                  dense       shared, on three tokens in ten
    base_only    nothing in the tuned model                        rotated     two directions at 60 degrees
    tuned_only   nothing in the base                               shrunken    the same, in the base at three tenths of the strength
    rare         tuned-only, on one token in a thousand            split       one direction in the tuned model for two events
                                                                               that the base tells apart

Shrunken and split events invite the two false exclusives of arXiv 2504.02922: complete shrinkage (a weak direction of the
base is dropped, the latent looks tuned-only) and latent decoupling (one concept, different latents in the two models).
Neither is exclusive: the direction is there in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.shapes import BASE, DIFFERENCE, TUNED, Refused, Rows, Stream

# number of events of each kind, if no other is asked for
COUNTS = {
    "shared": 96,
    "base_only": 16,
    "tuned_only": 16,
    "rotated": 16,
    "shrunken": 16,
    "split": 16,
    "dense": 4,
    "rare": 8,
}
KINDS = tuple(COUNTS)
DENSE, RARE, SHRUNKEN = 0.3, 0.001, 0.3


class Planted:
    """Directions base, tuned [event, width] that an event writes, zero where it writes nothing, with its kind and rate.

    counts        number of events of each kind; split events come in pairs
    largest_rate  rate of the most frequent event; the n-th has largest_rate / n ** zipf
    correlation   correlation of the events of one of eight topics, before the threshold that makes them fire
    noise         norm of the noise in each model, where the strength of an event is about 1
    """

    def __init__(
        self,
        *,
        width: int = 64,
        counts: Mapping[str, int] | None = None,
        largest_rate: float = 0.35,
        zipf: float = 0.55,
        correlation: float = 0.3,
        noise: float = 0.1,
        seed: int = 0,
    ):
        counts = dict(COUNTS if counts is None else counts)
        if set(counts) - set(KINDS) or counts.get("split", 0) % 2:
            raise Refused(f"Planted counts={counts}: the kinds are {', '.join(KINDS)}, and split events come in pairs.")
        draw = randomness.generator(seed, "planted directions")
        self.width, self.correlation, self.noise = width, correlation, noise
        self.kinds = [kind for kind in KINDS for _ in range(counts.get(kind, 0))]
        events = len(self.kinds)

        def unit(vectors: Tensor) -> Tensor:
            return torch.nn.functional.normalize(vectors, dim=-1)

        own = unit(torch.randn(events, width, generator=draw))
        second = unit(torch.randn(events, width, generator=draw))
        second = unit(second - (second * own).sum(-1, keepdim=True) * own)  # at right angles
        self.base, self.tuned = own.clone(), own.clone()
        here = {kind: torch.tensor([k == kind for k in self.kinds]) for kind in KINDS}
        self.base[here["tuned_only"] | here["rare"]] = 0
        self.tuned[here["base_only"]] = 0
        self.tuned[here["rotated"]] = (0.5 * own + 0.75**0.5 * second)[here["rotated"]]
        self.base[here["shrunken"]] *= SHRUNKEN
        first = here["split"].nonzero()[::2, 0]
        self.tuned[first + 1] = self.tuned[first]
        for event in (first, first + 1):  # the base writes the concept together with what tells the two apart
            self.base[event] = unit(own[first] + second[event])

        rank = 1 + torch.randperm(events, generator=draw)
        self.rates = largest_rate / rank**zipf
        self.rates[here["dense"]], self.rates[here["rare"]] = DENSE, RARE
        self.topic = torch.randint(8, (events,), generator=draw)
        self.center = torch.randn(2, width, generator=draw) / width**0.5

    @property
    def streams(self) -> list[Stream]:
        return [Stream(role, "planted", 0, self.width) for role in (BASE, TUNED)]

    def exclusive(self, role: str) -> Tensor:
        """Mask [event] of the events that write into this model alone."""
        mine, other = (self.base, self.tuned) if role == BASE else (self.tuned, self.base)
        return (mine.norm(dim=-1) > 0) & (other.norm(dim=-1) == 0)

    def written(self, streams: Sequence[Stream]) -> Tensor:
        """Directions [event, width] of the events in these streams, side by side."""
        return torch.cat(read(streams, self.base, self.tuned), dim=-1)

    def draw(self, tokens: int, generator: torch.Generator) -> Tensor:
        """Activations [token, width] of both models, side by side."""
        own = torch.randn(tokens, len(self.kinds), generator=generator)
        shared = torch.randn(tokens, 8, generator=generator)[:, self.topic]
        bar = torch.special.ndtri(1 - self.rates.double()).float()
        fires = (1 - self.correlation) ** 0.5 * own + self.correlation**0.5 * shared > bar
        strengths = fires * (0.5 + torch.rand(tokens, len(self.kinds), generator=generator))
        values = torch.stack([strengths @ self.base, strengths @ self.tuned], dim=1) + self.center
        values += torch.randn(values.shape, generator=generator) * (self.noise / self.width**0.5)
        return values.flatten(1)


def read(streams: Sequence[Stream], base: Tensor, tuned: Tensor) -> list[Tensor]:
    """Vectors of each stream, from those of the two models."""
    parts = {BASE: base, TUNED: tuned, DIFFERENCE: tuned - base}
    return [parts[stream.role] for stream in streams]


class PlantedRows(Iterator[Rows]):
    """A source of activations: endless blocks of planted rows, from a position that can be saved."""

    def __init__(self, planted: Planted, streams: Sequence[Stream], *, seed: int = 0, block: int = 4096):
        self.planted, self.streams, self.block = planted, list(streams), block
        self.broken: dict[Stream, str] = {}
        self.generator = randomness.generator(seed, "rows of a planted pair")

    def __next__(self) -> Rows:
        base, tuned = self.planted.draw(self.block, self.generator).split(self.planted.width, dim=-1)
        pieces = read(self.streams, base, tuned)
        sequence = [torch.stack([piece.mean(-1), piece.std(-1)], dim=-1) for piece in pieces]
        return Rows(torch.cat(pieces, dim=-1), torch.stack(sequence, dim=1))  # each token is a sequence of its own

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
