"""Dead latents begin anew at tokens that the dictionary still reconstructs badly (Bricken et al. 2023, "Towards Monosemanticity", appendix).

At set steps every dead latent takes as its decoder row the reconstruction error of a token of the batch, drawn with a
chance in proportion to the squared loss there; its encoder is that direction at a fifth of the living encoders' norm, its
bias and its moments in the optimizer are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tunediff import processes, randomness
from tunediff.dictionary import Crosscoder, LearningDictionary
from tunediff.schedules import Length, Span, steps_of
from tunediff.shapes import Refused


@dataclass(frozen=True)
class Resampling:
    """Resamples dead latents of a Crosscoder.

    every, until   span of the run between two resamplings, and up to the last
    encoder_norm   norm of a new encoder as a share of the mean norm of the living ones
    """

    every: Span = 0.1
    until: Span = 0.5
    encoder_norm: float = 0.2

    def check(self, length: Length, dictionary: LearningDictionary) -> None:
        """Raises Refused for spans that do not fit the run, and for a dictionary with other weights than a crosscoder's."""
        if not isinstance(dictionary, Crosscoder):
            raise Refused(
                f"optimizer.resampling writes into the weights of a Crosscoder, and {type(dictionary).__name__} is none: set "
                "optimizer.resampling=null."
            )
        if dictionary.frozen is not None:
            raise Refused(
                f"optimizer.resampling moves what dictionary.frozen={dictionary.frozen} holds: set optimizer.resampling=null."
            )
        if round(steps_of("optimizer.resampling.every", self.every, length)) < 1:
            raise Refused(f"optimizer.resampling.every={self.every} is less than a step.")
        steps_of("optimizer.resampling.until", self.until, length)

    def due(self, step: int, length: Length) -> bool:
        every = round(steps_of("every", self.every, length))
        return step > 0 and step % every == 0 and step <= steps_of("until", self.until, length)

    @torch.no_grad()
    def apply(
        self, dictionary: LearningDictionary, dead: Tensor, error: Tensor, optimizer: torch.optim.Optimizer, step: int
    ) -> None:
        """Resamples the latents with the indices `dead` [n], by the reconstruction error [token, width] of this step."""
        assert isinstance(dictionary, Crosscoder), "see check"
        if len(dead) == 0:
            return
        # A new decoder row gets the mean norm of the living ones, so that selection and penalty weigh it like them. Its
        # encoder stays short, so that it fires on few tokens at first and does not disturb what is learned. Adam's moments
        # belong to the latent that was there before: they would push the new one in the old direction.
        rows = directions(error, len(dead), randomness.generator(0, "resampled latents", step))
        processes.take_from_first(rows)  # all take what it drew
        living = torch.ones(dictionary.latents, dtype=torch.bool, device=dead.device)
        living[dead] = False
        norm = dictionary.W_dec[living].norm(dim=-1).mean() if living.any() else dictionary.W_dec.norm(dim=-1).mean()
        encoder_norm = dictionary.encoder[:, living].norm(dim=0).mean() if living.any() else norm
        dictionary.W_dec[dead] = norm * rows
        if not dictionary.is_tied:
            dictionary.W_enc[:, dead] = (self.encoder_norm * encoder_norm * rows).T
        dictionary.b_enc[dead] = 0
        if dictionary.partition is not None:
            dictionary.partition.forbid(None if dictionary.is_tied else dictionary.W_enc, dictionary.W_dec)
            dictionary.partition.tie(dictionary.W_dec)
        for name in ("exp_avg", "exp_avg_sq"):
            for parameter in (dictionary.W_dec, dictionary.b_enc):
                optimizer.state[parameter][name][dead] = 0
            if not dictionary.is_tied:
                optimizer.state[dictionary.W_enc][name][:, dead] = 0


def directions(error: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Directions [count, width] of norm 1: errors of tokens drawn by their squared loss; random where there is no token."""
    if len(error) == 0:  # a process may hold no part of a batch
        drawn = torch.randn(count, error.shape[1], generator=generator).to(error)
    else:
        chance = error.square().sum(-1).square().cpu().clamp(min=1e-30)
        chosen = torch.multinomial(chance, count, replacement=count > len(error), generator=generator)
        drawn = error[chosen.to(error.device)]
    return torch.nn.functional.normalize(drawn, dim=-1)
