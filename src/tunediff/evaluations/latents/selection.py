"""Which latents an intervention acts on, and which others serve as their control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits import opposite
from tunediff.evaluations.given import Trained
from tunediff.evaluations.latents.columns import chosen_by_expression
from tunediff.evaluations.latents.statistics import LatentStatistics, relative_decoder_norm
from tunediff.evaluations.reading.label_alignment import aurocs
from tunediff.shapes import BASE, TUNED, Refused, Stream

ALIKE = 20  # latents that write about as much, of which one is drawn


class Selection(Protocol):
    """A way to choose latents."""

    def choose(self, trained: Trained, seen: LatentStatistics) -> list[int]: ...


@dataclass(frozen=True)
class Telling:
    """The `count` latents that tell a label best, by AUROC over held-out tokens; `at` and `first` as in LabelAlignment."""

    label: str
    count: int = 1
    at: str | None = None
    first: bool = False

    def choose(self, trained: Trained, seen: LatentStatistics) -> list[int]:
        scores = aurocs(trained, self.label, self.at, first=self.first)
        order = scores.masked_fill(~seen.alive, -1.0).argsort(descending=True, stable=True)
        return order[: self.count].tolist()


def choose(
    trained: Trained,
    seen: LatentStatistics,
    latents: int | str | Sequence[int] | None,
    chosen_by: Selection | None,
    *,
    whose: str,
) -> list[int]:
    """Latents by their numbers; or those that an expression chooses; or how many of those alive that are most `whose` own by
    relative decoder norm; None: as `chosen_by` chooses. Raises Refused where that cannot be."""
    if latents is None:
        if chosen_by is None:
            raise Refused("Name the latents, latents=[3,17], or say how they are chosen, chosen_by._target_=...")
        return chosen_by.choose(trained, seen)
    if isinstance(latents, str):
        return chosen_by_expression(trained, latents, seen)
    if not isinstance(latents, int):
        silent = [latent for latent in latents if 0 <= latent < len(seen.alive) and not seen.alive[latent]]
        if silent:
            raise Refused(
                f"latents names {silent}, which fire on no held-out token: there is nothing to change by them."
            )
        return chosen_latents(trained, latents, seen.alive, setting="latents")
    if set(trained.roles) != {BASE, TUNED}:
        raise Refused(
            f"latents={latents} takes those most {whose}'s own of two models: give numbers, latents=[3,17], or an "
            f"expression, latents='top({latents}, norm)'."
        )
    relative = relative_decoder_norm(trained)
    own = (relative if whose == TUNED else 1 - relative).masked_fill(~seen.alive, -1.0)
    return own.argsort(descending=True, stable=True)[: min(latents, int(seen.alive.sum()))].tolist()


def alike(seen: LatentStatistics, written: Tensor, chosen: Sequence[int], *, seed: int) -> list[int]:
    """As many other latents, each drawn from those that write about as much as the one that it stands for: mean activation
    times the norm [latent] of what one unit writes where the edit is. One drawn from all would usually be a weak one."""
    size = seen.mean * written
    free = seen.alive.clone()
    free[list(chosen)] = False
    generator, drawn = torch.Generator().manual_seed(seed), []
    for latent in chosen:
        near = (size - size[latent]).abs().masked_fill(~free, torch.inf).argsort(stable=True)
        near = near[free[near]][:ALIKE]
        if not len(near):
            raise Refused(f"{len(chosen)} latents leave none alive to compare them with: choose fewer.")
        drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        free[drawn[-1]] = False
    return drawn


def decoder_rows(trained: Trained, at: Stream | None, *, exchanged: bool = False) -> Tensor:
    """[latent, width] in the model's own units, what one unit of each latent writes at a place; `exchanged`: what taking
    the other model's row instead of one's own changes there. Under sequence_zscore as if the deviation were 1. Latents of
    a transcoder adapter write each at its own layer, whatever the place."""
    dictionary = trained.dictionary
    if isinstance(dictionary, TranscoderAdapter):
        return dictionary.W_dec
    rows = (
        dictionary.W_dec
        if dictionary.normalisation.needs_moments
        else dictionary.W_dec / dictionary.normalisation.scale
    )
    if len(dictionary.streams) == 1:
        return rows
    own = dictionary.part(rows, at.role)
    return dictionary.part(rows, opposite(at).role) - own if exchanged else own


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
    alive = trained.statistics.alive if alive is None else alive
    apart = (relative_decoder_norm(trained) - 0.5).abs()
    order = apart.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)
    return order[alive[order]][:latents].tolist()
