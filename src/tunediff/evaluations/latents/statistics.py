"""Held-out text -> what each latent usually does there: how strong it is, and how often it fires.

What edits take for strength 1 and for a mean, what their controls are drawn by, and which latents live at all. Knows
nothing of which latents are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tunediff.shapes import BASE, SEGMENTS, TUNED

if TYPE_CHECKING:  # what is given has them, computed once
    from tunediff.evaluations.given import Trained

ALL = "all"  # in place of a segment


class LatentStatistics(NamedTuple):
    """Counts and sums over the held-out tokens that a dictionary admits.

    tokens    segment -> how many there are; "all" of all        active   segment -> [latent] on how many it is not zero
    total     [latent] sum of the activations                   maximum   [latent]
    norms     role -> mean norm of its hidden vectors
    """

    tokens: dict[str, int]
    active: dict[str, Tensor]
    total: Tensor
    maximum: Tensor
    norms: dict[str, float]

    @property
    def alive(self) -> Tensor:
        """[latent] bool: whether it fires at all."""
        return self.active[ALL] > 0

    @property
    def rate(self) -> Tensor:
        """[latent]: share of tokens where it is active."""
        return (self.active[ALL] / max(self.tokens[ALL], 1)).float()

    @property
    def mean(self) -> Tensor:
        """[latent]: mean activation over all tokens."""
        return (self.total / max(self.tokens[ALL], 1)).float()

    def columns(self) -> dict[str, list]:
        """Firing rate of each latent, over all tokens and over each segment that there is; mean and largest activation where
        it is active."""
        found = {}
        for segment, count in self.tokens.items():
            if count:
                name = "firing_rate" if segment == ALL else f"firing_rate/{segment}"
                found[name] = (self.active[segment] / count).tolist()
        found["mean_activation"] = (self.total / self.active[ALL].clamp(min=1)).tolist()
        found["max_activation"] = self.maximum.tolist()
        return found


def latent_statistics(trained: Trained) -> LatentStatistics:
    """Reads the held-out text once; `trained.statistics` has the result of a run."""
    count = trained.dictionary.latents
    total, maximum = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
    active = {segment: torch.zeros(count, dtype=torch.float64) for segment in (ALL, *SEGMENTS)}
    tokens, norms = dict.fromkeys(active, 0), dict.fromkeys(trained.roles, 0.0)
    for reading in trained.readings("latent statistics"):
        latents, admitted = reading.latents.cpu(), reading.admitted.cpu()
        total += latents.sum(0, dtype=torch.float64)
        maximum = torch.maximum(maximum, latents.amax(0))
        for n, segment in enumerate((ALL, *SEGMENTS), start=-1):
            here = admitted if segment == ALL else admitted & (reading.batch.segment == n)
            tokens[segment] += int(here.sum())
            active[segment] += (latents[here] != 0).sum(0)
        for role in norms:
            norms[role] += float(trained.part(reading.rows.values, role).cpu()[admitted].norm(dim=-1).double().sum())
    means = {role: value / max(tokens[ALL], 1) for role, value in norms.items()}
    return LatentStatistics(tokens, active, total, maximum, means)


def role_norms(trained: Trained, role: str) -> Tensor:
    """[latent]: joint decoder norm over a model's streams."""
    return trained.dictionary.decoder_norms().detach()[trained.streams_of(role)].norm(dim=0).cpu()


def relative_decoder_norm(trained: Trained) -> Tensor:
    """[latent]: |tuned| / (|base| + |tuned|)."""
    base, tuned = (role_norms(trained, role) for role in (BASE, TUNED))
    return tuned / (base + tuned)


def both_decoders(trained: Trained) -> tuple[Tensor, Tensor]:
    """Decoder rows [latent, width] of base and of tuned."""
    base, tuned = (trained.part(trained.dictionary.W_dec.detach(), role).cpu() for role in (BASE, TUNED))
    return base, tuned


def decoder_cosine(trained: Trained) -> Tensor | None:
    """[latent]: cosine of the two decoder rows of each latent; None for unequal widths."""
    base, tuned = both_decoders(trained)
    return cosine_similarity(base, tuned, dim=-1) if base.shape == tuned.shape else None
