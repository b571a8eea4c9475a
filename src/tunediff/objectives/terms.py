"""Terms of the loss beside the reconstruction error and the sparsity penalties: each a small class with one verb.

A term of one's own is a subclass of Term and one setting, from the command line or in a YAML:

    +dictionary.objective.terms.mine={_target_: mypkg.DecoderOverlap, weight: 0.1}      and trust=[mypkg]

It stands under its name in the curves, as loss/mine, and its schedule as schedule/mine.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tunediff.dictionary import Codes, LearningDictionary
from tunediff.schedules import Constant, Schedule
from tunediff.shapes import BASE, TUNED, Refused


class TermInputs(NamedTuple):
    """Inputs of a term at one training step, in normalised units. Nothing keeps them, so that the backward pass can let go
    of the latents.

    codes      latents of the batch; codes.dense() is [token, latent] with their gradient
    target     activations [token, width]
    error      reconstruction error [token, width] of the whole dictionary
    dead       indices [n] of the dead latents
    size       size of an error [token, width] as the objective measures it: squared or not
    settings   scheduled values of the step
    """

    dictionary: LearningDictionary
    codes: Codes
    target: Tensor
    error: Tensor
    dead: Tensor
    size: Callable[[Tensor], Tensor]
    settings: Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """Abstract. The loss adds weight * schedule * term(given) for every term whose weight is not 0."""

    weight: float
    schedule: Schedule = Constant()

    @abc.abstractmethod
    def __call__(self, given: TermInputs) -> Tensor:
        """Value of the term, with its gradient."""
        raise NotImplementedError

    def check(self, dictionary: LearningDictionary) -> None:
        """Raises Refused for a dictionary that the term does not apply to."""


@dataclass(frozen=True)
class AuxK(Term):
    """Size of what is left when the `latents` most active dead latents reconstruct the detached error (Gao et al. 2024,
    arXiv 2406.04093, section A.2). It is measured as the error itself is, so that its size against the reconstruction does not
    depend on the scale of the activations.

    latents   number of dead latents that take part; null: half the width
    """

    latents: int | None = None

    def __call__(self, given: TermInputs) -> Tensor:
        error, dead = given.error.detach(), given.dead
        if len(dead) == 0:
            return error.new_zeros(())
        count = min(self.latents or error.shape[1] // 2, len(dead))
        codes = given.dictionary.code_of(dead, given.target, count)  # pyright: ignore[reportAttributeAccessIssue] (see check)
        return given.size(error - codes.decode(given.dictionary.W_dec.index_select(0, dead)).float())

    def check(self, dictionary: LearningDictionary) -> None:
        if self.latents is not None and self.latents < 1:
            raise Refused(f"dictionary.objective.terms.auxk.latents={self.latents}: give a number from 1.")
        if not hasattr(dictionary, "code_of"):
            raise Refused(
                f"dictionary.objective.terms.auxk teaches some latents alone, and {type(dictionary).__name__} has no code_of "
                "to ask for them: set dictionary.objective.terms.auxk.weight=0."
            )


@dataclass(frozen=True)
class DeltaLoss(Term):
    """Mean over tokens of |Delta - (W_tuned - W_base) z - (b_tuned - b_base)|^2, summed over layers, with Delta = x_tuned -
    x_base and z the latents, those set to zero that the partition shares (Delta-Crosscoder, arXiv 2603.04426). What differs
    is to be written by latents that are not shared alone, and no gradient of the term reaches those that are.

    Differs from arXiv 2603.04426, which has no decoder bias: that of either model is counted, as in the reconstruction. And
    Delta is that of normalised activations: where the models' scales differ, as under mean_norm, some of what they share is in it."""

    def __call__(self, given: TermInputs) -> Tensor:
        dictionary: Any = given.dictionary  # with W_dec, b_dec and a partition: see check
        written = given.codes.decode(dictionary.W_dec, dictionary.partition.shared, dictionary.latents).float()
        return _size_of_difference(dictionary, given.target - written - dictionary.b_dec)

    def check(self, dictionary: LearningDictionary) -> None:
        _refuse_unequal(dictionary, "delta")
        partition = getattr(dictionary, "partition", None)
        if partition is None or not 0 < partition.shared < dictionary.latents:
            raise Refused(
                "dictionary.objective.terms.delta leaves out the latents that both models share, and none or all are here: set "
                "dictionary.partition, as dictionary=delta_crosscoder does, or dictionary.objective.terms.delta.weight=0."
            )


@dataclass(frozen=True)
class Difference(Term):
    """Mean over tokens of |(x_tuned - x_base) - (x_hat_tuned - x_hat_base)|^2, summed over layers: DeltaLoss where nothing is
    shared. It is |error_tuned - error_base|^2, since (t - b) - (t_hat - b_hat) = (t - t_hat) - (b - b_hat): a weight on
    agreement of the two errors, no new direction."""

    def __call__(self, given: TermInputs) -> Tensor:
        return _size_of_difference(given.dictionary, given.error)

    def check(self, dictionary: LearningDictionary) -> None:
        _refuse_unequal(dictionary, "difference")


def _size_of_difference(dictionary: LearningDictionary, values: Tensor) -> Tensor:
    """Mean over tokens of |tuned - base|^2 of values [token, width], summed over layers."""
    return (dictionary.part(values, TUNED) - dictionary.part(values, BASE)).square().sum(-1).mean()


def _refuse_unequal(dictionary: LearningDictionary, name: str) -> None:
    widths = [[stream.width for stream in dictionary.streams if stream.role == role] for role in (BASE, TUNED)]
    if widths[0] != widths[1] or not widths[0]:
        raise Refused(
            f"dictionary.objective.terms.{name} needs both models, with equal widths; here the base is read with "
            f"{widths[0]}, the tuned model with {widths[1]}: set its weight to 0."
        )
