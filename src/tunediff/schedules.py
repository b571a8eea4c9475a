"""Numbers that change while a dictionary trains: schedule(step, length) -> factor of one setting.

A schedule knows nothing of what it multiplies (L1 coefficient, learning rate, k, AuxK, the penalty of tied latents). A
span of it is a fraction of the run (0.05), a number of steps ("1000 steps") or of tokens ("5_000_000 tokens"), so the
same option file serves a short and a long run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from tunediff.shapes import Refused

Span = float | str


class Length(NamedTuple):
    """Number of training steps of a run, and of tokens per step."""

    steps: int
    batch: int


@functools.cache  # asked at every step
def steps_of(name: str, span: Span, length: Length) -> float:
    """A span in steps of this run. Raises Refused where it cannot be read or is longer than the run."""
    words = str(span).replace("_", "").split()
    try:
        number = float(words[0])
    except (ValueError, IndexError):
        number = math.nan
    if len(words) == 1 and 0 <= number <= 1:
        return number * length.steps
    if len(words) != 2 or words[1] not in ("steps", "tokens") or not number >= 0:
        raise Refused(f"{name}={span}: give a fraction of the run from 0 to 1, or '1000 steps', or '5_000_000 tokens'.")
    steps = number if words[1] == "steps" else number / length.batch
    if steps > length.steps:
        raise Refused(
            f"{name}={span} is longer than the run, which has {length.steps:,} steps of {length.batch:,} tokens. "
            "Make it shorter, or the run longer."
        )
    return steps


@dataclass(frozen=True)
class Schedule:
    """Abstract. Every field that is a span is checked by `check`."""

    def __call__(self, step: int, length: Length) -> float:
        """Factor at `step` (0 <= step < length.steps)."""
        raise NotImplementedError

    def check(self, length: Length) -> None:
        """Raises Refused where a span does not fit the run."""
        for field in fields(self):
            if field.type == "Span":
                steps_of(field.name, getattr(self, field.name), length)


def check_schedules(schedules: Mapping[str, Schedule], length: Length) -> None:
    """Raises Refused, with its name, where one does not fit the run."""
    for name, schedule in schedules.items():
        try:
            schedule.check(length)
        except Refused as refusal:
            raise Refused(f"{name}: {refusal}") from None


@dataclass(frozen=True)
class Constant(Schedule):
    """The setting as it stands: 1 at every step."""

    def __call__(self, step: int, length: Length) -> float:
        return 1.0


@dataclass(frozen=True)
class Warmup(Schedule):
    """Linear from 0 to 1 over the first `warmup` of the run, then 1; with `warmup` 1 a ramp over the whole run."""

    warmup: Span = 0.05

    def __call__(self, step: int, length: Length) -> float:
        return min(1.0, (step + 1) / max(1.0, steps_of("warmup", self.warmup, length)))


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from 0 to 1 over the first `warmup` of the run, then half a cosine down to `floor` at its end."""

    warmup: Span = 0.05
    floor: float = 0.0

    def __call__(self, step: int, length: Length) -> float:
        rising = steps_of("warmup", self.warmup, length)
        if step < rising:
            return min(1.0, (step + 1) / max(1.0, rising))
        done = (step - rising) / max(1.0, length.steps - rising)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2

    def check(self, length: Length) -> None:
        super().check(length)
        if not 0 <= self.floor <= 1:
            raise Refused(f"floor={self.floor}: give a factor from 0 to 1.")


@dataclass(frozen=True)
class WarmupCooldown(Schedule):
    """Linear from 0 to 1 over the first `warmup` of the run, 1, then linear to 0 over its last `cooldown`."""

    warmup: Span = 0.05
    cooldown: Span = 0.2

    def __call__(self, step: int, length: Length) -> float:
        rising = (step + 1) / max(1.0, steps_of("warmup", self.warmup, length))
        falling = (length.steps - step) / max(1.0, steps_of("cooldown", self.cooldown, length))
        return max(0.0, min(1.0, rising, falling))

    def check(self, length: Length) -> None:
        super().check(length)
        together = steps_of("warmup", self.warmup, length) + steps_of("cooldown", self.cooldown, length)
        if together > length.steps:
            raise Refused(
                f"warmup={self.warmup} and cooldown={self.cooldown} together are longer than the run "
                f"({together:,.0f} of {length.steps:,} steps): make them shorter."
            )


@dataclass(frozen=True)
class Anneal(Schedule):
    """Linear from `start` to 1 over the first `over` of the run, then 1. With `over` 0 it is 1 at every step."""

    start: float
    over: Span = 0.1

    def __call__(self, step: int, length: Length) -> float:
        steps = steps_of("over", self.over, length)
        return 1.0 if step >= steps else self.start + (1 - self.start) * step / steps

    def check(self, length: Length) -> None:
        super().check(length)
        if not 0 < self.start < math.inf:
            raise Refused(f"start={self.start}: give a factor above 0.")
