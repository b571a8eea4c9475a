"""Which latents an intervention acts on, what they usually do, and which others serve as their control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tunediff.evaluations.chosen import chosen_latents
from tunediff.evaluations.label_alignment import FEWEST, at_label
from tunediff.evaluations.separation import ActiveScores
from tunediff.evaluations.trained import Trained
from tunediff.shapes import Refused

ALIKE = 20  # latents of similar contribution that a control is drawn from, for each that it stands for


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
        total += latents.double().sum(0)
        active += (latents != 0).double().sum(0)
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


class Selection(Protocol):
    """A way to choose latents."""

    def choose(self, trained: Trained, seen: Usual) -> list[int]: ...


@dataclass(frozen=True)
class Telling:
    """The `count` latents that tell a label best, by AUROC over held-out tokens; `at` and `first` as in LabelAlignment."""

    label: str
    count: int = 1
    at: str | None = None
    first: bool = False

    def choose(self, trained: Trained, seen: Usual) -> list[int]:
        truths: list[Tensor] = []

        def blocks():
            for reading, here in at_label(trained, self.label, self.at, f"latents for {self.label}", first=self.first):
                truths.append(reading.batch.labels[self.label][here])
                yield reading.latents.cpu()[here]

        scores = ActiveScores.of(blocks(), trained.dictionary.latents)
        truth = torch.cat(truths) if truths else torch.zeros(0, dtype=torch.bool)
        if min(int(truth.sum()), int((~truth).sum())) < FEWEST:
            raise Refused(
                f"The held-out text has too few tokens with and without the label '{self.label}' to choose latents by: "
                "give their numbers instead, such as evaluation.ablation.latents=[3,17], or raise tokens."
            )
        order = scores.auroc(truth).masked_fill(~seen.alive, -1.0).argsort(descending=True, stable=True)
        return order[: self.count].tolist()


def choose(
    trained: Trained, seen: Usual, latents: int | Sequence[int] | None, chosen_by: Selection | None
) -> list[int]:
    """Latents by their numbers, or how many of those that belong most to one model; None: as `chosen_by` chooses."""
    if latents is not None:
        return chosen_latents(trained, latents, seen.alive, setting="latents")
    if chosen_by is None:
        raise Refused("Name the latents, latents=[3,17], or say how they are chosen, chosen_by._target_=...")
    return chosen_by.choose(trained, seen)


def alike(trained: Trained, seen: Usual, chosen: Sequence[int], *, seed: int) -> list[int]:
    """As many other latents, each drawn from those that contribute about as much to the reconstruction as the one that it
    stands for: mean activation times decoder norm. A latent drawn from all would usually be a weak one."""
    size = seen.mean * trained.dictionary.decoder_norms().sum(0).cpu()
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
