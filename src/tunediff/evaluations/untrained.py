"""Random latents: the yardstick for a dictionary, as large and as sparse as it, that has learnt nothing."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tunediff import randomness
from tunediff.dictionary import Dictionary
from tunediff.shapes import Rows

AT_ONCE = 4096  # latents


class RandomLatents(nn.Module):
    """Latents over random unit rows, the same for every stream where these are of equal widths, read by their transpose. On
    the rows that it is fitted on as many are active a token, on average, as of the given dictionary, and each as often."""

    def __init__(self, dictionary: Dictionary, active: float):
        super().__init__()
        self.streams, self.latents, self.active = dictionary.streams, dictionary.latents, active
        self.normalisation = copy.deepcopy(dictionary.normalisation)
        widths = dictionary.widths
        generator = randomness.generator(0, "latents that have learnt nothing")
        equal = len(set(widths)) == 1
        drawn = [torch.randn(self.latents, width, generator=generator) for width in (widths[:1] if equal else widths)]
        rows = torch.cat(
            [nn.functional.normalize(one, dim=-1) for one in (drawn * len(widths) if equal else drawn)], dim=-1
        )
        self.rows: Tensor
        self.threshold: Tensor
        self.register_buffer("rows", rows.to(dictionary.W_dec.device))
        self.register_buffer("threshold", torch.zeros(self.latents))

    def fit(self, rows: Rows) -> None:
        """Sets the thresholds above which latents are active."""
        values = self.normalisation.normalise(*rows).float()
        count = min(len(values), max(1, round(self.active / self.latents * len(values))))
        for some, threshold in zip(self.rows.split(AT_ONCE), self.threshold.split(AT_ONCE), strict=True):
            threshold.copy_((values @ some.T).topk(count, dim=0).values[-1].clamp(min=0.0))

    def encode(self, rows: Rows) -> Tensor:
        """Latents [token, latent]."""
        reached = self.normalisation.normalise(*rows).float() @ self.rows.T
        return reached.mul_(reached >= self.threshold)
