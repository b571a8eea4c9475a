"""The result of one forward pass of a training step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PassLosses(NamedTuple):
    """Shares of a step's means: those of all its passes and processes add up to the means.

    loss   differentiated in the backward pass            told   numbers for the curves, by name
    """

    loss: Tensor
    told: dict[str, Tensor]
