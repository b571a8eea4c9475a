"""Which latents of a token are active: pre-activations [token, latent] -> latents [token, latent].

A sparsity is handed to a dictionary; it knows no data and no model. Selection and penalties weigh a latent by its
decoder norm summed over the streams' models, so that shrinking a latent and growing its decoder changes nothing
(Lindsey et al. 2024; Minder et al. 2025, arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tunediff import processes
from tunediff.shapes import Refused


class Sparsity(nn.Module):
    """Abstract. `forward` is what a token's latents are outside training: a function of that token alone."""

    has_penalty = False

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        """Latents in training; may depend on the batch. `norms` [latent]; `settings` holds scheduled values (k, l1)."""
        return self(pre, norms)

    def penalty(self, latents: Tensor, norms: Tensor) -> Tensor:
        """Mean over tokens of the sparsity term, before its coefficient."""
        return latents.new_zeros(())

    @torch.no_grad()
    def observe(self, latents: Tensor, norms: Tensor) -> None:
        """Called once a training step with its latents, to keep statistics. Nothing else changes buffers."""

    def scheduled(self, step: int, steps: int) -> dict[str, float]:
        """Values of the sparsity's own schedules at a step."""
        return {}

    def check(self, latents: int) -> None:
        """Raises ValueError where the settings do not fit this many latents."""


class L1(Sparsity):
    """ReLU latents, with coefficient * mean over tokens of sum_i f_i * (norm of decoder row i, summed over models)."""

    has_penalty = True

    def __init__(self, coefficient: float):
        super().__init__()
        if coefficient < 0:
            raise Refused(f"dictionary.sparsity.coefficient={coefficient}: an L1 coefficient is not negative.")
        self.coefficient = coefficient

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        return torch.relu(pre)

    def penalty(self, latents: Tensor, norms: Tensor) -> Tensor:
        return (latents * norms).sum(-1).mean()


class BatchTopK(Sparsity):
    """The k * tokens largest f_i * norm_i of a batch are kept (Bussmann et al. 2024, arXiv 2412.06410; weighted by
    decoder norms as in arXiv 2504.02922).

    Outside training a fixed threshold decides, an exponential mean of the smallest kept value of each batch, so that a
    latent's value never depends on its batch neighbours. k can fall from `k_start` over the first `k_anneal` of the run.
    """

    threshold: Tensor

    def __init__(self, k: int, *, k_start: int | None = None, k_anneal: float = 0.0, threshold_memory: float = 0.99):
        super().__init__()
        if k < 1:
            raise Refused(f"dictionary.sparsity.k={k}: at least one latent a token must be active.")
        if k_anneal > 0 and k_start is None:
            raise Refused(
                f"dictionary.sparsity.k_anneal={k_anneal} has no start: give dictionary.sparsity.k_start, or k_anneal=0."
            )
        if k_start is not None and k_anneal == 0:
            raise Refused(
                f"dictionary.sparsity.k_start={k_start} is never left, because k_anneal is 0: give k_anneal, or k_start=null."
            )
        if k_start is not None and k_start < k:
            raise Refused(f"dictionary.sparsity.k_start={k_start} is below k={k}: k falls, it does not rise.")
        if not 0 <= k_anneal <= 1:
            raise Refused(f"dictionary.sparsity.k_anneal={k_anneal} is not a fraction of the run.")
        self.k, self.k_start, self.k_anneal, self.threshold_memory = k, k_start, k_anneal, threshold_memory
        self.register_buffer("threshold", torch.tensor(-1.0))  # -1: nothing observed yet

    def check(self, latents: int) -> None:
        for name, k in (("k", self.k), ("k_start", self.k_start)):
            if k is not None and k > latents:
                raise Refused(
                    f"dictionary.sparsity.{name}={k} is larger than the dictionary: it has {latents} latents. "
                    f"Lower {name}, or raise dictionary.latents."
                )

    def scheduled(self, step: int, steps: int) -> dict[str, float]:
        if self.k_start is None or step >= self.k_anneal * steps:
            return {"k": float(self.k)}
        return {"k": self.k_start + (self.k - self.k_start) * step / (self.k_anneal * steps)}

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        latents = torch.relu(pre)
        scores = (latents * norms).flatten()
        if processes.count() > 1:  # the k * tokens largest of the whole batch, not of this process's part
            tokens = int(processes.summed(torch.tensor(len(latents), device=pre.device)))
            limit = processes.kth_largest(scores.detach(), round(settings["k"] * tokens))
            return torch.where(latents * norms >= limit, latents, 0.0)
        kept = min(round(settings["k"] * len(latents)), scores.numel())
        chosen = torch.topk(scores, kept, sorted=False).indices
        return torch.zeros_like(latents).flatten().scatter(0, chosen, latents.flatten()[chosen]).view_as(latents)

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        latents = torch.relu(pre)
        return torch.where(latents * norms > self.threshold, latents, 0.0)

    @torch.no_grad()
    def observe(self, latents: Tensor, norms: Tensor) -> None:
        scores = (latents * norms).float()
        smallest = torch.where(scores > 0, scores, torch.inf).min() if len(scores) else scores.new_tensor(torch.inf)
        smallest = processes.smallest(smallest)
        smallest = torch.where(smallest.isinf(), self.threshold, smallest)  # a batch without an active latent
        memory = torch.where(self.threshold < 0, 0.0, self.threshold_memory)
        self.threshold.copy_(memory * self.threshold + (1 - memory) * smallest)
