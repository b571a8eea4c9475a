"""A sparsity says which latents of a token are active: pre-activations [token, latent] -> latents [token, latent].

A sparsity is handed to a dictionary; it knows no data and no model. Selection and penalties weigh a latent by its code
norm, as a rule its decoder norm summed over the streams, so that shrinking a latent and growing its decoder changes
nothing (Lindsey et al. 2024; Minder et al. 2025, arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tunediff import processes
from tunediff.dictionary.codes import Codes, DenseCodes, Screened, SparseCodes
from tunediff.schedules import Anneal, Length, Schedule
from tunediff.shapes import Refused


class Sparsity(nn.Module):
    """Abstract. `forward` gives the latents of a token outside training, a function of that token alone.

    has_penalty   true if there is a term for l1_schedule to scale
    keeps_pre     true if the penalty reads pre-activations; else `select` may overwrite them
    few           true if so few latents are active that their codes can be kept sparse
    prefixes      ends of the nested dictionaries as shares of the latents; each of them must reconstruct alone
    """

    has_penalty = False
    keeps_pre = False
    few = False
    prefixes: Sequence[float] = (1.0,)

    def prepare(self, latents: int, *, shared: int = 0, width: int = 1) -> None:
        """Creates the parameters of each latent, of which the first `shared` are those of both models by a partition. The
        error is a sum over `width` numbers of order 1 for each stream; 1 where it is of another kind. Raises Refused where
        the settings do not fit these numbers."""

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        """Latents [token, latent] in training, which may depend on the whole batch. `norms` [latent] are code norms;
        `settings` holds the scheduled values of the step (k, l1)."""
        return self(pre, norms)

    def select_sparse(self, screened: Screened, norms: Tensor, settings: Mapping[str, float]) -> SparseCodes:
        """The selection of `select` as sparse codes; called only where `few` is true."""
        raise NotImplementedError

    def penalties(
        self, codes: Codes, norms: Tensor, weights: Tensor | float, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Sparsity terms of the loss, each with its coefficient; `weights` [latent] scale the penalty of each latent."""
        return {}

    def settle(self) -> None:
        """Called once after a training step to update statistics. Nothing else changes buffers."""

    def edge(self) -> Tensor | float:
        """Initial threshold on a pre-activation: above it the latent is active."""
        return 0.0

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        """Values of the sparsity's own schedules at a step."""
        return {}

    def schedules(self) -> dict[str, Schedule]:
        """The sparsity's own schedules, by their names in the config."""
        return {}

    def observed(self) -> dict[str, Tensor]:
        """Further numbers for the training curves, by name."""
        return {}


def _coefficient(name: str, value: float) -> float:
    if value < 0:
        raise Refused(f"dictionary.sparsity.{name}={value}: a coefficient is not negative.")
    return value


def weighted_l1(sizes: Tensor, weights: Tensor) -> Tensor:
    """Mean over tokens of sum_i sizes_i * weights_i, computed as sum_i of (mean_t sizes_ti) * weights_i, which needs no
    second matrix [token, latent]."""
    return (sizes.sum(0) / max(len(sizes), 1) * weights).sum()


class _Relu(torch.autograd.Function):
    """ReLU that keeps only a mask for the backward pass. torch's own keeps all latents until their gradient is taken."""

    @staticmethod
    def forward(ctx, pre: Tensor) -> Tensor:
        ctx.save_for_backward(pre <= 0)
        return torch.relu(pre)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (gradient,), (silent,) = grad_outputs, ctx.saved_tensors
        return gradient.masked_fill(silent, 0.0)


class Penalised(Sparsity):
    """Abstract: has a penalty, times the coefficient."""

    has_penalty = True

    def __init__(self, coefficient: float):
        super().__init__()
        self.coefficient = _coefficient("coefficient", coefficient)


