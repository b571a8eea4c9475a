"""A causal language model and a micro-batch -> how surprised it is by the tokens it is to learn, in nats.

Cross-entropy in float32, whatever the precision of the matrix products. The head sees the learned positions alone, a
chunk of them at a time, and its logits are computed again in the backward pass: those of a block of 20,000 tokens over
152,064 entries would be 12 GB, and as much again for their gradient. Knows no optimizer and no processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tunediff.models import PreTrainedModel
from tunediff.objectives.heads import cap_of, check_chunk, check_head, logits_of
from tunediff.objectives.pass_losses import PassLosses
from tunediff.schedules import Length
from tunediff.shapes import Refused
from tunediff.text.examples import IGNORED, MicroBatch, Step


class Imitation:
    """Cross-entropy of the learned tokens.

    chunk   number of learned tokens whose logits are held at once
    """

    measures = ("loss",)

    def __init__(self, chunk: int = 1024):
        self.chunk = check_chunk(chunk)

    def check(self, model: PreTrainedModel) -> None:
        """Raises Refused for a model whose logits are more than its head's output."""
        check_head(model)

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
        head = model.get_output_embeddings()
        cap = cap_of(model)
        total = torch.zeros((), device=ids.device)
        for some, wanted in zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True):
            total = total + checkpoint(_nats, head, some, wanted, cap, use_reentrant=False)
        return total, torch.tensor(len(learned), device=ids.device)


def _nats(head: nn.Module, hidden: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    return cross_entropy(logits_of(head, hidden, cap), targets, reduction="sum")
