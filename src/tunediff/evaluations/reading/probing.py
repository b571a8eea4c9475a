"""Directions that tell a label without a dictionary: the baseline for the best latent, by the same choice on the same tokens.

random_directions   as many as there are alive latents, at most `directions`, drawn uniformly
difference_pca      principal directions of tuned - base over the tokens that the choice is made on
neurons             single coordinates of the activations the dictionary reads
mean_difference     one direction: mean of the labelled minus mean of the others (a probe that is given the labels)

Each scores every token; the best column and its sign are chosen on one half of the questions and tested on the other, in
the dictionary's normalised units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.evaluations.given import Trained
from tunediff.evaluations.reading.label_alignment import at_label
from tunediff.evaluations.reading.labelled import gathered, too_few
from tunediff.measures.separation import auroc, separation
from tunediff.shapes import BASE, TUNED, Finding, Note


class Probing:
    """label, at     the same as in label_alignment
    directions    at most so many random and principal directions
    """

    def __init__(self, *, label: str, at: str | None, directions: int = 512):
        self.label, self.at, self.directions = label, at, directions

    def run(self, trained: Trained) -> Iterator[Finding | Note]:
        normalise = trained.dictionary.normalisation.normalise
        looked_at, rows, alive = [], [], int(trained.statistics.alive.sum())
        for reading, here in at_label(trained, self.label, self.at, "probing"):
            looked_at.append((reading.batch, here))
            rows.append(normalise(*reading.rows).cpu()[here])
        labelled = gathered(looked_at, self.label)
        if labelled is None or not labelled.enough:
            yield from too_few(trained, "probing", self.label, self.at, labelled)
            return
        truth, select, test = labelled.truth, labelled.select, labelled.test
        values = torch.cat(rows)
        for name, scores, what in self._candidates(trained, values, truth & select, ~truth & select, alive):
            chosen = torch.cat([auroc(part[:, select], truth[select]) for part in scores.split(64)])
            best = int((chosen - 0.5).abs().argmax())
            sign = 1.0 if chosen[best] >= 0.5 else -1.0
            found = separation(sign * scores[best, test], truth[test], labelled.document[test])
            meaning = f"AUROC of {what}, chosen and tested as the best latent is; interval over documents"
            yield Finding(f"probing/{self.label}/{name}", *found, meaning, over="documents")

    def _candidates(
        self, trained: Trained, values: Tensor, labelled: Tensor, others: Tensor, alive: int
    ) -> Iterator[tuple[str, Tensor, str]]:
        """Yields name, scores [candidate, token] and their meaning. `labelled` and `others` are masks [token] of the choosing
        half."""
        count = min(self.directions, max(alive, 1))
        directions = torch.randn(count, values.shape[1], generator=randomness.generator(0, "directions of probing"))
        yield "random_directions", directions @ values.T, f"the best of {count} random directions"
        yield "neurons", values.T, f"the best of {values.shape[1]} coordinates of the activations"
        mean = values[labelled].mean(0) - values[others].mean(0)
        what = "the difference of the means of labelled and other tokens, one direction"
        yield "mean_difference", (values @ mean)[None], what
        if set(trained.roles) != {BASE, TUNED}:
            return
        base, tuned = (trained.part(values, role) for role in (BASE, TUNED))
        if base.shape == tuned.shape:
            difference = tuned - base
            chosen_on = difference[labelled | others]
            principal = torch.linalg.svd(chosen_on - chosen_on.mean(0), full_matrices=False).Vh[: self.directions]
            what = f"the best of {len(principal)} principal directions of tuned - base"
            yield "difference_pca", principal @ difference.T, what
