"""The Lightning module: every batch of the stream is one step of every dictionary, each as if alone.

Lightning brings the device, the precision and the loop; every dictionary has its own objective, optimizer, schedules,
dead-latent counters and log. Statistics reach the host only at the steps that are logged. With several processes each
holds all dictionaries and a part of every batch, and the gradients are summed: the step of one process on the whole.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy

from tunediff import processes
from tunediff.activations import ActivationError, Drawn
from tunediff.objectives import Losses
from tunediff.schedules import Length
from tunediff.shapes import Rows
from tunediff.training.learner import Learner
from tunediff.training.progress import tell

log = logging.getLogger(__name__)

for noisy in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
    logging.getLogger(noisy).setLevel(logging.WARNING)  # devices found and advertisements, at every start
# Lightning on a cluster's node; Lightning 2.6 with torch 2.13 inside its own tree code: nothing a user can act on
warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


class Diverged(ActivationError):
    """Raised in every process where a loss is not finite."""


class Replicas(DDPStrategy):
    """Strategy in which every process holds the dictionaries whole. The module sums gradients itself, weighted by each
    process's tokens, because parts of a batch differ in length and one batch has several backward passes."""

    def configure_ddp(self) -> None:
        """Sets no wrapper, so that no reducer counts backward passes."""


