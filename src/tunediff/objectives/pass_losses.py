"""What one forward pass of a training step gives back."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PassLosses(NamedTuple):
    """Shares of a step's means, so that those of all its passes and processes add up to them.

    loss   what is differentiated              told   named numbers for the curves
    """

    loss: Tensor
    told: dict[str, Tensor]
