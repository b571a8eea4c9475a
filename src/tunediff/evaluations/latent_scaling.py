"""Is a latent of one model really absent from the other? Its decoder direction, fitted to what the other model leaves or
rebuilds (Minder et al. 2025, arXiv 2504.02922, section 3; all in the dictionary's normalised units, float32 products).

For latent j, its decoder direction d_j in the model it is said to belong to, and a target y of a model:

    beta = sum_t f_j(t) <d_j, y(t)> / (|d_j|^2 sum_t f_j(t)^2)                     least squares
    error target           y = x - (x_hat - f_j d_j^model)       what remains once the latent's own part is given back
    reconstruction target  y = x_hat
    nu = beta in the other model / beta in its own

nu_error near 1: the other model's error still holds the concept (complete shrinkage). High nu_reconstruction: other latents
write it there (latent decoupling). Both near 0: the latent is exclusive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.dictionary import Crosscoder
from tunediff.shapes import BASE, TUNED, Rows

LARGEST_NU_ERROR, LARGEST_NU_RECONSTRUCTION = 0.2, 0.5


class Scaling(NamedTuple):
    """nu [latent] of each latent taken as belonging to one model; not a number where it never fired."""

    nu_error: Tensor
    nu_reconstruction: Tensor

    def exclusive(self) -> Tensor:
        """[latent] bool: both below their limits."""
        return (self.nu_error < LARGEST_NU_ERROR) & (self.nu_reconstruction < LARGEST_NU_RECONSTRUCTION)


@torch.no_grad()
def latent_scaling(dictionary: Crosscoder, rows: Iterable[Rows]) -> dict[str, Scaling]:
    """For each model the scaling of every latent as if it belonged there, in one pass over the rows, whatever the number
    of latents: sums of f_j times the error and times the reconstruction are enough."""
    shape = dictionary.W_dec.shape
    of_error, of_restored = (torch.zeros(shape, dtype=torch.float64, device=dictionary.W_dec.device) for _ in range(2))
    squares = torch.zeros(dictionary.latents, dtype=torch.float64, device=dictionary.W_dec.device)
    for block in rows:
        target = dictionary.normalisation.normalise(*block)
        latents = dictionary.encode(block).float()
        restored = dictionary.reconstruct(latents)
        of_error += latents.T @ (target - restored)
        of_restored += latents.T @ restored
        squares += latents.square().sum(0)
    decoders = {role: dictionary.part(dictionary.W_dec.double(), role) for role in (BASE, TUNED)}
    found = {}
    for own, other in ((TUNED, BASE), (BASE, TUNED)):
        direction = decoders[own]
        size = direction.square().sum(-1) * squares
        error, restored = {}, {}
        for role in (own, other):
            given_back = (direction * decoders[role]).sum(-1) * squares
            error[role] = ((direction * dictionary.part(of_error, role)).sum(-1) + given_back) / size
            restored[role] = (direction * dictionary.part(of_restored, role)).sum(-1) / size
        found[own] = Scaling((error[other] / error[own]).float(), (restored[other] / restored[own]).float())
    return found
