"""A dictionary and rows -> the losses of one training step: reconstruction, difference, sparsity penalty, AuxK.

All terms are taken in normalised units and in float32, whatever the precision of the matrix products. Knows no
optimizer, no logger and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.dictionary import Crosscoder
from tunediff.schedules import Constant, Length, Schedule
from tunediff.shapes import BASE, TUNED, Refused, Rows, Stream


class Losses(NamedTuple):
    """`total` is what is differentiated: the sum of `terms`, each already weighted.

    fired [latent] bool, l0   which latents were active in the batch, and how many a token. The latents themselves are
                 not kept, so that the backward pass can let go of them
    error [token, width]   what they leave of the batch, in normalised units"""

    total: Tensor
    terms: dict[str, Tensor]
    fired: Tensor
    l0: Tensor
    error: Tensor


class Reconstruction:
    """Reconstruction error of a crosscoder.

    squared      true: sum over streams and width of (x - x_hat)^2, mean over tokens (Lindsey et al. 2024; Kissane 2024)
                 false: norm of x - x_hat, mean over tokens and streams (Minder et al. 2025; mitroitskii 2025)
    aux_weight   weight of AuxK: the detached error is reconstructed by the `aux_latents` most active of the dead latents
                 (Gao et al. 2024, arXiv 2406.04093, section A.2); taken as the same kind of error, so that its size
                 against the reconstruction does not depend on the scale of the activations
    aux_latents  null: half the width
    aux_schedule factor of aux_weight over the run
    dead_after   tokens without firing after which a latent counts as dead
    look_every   steps between two looks at which latents are dead; a look waits for the device
    difference_weight   weight of |(x_tuned - x_base) - (x_hat_tuned - x_hat_base)|^2, which asks for what differs between
                 the models beyond what each one's own error asks (the idea of Delta-Crosscoder, arXiv 2603.04426)
    """

    def __init__(
        self,
        *,
        squared: bool = True,
        aux_weight: float = 1 / 32,
        aux_latents: int | None = None,
        aux_schedule: Schedule = Constant(),  # noqa: B008 (a frozen dataclass)
        dead_after: int = 10_000_000,
        look_every: int = 10,
        difference_weight: float = 0.0,
    ):
        for name, weight in (("aux_weight", aux_weight), ("difference_weight", difference_weight)):
            if weight < 0:
                raise Refused(f"dictionary.objective.{name}={weight}: a weight is not negative.")
        if look_every < 1:
            raise Refused(f"dictionary.objective.look_every={look_every}: give a number of steps from 1.")
        self.squared, self.difference_weight = squared, difference_weight
        self.aux_weight, self.aux_latents, self.aux_schedule = aux_weight, aux_latents, aux_schedule
        self.dead_after, self.look_every = dead_after, look_every

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {"aux": self.aux_schedule(step, length)} if self.aux_weight > 0 else {}

    def check(self, streams: Sequence[Stream]) -> None:
        """Raises Refused where a term needs streams that are not read."""
        widths = [[stream.width for stream in streams if stream.role == role] for role in (BASE, TUNED)]
        if self.difference_weight > 0 and (widths[0] != widths[1] or not widths[0]):
            raise Refused(
                f"dictionary.objective.difference_weight={self.difference_weight} needs both models, with equal widths; "
                f"here the base is read with {widths[0]}, the tuned model with {widths[1]}. Set it to 0."
            )

    def __call__(self, dictionary: Crosscoder, rows: Rows, *, dead: Tensor, settings: Mapping[str, float]) -> Losses:
        """`dead` [n]: the numbers of the dead latents; `settings` holds this step's scheduled values."""
        with torch.no_grad():
            target = dictionary.normalisation.normalise(*rows)
        penalised = dictionary.sparsity.has_penalty
        with torch.set_grad_enabled(penalised and torch.is_grad_enabled()):
            norms = dictionary.code_norms()
        codes = dictionary.code(target, norms, settings)
        penalties = {}  # before the reconstruction, so that their gradient is added to that of the latents in place
        if penalised:
            weights = 1.0
            if dictionary.partition is not None:
                weights = dictionary.partition.weights(settings["tied_penalty"], dictionary.latents, target.device)
            penalties = dictionary.sparsity.penalties(codes, norms, weights, settings)
        errors = [target - restored for restored in dictionary.reconstructions(codes)]
        terms = {"reconstruction": sum(self.size(error, dictionary.widths) for error in errors) / len(errors)}
        error = errors[-1]
        if self.difference_weight > 0:
            terms["difference"] = self.difference_weight * difference(error, dictionary.streams)
        terms |= penalties
        if self.aux_weight > 0:
            weight = self.aux_weight * settings.get("aux", 1.0)
            terms["auxk"] = weight * self.aux(dictionary, target, error.detach(), dead)
        return Losses(sum(terms.values()), terms, codes.fired(), codes.l0(), error.detach())

    def size(self, error: Tensor, widths: list[int]) -> Tensor:
        if self.squared:
            return error.square().sum(-1).mean()
        return torch.stack([piece.norm(dim=-1).mean() for piece in error.split(widths, dim=-1)]).mean()

    def aux(self, dictionary: Crosscoder, target: Tensor, error: Tensor, dead: Tensor) -> Tensor:
        """Size of what the dead latents leave of the error; 0 while none is dead."""
        if len(dead) == 0:
            return error.new_zeros(())
        count = min(self.aux_latents or error.shape[1] // 2, len(dead))
        restored = dictionary.code_of(dead, target, count).decode(dictionary.W_dec.index_select(0, dead))
        return self.size(error - restored.float(), dictionary.widths)


def difference(error: Tensor, streams: Sequence[Stream]) -> Tensor:
    """Mean over tokens of |error_tuned - error_base|^2, summed over layers: the error of the reconstructed difference,
    since (t - b) - (t_hat - b_hat) = (t - t_hat) - (b - b_hat)."""
    pieces = error.split([stream.width for stream in streams], dim=-1)
    base, tuned = ([p for p, s in zip(pieces, streams, strict=True) if s.role == role] for role in (BASE, TUNED))
    return sum((t - b).square().sum(-1).mean() for b, t in zip(base, tuned, strict=True))
