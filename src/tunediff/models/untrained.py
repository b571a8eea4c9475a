"""A pair -> the same pair as if it had learnt nothing: every weight at another place of its tensor.

The sizes of the weights stay, layer by layer, and what they compute is gone: the yardstick for whatever is found in a model
(Heap et al. 2025, arXiv 2501.17727). Both models are permuted alike, so that they differ as little as they did.
"""

from __future__ import annotations

import copy

import torch

from tunediff import randomness
from tunediff.models.pair import ModelPair


@torch.no_grad()
def untrained(pair: ModelPair) -> ModelPair:
    """Another pair, with models of its own; the weights of the given one stay as they are."""
    other, made = copy.copy(pair), {}
    for model in pair.models.values():
        if id(model) in made:
            continue
        made[id(model)] = copied = copy.deepcopy(model)
        for name, weights in copied.named_parameters():
            generator = randomness.generator(0, "untrained model", name)
            order = torch.randperm(weights.numel(), generator=generator).to(weights.device)
            weights.copy_(weights.flatten()[order].view_as(weights))
    other.models = {role: made[id(model)] for role, model in pair.models.items()}
    return other
