"""Operations say what becomes of the part of a hidden vector that an edit acts on: its coordinates, or the change they
make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Coordinates(NamedTuple):
    """A part of the hidden vectors of some tokens.

    values   [token, n]         written   a change of the values [token, n] -> of the hidden vectors [token, width]
    scale    [n]: what strength 1 means, in the values' units         mean   [n] of the values over a text
    exchange    without arguments: the change [token, width] that makes the part the other model's
    """

    values: Tensor
    scale: Tensor
    mean: Tensor
    written: Callable[[Tensor], Tensor]
    exchange: Callable[[], Tensor]


class Operation(Protocol):
    """An operation on the values of one model, as far as a class does not say otherwise.

    reads_other   whether the other model must have been read at the same place
    constant      whether what is added depends on nothing that was read"""

    reads_other: bool = False
    constant: bool = False

    def change(self, part: Coordinates) -> Tensor:
        """[token, width], what is added to the hidden vectors."""
        return part.written(self.new(part) - part.values)

    def new(self, part: Coordinates) -> Tensor:
        """The values [token, n] that take the place of those of the part."""
        return part.values


@dataclass(frozen=True)
class Keep(Operation):
    """Nothing: with mode replace the reconstruction alone takes the place of the hidden vectors (a splice)."""


@dataclass(frozen=True)
class Add(Operation):
    """value + strength * scale: steering."""

    strength: float
    constant = True

    def change(self, part: Coordinates) -> Tensor:  # the same for every token, without rounding by its value
        return part.written((self.strength * part.scale).expand_as(part.values))


@dataclass(frozen=True)
class Scale(Operation):
    """factor * value."""

    factor: float

    def new(self, part: Coordinates) -> Tensor:
        return self.factor * part.values


@dataclass(frozen=True)
class Clamp(Operation):
    """strength * scale, whatever it was."""

    strength: float

    def new(self, part: Coordinates) -> Tensor:
        return (self.strength * part.scale).expand_as(part.values)


@dataclass(frozen=True)
class Zero(Operation):
    """0; on directions this projects them out."""

    def new(self, part: Coordinates) -> Tensor:
        return torch.zeros_like(part.values)


@dataclass(frozen=True)
class MeanAblate(Operation):
    """The mean over a text."""

    def new(self, part: Coordinates) -> Tensor:
        return part.mean.expand_as(part.values)


@dataclass(frozen=True)
class Patch(Operation):
    """The other model's: on the same tokens, or at the same place of its own response."""

    reads_other = True

    def change(self, part: Coordinates) -> Tensor:
        return part.exchange()
