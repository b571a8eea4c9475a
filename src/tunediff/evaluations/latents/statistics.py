"""Held-out text -> what each latent usually does there: how strong it is, and how often it fires.

What edits take for strength 1 and for a mean, what their controls are drawn by, and which latents live at all. Knows
nothing of which latents are asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.given import Trained
from tunediff.shapes import BASE, SEGMENTS, TUNED


class Usual(NamedTuple):
    """What latents do on held-out text, on the tokens that a dictionary admits; `norms` by role.

    maximum, mean   [latent] of the activations, the mean over all tokens        rate   [latent] share of tokens where active
    norms           role -> mean norm of its hidden vectors
    """

    maximum: Tensor
    mean: Tensor
    rate: Tensor
    norms: dict[str, float]

    @property
    def alive(self) -> Tensor:
        return self.rate > 0


def usual(trained: Trained) -> Usual:
    """In one pass over the held-out text."""
    count = trained.dictionary.latents
    maximum, total, active, tokens = torch.zeros(count), torch.zeros(count).double(), torch.zeros(count).double(), 0
    norms = dict.fromkeys(trained.roles, 0.0)
    for reading in trained.readings("what latents usually do"):
        latents = reading.latents.cpu()
        maximum = torch.maximum(maximum, latents.amax(0))
        total += latents.sum(0, dtype=torch.float64)
        active += (latents != 0).sum(0)
        admitted = reading.admitted.cpu()
        tokens += int(admitted.sum())
        for role in norms:
            norms[role] += float(trained.part(reading.rows.values, role).cpu()[admitted].norm(dim=-1).double().sum())
    per_token = max(tokens, 1)
    return Usual(
        maximum,
        (total / per_token).float(),
        (active / per_token).float(),
        {role: value / per_token for role, value in norms.items()},
    )


def role_norms(trained: Trained, role: str) -> Tensor:
    """[latent]: joint decoder norm over a model's streams."""
    return trained.dictionary.decoder_norms().detach()[trained.streams_of(role)].norm(dim=0).cpu()


def relative_decoder_norm(trained: Trained) -> Tensor:
    """[latent]: |tuned| / (|base| + |tuned|)."""
    base, tuned = (role_norms(trained, role) for role in (BASE, TUNED))
    return tuned / (base + tuned)


def decoder_cosine(trained: Trained, first: Tensor | None = None, second: Tensor | None = None) -> Tensor | None:
    """Cosine of base row `first` with tuned row `second`, by default of each latent with itself; None for unequal widths."""
    base, tuned = (trained.part(trained.dictionary.W_dec.detach(), role).cpu() for role in (BASE, TUNED))
    if base.shape != tuned.shape:
        return None
    if first is not None:
        base, tuned = base[first], tuned[second]
    return torch.nn.functional.cosine_similarity(base, tuned, dim=-1)


def firing(trained: Trained) -> dict[str, list]:
    """Firing rate of each latent, over all held-out tokens and over each segment; mean and largest value when active."""
    latents = trained.dictionary.latents
    active = {segment: torch.zeros(latents, dtype=torch.float64) for segment in ("", *SEGMENTS)}
    tokens = dict.fromkeys(active, 0)
    total, largest = torch.zeros(latents, dtype=torch.float64), torch.zeros(latents)
    for reading in trained.readings("firing rates"):
        values = reading.latents.cpu()
        total += values.sum(0, dtype=torch.float64)
        largest = torch.maximum(largest, values.amax(0))
        for segment in active:
            here = reading.admitted.cpu()
            if segment:
                here = here & (reading.batch.segment == SEGMENTS.index(segment))
            tokens[segment] += int(here.sum())
            active[segment] += (values[here] != 0).sum(0)
    columns: dict[str, list] = {}
    for segment, count in tokens.items():
        if count:
            columns["firing_rate" + (f"/{segment}" if segment else "")] = (active[segment] / count).tolist()
    columns["mean_activation"] = (total / active[""].clamp(min=1)).tolist()
    columns["max_activation"] = largest.tolist()
    return columns
