"""Which latents to look at more closely, where looking costs more than measuring all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunediff.evaluations.geometry import relative_decoder_norm
from tunediff.evaluations.trained import Trained
from tunediff.shapes import BASE, TUNED, Refused


def chosen_latents(trained: Trained, latents: int | Sequence[int], alive: Tensor, *, setting: str) -> list[int]:
    """The numbers that were given; or for a number n, of those that are alive [latent, bool] the n whose relative decoder
    norm is furthest from 0.5, the furthest first. Raises Refused, naming the setting."""
    count = trained.dictionary.latents
    if not isinstance(latents, int):
        wrong = [latent for latent in latents if not 0 <= latent < count]
        if wrong:
            raise Refused(f"{setting} names {wrong}: the dictionary has latents 0 to {count - 1}.")
        return list(dict.fromkeys(latents))
    if set(trained.roles) != {BASE, TUNED}:
        raise Refused(
            f"{setting}={latents} takes the latents that belong most to one of two models, and this dictionary reads "
            f"{', '.join(trained.roles)} only: give their numbers, such as {setting}=[3,17]."
        )
    apart = (relative_decoder_norm(trained) - 0.5).abs()
    order = apart.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)
    return order[alive[order]][:latents].tolist()
