"""The latent that tells a label best: AUROC over tokens, chosen on one half of the documents and tested on the other.

Beside it stand what chance reaches by the same choice (labels shuffled, the best of all latents chosen again) and what
a reader without the model reaches: the best rule on the token, the token before it, or the place in the document.

average_precision   mean of the precision at every recall; 1 is perfect, the share of labelled tokens is chance
lift                average_precision / that share
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.given import Reading, Trained
from tunediff.measures.separation import ActiveScores, delong_interval, rule_auroc, shuffled_auroc
from tunediff.shapes import Finding, Note, Refused, Table
from tunediff.text import KNOWN_LABELS, Batch

FEWEST = 10  # labelled and unlabelled tokens in each half, below which nothing is measured
LookedAt = list[tuple[Batch, Tensor]]  # batches, each with its looked-at tokens [token] bool


class Labelled(NamedTuple):
    """The looked-at tokens of the held-out text.

    truth [token] bool   select, test [token] bool: the two halves, by document   rules   values [token] that a rule may use
    """

    truth: Tensor
    select: Tensor
    test: Tensor
    rules: dict[str, Tensor]

    @property
    def enough(self) -> bool:
        sides = [self.truth[side] for side in (self.select, self.test)]
        return min(min(int(side.sum()), int((~side).sum())) for side in sides) >= FEWEST


class LabelAlignment:
    """label       the label to tell, such as hesitation_follows
    at          only tokens with this label are looked at, such as step_end; null: all tokens
    first       true: only the first token of a labelled stretch counts as labelled, and the rest of it is not looked at: a
                latent for where a behaviour begins
    shuffles    draws of the null
    """

    def __init__(self, *, label: str, at: str | None, first: bool, shuffles: int = 100):
        self.label, self.at, self.first, self.shuffles = label, at, first, shuffles

    @property
    def asks_for(self) -> Mapping[str, int]:
        """A label that no rule knows and that the text has not at all, which is no text to ask of."""
        return {name: 1 for name in (self.label, self.at) if name is not None and name not in KNOWN_LABELS}

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        scores, looked_at = scored(trained, self.label, self.at, "label alignment", first=self.first)
        labelled = gathered(looked_at, self.label)
        if labelled is None or not labelled.enough:
            yield too_few(trained, "label_alignment", self.label, self.at, first=self.first)
            return
        truth, select, test, rules = labelled
        first, second = scores.of_tokens(select), scores.of_tokens(test)
        chosen_by, tested = first.auroc(truth[select]), second.auroc(truth[test])
        precision, share = second.average_precision(truth[test]), float(truth[test].float().mean())
        best = int(chosen_by.argmax())
        where = f"label_alignment/{self.label}"
        low, high = delong_interval(second.column(best), truth[test])
        how = f"latent chosen on {int(select.sum())} tokens, tested on {int(test.sum())} of other documents"
        yield Finding(f"{where}/auroc", float(tested[best]), low, high, f"AUROC of the best latent; {how}")
        yield Finding(f"{where}/latent", best, meaning="number of that latent")
        null = shuffled_auroc(first, second, truth[select], truth[test], self.shuffles)
        for name, value, word in (("mean", null.mean(), "mean"), ("p95", null.quantile(0.95), "95 % quantile")):
            yield Finding(f"{where}/null_{name}", float(value), meaning=f"the same with shuffled labels, {word}")
        found = {name: rule_auroc(values, truth, select, test) for name, values in rules.items()}
        name = max(found, key=lambda rule: found[rule][0])
        meaning = f"AUROC of the best rule without the model: the {name}"
        yield Finding(f"{where}/token_rule", found[name][1], meaning=meaning)
        yield Finding(f"{where}/share", share, meaning="share of the looked-at tokens with the label")
        meaning = "average precision of that latent; the share of labelled tokens is chance"
        yield Finding(f"{where}/average_precision", float(precision[best]), meaning=meaning)
        yield Finding(f"{where}/lift", float(precision[best]) / share, meaning="average precision / share")
        measured = dict(auroc=tested, auroc_select=chosen_by, average_precision=precision, lift=precision / share)
        columns = {f"{name}/{self.label}": values.tolist() for name, values in measured.items()}
        yield Table("latents", {"latent": list(range(len(tested))), **columns})


def aurocs(trained: Trained, label: str, at: str | None = None, *, first: bool = False) -> Tensor:
    """AUROC [latent] of each latent for the label over all held-out tokens; `at` and `first` as in LabelAlignment. Raises
    Refused where there are too few tokens of either kind."""
    scores, looked_at = scored(trained, label, at, f"latents for {label}", first=first)
    truth = torch.cat([torch.zeros(0, dtype=torch.bool), *(batch.labels[label][here] for batch, here in looked_at)])
    if min(int(truth.sum()), int((~truth).sum())) < FEWEST:
        raise Refused(
            f"The held-out text has too few tokens with and without the label '{label}' to choose latents by: "
            "give their numbers instead, latents=[3,17] of the evaluation, or raise tokens."
        )
    return scores.auroc(truth)


def scored(trained: Trained, label: str, at: str | None, title: str, *, first: bool) -> tuple[ActiveScores, LookedAt]:
    """The latents at the looked-at tokens, and which tokens these are; see at_label."""
    looked_at: LookedAt = []

    def blocks() -> Iterator[Tensor]:
        """Yields the latents of one batch after the other: those of the whole held-out text do not fit."""
        for reading, here in at_label(trained, label, at, title, first=first):
            looked_at.append((reading.batch, here))
            yield reading.latents[here.to(reading.latents.device)]

    return ActiveScores.of(blocks(), trained.dictionary.latents), looked_at


def at_label(
    trained: Trained, label: str, at: str | None, title: str, *, first: bool = False
) -> Iterator[tuple[Reading, Tensor]]:
    """Readings in which the label occurs, each with the looked-at tokens [token] bool; with `first`, none of a labelled
    stretch but its first."""
    for reading in trained.readings(title):
        labels = reading.batch.labels
        if label in labels and (at is None or at in labels):
            here = reading.admitted.cpu() & (labels[at] if at else torch.ones_like(labels[label]))
            yield reading, here & ~later(reading.batch, label) if first else here


def later(batch: Batch, label: str) -> Tensor:
    """Mask [token] of the tokens in a labelled stretch that are not its first."""
    labelled, goes_on = batch.labels[label], torch.zeros_like(batch.labels[label])
    goes_on[1:] = labelled[:-1] & (batch.sequence[1:] == batch.sequence[:-1])
    return labelled & goes_on


def gathered(looked_at: LookedAt, label: str) -> Labelled | None:
    """Labels, halves and rules of the looked-at tokens [token] bool of each batch; None where there is no batch."""
    if not looked_at:
        return None

    def joined(values) -> Tensor:
        return torch.cat([values(batch)[here] for batch, here in looked_at])

    truth, half = joined(lambda b: b.labels[label]), joined(lambda b: b.document) % 2
    rules = {
        "token": joined(lambda b: b.token),
        "token before": joined(lambda b: b.ids[0].flatten()[(b.places[0] - 1).clamp(min=0)]),
        "place in the document": joined(lambda b: b.position),
    }
    return Labelled(truth, half == 0, half == 1, rules)


def too_few(trained: Trained, evaluation: str, label: str, at: str | None, *, first: bool = False) -> Note:
    """The sentence on a label that cannot be measured: how often it is there, and which labels are. With `first` the first
    tokens of labelled stretches are counted. No text has more of a label whose mark the two models read differently."""
    closing = trained.text.manner.layout.closing
    if label == "end_of_thinking" and closing in trained.pair.foreign:
        return Note(
            f"{evaluation} has nothing to measure of '{label}': {closing} is read differently by the two models, and no such token "
            f"is kept (model_pair.foreign={trained.pair.foreign_policy})."
        )
    found: Counter[str] = Counter()
    for batch in trained.held_out:
        seen = {name: flags & ~later(batch, name) if first else flags for name, flags in batch.labels.items()}
        found.update({name: int(flags.sum()) for name, flags in seen.items()})
    among = f" or not among '{at}' tokens" if at else ""
    there = ", ".join(f"{name} ({count:,})" for name, count in found.most_common() if count)
    return Note(
        f"{evaluation} was not measured: the held-out text has too few {'first ' * first}tokens labelled '{label}'{among}: {found[label]}, and "
        f"{FEWEST} with and without it are needed in each half of the documents. Its labels are {there or 'none'}. More text is read with "
        f"budget.evaluation_tokens, or with tokens of evaluate.py (now {trained.tokens:,})."
    )
