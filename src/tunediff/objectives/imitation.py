"""A causal language model and a micro-batch -> how surprised it is by the tokens it is to learn, in nats.

Cross-entropy in float32, whatever the precision of the matrix products. The head sees the learned positions alone, a
block of them at a time, and its logits are computed again in the backward pass: those of a sequence of 20,000 tokens over
152,064 entries would be 12 GB, and as much again for their gradient. Knows no optimizer and no processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tunediff.models import LOGITS_MB, Head, PreTrainedModel, head_of
from tunediff.objectives.pass_losses import PassLosses
from tunediff.schedules import Length
from tunediff.shapes import Refused
from tunediff.text.examples import IGNORED, MicroBatch, Step

MATRICES = 4  # [token, vocabulary] held at once: log-probabilities, two gradients on their way to the head, a cap


class Imitation:
    """Cross-entropy of the learned tokens.

    logits_mb   10^6 bytes of float32 logits that are held at once, with their gradient
    """

    measures = ("loss",)

    def __init__(self, logits_mb: float = LOGITS_MB):
        self.logits_mb = logits_mb

    def check(self, model: PreTrainedModel) -> None:
        """Raises Refused for a model that computes its logits otherwise than `head_of` knows."""
        head_of(model)

    def terms(self, step: int, length: Length, seed: int) -> Sequence[None]:
        """Forward passes of a micro-batch, each with a backward pass of its own: there is one."""
        return [None]

    def part(self, model: PreTrainedModel, micro_batch: MicroBatch, term: None, of: Step) -> PassLosses:
        nats = self.loss_sum(model, micro_batch)[0] / of.learned
        return PassLosses(nats, {"loss": nats.detach()})

    def held_out(self, model: PreTrainedModel, micro_batch: MicroBatch, of: Step) -> Tensor:
        return self.part(model, micro_batch, None, of).loss

    def settle(self, model: PreTrainedModel) -> None:
        """Does nothing: there are no statistics."""

    def state(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Tensors that it carries from step to step besides the weights: none."""
        return {}

    def loss_sum(self, model: PreTrainedModel, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats summed over the learned tokens, and their number. It depends on all weights, also where no
        token is learned."""
        ids, positions, labels = micro_batch
        fresh = (positions[:, 1:] == 0).any()
        if len(ids) > 1 and "flash" in (model.config._attn_implementation or "") and fresh:
            raise Refused("Flash attention knows packed documents only one sequence at a time: set micro_batch=1.")
        output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        learned = (labels.flatten() != IGNORED).nonzero()[:, 0]
        hidden, targets = output.last_hidden_state.flatten(0, 1)[learned], labels.flatten()[learned]
        head = head_of(model)
        rows = head.rows(self.logits_mb, MATRICES)
        total = torch.zeros((), device=ids.device)
        for some, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            total = total + checkpoint(_nats, head, some, wanted, use_reentrant=False)
        return total, torch.tensor(len(learned), device=ids.device)


def _nats(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(hidden), targets, reduction="sum")
