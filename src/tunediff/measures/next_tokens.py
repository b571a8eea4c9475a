"""Two models' predictions of held-out text -> how far their next tokens are apart, and what each costs.

At the kept tokens alone is anything compared, each predicted from the position before it, in float32. Knows neither what
was changed between the two nor why.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.models import ModelPair
from tunediff.text import Batch

AT_ONCE = 2**24  # logits that are compared at once: 110 tokens of a vocabulary of 152,000


class Predicted(NamedTuple):
    """The kept tokens that are not the first of their sequence.

    before      [scored] places among batch x position that they are predicted from
    targets     [scored] ids of the tokens
    documents   [scored] documents of the tokens
    scored      [token] mask of these among the kept tokens
    """

    before: Tensor
    targets: Tensor
    documents: Tensor
    scored: Tensor


def predicted(pair: ModelPair, role: str, batch: Batch) -> Predicted:
    """The tokens as the model with this role reads them, on its device."""
    entry, places = pair.entry(role), pair.places(role, batch)
    ids = batch.ids[entry].flatten()
    scored = batch.places[entry] % batch.ids[entry].shape[1] > 0
    before = places[scored.to(places.device)] - 1
    return Predicted(before, ids[batch.places[entry][scored]].to(places.device), batch.document[scored], scored)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [token] in nats, from log-probabilities [token, vocabulary]; exactly 0 for equal ones."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [token] of the targets [token] in nats, from log-probabilities [token, vocabulary]."""
    return -log_p.gather(1, targets[:, None])[:, 0]


def compared(full: Tensor, ablated: Tensor, targets: Tensor) -> Tensor:
    """KL(full || ablated), KL(ablated || full) and the cross-entropy under ablated of each token, [token, 3] in float32, of
    the logits [token, vocabulary] of both."""
    rows = max(1, AT_ONCE // full.shape[1])
    found = []
    for kept, changed, target in zip(full.split(rows), ablated.split(rows), targets.split(rows), strict=True):
        kept, changed = kept.log_softmax(-1), changed.log_softmax(-1)
        found.append(torch.stack([kl(kept, changed), kl(changed, kept), cross_entropy(changed, target)], dim=-1))
    return torch.cat(found)
