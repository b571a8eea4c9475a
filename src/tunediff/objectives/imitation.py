"""A causal language model and a micro-batch -> how surprised it is by the tokens it is to learn, in nats.

Cross-entropy in float32, whatever the precision of the matrix products. The head sees the learned positions alone, a
chunk of them at a time, and its logits are computed again in the backward pass: those of a block of 20,000 tokens over
152,064 entries would be 12 GB, and as much again for their gradient. Knows no optimizer and no processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tunediff.shapes import Refused
from tunediff.text.examples import IGNORED, MicroBatch

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # Cohere, Granite, Falcon-H1 scale after the head


class Imitation:
    """chunk   learned tokens whose logits are held at once"""

    def __init__(self, chunk: int = 4096):
        if chunk < 1:
            raise Refused(f"objective.chunk={chunk}: give a number of tokens from 1.")
        self.chunk = chunk

    def check(self, model: nn.Module) -> None:
        """Raises Refused for a model whose logits are more than its head's output and a soft cap (Gemma 2)."""
        config = model.config.get_text_config()
        found = {name: getattr(config, name) for name in SCALES if getattr(config, name, None) not in (None, 1.0)}
        if model.get_output_embeddings() is None or found:
            why = f"scales its logits ({found})" if found else "has no output embeddings"
            raise Refused(f"{type(model).__name__} {why}, which fine-tuning does not follow: choose another model.")

    def loss_sum(self, model: nn.Module, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Nats summed over the learned tokens, and how many they are. Depends on all weights, also with no such token."""
        ids, positions, labels = micro_batch
        fresh = (positions[:, 1:] == 0).any()
        if len(ids) > 1 and "flash" in (model.config._attn_implementation or "") and fresh:
            raise Refused("Flash attention knows packed documents only one sequence at a time: set micro_batch=1.")
        output = model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
        learned = (labels.flatten() != IGNORED).nonzero()[:, 0]
        hidden, targets = output.last_hidden_state.flatten(0, 1)[learned], labels.flatten()[learned]
        head = model.get_output_embeddings()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        total = torch.zeros((), device=ids.device)
        for some, wanted in zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True):
            total = total + checkpoint(_nats, head, some, wanted, cap, use_reentrant=False)
        return total, torch.tensor(len(learned), device=ids.device)


def _nats(head: nn.Module, hidden: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    logits = head(hidden).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return cross_entropy(logits, targets, reduction="sum")
