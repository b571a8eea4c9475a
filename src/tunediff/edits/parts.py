"""The part of a hidden vector that an edit acts on: some latents of a dictionary, some directions, or all of it.

Everything is in the models' own units: what a dictionary normalises is restored. A latent of a crosscoder has one value for
both models and a decoder row for each; that the other model's part is taken over then means its rows instead of one's
own, f_i (d_i^other - d_i^own) (arXiv 2504.02922). A dictionary of one model reads whichever model is written; there it
means the value that the other model's vectors give, (f_i(x_other) - f_i(x)) d_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tunediff.dictionary import ReconstructingDictionary
from tunediff.edits.operations import Coordinates
from tunediff.hookpoints import LORA
from tunediff.shapes import DIFFERENCE, OTHER, TUNED, Refused, Rows, Stream


class Place(NamedTuple):
    """The tokens that a gate named.

    own     [token, width] hidden vectors where the edit is written       read   those of other streams, [token, width] each
    moments [token, stream, 2] of each token's sequence, where a dictionary needs them; else None
    """

    own: Tensor
    read: Mapping[Stream, Tensor]
    moments: Tensor | None


class Part(Protocol):
    """A part that needs no dictionary, as far as a class does not say otherwise.

    skips_special   special tokens are left as they are: a dictionary is usually trained without them
    needs_moments   of each sequence, for a dictionary that normalises by them
    by_coordinate   each coordinate of the hidden vector is changed by its own value alone"""

    skips_special: bool = False
    by_coordinate: bool = False

    @property
    def needs_moments(self) -> bool:
        return False

    @property
    def described(self) -> str: ...

    def reads(self, at: Stream, other: bool) -> Sequence[Stream]:
        """Streams that must have been read beside the place that is written; `other`: with what the other model's part
        asks for."""
        return [opposite(at)] if other else []

    def look(self, at: Stream, place: Place) -> Coordinates: ...

    def reconstruction(self, at: Stream, place: Place) -> Tensor:
        """[token, width] in place of the hidden vectors."""
        raise Refused(f"An edit at {at} has mode=replace, which asks for latents: choose mode=delta.")

    def admits(self, at: Stream, place: Place) -> Tensor:
        """[token] bool: which tokens may be touched at all."""
        return torch.ones(len(place.own), dtype=torch.bool, device=place.own.device)

    def touches(self, columns: slice) -> bool:
        """True where the part lies in these coordinates of the hidden vector at all."""
        return True

    def moments(self, at: Stream, place: Place) -> Tensor:
        """[stream, 2]: mean and standard deviation of the tokens of one sequence, of each stream that a dictionary reads."""
        return place.own.new_zeros(0, 2)


def opposite(at: Stream) -> Stream:
    """The same place of the other model. Raises Refused for a model beside the pair, which has no other."""
    if at.role not in OTHER:
        raise Refused(
            f"An edit at {at} asks for the other model's hidden vectors, and the {at.role} model has no other."
        )
    return at._replace(role=OTHER[at.role])


def listed(words: Sequence[object]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(words) - 12} more" if len(words) > 12 else ""
    return ", ".join(map(str, words[:12])) + more


@dataclass(frozen=True)
class Whole(Part):
    """The hidden vector itself. `scale` and `mean` [width] are what Add, Clamp and MeanAblate use."""

    scale: Tensor | None = None
    mean: Tensor | None = None
    by_coordinate = True

    @property
    def described(self) -> str:
        return "the whole hidden vector"

    def look(self, at: Stream, place: Place) -> Coordinates:
        own = place.own

        def exchange() -> Tensor:
            return place.read[opposite(at)].to(own) - own

        nothing = own.new_zeros(own.shape[-1])
        scale, mean = (nothing if t is None else t.to(own) for t in (self.scale, self.mean))
        return Coordinates(own, scale, mean, lambda change: change, exchange)


@dataclass(frozen=True)
class Axes(Part):
    """Some coordinates of the hidden vector, such as single neurons or adapters; `numbers` [n], `scale`, `mean` [n],
    and their `names` where they have any."""

    numbers: Tensor
    scale: Tensor
    mean: Tensor
    names: tuple[str, ...] = ()
    by_coordinate = True

    def touches(self, columns: slice) -> bool:
        return bool(((self.numbers >= columns.start) & (self.numbers < columns.stop)).any())

    @property
    def described(self) -> str:
        return f"{listed(self.names)}" if self.names else f"coordinates {listed(self.numbers.tolist())}"

    def look(self, at: Stream, place: Place) -> Coordinates:
        own, numbers = place.own, self.numbers.to(place.own.device)

        def written(change: Tensor) -> Tensor:
            whole = torch.zeros_like(own)
            whole[:, numbers] = change.to(own)
            return whole

        def exchange() -> Tensor:
            return written((place.read[opposite(at)].to(own) - own)[:, numbers])

        return Coordinates(own[:, numbers], self.scale.to(own), self.mean.to(own), written, exchange)


@dataclass(frozen=True)
class Directions(Part):
    """rows [n, width]; a vector's coordinates are those of its projection onto their span (least squares), so that
    setting them to zero projects the span out. `scale`, `mean` [n]."""

    rows: Tensor
    scale: Tensor
    mean: Tensor

    @property
    def described(self) -> str:
        return f"{len(self.rows)} direction{'s' if len(self.rows) > 1 else ''}"

    def look(self, at: Stream, place: Place) -> Coordinates:
        rows = self.rows.to(place.own)
        across = torch.linalg.pinv(self.rows.double()).to(place.own)  # [width, n]

        def exchange() -> Tensor:
            return ((place.read[opposite(at)].to(place.own) - place.own) @ across) @ rows

        scale, mean = self.scale.to(place.own), self.mean.to(place.own)
        return Coordinates(place.own @ across, scale, mean, lambda change: change @ rows, exchange)


@dataclass(frozen=True)
class Latents(Part):
    """Latents `numbers` of a dictionary; `scale`, `mean` [n] in the units of their activations. Special tokens and
    attention sinks are left as they are. Not `restored`, they write in the units of the dictionary, as if these were the
    model's own: a mistake that is kept to be measured. Raises Refused for a dictionary over several layers: its latents are
    known only after the last of them."""

    dictionary: ReconstructingDictionary
    numbers: Tensor
    scale: Tensor
    mean: Tensor
    restored: bool = True
    skips_special = True

    def __post_init__(self):
        streams = self.dictionary.streams
        if len({stream.role for stream in streams}) < len(streams):
            raise Refused(
                f"Latents over several layers ({', '.join(map(str, streams))}) are known only after the last of them: "
                "edit with a dictionary of one layer, or along directions."
            )

    @property
    def described(self) -> str:
        return f"latents {listed(self.numbers.tolist())}{'' if self.restored else ', not restored'}"

    def reads(self, at: Stream, other: bool) -> Sequence[Stream]:
        streams = self.dictionary.streams
        if not self._reads_at(at):
            raise Refused(f"An edit at {at}: the dictionary reads {', '.join(map(str, streams))}.")
        if len(streams) > 1:
            return [stream for stream in streams if stream != at]
        return [opposite(at)] if other or streams[0].role == DIFFERENCE else []

    def _reads_at(self, at: Stream) -> bool:
        streams = self.dictionary.streams
        if streams[0].role == DIFFERENCE:  # written into the tuned model, where the difference is
            return at == streams[0]._replace(role=TUNED)
        return at in streams if len(streams) > 1 else at == streams[0]._replace(role=at.role)

    def _rows(self, at: Stream, place: Place, own: Tensor | None = None) -> Rows:
        """The rows that the dictionary reads, with `own` for the vectors of the place that is written."""
        own, streams = (place.own if own is None else own), self.dictionary.streams
        if len(streams) > 1:
            values = torch.cat([own if stream == at else place.read[stream].to(own) for stream in streams], dim=-1)
        elif streams[0].role == DIFFERENCE:
            values = own - place.read[opposite(at)].to(own)
        else:
            values = own
        return Rows(values.float(), place.moments)

    def _encoded(self, rows: Rows) -> Tensor:
        """The latents [token, n] of this part; of a long document a block of tokens is encoded at a time."""
        return torch.cat([self.dictionary.encode(block)[:, self.numbers] for block in rows.blocks()])

    def _part(self, at: Stream, values: Tensor) -> Tensor:
        streams = self.dictionary.streams
        return values if len(streams) == 1 else self.dictionary.part(values, at.role)

    def look(self, at: Stream, place: Place) -> Coordinates:
        if at.hookpoint == LORA:  # its latents are known after the last adapter; what is added asks for none of them
            encoded = place.own.new_zeros(len(place.own), len(self.numbers), dtype=torch.float32)
        else:
            encoded = self._encoded(self._rows(at, place)).to(torch.float32)

        def everywhere(change: Tensor) -> Tensor:
            if not self.restored:
                return change @ self.dictionary.W_dec[self.numbers]
            return self.dictionary.written(change, self.numbers, place.moments)

        def written(change: Tensor) -> Tensor:
            return self._part(at, everywhere(change)).to(place.own)

        def exchange() -> Tensor:
            if len(self.dictionary.streams) > 1:
                whole = everywhere(encoded)
                return (self.dictionary.part(whole, opposite(at).role) - self._part(at, whole)).to(place.own)
            other = self._rows(at, place, own=place.read[opposite(at)].to(place.own))
            return written(self._encoded(other) - encoded)

        scale, mean = self.scale.to(encoded), self.mean.to(encoded)
        return Coordinates(encoded, scale, mean, written, exchange)

    def reconstruction(self, at: Stream, place: Place) -> Tensor:
        rows = self._rows(at, place)
        encoded = ((self.dictionary.encode(block), block.moments) for block in rows.blocks())
        if self.restored:
            decoded = [self.dictionary.decode(*one) for one in encoded]
        else:
            decoded = [self.dictionary.reconstruct(latents) for latents, _ in encoded]
        restored = self._part(at, torch.cat(decoded)).to(place.own)
        if self.dictionary.streams[0].role == DIFFERENCE:
            return restored + place.read[opposite(at)].to(place.own)
        return restored

    def admits(self, at: Stream, place: Place) -> Tensor:
        return self.dictionary.normalisation.admits(self._rows(at, place).values)

    @property
    def needs_moments(self) -> bool:
        return self.dictionary.normalisation.needs_moments

    def moments(self, at: Stream, place: Place) -> Tensor:
        pieces = self._rows(at, place).values.split(self.dictionary.widths, dim=-1)
        return torch.stack([torch.stack([piece.mean(), piece.std(correction=0)]) for piece in pieces])
