"""Held-out text -> what each latent usually does there: how strong it is, and how often it fires.

What edits take for strength 1 and for a mean, what their controls are drawn by, and which latents live at all. Knows
nothing of which latents are asked for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.trained import Trained


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
