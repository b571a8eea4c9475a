"""A dictionary with all that trains it: objective, schedules, optimizer settings and curves."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunediff.activations import Reader
from tunediff.dictionary import LearningDictionary
from tunediff.objectives import Objective
from tunediff.schedules import Constant, Length, Schedule, check_schedules
from tunediff.shapes import Refused
from tunediff.training.resampling import Resampling


@dataclass
class Learner:
    """One of the dictionaries that learn from a stream.

    l1_schedule, learning_rate_schedule   factors of the sparsity coefficient and of the learning rate over the run
    compile   backend of torch.compile for the loss; null: none
    history   one record of numbers per logged step
    dead      indices of the dead latents at the last look
    error     the exception that ended its training; None while it trains
    """

    name: str
    dictionary: LearningDictionary
    objective: Objective
    l1_schedule: Schedule
    learning_rate_schedule: Schedule
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    resampling: Resampling | None = None
    compile: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    dead: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    error: Exception | None = None

    def __post_init__(self) -> None:
        if not self.dictionary.has_penalty and self.l1_schedule != Constant():
            kind = type(getattr(self.dictionary, "sparsity", self.dictionary)).__name__
            raise Refused(
                f"l1_schedule is {self.l1_schedule}, but {kind} has no penalty to schedule: leave l1_schedule out, or "
                "choose dictionary=l1_crosscoder."
            )
        self.objective.check(self.dictionary)
        if self.compile is not None and self.compile not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise Refused(
                f"optimizer.compile={self.compile}: the backends of torch.compile here are {', '.join(known)}."
            )
        self.loss = (
            self.objective if self.compile is None else torch.compile(self.objective.__call__, backend=self.compile)
        )

    def check(self, length: Length) -> None:
        """Raises Refused where a schedule, or how often dead latents are resampled, does not fit the run."""
        check_schedules(self.schedules(), length)
        if self.resampling is not None:
            self.resampling.check(length, self.dictionary)

    def schedules(self) -> dict[str, Schedule]:
        """All schedules, by their names in the config."""
        found = {"l1_schedule": self.l1_schedule, "optimizer.learning_rate_schedule": self.learning_rate_schedule}
        found |= {f"dictionary.objective.{name}": one for name, one in self.objective.schedules().items()}
        return found | {f"dictionary.{name}": one for name, one in self.dictionary.schedules().items()}

    def settings(self, step: int, length: Length) -> dict[str, float]:
        """Scheduled values of one step."""
        values = {"learning_rate": self.learning_rate * self.learning_rate_schedule(step, length)}
        if self.dictionary.has_penalty:
            values["l1"] = self.l1_schedule(step, length)
        return {**values, **self.dictionary.scheduled(step, length), **self.objective.scheduled(step, length)}

    def reader(self) -> Reader:
        """Its request to a stream of activations."""
        normalisation = self.dictionary.normalisation
        return Reader(self.dictionary.streams, normalisation.admits, normalisation.needs_moments)
