"""One stream of activations and one or more dictionaries -> trained dictionaries and their curves.

Lightning brings the device, the precision and the loop; every dictionary has its own objective, optimizer, schedules,
dead-latent counters and log. Statistics reach the host only at the steps that are logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from tunediff.activations import ActivationError
from tunediff.dictionary import Crosscoder
from tunediff.objectives import Losses, Reconstruction
from tunediff.schedules import Constant, Schedule
from tunediff.shapes import ROLES, Refused, Rows

for noisy in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
    logging.getLogger(noisy).setLevel(logging.WARNING)  # devices found and advertisements, at every start


@dataclass
class Member:
    """A dictionary with all that trains it.

    l1_schedule, learning_rate_schedule   factors of the L1 coefficient and of the learning rate over the run
    history   one record of numbers a logged step
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

    def __post_init__(self) -> None:
        if not self.dictionary.sparsity.has_penalty and self.l1_schedule != Constant():
            raise Refused(
                f"l1_schedule is {self.l1_schedule}, but {type(self.dictionary.sparsity).__name__} has no L1 term to schedule: "
                "choose l1_schedule=constant, or dictionary=l1_crosscoder."
            )

    def settings(self, step: int, steps: int) -> dict[str, float]:
        return {"l1": self.l1_schedule(step, steps), **self.dictionary.sparsity.scheduled(step, steps)}


class DictionaryTraining(L.LightningModule):
    """Trains all members on the same batches, one optimizer step each a batch."""

    silent_for: Tensor

    def __init__(self, members: Sequence[Member], *, steps: int, log_every: int = 20):
        super().__init__()
        self.automatic_optimization = False
        self.members, self.steps, self.log_every = list(members), steps, log_every
        self.dictionaries = torch.nn.ModuleList(member.dictionary for member in members)
        for n, member in enumerate(members):  # tokens since each latent last fired
            self.register_buffer(f"silent_for_{n}", torch.zeros(member.dictionary.latents, dtype=torch.long))
        self.step = 0
        self.tokens = 0

    def configure_optimizers(self):
        return [
            torch.optim.Adam(m.dictionary.parameters(), lr=m.learning_rate, betas=m.betas, fused=True)
            for m in self.members
        ]

    def training_step(self, batch: Rows, _: int) -> None:
        optimizers = self.optimizers(use_pl_optimizer=True)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for n, (member, optimizer) in enumerate(zip(self.members, optimizers, strict=True)):
            self.advance(member, getattr(self, f"silent_for_{n}"), optimizer, batch)
        self.step += 1
        self.tokens += len(batch.values)

    def advance(self, member: Member, silent_for: Tensor, optimizer, batch: Rows) -> None:
        """One step of one member."""
        settings = member.settings(self.step, self.steps)
        learning_rate = member.learning_rate * member.learning_rate_schedule(self.step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        dead = silent_for > member.objective.dead_after
        losses = member.objective(member.dictionary, batch, dead=dead, settings=settings)
        optimizer.zero_grad()
        self.manual_backward(losses.total)
        if member.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(member.dictionary.parameters(), member.clip_norm)
        optimizer.step()
        fired = (losses.latents > 0).any(0)
        silent_for.add_(len(batch.values)).masked_fill_(fired, 0)
        member.dictionary.sparsity.observe(losses.latents, member.dictionary.code_norms().detach())
        if self.step % self.log_every == 0 or self.step == self.steps - 1:
            self.record(member, batch, losses, dead, {"learning_rate": learning_rate, **settings})

    @torch.no_grad()
    def record(self, member: Member, batch: Rows, losses: Losses, dead: Tensor, settings: Mapping[str, float]) -> None:
        """One line of the training curves; the only place where numbers leave the device."""
        dictionary = member.dictionary
        target = dictionary.normalisation.normalise(*batch)
        numbers = {"loss/total": losses.total, **{f"loss/{name}": term for name, term in losses.terms.items()}}
        unexplained, spread = 0.0, 0.0
        for role in ROLES:
            pieces = [n for n, stream in enumerate(dictionary.streams) if stream.role == role]
            if not pieces:
                continue
            error = torch.cat([losses.error.split(dictionary.widths, -1)[n] for n in pieces], -1).square().sum()
            here = torch.cat([target.split(dictionary.widths, -1)[n] for n in pieces], -1)
            around = (here - here.mean(0)).square().sum()
            numbers[f"explained_variance/{role}"] = 1 - error / around
            unexplained, spread = unexplained + error, spread + around
        numbers["explained_variance/pooled"] = 1 - unexplained / spread
        numbers["l0"] = (losses.latents > 0).sum(-1).float().mean()
        numbers["dead_fraction"] = dead.float().mean()
        if hasattr(dictionary.sparsity, "threshold"):
            numbers["threshold"] = dictionary.sparsity.threshold
        record = {name: float(value) for name, value in numbers.items()}
        record |= {f"schedule/{name}": value for name, value in settings.items()}
        if not math.isfinite(record["loss/total"]):
            raise ActivationError(
                f"The loss of {member.name} is not finite at step {self.step} ({record}). Lower optimizer.learning_rate, or "
                f"check the activations."
            )
        member.history.append({"step": self.step, "tokens": self.tokens + len(batch.values), **record})
        for logger in member.loggers:
            logger.log_metrics({"tokens": self.tokens + len(batch.values), **record}, step=self.step)


class TokenProgress(Callback):
    """A bar in tokens, with tokens a second and the time left."""

    def __init__(self, tokens: int):
        self.total = tokens

    def on_train_start(self, trainer, module) -> None:
        self.bar = tqdm(total=self.total, unit="tok", unit_scale=True, desc="training", mininterval=0.5)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        self.bar.update(len(batch.values))
        history = module.members[0].history
        if history and (batch_index % 50 == 0):
            last = history[-1]
            self.bar.set_postfix_str(f"explained variance {last['explained_variance/pooled']:.3f}, L0 {last['l0']:.1f}")

    def on_train_end(self, trainer, module) -> None:
        self.bar.close()

    def on_exception(self, trainer, module, exception) -> None:
        self.bar.close()
