"""A dictionary and rows -> the losses of one training step: reconstruction error, sparsity penalties, and further terms.

All terms are taken in normalised units and in float32, whatever the precision of the matrix products. Knows no
optimizer, no logger and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tunediff.dictionary import LearningDictionary
from tunediff.objectives.terms import Term, TermInputs
from tunediff.schedules import Length, Schedule
from tunediff.shapes import Refused, Rows

TAKEN = ("total", "reconstruction", "l1", "tanh", "pre_activation", "k", "k_shared", "learning_rate", "tied_penalty")


class Losses(NamedTuple):
    """Losses of one step; `total`, which is differentiated, is the sum of `terms`, each already weighted.

    fired   mask [latent] of the latents that were active in the batch. The latents themselves are not kept, so that the
            backward pass can let go of them
    l0      mean number of active latents per token
    error   reconstruction error [token, width] in normalised units
    """

    total: Tensor
    terms: dict[str, Tensor]
    fired: Tensor
    l0: Tensor
    error: Tensor


class Objective(Protocol):
    """The interface of objectives: the loss of a step, and from when a latent counts as dead.

    dead_after   tokens without firing after which a latent counts as dead
    look_every   steps between two looks at which latents are dead; a look waits for the device
    """

    dead_after: int
    look_every: int

    def check(self, dictionary: LearningDictionary) -> None:
        """Raises Refused for a dictionary that it cannot teach."""

    def schedules(self) -> Mapping[str, Schedule]:
        """The objective's own schedules, by their names in the config."""
        ...

    def scheduled(self, step: int, length: Length) -> Mapping[str, float]:
        """Values of the objective's own schedules at a step."""
        ...

    def __call__(
        self, dictionary: LearningDictionary, rows: Rows, *, dead: Tensor, settings: Mapping[str, float]
    ) -> Losses:
        """Losses of one step; `dead` [n] are the indices of the dead latents, `settings` the scheduled values of the step."""
        ...


class Reconstruction:
    """Reconstruction error of a dictionary, with its sparsity penalties and further terms.

    squared      true: sum over streams and width of (x - x_hat)^2, mean over tokens (Lindsey et al. 2024; Kissane 2024)
                 false: norm of x - x_hat, mean over tokens and streams (Minder et al. 2025; mitroitskii 2025)
    terms        name -> a further term of the loss, as AuxK; those of weight 0 are left out
    dead_after, look_every   see Objective
    """

    def __init__(
        self,
        *,
        squared: bool = True,
        terms: Mapping[str, Term] | None = None,
        dead_after: int = 10_000_000,
        look_every: int = 10,
    ):
        for name, term in (terms or {}).items():
            if not isinstance(term, Term):
                raise Refused(
                    f"dictionary.objective.terms.{name} is a {type(term).__name__}, and no subclass of objectives.Term."
                )
            if getattr(type(term).__call__, "__isabstractmethod__", False):
                raise Refused(
                    f"dictionary.objective.terms.{name}: {type(term).__name__} has no method __call__, its value."
                )
            if not term.weight >= 0:
                raise Refused(f"dictionary.objective.terms.{name}.weight={term.weight}: a weight is not negative.")
            if name in TAKEN:
                raise Refused(f"dictionary.objective.terms.{name} would stand for two things in the curves: rename it.")
        if look_every < 1:
            raise Refused(f"dictionary.objective.look_every={look_every}: give a number of steps from 1.")
        if not dead_after > 0:
            raise Refused(f"dictionary.objective.dead_after={dead_after}: give a number of tokens from 1.")
        self.squared, self.dead_after, self.look_every = squared, dead_after, look_every
        self.terms = {name: term for name, term in (terms or {}).items() if term.weight > 0}

    def check(self, dictionary: LearningDictionary) -> None:
        for term in self.terms.values():
            term.check(dictionary)

    def schedules(self) -> dict[str, Schedule]:
        return {f"terms.{name}.schedule": term.schedule for name, term in self.terms.items()}

    def scheduled(self, step: int, length: Length) -> dict[str, float]:
        return {name: term.schedule(step, length) for name, term in self.terms.items()}

    def __call__(
        self, dictionary: LearningDictionary, rows: Rows, *, dead: Tensor, settings: Mapping[str, float]
    ) -> Losses:
        with torch.no_grad():
            target = dictionary.normalisation.normalise(*rows)
        penalised = dictionary.has_penalty
        with torch.set_grad_enabled(penalised and torch.is_grad_enabled()):
            norms = dictionary.code_norms()
        codes = dictionary.code(target, norms, settings)
        # penalties before the reconstruction, so that their gradient is added to that of the latents in place
        penalties = dictionary.penalties(codes, norms, settings) if penalised else {}
        errors = [target - restored for restored in dictionary.reconstructions(codes)]

        def size(error: Tensor) -> Tensor:
            return self.size(error, dictionary.widths)

        terms = {"reconstruction": sum(map(size, errors[1:]), size(errors[0])) / len(errors), **penalties}
        given = TermInputs(dictionary, codes, target, errors[-1], dead, size, settings)
        for name, term in self.terms.items():
            value = term(given)
            if not isinstance(value, Tensor) or value.ndim > 0 or value.is_complex():
                given_as = (
                    type(value).__name__ if not isinstance(value, Tensor) else f"{list(value.shape)} of {value.dtype}"
                )
                raise Refused(
                    f"dictionary.objective.terms.{name} gave {given_as}: a term of the loss is a tensor of one number."
                )
            terms[name] = term.weight * settings.get(name, 1.0) * value
        first, *others = terms.values()
        return Losses(sum(others, first), terms, codes.fired(), codes.l0(), errors[-1].detach())

    def size(self, error: Tensor, widths: list[int]) -> Tensor:
        if self.squared:
            return error.square().sum(-1).mean()
        return torch.stack([piece.norm(dim=-1).mean() for piece in error.split(widths, dim=-1)]).mean()
