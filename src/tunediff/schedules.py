"""Numbers that change while a dictionary trains: schedule(step, steps) -> float.

A schedule multiplies or replaces one setting (learning rate, L1 coefficient, k) and knows nothing else. Spans are
fractions of the run, so that the same option file serves a short and a long run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tunediff.shapes import Refused


class Schedule(Protocol):
    def __call__(self, step: int, steps: int) -> float:
        """Value at `step` (0 <= step < steps)."""


def check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise Refused(f"{name}={value} is not a fraction of the run: give a number from 0 to 1.")


@dataclass(frozen=True)
class Constant:
    """The setting as it stands: 1 at every step."""

    def __call__(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Warmup:
    """Linear from 0 to 1 over the first `warmup` of the run, then 1. The L1 coefficient of the public Kissane
    trainer rises so over its first 5 %."""

    warmup: float = 0.05

    def __post_init__(self) -> None:
        check_fraction("warmup", self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        return min(1.0, (step + 1) / max(1.0, self.warmup * steps))


@dataclass(frozen=True)
class WarmupCooldown:
    """Linear from 0 to 1 over the first `warmup` of the run, 1, then linear to 0 over its last `cooldown`."""

    warmup: float = 0.05
    cooldown: float = 0.2

    def __post_init__(self) -> None:
        check_fraction("warmup", self.warmup)
        check_fraction("cooldown", self.cooldown)
        if self.warmup + self.cooldown > 1.0:
            raise Refused(
                f"warmup={self.warmup} and cooldown={self.cooldown} together are longer than the run: make their sum at most 1."
            )

    def __call__(self, step: int, steps: int) -> float:
        rising = (step + 1) / max(1.0, self.warmup * steps)
        falling = (steps - step) / max(1.0, self.cooldown * steps)
        return max(0.0, min(1.0, rising, falling))


@dataclass(frozen=True)
class Anneal:
    """Linear from `start` to `end` over the first `over` of the run, then `end`. Used for k of BatchTopK."""

    start: float
    end: float
    over: float

    def __post_init__(self) -> None:
        check_fraction("over", self.over)

    def __call__(self, step: int, steps: int) -> float:
        if step >= self.over * steps:
            return self.end
        return self.start + (self.end - self.start) * step / (self.over * steps)
