"""The latents that a setting `latents` means, the same in every evaluation, and the others that serve as their control:

    [3, 17]         the latents of these numbers
    'rate < .1'     those that an expression over their columns chooses (expressions.py)
    20              of those alive the 20 whose relative decoder norm is furthest from 0.5, the furthest first, of either model

Those most one model's own are an expression: 'top(20, relative_norm)' the tuned model's, 'bottom(20, relative_norm)' the
base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.edits import opposite
from tunediff.evaluations.given import LatentStatistics, Trained
from tunediff.evaluations.latents.columns import chosen_by_expression
from tunediff.evaluations.latents.statistics import relative_decoder_norm
from tunediff.evaluations.reading.label_alignment import FEWEST, aurocs
from tunediff.shapes import BASE, TUNED, Refused, Stream

ALIKE = 20  # latents that write about as much, of which one is drawn


class Selection(Protocol):
    """A way to choose latents. `asks_for` is as in Evaluation."""

    @property
    def asks_for(self) -> Mapping[str, int]: ...

    def choose(self, trained: Trained, seen: LatentStatistics) -> list[int]: ...


@dataclass(frozen=True)
class Telling:
    """The `count` latents that tell a label best, by AUROC over held-out tokens; `at` and `first` as in LabelAlignment."""

    label: str
    count: int
    at: str | None
    first: bool = False

    @property
    def asks_for(self) -> Mapping[str, int]:
        return dict.fromkeys((self.label, *([] if self.at is None else [self.at])), FEWEST)

    def choose(self, trained: Trained, seen: LatentStatistics) -> list[int]:
        scores = aurocs(trained, self.label, self.at, first=self.first)
        order = scores.masked_fill(~seen.alive, -1.0).argsort(descending=True, stable=True)
        return order[: self.count].tolist()


def asked_for(latents: Any, chosen_by: Selection | None) -> Mapping[str, int]:
    """The labels that a choice of latents asks the text for."""
    return getattr(chosen_by, "asks_for", {}) if latents is None else {}


def choose(
    trained: Trained, seen: LatentStatistics, latents: int | str | Sequence[int] | None, chosen_by: Selection | None
) -> list[int]:
    """The latents that are to be changed: those of the setting, or for None those that `chosen_by` chooses. Raises Refused
    where that cannot be, and for indices of dead latents."""
    if latents is None:
        if chosen_by is None:
            raise Refused("Name the latents, latents=[3,17], or say how they are chosen, chosen_by._target_=...")
        return chosen_by.choose(trained, seen)
    chosen = chosen_latents(trained, latents, setting="latents", seen=seen)
    silent = [latent for latent in chosen if not seen.alive[latent]]
    if silent:
        raise Refused(f"latents names {silent}, which fire on no held-out token: there is nothing to change by them.")
    return chosen


def chosen_latents(
    trained: Trained, latents: int | str | Sequence[int], *, setting: str, seen: LatentStatistics | None = None
) -> list[int]:
    """The latents that the setting of this name means; statistics are computed where they are needed and `seen` is not
    given. Raises Refused where the latents cannot be had."""
    if isinstance(latents, str):
        return chosen_by_expression(trained, latents, seen)
    count = trained.dictionary.latents
    if not isinstance(latents, int):
        wrong = [latent for latent in latents if not 0 <= latent < count]
        if wrong:
            raise Refused(f"{setting} names {wrong}: the dictionary has latents 0 to {count - 1}.")
        return list(dict.fromkeys(latents))
    check_count(latents, trained.roles, setting=setting)
    alive = (trained.statistics if seen is None else seen).alive
    apart = (relative_decoder_norm(trained) - 0.5).abs()
    order = apart.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)
    return order[alive[order]][:latents].tolist()


def check_count(latents: int, roles: Sequence[str], *, setting: str) -> None:
    """Raises Refused for so many latents most one model's own, of a dictionary that reads one model alone."""
    if set(roles) != {BASE, TUNED}:
        raise Refused(
            f"{setting}={latents} takes the latents that belong most to one of two models, and this dictionary reads "
            f"{', '.join(roles)} only: give their numbers, such as {setting}=[3,17], or an expression, such as "
            f"{setting}='top({latents}, norm)'."
        )


def alike(seen: LatentStatistics, written: Tensor, chosen: Sequence[int], generator: torch.Generator) -> list[int]:
    """Draws as many other latents as a control, each from those that write about as much as the one that it stands for, by mean
    activation times the norm [latent] of what one unit writes there. One drawn from all would usually be a weak one."""
    size = seen.mean * written
    free = seen.alive.clone()
    free[list(chosen)] = False
    drawn = []
    for latent in chosen:
        near = (size - size[latent]).abs().masked_fill(~free, torch.inf).argsort(stable=True)
        near = near[free[near]][:ALIKE]
        if not len(near):
            raise Refused(f"{len(chosen)} latents leave none alive to compare them with: choose fewer.")
        drawn.append(int(near[torch.randint(len(near), (1,), generator=generator)]))
        free[drawn[-1]] = False
    return drawn


def decoder_rows(trained: Trained, at: Stream | None, *, exchanged: bool = False) -> Tensor:
    """Decoder rows [latent, width] in the model's own units: what one unit of each latent writes at a place, or with `exchanged`
    what taking the other model's row changes there. Under sequence_zscore the deviation is taken as 1. Latents of a
    transcoder adapter write each at its own layer, whatever the place."""
    dictionary, rows = trained.dictionary, trained.dictionary.W_dec
    if isinstance(dictionary, TranscoderAdapter):
        return rows
    if not dictionary.normalisation.needs_moments:
        rows = rows / dictionary.normalisation.scale
    if at is None or len(dictionary.streams) == 1:
        return rows
    own = dictionary.part(rows, at.role)
    return dictionary.part(rows, opposite(at).role) - own if exchanged else own
