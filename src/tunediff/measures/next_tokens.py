"""Two models' predictions of held-out text -> how far their next tokens are apart, and what each costs.

At the kept tokens alone is anything compared, each predicted from the position before it, in float32, and a block of them at
a time: what is given are last hidden vectors. Knows neither what was changed between the two nor why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.models import LOGITS_MB, Head, ModelPair
from tunediff.text import Batch

MATRICES = (
    4  # [row, vocabulary] of a block that are held at once: two predictions, and two on the way to their divergence
)


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
    entry, places, device = pair.entry(role), pair.read_at(role, batch), pair.device(role)
    ids = batch.ids[entry].flatten()
    scored = places % batch.ids[entry].shape[1] > 0
    here = places[scored]
    return Predicted((here - 1).to(device), ids[here].to(device), batch.document[scored], scored)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [token] in nats, from log-probabilities [token, vocabulary]; exactly 0 for equal ones."""
    return log_p.exp().mul_(log_p - log_q).sum(-1)


def cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [token] of the targets [token] in nats, from log-probabilities [token, vocabulary]."""
    return -log_p.gather(1, targets[:, None])[:, 0]


def cross_entropies(head: Head, hidden: Tensor, targets: Tensor, *, logits_mb: float = LOGITS_MB) -> Tensor:
    """Cross-entropy [token] of the targets [token] in nats, from last hidden vectors [token, width]."""
    rows = head.rows(logits_mb, MATRICES)
    each = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([cross_entropy(head(some).log_softmax(-1), wanted) for some, wanted in each])


def compared(
    head: Head,
    full: Tensor,
    changed: Sequence[Tensor],
    targets: Tensor,
    *,
    reverse: bool = False,
    logits_mb: float = LOGITS_MB,
) -> Tensor:
    """KL(full || changed), with `reverse` KL(changed || full), and the cross-entropy under changed of each token,
    [changed, token, 2 or 3] in float32 on the host, from the last hidden vectors [token, width] of each. A block of rows of
    `full` is compared with that of every other before the next is computed."""
    rows, found = head.rows(logits_mb, MATRICES), []
    for wanted, one, *others in zip(*(each.split(rows) for each in (targets, full, *changed)), strict=True):
        log_p, columns = head(one).log_softmax(-1), []
        for hidden, other in zip(changed, others, strict=True):
            log_q = log_p if hidden is full else head(other).log_softmax(-1)
            taken = [kl(log_p, log_q), *([kl(log_q, log_p)] if reverse else []), cross_entropy(log_q, wanted)]
            columns.append(torch.stack(taken, dim=-1).cpu())
            del log_q
        del log_p
        found.append(torch.stack(columns))
    return torch.cat(found, dim=1)
