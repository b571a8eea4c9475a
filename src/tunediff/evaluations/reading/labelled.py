"""The looked-at tokens of the held-out text, with what is known of them without an activation: label, document, half, words, place.

The halves are of questions, so that no question stands in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.given import Given
from tunediff.measures.shifts import Track
from tunediff.measures.token_rules import Rule
from tunediff.shapes import Note
from tunediff.text import Batch

STRETCHES = (
    20  # labelled stretches, and documents with and without the label, in each half, below which nothing is measured
)
WINDOW = 8  # tokens that a bag of words holds
LookedAt = list[tuple[Batch, Tensor]]  # batches, each with its looked-at tokens [token] bool


class Labelled(NamedTuple):
    """The looked-at tokens of the held-out text.

    truth, document, question, segment   [token]     stretch   [token] number of the labelled stretch that it is in
    """

    truth: Tensor
    document: Tensor
    question: Tensor
    stretch: Tensor
    segment: Tensor

    @property
    def select(self) -> Tensor:
        """[token] bool: the half of the questions on which a choice is made."""
        return self.question % 2 == 0

    @property
    def test(self) -> Tensor:
        """[token] bool: the other half."""
        return self.question % 2 == 1

    def track(self, side: Tensor) -> Track:
        """The label of a half [token]."""
        return Track(self.truth[side], self.document[side], self.segment[side])

    def counts(self) -> list[tuple[int, int, int]]:
        """Counts of either half: the labelled stretches, the documents that have some, and those with tokens of the other kind."""
        found = []
        for side in (self.select, self.test):
            with_it, without = side & self.truth, side & ~self.truth
            found.append(
                (
                    len(self.stretch[with_it].unique()),
                    len(self.document[with_it].unique()),
                    len(self.document[without].unique()),
                )
            )
        return found

    @property
    def enough(self) -> bool:
        return min(min(half) for half in self.counts()) >= STRETCHES


def gathered(looked_at: LookedAt, label: str) -> Labelled | None:
    """Labels, documents, questions, segments and stretches of the looked-at tokens [token] bool of each batch; None where there is no
    batch."""
    if not looked_at:
        return None
    stretches, so_far = [], 0
    for batch, here in looked_at:
        numbers = batch.beginning(label).cumsum(0) + so_far
        stretches.append(numbers[here])
        so_far += int(batch.beginning(label).sum())
    truth, document, question, segment = (
        torch.cat([values[here] for (_, here), values in zip(looked_at, all_of, strict=True)])
        for all_of in (
            [batch.labelled(label) for batch, _ in looked_at],
            [batch.document for batch, _ in looked_at],
            [batch.question for batch, _ in looked_at],
            [batch.segment for batch, _ in looked_at],
        )
    )
    return Labelled(truth, document, question, torch.cat(stretches), segment)


def words_of(looked_at: LookedAt) -> dict[str, Rule]:
    """Rules on the tokens up to and with each looked-at one."""
    found = []
    for batch, here in looked_at:
        places, length = batch.places[0][here], batch.ids[0].shape[1]
        back = places[:, None] - torch.arange(WINDOW)
        there = torch.arange(WINDOW) <= (places % length)[:, None]
        found.append(torch.where(there, batch.ids[0].flatten()[back.clamp(min=0)] + 1, 0))
    window = torch.cat(found)
    one, two = window[:, :1], window[:, 1:2]
    return {
        "the token": [one],
        "the token and the one before": [one, two],
        "these and the two before": [one, two, window[:, 2:4]],
        f"the token and a bag of the last {WINDOW}": [one, window],
    }


def positions_of(looked_at: LookedAt) -> dict[str, Rule]:
    """Rules on the place of each looked-at token."""

    def joined(values) -> Tensor:
        return torch.cat([values(batch)[here] for batch, here in looked_at])[:, None].long()

    place = joined(lambda batch: batch.position)
    part = joined(lambda batch: batch.segment.long() * 20 + (batch.progress * 20).long().clamp(max=19))
    return {
        "the place": [place],
        "the place in eights": [place // 8],
        "the place by its size": [(place + 1).double().log2().mul(4).long()],
        "the segment and how much of it lies before": [part],
    }


def too_few(given: Given, evaluation: str, label: str, at: str | None, labelled: Labelled | None) -> Iterator[Note]:
    """Yields the sentence on a label that cannot be measured, and one on those that are there: the same whoever asks. No text
    has more of a label whose mark the two models read differently."""
    closing = given.text.manner.layout.closing
    if label == "end_of_thinking" and closing in given.pair.foreign:
        yield Note(
            f"{evaluation} has nothing to measure of '{label}': {closing} is read differently by the two models, and no such token "
            f"is kept (model_pair.foreign={given.pair.foreign_policy})."
        )
        return
    there: Counter[str] = Counter()
    for batch in given.held_out:
        there.update({name: int(flags.sum()) for name, flags in batch.begins.items()})
    said = ", ".join(f"{name} ({count:,})" for name, count in there.most_common() if count)
    halves = labelled.counts() if labelled else [(0, 0, 0)] * 2
    among = f" among '{at}' tokens" if at else ""
    found = " and ".join(
        f"{stretches} in {having} documents, with other tokens in {lacking}" for stretches, having, lacking in halves
    )
    yield Note(
        f"{evaluation} was not measured: the held-out text has too few stretches labelled '{label}'{among}: "
        f"{found}, in the two halves of the questions, and {STRETCHES} of each are needed in either."
    )
    yield Note(
        f"The labelled stretches of the held-out text are {said or 'none'}. More text is read with budget.evaluation_tokens, or "
        f"with tokens of evaluate.py (now {given.tokens:,})."
    )
