"""Progress of a training: a bar in tokens for the terminal, and a heartbeat for other processes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

log = logging.getLogger(__name__)


def tell(loggers: Iterable[Any], numbers: Mapping[str, float], step: int) -> None:
    """Gives each logger the numbers of a step. One that cannot write them loses them, and the training goes on."""
    for logger in loggers:
        try:
            logger.log_metrics(numbers, step=step)
        except OSError as error:
            log.warning("%s has nothing of step %s: %s", type(logger).__name__, step, error)


class TokenProgress(Callback):
    """Progress bar in tokens, with tokens per second and the time left. The module gives the tokens that were learned from,
    and its progress in words."""

    def __init__(self, tokens: int):
        self.total, self.bar = tokens, None

    def on_train_start(self, trainer, pl_module: Any) -> None:
        often = 0.5 if sys.stderr.isatty() else 20.0  # a log file needs fewer lines
        self.bar = tqdm(
            total=self.total, initial=pl_module.tokens, unit="tok", unit_scale=True, desc="training", mininterval=often,
            disable=trainer.global_rank > 0,
        )  # fmt: skip

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx) -> None:
        assert self.bar is not None
        self.bar.update(pl_module.tokens - self.bar.n)
        if batch_idx % 50 == 0 or pl_module.step == pl_module.steps:
            self.bar.set_postfix_str(pl_module.words())

    def on_train_end(self, trainer, pl_module: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer, pl_module: Any, exception) -> None:
        self.on_train_end(trainer, pl_module)


class Pulse(Callback):
    """Calls `beat(step)` at the start and then every `seconds`."""

    def __init__(self, beat: Callable[[int], None], *, seconds: float = 10.0):
        self.beat, self.seconds, self.last = beat, seconds, 0.0

    def on_train_start(self, trainer, pl_module: Any) -> None:
        self._beat(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module: Any, outputs, batch, batch_idx) -> None:
        if time.monotonic() - self.last > self.seconds:
            self._beat(trainer, pl_module)

    def _beat(self, trainer, module) -> None:
        self.last = time.monotonic()
        if trainer.global_rank == 0:
            self.beat(module.step)
