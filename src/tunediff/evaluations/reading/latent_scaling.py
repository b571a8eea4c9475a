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

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.dictionary import ReconstructingDictionary
from tunediff.evaluations.given import Needs, Trained
from tunediff.evaluations.latents.statistics import relative_decoder_norm
from tunediff.shapes import BASE, BLOCK, OTHER, TUNED, Finding, Note, Rows, Table

LARGEST_NU_ERROR, LARGEST_NU_RECONSTRUCTION = 0.2, 0.5
TARGETS = ("activation", "error", "reconstruction")
RATIOS = ("error", "reconstruction", "activation")  # in the order of their columns


@dataclass(kw_only=True)
class LatentScaling:
    """exclusive   below this relative decoder norm a latent is called base-only, above 1 minus it tuned-only; the same as
                   in geometry
    largest_nu_error, largest_nu_reconstruction   up to these the call is confirmed (the paper's section 3.3)
    """

    needs = Needs.RECONSTRUCTION

    exclusive: float = 0.1
    largest_nu_error: float = LARGEST_NU_ERROR
    largest_nu_reconstruction: float = LARGEST_NU_RECONSTRUCTION

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        dictionary = trained.reconstructing
        if set(trained.roles) != {BASE, TUNED}:
            yield Note("Latent scaling compares two models: this dictionary reads one.")
            return
        if trained.part(dictionary.W_dec, BASE).shape != trained.part(dictionary.W_dec, TUNED).shape:
            yield Note("Latent scaling needs models of equal widths: a direction of one is none of the other.")
            return
        readings = trained.readings("latent scaling")
        blocks = (zip(reading.rows.blocks(), reading.latents.split(BLOCK), strict=True) for reading in readings)
        scaling = latent_scaling(dictionary, itertools.chain.from_iterable(blocks))
        relative = relative_decoder_norm(trained)
        called = {BASE: relative < self.exclusive, TUNED: relative > 1 - self.exclusive}
        alive = scaling[BASE].alive
        confirmed: list[bool | None] = [None] * len(relative)
        for role, kind in ((BASE, "base_only"), (TUNED, "tuned_only")):
            holds = scaling[role].exclusive(self.largest_nu_error, self.largest_nu_reconstruction)
            for latent in called[role].nonzero()[:, 0].tolist():
                confirmed[latent] = bool(holds[latent])
            count, before = int((called[role] & holds & alive).sum()), int((called[role] & alive).sum())
            meaning = (
                f"of {before} latents that are {kind.replace('_', '-')} by decoder norm, those with nu_error up to "
                f"{self.largest_nu_error} and nu_reconstruction up to {self.largest_nu_reconstruction}"
            )
            column = f"confirmed {kind.replace('_', '-')}"
            yield Finding(f"latent_scaling/count/{kind}", count, meaning=meaning, column=column)
        leans = relative >= 0.5
        columns: dict[str, list] = {"latent": list(range(dictionary.latents)), "confirmed": confirmed}
        of_either = {f"nu_{name}": [scaling[own].nu(name) for own in (TUNED, BASE)] for name in RATIOS}
        for target, role in itertools.product(TARGETS, (BASE, TUNED)):
            of_either[f"beta_{target}/{role}"] = [scaling[own].beta[target, role] for own in (TUNED, BASE)]
        for name, (tuned, base) in of_either.items():
            values = torch.where(leans, tuned, base).tolist()
            columns[name] = [value if alive[n] else None for n, value in enumerate(values)]
        yield Table("latents", columns)


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