def process_environment(*, expected: int) -> Any:
    """Lightning's environment of this process: one of torchrun's, one of Slurm's tasks, or alone. Alone also inside a Slurm
    job, where Lightning would otherwise look for tasks that were never started. submitit does the requeueing."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if expected > 1 else LightningEnvironment()


class DictionaryTraining(L.LightningModule):
    """Trains all learners on the same batches, one optimizer step each a batch. A learner that raises is dropped with its
    error; the others go on.

    length    number of steps of the run, and tokens per step
    state     the learners' part of a checkpoint, to resume from
    loggers   name of a learner -> loggers that get its curves besides its history
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        *,
        length: Length,
        log_every: int = 20,
        state: Mapping[str, Any] | None = None,
        loggers: Mapping[str, Sequence[Any]] | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.learners, self.length, self.log_every = list(learners), length, log_every
        self.steps = length.steps
        self.dictionaries = torch.nn.ModuleList(cast(torch.nn.Module, one.dictionary) for one in learners)
        for n, learner in enumerate(learners):  # tokens since each latent last fired
            self.register_buffer(f"silent_for_{n}", torch.zeros(learner.dictionary.latents, dtype=torch.long))
        self.step = 0
        self.state = state
        self.loggers_of = loggers or {}
        if state is not None:
            self.step = state["step"]
            for n, learner in enumerate(learners):
                kept = state["members"][learner.name]
                learner.dictionary.load_state_dict(kept["dictionary"])
                learner.history = [dict(record) for record in kept["history"]]
                learner.dead = kept["dead"]
                getattr(self, f"silent_for_{n}").copy_(kept["silent_for"])

    @property
    def tokens(self) -> int:
        """Number of tokens learned from so far."""
        return self.step * self.length.batch

    def words(self) -> str:
        """Progress in words, for the terminal."""
        going = [learner for learner in self.learners if learner.error is None and learner.history]
        if not going or len(self.learners) > 1:
            return f"{len(going)} dictionaries" if going else ""
        last = going[0].history[-1]
        return f"explained variance {last['explained_variance/pooled']:.3f}, L0 {last['l0']:.1f}"

    def configure_optimizers(self):
        optimizers = [
            torch.optim.Adam(m.dictionary.parameters(), lr=m.learning_rate, betas=m.betas, fused=True)
            for m in self.learners
        ]
        if self.state is not None:
            for learner, optimizer in zip(self.learners, optimizers, strict=True):
                optimizer.load_state_dict(self.state["members"][learner.name]["optimizer"])
        return optimizers

    def on_train_start(self) -> None:
        if self.state is not None:
            torch.set_rng_state(self.state["random"])
        for learner in self.learners:
            learner.dead = learner.dead.to(self.device)
        processes.take_from_first(*self.parameters(), *self.buffers())
        plugin = self.trainer.precision_plugin
        # a scaler of its own for each, so that one learner's overflow does not change another's scale
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        self.scalers = [copy.deepcopy(scaler) for _ in self.learners]
        if self.state is not None:
            for learner, scaler in zip(self.learners, self.scalers, strict=True):
                if scaler is not None:
                    scaler.load_state_dict(self.state["members"][learner.name]["scaler"])
        self.state = None

    def training_state(self) -> dict[str, Any]:
        """All that decides the steps to come, except the position in the stream."""
        trained = zip(self.learners, self._optimizers(), self.scalers, strict=True)
        return {
            "step": self.step,
            "members": {
                learner.name: {
                    "dictionary": learner.dictionary.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "silent_for": getattr(self, f"silent_for_{n}"),
                    "dead": learner.dead,
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "history": learner.history,
                }
                for n, (learner, optimizer, scaler) in enumerate(trained)
                if learner.error is None
            },
            "random": torch.get_rng_state(),
        }

    def _optimizers(self) -> list:
        optimizers = self.optimizers(use_pl_optimizer=True)
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def training_step(self, batch: Drawn, _: int) -> None:
        for n, (learner, optimizer) in enumerate(zip(self.learners, self._optimizers(), strict=True)):
            if learner.error is None:
                try:
                    batch.stream.check(n)
                    self.advance(n, learner, optimizer, batch.of(n))
                except Exception as error:  # its own fault or its own bad luck: the others go on
                    if processes.count() > 1 and not isinstance(error, Diverged):
                        raise  # the other processes wait for this one in the middle of a step
                    log.error("%s stopped at step %s: %s", learner.name, self.step, error)
                    learner.error = error
                    traceback.clear_frames(error.__traceback__)  # where memory ran out, the others need what it held
                    optimizer.zero_grad()
        self.step += 1
        if all(learner.error is not None for learner in self.learners):
            self.trainer.should_stop = True

    def advance(self, n: int, learner: Learner, optimizer, rows: Rows) -> None:
        """One step of one learner on its rows of a batch. The host waits for the device only at the steps that are logged or
        look at which latents are dead."""
        silent_for, dictionary = getattr(self, f"silent_for_{n}"), learner.dictionary
        settings = learner.settings(self.step, self.length)
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"]
        if self.step % learner.objective.look_every == 0:
            learner.dead = (silent_for > learner.objective.dead_after).nonzero()[:, 0]
        losses = learner.loss(dictionary, rows, dead=learner.dead, settings=settings)
        optimizer.zero_grad()
        tokens, total = len(rows.values), losses.total
        if processes.count() > 1:
            tokens = processes.summed(torch.tensor(tokens, device=silent_for.device))
            total = total * (len(rows.values) / tokens)
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision):
            plugin.scaler = self.scalers[n]
        self.manual_backward(total)
        if processes.count() > 1:
            processes.sum_gradients(dictionary.parameters())
        dictionary.constrain_gradients()
        if learner.clip_norm is not None:
            clip(optimizer, learner.clip_norm, self.scalers[n])
        optimizer.step()
        dictionary.settle()
        fired = processes.any_of(losses.fired)
        silent_for.add_(tokens).masked_fill_(fired, 0)
        if learner.resampling is not None and learner.resampling.due(self.step, self.length):
            dead = (silent_for > learner.objective.dead_after).nonzero()[:, 0]
            learner.resampling.apply(dictionary, dead, losses.error, optimizer, self.step)
            silent_for[dead] = 0
        if self.step % self.log_every == 0 or self.step == self.steps - 1:
            self.record(learner, rows, losses, settings)

    @torch.no_grad()
    def record(self, learner: Learner, rows: Rows, losses: Losses, settings: Mapping[str, float]) -> None:
        """Records one line of the training curves: the only place where numbers leave the device."""
        dictionary = learner.dictionary
        target = dictionary.normalisation.normalise(*rows)
        tokens = processes.summed(torch.tensor(float(len(target)), device=target.device))
        mean = processes.summed(target.sum(0)) / tokens
        errors = processes.summed(losses.error.square().sum(0)).split(dictionary.widths)
        around = processes.summed((target - mean).square().sum(0)).split(dictionary.widths)
        share = len(target) / tokens
        numbers = {"loss/total": losses.total, **{f"loss/{name}": term for name, term in losses.terms.items()}}
        numbers["l0"] = losses.l0
        if len(target) == 0:  # all rows of the batch lie in other processes
            numbers = {name: torch.zeros_like(value) for name, value in numbers.items()}
        numbers = {name: processes.summed(value * share) for name, value in numbers.items()}
        unexplained = spread = none = torch.zeros((), device=target.device)
        for role in dict.fromkeys(stream.role for stream in dictionary.streams):
            pieces = [n for n, stream in enumerate(dictionary.streams) if stream.role == role]
            error, here = (sum((part[n].sum() for n in pieces), none) for part in (errors, around))
            numbers[f"explained_variance/{role}"] = 1 - error / here
            unexplained, spread = unexplained + error, spread + here
        numbers["explained_variance/pooled"] = 1 - unexplained / spread
        numbers["dead_fraction"] = torch.tensor(len(learner.dead) / dictionary.latents)
        numbers |= dictionary.observed()
        record = {name: float(value) for name, value in numbers.items()}
        record |= {f"schedule/{name}": value for name, value in settings.items()}
        if not math.isfinite(record["loss/total"]):
            terms = ", ".join(f"{name} {record[f'loss/{name}']:.3g}" for name in losses.terms)
            raise Diverged(
                f"The loss is not finite at step {self.step} ({terms}). Lower optimizer.learning_rate, or check the activations."
            )
        tokens = self.tokens + self.length.batch
        learner.history.append({"step": self.step, "tokens": tokens, **record})
        tell(self.loggers_of.get(learner.name, ()), {"tokens": tokens, **record}, self.step)


def clip(optimizer, largest: float, scaler: torch.amp.GradScaler | None) -> None:
    """Scales gradients down to a total norm of `largest`. The fused optimizer applies the factor as it reads them."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if scaler is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, largest)
        return
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    optimizer.grad_scale = (norm / largest).clamp(min=1.0)
