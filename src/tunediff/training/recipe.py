"""The settings of a fine-tune except model and text: the part of the model that learns, the loss, and the duration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import transformers

from tunediff.objectives import Imitation
from tunediff.schedules import Schedule
from tunediff.shapes import Refused
from tunediff.training.memory import MemoryEstimate, memory
from tunediff.training.trainable import Trainable


@dataclass(frozen=True)
class Recipe:
    """Settings of a fine-tune; conf/recipe has the values.

    part, objective      the weights that learn, and their loss
    examples, held_out   number of rows that are learned, and on which the loss is measured; None: all, of a finite text
    block         tokens per sequence
    packing       true: several examples in a sequence, none of which sees another
    batch         number of sequences per step, over all processes
    micro_batch   number of sequences in one forward pass
    """

    part: Trainable
    objective: Imitation
    block: int
    epochs: int
    batch: int
    micro_batch: int
    learning_rate: float
    learning_rate_schedule: Schedule
    betas: Sequence[float]
    weight_decay: float
    clip_norm: float | None
    gradient_checkpointing: bool
    packing: bool
    examples: int | None
    held_out: int | None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Refused(f"recipe.{name}={getattr(self, name)}: give a number from 0.")
        for name in ("block", "epochs", "batch", "micro_batch"):
            if getattr(self, name) < 1:
                raise Refused(f"recipe.{name}={getattr(self, name)}: give a number from 1.")

    def memory(
        self, config: transformers.PretrainedConfig, dtype: str, *, precision: str, processes: int, sharded: bool
    ) -> MemoryEstimate:
        """The memory of each device, before a weight is loaded."""
        return memory(
            self.part, config, dtype, block=self.block, micro_batch=self.micro_batch, precision=precision,
            gradient_checkpointing=self.gradient_checkpointing, chunk=self.objective.chunk, processes=processes,
            sharded=sharded,
        )  # fmt: skip
