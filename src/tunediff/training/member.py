"""A dictionary with all that trains it: objective, schedules, optimizer settings, loggers and curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunediff.activations import Reader
from tunediff.dictionary import Crosscoder
from tunediff.objectives import Reconstruction
from tunediff.schedules import Constant, Schedule
from tunediff.shapes import Refused


@dataclass
class Member:
    """One of the dictionaries that learn from a stream.

    l1_schedule, learning_rate_schedule   factors of the L1 coefficient and of the learning rate over the run
    history   one record of numbers a logged step
    error     why it was dropped; None while it trains
    """

    name: str
    dictionary: Crosscoder
    objective: Reconstruction
    l1_schedule: Schedule
    learning_rate_schedule: Schedule
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    loggers: Sequence[Any] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        if not self.dictionary.sparsity.has_penalty and self.l1_schedule != Constant():
            raise Refused(
                f"l1_schedule is {self.l1_schedule}, but {type(self.dictionary.sparsity).__name__} has no L1 term to schedule: "
                "choose l1_schedule=constant, or dictionary=l1_crosscoder."
            )

    def settings(self, step: int, steps: int) -> dict[str, float]:
        return {"l1": self.l1_schedule(step, steps), **self.dictionary.sparsity.scheduled(step, steps)}

    def reader(self) -> Reader:
        """What it takes from a stream."""
        normalisation = self.dictionary.normalisation
        return Reader(self.dictionary.streams, normalisation.admits, normalisation.needs_moments)
