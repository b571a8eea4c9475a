"""Latents of one model that are really absent from the other: a latent's decoder direction, fitted to what the other model holds,
leaves unexplained, or rebuilds (Minder et al. 2025, arXiv 2504.02922, section 3; all in the dictionary's normalised units).

For latent j, its decoder direction d_j in the model it is said to belong to, and a target y of a model:

    beta = sum_t f_j(t) <d_j, y(t)> / (|d_j|^2 sum_t f_j(t)^2)                     least squares
    activation target      y = x
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

from tunediff.dictionary import ReconstructingDictionary
from tunediff.measures.clustered import DocumentSums, ratio
from tunediff.shapes import BASE, OTHER, TUNED, Rows

LARGEST_NU_ERROR, LARGEST_NU_RECONSTRUCTION = 0.2, 0.5
TARGETS = ("activation", "error", "reconstruction")


class Called:
    """The latents [n] that are called one model's own, with the ratios of each and their intervals over documents.

    numbers   their indices
    alive     [n] true for one that fired, once `decide` was called; `count` of them
    holds     [n] true for a call that is confirmed                 highest   name of a ratio -> upper bound [n]
    """

    def __init__(self, dictionary: ReconstructingDictionary, own: str, numbers: Tensor):
        self.dictionary, self.own, self.numbers = dictionary, own, numbers
        self.sums = DocumentSums()
        rows = dictionary.W_dec.detach()[numbers.to(dictionary.W_dec.device)]
        self.direction = dictionary.part(rows, own)
        self.given_back = {role: (self.direction * dictionary.part(rows, role)).sum(-1) for role in (own, OTHER[own])}

    @torch.no_grad()
    def add(self, rows: Rows, latents: Tensor, documents: Tensor) -> None:
        """Adds a block of rows with their latents [token, latent] and documents [token]."""
        if not len(self.numbers):
            return
        mine = latents[:, self.numbers.to(latents.device)]
        target, restored = self.dictionary.normalisation.normalise(*rows), self.dictionary.reconstruct(latents)
        parts = []
        for role in (self.own, OTHER[self.own]):
            left, rebuilt = (self.dictionary.part(values, role) for values in (target - restored, restored))
            parts.append(mine * (left @ self.direction.T) + mine.square() * self.given_back[role])
            parts.append(mine * (rebuilt @ self.direction.T))
        self.sums.add(torch.stack([*parts, mine.square()], dim=-1).double().cpu(), documents.cpu())

    def decide(self, largest_nu_error: float, largest_nu_reconstruction: float) -> None:
        """Confirms the calls of which both ratios are surely below these limits."""
        self.alive = self.holds = torch.zeros(len(self.numbers), dtype=torch.bool)
        self.highest, self.count, self.confirmed = {}, 0, 0
        if not len(self.numbers) or not len(self.sums):
            return
        sums = self.sums.stacked()  # [document, n, 5]
        self.alive = sums[..., 4].sum(0) > 0
        for name, (own, other) in {"nu_error": (0, 2), "nu_reconstruction": (1, 3)}.items():
            self.highest[name] = ratio(sums[..., other], sums[..., own]).interval(0.95)[1]
        self.holds = self.alive & (self.highest["nu_error"] < largest_nu_error)
        self.holds &= self.highest["nu_reconstruction"] < largest_nu_reconstruction
        self.count, self.confirmed = int(self.alive.sum()), int(self.holds.sum())


class Scaling(NamedTuple):
    """Every latent taken as belonging to one model (`own`), with beta [latent] for each (target, model). `alive` [latent] is
    true where it fired at all; else its betas are NaN."""

    own: str
    beta: dict[tuple[str, str], Tensor]
    alive: Tensor

    def nu(self, target: str) -> Tensor:
        """Ratio [latent] of beta in the other model to beta in its own."""
        other = OTHER[self.own]
        return (self.beta[target, other] / self.beta[target, self.own]).float()

    def exclusive(
        self, largest_nu_error: float = LARGEST_NU_ERROR, largest_nu_reconstruction: float = LARGEST_NU_RECONSTRUCTION
    ) -> Tensor:
        """Mask [latent] of the latents with both ratios below their limits."""
        return (self.nu("error") < largest_nu_error) & (self.nu("reconstruction") < largest_nu_reconstruction)


@torch.no_grad()
def latent_scaling(dictionary: ReconstructingDictionary, blocks: Iterable[tuple[Rows, Tensor]]) -> dict[str, Scaling]:
    """The scaling of every latent as if it belonged to either model, in one pass over blocks of rows with their latents
    [token, latent]. Products in float32, sums over blocks in float64."""
    shape, device = dictionary.W_dec.shape, dictionary.W_dec.device
    # All three targets are sums of two: x = error + x_hat, and the error target is error + f_j d_j. So <d_j, y> summed with
    # f_j needs only the sums of f_j times the error and times x_hat, [latent, width], however many latents there are; the
    # latent's own part is |f_j|^2 times the product of its two decoder rows.
    of_error, of_restored = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))
    squares = torch.zeros(dictionary.latents, dtype=torch.float64, device=device)
    for rows, latents in blocks:
        target = dictionary.normalisation.normalise(*rows)
        restored = dictionary.reconstruct(latents)
        of_error += latents.T @ (target - restored)
        of_restored += latents.T @ restored
        squares += latents.square().sum(0)
    decoders = {role: dictionary.part(dictionary.W_dec.double(), role) for role in (BASE, TUNED)}
    found = {}
    for own in (TUNED, BASE):
        direction = decoders[own]
        size = direction.square().sum(-1) * squares
        beta = {}
        for role in (BASE, TUNED):
            error, restored = ((direction * dictionary.part(sums, role)).sum(-1) for sums in (of_error, of_restored))
            given_back = (direction * decoders[role]).sum(-1) * squares
            for name, value in zip(TARGETS, (error + restored, error + given_back, restored), strict=True):
                beta[name, role] = (value / size).cpu()
        found[own] = Scaling(own, beta, (squares > 0).cpu())
    return found
