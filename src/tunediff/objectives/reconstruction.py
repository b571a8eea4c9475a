"""A dictionary and rows -> the losses of one training step: reconstruction + sparsity penalty + AuxK.

All terms are taken in normalised units and in float32, whatever the precision of the matrix products. Knows no
optimizer, no logger and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.dictionary import Crosscoder
from tunediff.shapes import Refused, Rows


class Losses(NamedTuple):
    """`total` is what is differentiated: the sum of `terms`, each already weighted.

    latents, error   [token, latent] and [token, width] (normalised units), detached, for statistics"""

    total: Tensor
    terms: dict[str, Tensor]
    latents: Tensor
    error: Tensor


class Reconstruction:
    """Reconstruction error of a crosscoder.

    squared      true: sum over streams and width of (x - x_hat)^2, mean over tokens (Lindsey et al. 2024; Kissane 2024)
                 false: norm of x - x_hat, mean over tokens and streams (Minder et al. 2025; mitroitskii 2025)
    aux_weight   weight of AuxK: the detached error is reconstructed by the `aux_latents` most active of the dead latents
                 (Gao et al. 2024, arXiv 2406.04093, section A.2); taken as the same kind of error, so that its size
                 against the reconstruction does not depend on the scale of the activations
    aux_latents  null: half the width
    dead_after   tokens without firing after which a latent counts as dead
    """

    def __init__(
        self,
        *,
        squared: bool = True,
        aux_weight: float = 1 / 32,
        aux_latents: int | None = None,
        dead_after: int = 10_000_000,
    ):
        if aux_weight < 0:
            raise Refused(f"dictionary.objective.aux_weight={aux_weight}: a weight is not negative.")
        self.squared, self.aux_weight, self.aux_latents, self.dead_after = squared, aux_weight, aux_latents, dead_after

    def __call__(self, dictionary: Crosscoder, rows: Rows, *, dead: Tensor, settings: Mapping[str, float]) -> Losses:
        """`dead` [latent] bool; `settings` holds this step's l1 factor and the sparsity's own schedules (k)."""
        with torch.no_grad():
            target = dictionary.normalisation.normalise(*rows)
        pre = dictionary.pre_activations(target).float()
        norms = dictionary.code_norms()
        latents = dictionary.sparsity.select(pre, norms, settings)
        error = target - dictionary.reconstruct(latents).float()
        terms = {"reconstruction": self.size(error, dictionary.widths)}
        if dictionary.sparsity.has_penalty:
            coefficient = dictionary.sparsity.coefficient * settings["l1"]
            terms["l1"] = coefficient * dictionary.sparsity.penalty(latents, norms)
        if self.aux_weight > 0:
            terms["auxk"] = self.aux_weight * self.aux(dictionary, pre, error.detach(), dead)
        return Losses(sum(terms.values()), terms, latents.detach(), error.detach())

    def size(self, error: Tensor, widths: list[int]) -> Tensor:
        if self.squared:
            return error.square().sum(-1).mean()
        return torch.stack([piece.norm(dim=-1).mean() for piece in error.split(widths, dim=-1)]).mean()

    def aux(self, dictionary: Crosscoder, pre: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """Size of what the dead latents leave of the error, 0 while none is dead (no host synchronisation)."""
        count = min(self.aux_latents or error.shape[1] // 2, dictionary.latents)
        values, chosen = torch.relu(pre).masked_fill(~dead, 0.0).topk(count, dim=-1, sorted=False)
        latents = torch.zeros_like(pre).scatter(-1, chosen, values)
        left = self.size(error - (latents @ dictionary.W_dec).float(), dictionary.widths)
        return torch.where(dead.any(), left, 0.0)
