"""Which latents to look at more closely, where looking costs more than measuring all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tunediff.evaluations.columns import chosen_by_expression
from tunediff.evaluations.geometry import relative_decoder_norm
from tunediff.evaluations.trained import Trained
from tunediff.evaluations.usual import usual
from tunediff.shapes import BASE, TUNED, Refused


def chosen_latents(
    trained: Trained, latents: int | str | Sequence[int], alive: Tensor | None = None, *, setting: str
) -> list[int]:
    """The numbers that were given; or those that an expression chooses; or for a number n, of those that are alive [latent,
    bool] the n whose relative decoder norm is furthest from 0.5, the furthest first. Which are alive is found out where it
    is asked for and not given. Raises Refused, naming the setting."""
    if isinstance(latents, str):
        return chosen_by_expression(trained, latents)
    count = trained.dictionary.latents
    if not isinstance(latents, int):
        wrong = [latent for latent in latents if not 0 <= latent < count]
        if wrong:
            raise Refused(f"{setting} names {wrong}: the dictionary has latents 0 to {count - 1}.")
        return list(dict.fromkeys(latents))
    if set(trained.roles) != {BASE, TUNED}:
        raise Refused(
            f"{setting}={latents} takes the latents that belong most to one of two models, and this dictionary reads "
            f"{', '.join(trained.roles)} only: give their numbers, such as {setting}=[3,17], or an expression, such as "
            f"{setting}='top({latents}, norm)'."
        )
    alive = usual(trained).alive if alive is None else alive
    apart = (relative_decoder_norm(trained) - 0.5).abs()
    order = apart.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)
    return order[alive[order]][:latents].tolist()