class L1(Penalised):
    """ReLU latents, with coefficient * mean over tokens of sum_i f_i * (norm of decoder row i, summed over streams)."""

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        return torch.relu(pre)

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        # a compiled loss keeps what its compiler chooses
        return torch.relu(pre) if torch.compiler.is_compiling() else _Relu.apply(pre)

    def penalties(
        self, codes: Codes, norms: Tensor, weights: Tensor | float, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {"l1": self.coefficient * settings["l1"] * weighted_l1(codes.dense(), norms * weights)}


class Linear(Penalised):
    """Latents without a nonlinearity, of either sign, and coefficient * mean over tokens of sum_i |f_i| * norm_i."""

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        return pre

    def penalties(
        self, codes: Codes, norms: Tensor, weights: Tensor | float, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        return {"l1": self.coefficient * settings["l1"] * weighted_l1(codes.dense().abs(), norms * weights)}


class JumpReLU(Penalised):
    """f = pre where pre > exp(t), else 0, with a threshold t for each latent that learns through a straight-through
    estimator (Anthropic, Circuits Updates January 2025, "Dictionary Learning Optimization Techniques"):

        d f / d t  = -exp(t) / bandwidth   where |pre - exp(t)| < bandwidth / 2
        penalty    = coefficient * width * sum_i tanh(steepness * f_i * norm_i)
                     + pre_activation * sum_i relu(exp(t_i) - pre_i) * norm_i       which revives latents that never fire

    Differs from the update, whose penalty has no width. The squared error of activations of norm sqrt(width) grows with the
    width, and an active latent pays at most the factor of its tanh: the published 10 is a small share of the error in a
    model that is thousands wide, and more than most latents can explain in one of 64 or 96. Times the width, the coefficient
    is the share of a model's squared norm that a latent has to explain. 0.0039, which gives 10 at 2,560, is ours, by planted
    pairs; the widths behind the published 10 are not known. With normalisation=none choose your own.
    """

    keeps_pre = True

    def __init__(
        self,
        coefficient: float,
        *,
        steepness: float = 4.0,
        bandwidth: float = 2.0,
        pre_activation: float = 3e-6,
        log_threshold: float = 0.1,
    ):
        super().__init__(coefficient)
        self.pre_activation = _coefficient("pre_activation", pre_activation)
        if not bandwidth > 0:
            raise Refused(f"dictionary.sparsity.bandwidth={bandwidth}: give a width above 0.")
        self.steepness, self.bandwidth, self.start = steepness, bandwidth, log_threshold

    def prepare(self, latents: int, *, shared: int = 0, width: int = 1) -> None:
        self.log_threshold, self.width = nn.Parameter(torch.full((latents,), float(self.start))), width

    def edge(self) -> Tensor | float:
        return self.log_threshold.detach().exp()

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        t = self.log_threshold
        threshold = t.detach().exp()
        near = (pre.detach() - threshold).abs() < self.bandwidth / 2
        straight_through = near * (-threshold / self.bandwidth) * (t - t.detach())  # zero, but for its gradient
        return torch.where(pre > threshold, pre, 0.0) + straight_through

    def penalties(
        self, codes: Codes, norms: Tensor, weights: Tensor | float, settings: Mapping[str, float]
    ) -> dict[str, Tensor]:
        assert isinstance(codes, DenseCodes) and codes.pre is not None, "keeps_pre asks for dense pre-activations"
        tokens = max(len(codes.latents), 1)
        steep = torch.tanh(self.steepness * codes.latents * norms).sum(0) / tokens
        below = torch.relu(self.log_threshold.exp() - codes.pre).sum(0) / tokens
        return {
            "tanh": self.coefficient * self.width * settings["l1"] * (steep * weights).sum(),
            "pre_activation": self.pre_activation * (below * norms).sum(),
        }


class TopK(Sparsity):
    """Keeps the k latents of each token with the largest f_i * norm_i (Gao et al. 2024, arXiv 2406.04093), in training and
    outside it."""

    few = True

    def __init__(self, k: int, *, k_schedule: Schedule = Anneal(5.0, 0.1)):  # noqa: B008 (a frozen dataclass)
        super().__init__()
        if k < 1:
            raise Refused(f"dictionary.sparsity.k={k}: at least one latent a token must be active.")
        self.k, self.k_schedule = k, k_schedule

    def prepare(self, latents: int, *, shared: int = 0, width: int = 1) -> None:
        if self.k > latents:
            raise Refused(
                f"dictionary.sparsity.k={self.k} is larger than the dictionary: it has {latents} latents. "
                "Lower k, or raise dictionary.latents."
            )
        self.latents = latents

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {"k": float(min(round(self.k * self.k_schedule(step, length)), self.latents))}

    def schedules(self) -> dict[str, Schedule]:
        return {"k_schedule": self.k_schedule}

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        return self.select(pre, norms, {"k": self.k})

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        return strongest(torch.relu(pre), norms, int(settings["k"]))

    def select_sparse(self, screened: Screened, norms: Tensor, settings: Mapping[str, float]) -> SparseCodes:
        return screened.strongest(norms, int(settings["k"]))


def strongest(latents: Tensor, norms: Tensor, k: int) -> Tensor:
    """Latents [token, latent] with all but the k largest latents * norms of each token set to zero."""
    chosen = (latents * norms).topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(latents).scatter(-1, chosen, latents.gather(-1, chosen))


class BatchTopK(TopK):
    """Keeps the k * tokens largest f_i * norm_i of a batch, and whatever equals the smallest of them (Bussmann et al. 2024,
    arXiv 2412.06410; weighted by decoder norms as in arXiv 2504.02922).

    Outside training a fixed threshold decides, an exponential mean of the smallest kept value of each batch, so that a
    latent's value never depends on its batch neighbours.

    threshold_memory   decay of that mean. Public trainers take 0.99 or 0.999, which lag while the learning rate cools
                 down, so that fewer latents pass than were trained
    k_schedule   factor of k over the run; Anneal(start, over) lets it fall to k, from all latents at most
    relu         false: a latent keeps its sign, and may be negative where too few are positive (arXiv 2511.06739's SAE)
    prefixes     shares of the latents that must reconstruct alone, in rising order up to 1 (Matryoshka; Bussmann et al.
                 2025, arXiv 2503.17547)
    """

    threshold: Tensor

    def __init__(
        self,
        k: int,
        *,
        k_schedule: Schedule = Anneal(5.0, 0.1),  # noqa: B008 (a frozen dataclass)
        threshold_memory: float = 0.95,
        relu: bool = True,
        prefixes: Sequence[float] = (1.0,),
    ):
        super().__init__(k, k_schedule=k_schedule)
        if list(prefixes) != sorted(prefixes) or not prefixes or prefixes[0] <= 0 or prefixes[-1] != 1:
            raise Refused(
                f"dictionary.sparsity.prefixes={list(prefixes)}: give rising shares of the latents that end with 1."
            )
        if not 0 <= threshold_memory < 1:
            raise Refused(f"dictionary.sparsity.threshold_memory={threshold_memory}: give a decay from 0 to below 1.")
        self.threshold_memory, self.relu, self.prefixes = threshold_memory, relu, list(prefixes)
        self.register_buffer("threshold", torch.tensor(-torch.inf))  # nothing observed yet
        self.limit: Tensor | None = None  # smallest kept score of the last batch

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {"k": min(self.k * self.k_schedule(step, length), float(self.latents))}

    def forward(self, pre: Tensor, norms: Tensor) -> Tensor:
        latents = torch.relu(pre) if self.relu else pre
        return torch.where(latents * norms > self.threshold, latents, 0.0)

    def select(self, pre: Tensor, norms: Tensor, settings: Mapping[str, float]) -> Tensor:
        latents = torch.relu(pre) if self.relu else pre
        scores = latents.detach() * norms
        tokens = len(scores)
        if processes.count() > 1:  # the k * tokens largest of the whole batch, not of this process's part
            tokens = int(processes.summed(torch.tensor(tokens, device=pre.device)))
        kept = round(settings["k"] * tokens)
        self.limit = processes.kth_largest(scores.flatten(), kept)
        if self.relu:  # fewer may be positive
            self.limit = torch.where(self.limit > 0, self.limit, self._smallest_positive(scores))
        return torch.where(scores >= self.limit, latents, 0.0)

    def select_sparse(self, screened: Screened, norms: Tensor, settings: Mapping[str, float]) -> SparseCodes:
        """The selection of `select`, without a ranking of all pre-activations."""
        # The limit is known only after a ranking, but it changes little from one batch to the next. So pass whatever lies
        # above a bar a little below the last limit (for the first batch, below that of a few rows) and rank those few.
        # If fewer than asked for have passed, the bar was too high, and the product is taken again with a lower one.
        kept = round(settings["k"] * len(screened.rows))
        guess = screened.limit_of_first_rows(norms, settings["k"]) if self.limit is None else float(self.limit)
        lowest = 0.0 if self.relu else -torch.inf
        first, *lower = (0.8 * guess, 0.4 * guess, lowest) if 0 < guess < torch.inf else (lowest,)
        reach = norms.clamp(min=1e-12)
        found = screened.above(first / reach)
        while len(found.places) < kept and lower:
            found = screened.above(lower.pop(0) / reach)
        scores = found.values * norms[found.places.latent]
        if len(scores) > kept:
            self.limit = scores.topk(kept, sorted=False).values.min()
        else:
            self.limit = scores.min() if len(scores) else scores.new_tensor(torch.inf)
        return found.those(scores >= self.limit)

    def _smallest_positive(self, scores: Tensor) -> Tensor:
        positive = torch.where(scores > 0, scores, torch.inf)
        # a process may hold no part of a batch
        return processes.smallest(positive.min() if len(scores) else scores.new_tensor(torch.inf))

    @torch.no_grad()
    def settle(self) -> None:
        assert self.limit is not None, "settle follows a selection"
        limit = torch.where(self.limit.isinf(), self.threshold, self.limit)  # a batch without an active latent
        moved = self.threshold_memory * self.threshold + (1 - self.threshold_memory) * limit
        self.threshold.copy_(torch.where(self.threshold.isinf(), limit, moved))

    def observed(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}
