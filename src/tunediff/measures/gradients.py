"""Gradients of hidden vectors -> which way descent moves them along a direction, and how many directions they share out to.

    component     -<g, v> / |v| for each token, with g the gradient of the loss: above 0 descent raises the activation along v
                  (it amplifies), below 0 it lowers it (it attenuates)
    participation (sum s)^2 / sum s^2 over the eigenvalues s of sum g g^T: of how many directions the gradients make equal
                  use; 1 where all tokens pull along one
    first         the largest eigenvalue's share of their sum

"Shifting the Gradient" (arXiv 2604.16423) speaks of the gradient's component along a steering axis and of how diffuse it is;
its own definitions were not to be had, and these are ours. A gradient of activations is not yet an update of weights: what
training did to activations is measured apart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def component(gradients: Tensor, direction: Tensor) -> Tensor:
    """-<g, v> / |v| [token] in float32, from gradients [token, width] and a direction [width] of any length."""
    unit = torch.nn.functional.normalize(direction.float(), dim=-1).to(gradients.device)
    return -(gradients.float() @ unit)


class Spread(NamedTuple):
    """participation, first   as at the head of the file, None where all gradients are zero"""

    participation: float | None
    first: float | None


def spread(moments: Tensor) -> Spread:
    """The spread of gradients from the sum of their outer products, moments [width, width] in float64."""
    values = torch.linalg.eigvalsh(moments.double()).clamp(min=0)
    total = float(values.sum())
    if not total > 0:
        return Spread(None, None)
    return Spread(total**2 / float(values.square().sum()), float(values[-1]) / total)
