"""Two models' logits on held-out text -> how far their next tokens are apart, summed over the tokens of every document.

At the kept tokens alone is anything compared, each predicted from the position before it, in float32. Knows neither what
was changed between the two nor why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.models import ModelPair
from tunediff.text import Batch

AT_ONCE = 2**24  # logits that are compared at once: 110 tokens of a vocabulary of 152,000


class Predicted(NamedTuple):
    """The kept tokens that something stands before.

    before   [token] places among batch x position of what they are predicted from      targets   [token] their ids
    documents   [token]
    """

    before: Tensor
    targets: Tensor
    documents: Tensor


def predicted(pair: ModelPair, role: str, batch: Batch) -> Predicted:
    """As one model reads them, where that model is."""
    entry, places = pair.entry(role), pair.places(role, batch)
    ids = batch.ids[entry].flatten()
    scored = batch.places[entry] % batch.ids[entry].shape[1] > 0
    before = places[scored.to(places.device)] - 1
    return Predicted(before, ids[batch.places[entry][scored]].to(places.device), batch.document[scored])


def by_document(rows: Tensor, documents: Tensor) -> dict[int, Tensor]:
    """Sums [column] of the rows [token, column] of each document."""
    return {document: rows[documents == document].sum(0) for document in documents.unique().tolist()}


def merge(found: dict[int, Tensor], more: Mapping[int, Tensor]) -> None:
    """Adds the sums of documents, of which one may go on in the next batch."""
    for document, part in more.items():
        found[document] = found[document] + part if document in found else part


def compared(full: Tensor, ablated: Tensor, targets: Tensor) -> Tensor:
    """Of each token KL(full || ablated), KL(ablated || full) and the cross-entropy under ablated, [token, 3] in float32, of the
    logits [token, vocabulary] of both; equal ones give exactly 0."""
    rows = max(1, AT_ONCE // full.shape[1])
    found = []
    for kept, changed, target in zip(full.split(rows), ablated.split(rows), targets.split(rows), strict=True):
        kept, changed = kept.log_softmax(-1), changed.log_softmax(-1)
        apart = kept - changed
        forward, backward = (kept.exp() * apart).sum(-1), -(changed.exp() * apart).sum(-1)
        found.append(torch.stack([forward, backward, -changed.gather(1, target[:, None])[:, 0]], dim=-1))
    return torch.cat(found)
