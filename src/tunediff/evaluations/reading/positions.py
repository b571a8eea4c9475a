"""Latents by token: the mean activation of the strongest latents at each of the first places of a document, as a heatmap.

Each is labelled by a rule, the tokens at which its mean activation is largest. `explained` is the share of a latent's
variance over tokens that lies between places (eta squared): 0 where it does not care for the place, 1 where it tells nothing
else. A latent that peaks at some places may be about these places alone, whatever its tokens say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunediff.evaluations.given import Trained
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.measures import mean_of
from tunediff.shapes import Figure, Finding, Table
from tunediff.text import Spelling

SEEN = 5  # a token has to stand there so often to name a latent


@dataclass(kw_only=True)
class Positions:
    """latents   their numbers, an expression that chooses them, or how many of those most one model's own
    places    so many first places of each document
    named_by  number of tokens that label a latent
    """

    latents: int | str | Sequence[int] = "top(20, mean)"
    places: int = 50
    named_by: int = 3

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure]:
        numbers, latents = (
            chosen_latents(trained, self.latents, setting="evaluation.positions.latents"),
            trained.dictionary.latents,
        )
        spelled, device = Spelling(trained.pair.tokenizers[0]), trained.dictionary.code_norms().device
        count = torch.zeros(self.places, dtype=torch.float64)
        total, square = (torch.zeros(self.places, latents, dtype=torch.float64) for _ in range(2))
        by_token: dict[int, Tensor] = {}  # id -> how often it stands there, and the sum of each chosen latent
        for reading in trained.readings("positions"):
            near = reading.admitted.cpu() & (reading.batch.position < self.places)
            place, values = reading.batch.position[near], reading.latents[near.to(device)].cpu().double()
            count += place.bincount(minlength=self.places)
            total.index_add_(0, place, values)
            square.index_add_(0, place, values.square())
            ids, inverse = reading.batch.token[near].unique(return_inverse=True)
            sums = torch.zeros(len(ids), 1 + len(numbers), dtype=torch.float64)
            sums.index_add_(0, inverse, torch.cat([torch.ones(len(values), 1), values[:, numbers]], dim=1).double())
            for one, row in zip(ids.tolist(), sums, strict=True):
                by_token[one] = by_token.get(one, 0) + row
        share, alive = explained(count, total, square), trained.statistics.alive
        for name, some, said in (
            ("explained", share[numbers], f"the {len(numbers)} latents shown"),
            ("explained_all", share[alive], "all alive latents"),
        ):
            meaning = (
                f"share of the variance over tokens that lies between the first {self.places} places, mean over {said}"
            )
            yield Finding(f"positions/{name}", *mean_of(some, least=0.0, most=1.0), meaning, over="latents")
        often = {one: row for one, row in by_token.items() if row[0] >= SEEN} or by_token
        labels = [self._label(often, n, spelled) for n in range(len(numbers))]
        means = (total / count[:, None])[:, numbers]
        met = [place for place in range(self.places) if count[place] > 0]
        overall = (total[:, numbers].sum(0) / count.sum()).tolist()
        yield Table.of(
            "positions",
            [
                {
                    "latent": latent,
                    "label": labels[n],
                    "mean": overall[n],
                    "explained": float(share[latent]),
                    "peak": max(met, key=lambda place, n=n: float(means[place, n])),
                }
                for n, latent in enumerate(numbers)
            ],
        )
        cells = [(n, place) for n in range(len(numbers)) for place in met]
        yield Figure(
            name="positions/heat",
            kind="heat",
            columns={
                "latent": [f"{numbers[n]} {labels[n]}" for n, _ in cells],
                "place": [place for _, place in cells],
                "activation": [float(means[place, n]) for n, place in cells],
                "of_largest": [
                    float(means[place, n] / means[met, n].abs().max().clamp(min=1e-12)) for n, place in cells
                ],
            },
            x="place",
            y=["activation", "of_largest"],
            section="Latents by token",
            title="Mean activation by place in the document",
            caption="Each row is a latent with the tokens at which its mean activation is largest. Rows that light up at one "
            "place follow the place, and perhaps nothing else.",
            group="latent",
            words={"activation": "mean activation", "of_largest": "as a share of the row's largest"},
        )

    def _label(self, by_token: dict[int, Tensor], n: int, spelled: Spelling) -> str:
        best = sorted(by_token, key=lambda one: -float(by_token[one][1 + n] / by_token[one][0]))
        return " ".join(repr(spelled(one)) for one in best[: self.named_by])


def explained(count: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """Eta squared [latent] of counts [place], sums and sums of squares [place, latent]; 0 for a latent that never varies."""
    mean = total.sum(0) / count.sum()
    between = (total.square() / count.clamp(min=1)[:, None]).sum(0) - count.sum() * mean.square()
    within = square.sum(0) - count.sum() * mean.square()
    return torch.where(within > 1e-12, between / within.clamp(min=1e-12), 0.0).clamp(0, 1)
