"""The Lightning module that trains a causal language model, or the transcoders beside its MLPs, on whole sequences, one
optimizer step per batch.

The loss of a step is a mean over the tokens of all its micro-batches in all processes, so neither how a step is cut nor
how many share it changes what is learned, but for distillation's NMSE, a ratio of each micro-batch. Replicated, each process
holds the model and gradients are summed once a step; sharded, each holds a part of every layer (FSDP2: fully_shard, arXiv
2304.11277) and every backward pass sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tunediff import processes, randomness
from tunediff.hookpoints import decoder_layers
from tunediff.objectives import Distillation, Imitation, PassLosses
from tunediff.schedules import Length, Schedule, steps_of
from tunediff.shapes import Refused
from tunediff.text import Batches, MicroBatch, Step
from tunediff.training.progress import tell
from tunediff.training.recipe import WHOLE, trained_weights
from tunediff.training.under_edit import UnderEdit

PRECISIONS = ("32-true", "bf16-mixed")
HELD_OUT = object()  # the term of a pass that only measures


class Shards(ModelParallelStrategy):
    """Strategy in which every process holds a part of each layer's weights, gradients and moments, and gathers a layer when
    it is its turn: Lightning's own, with all processes along its data-parallel axis."""

    shares_out_layers = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class FineTuning(L.LightningModule):
    """Trains the weights of `model` that require a gradient, for len(batches) steps.

    model, objective   the model, and its loss: imitation of a text, or distillation into adapters
    name               name of the trained weights in checkpoints
    learning_rate      learning rate, which learning_rate_schedule(step, length) multiplies
    weight_decay       weight decay of matrices; biases and norms have none, as in transformers' Trainer
    clip_norm          largest norm of the whole gradient; None: no clipping
    seed               seed of dropout, which depends on seed, step and process alone
    evaluate           held-out batches, whose loss is taken before every `evaluate_every`-th step, beginning with the
                       untouched model, and after the last
    edits              what is done in the passes of a step, and in no other; None: nothing
    loggers            loggers that get the records besides `history`, by log_metrics(metrics, step=)
    state              state of a checkpoint, to resume from
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Imitation | Distillation,
        batches: Batches,
        *,
        name: str = "model",
        learning_rate: float,
        learning_rate_schedule: Schedule,
        betas: Sequence[float] = (0.9, 0.95),
        weight_decay: float = 1e-4,
        clip_norm: float | None = 1.0,
        seed: int = 0,
        gradient_checkpointing: bool = True,
        loggers: Sequence[Any] = (),
        evaluate: Batches | None = None,
        evaluate_every: int = 100,
        edits: UnderEdit | None = None,
        state: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        language_model = cast(PreTrainedModel, model)
        objective.check(language_model)
        self.learning = Learning(language_model, objective)
        self.objective = objective
        self.batches, self.seed = batches, seed
        self.length = Length(len(batches), batches.tokens_of_a_step)
        self.steps = self.length.steps
        learning_rate_schedule.check(self.length)
        self.learning_rate, self.learning_rate_schedule = learning_rate, learning_rate_schedule
        first, second = betas
        self.betas, self.weight_decay, self.clip_norm = (first, second), weight_decay, clip_norm
        self.own_loggers = list(loggers)
        self.held_out, self.evaluate_every = evaluate, evaluate_every
        self.edits = edits or UnderEdit()
        self.edits.check(model)
        model.train()
        if gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers 5.23 and later
            (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.name, self.kept = name, None if state is None else state["members"][name]
        if self.kept is not None:
            # not strict: what is frozen is missing
            unknown = model.load_state_dict(self.kept["weights"], strict=False).unexpected_keys
            for number, kept in objective.state(language_model).items():
                kept.copy_(self.kept["kept"][number])
            if unknown:
                raise Refused(
                    f"The checkpoint has weights that the model does not know, such as {unknown[0]}: begin anew."
                )
        self.step = 0 if state is None else state["step"]
        self.tokens = 0 if self.kept is None else self.kept["tokens"]
        self.history: list[dict[str, float | None]] = [dict(r) for r in self.kept["history"]] if self.kept else []

    @property
    def model(self) -> PreTrainedModel:
        return self.learning.model

    def words(self) -> str:
        """The last loss, for the terminal."""
        losses = [record["loss"] for record in self.history if record["loss"] is not None]
        return f"loss {losses[-1]:.3f}" if losses else ""

    # -- how it lies on the devices --------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.trainer.precision not in PRECISIONS:
            raise Refused(f"trainer.precision={self.trainer.precision}: fine-tuning knows {', '.join(PRECISIONS)}.")
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self.learning, FSDPModule):
            assert self.device_mesh is not None, "the strategy makes it"
            for module in (*decoder_layers(self.model), self.learning):  # the last: embeddings, norm and head
                sharded = fully_shard(module, mesh=self.device_mesh["data_parallel"])
                sharded.set_force_sum_reduction_for_comms(True)  # gloo has no mean
                sharded.set_gradient_divide_factor(1.0)

    @property
    def sharded(self) -> bool:
        return isinstance(self.learning, FSDPModule)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=True
        )

    def train_dataloader(self) -> Iterator[Step]:
        return self.batches.since(self.step)

    def on_train_start(self) -> None:
        for batches in (self.batches, self.held_out):
            if batches is not None and (batches.rank, batches.world) != (processes.rank(), processes.count()):
                raise Refused(
                    f"The batches are those of process {batches.rank} of {batches.world}, and this is process "
                    f"{processes.rank()} of {processes.count()}: make them with the trainer's global_rank and world_size."
                )
        if self.kept is not None:
            options = StateDictOptions(full_state_dict=True, strict=False)  # strict would miss what is frozen
            set_optimizer_state_dict(self.model, self._optimizer().optimizer, self.kept["optimizer"], options=options)
            self.kept = None
        if not self.sharded:
            processes.take_from_first(*(p for p in self.parameters() if p.requires_grad))

    def _optimizer(self) -> LightningOptimizer:
        found = self.optimizers()
        assert isinstance(found, LightningOptimizer), "configure_optimizers gives one"
        return found

    def training_state(self) -> dict[str, Any]:
        """All that decides the steps to come. Every process calls it; the result is complete in the first."""
        learned = {
            "tokens": self.tokens,
            "history": self.history,
            "weights": trained_weights(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self._optimizer().optimizer, options=WHOLE),
            "kept": {name: kept.cpu() for name, kept in self.objective.state(self.model).items()},
        }
        return {"step": self.step, "members": {self.name: learned}}

    # -- a step ----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Step, _: int) -> None:
        due = self.step % self.evaluate_every == 0
        held_out = self.held_out_loss(self.held_out) if self.held_out and due else None
        torch.manual_seed(randomness.seed_for(self.seed, "dropout", self.step, processes.rank()))
        optimizer = self._optimizer()
        optimizer.zero_grad()
        # Every pass has a backward pass of its own, so that one pass is in memory at a time and gradients add up. The losses
        # are shares of means over the whole step (all micro-batches, all processes): the sum needs no scaling, and is the
        # same however the step is cut. Processes add their sums once, after the last pass; sharded ones at every pass.
        terms, told = self.objective.terms(self.step, self.length, self.seed), {}
        with self.edits.on(self.model):
            for micro_batch in batch.micro_batches:
                for term in terms:
                    self.edits.begin(micro_batch, batch)
                    part = self.part(micro_batch, term, batch)
                    self.manual_backward(part.loss)
                    for name, value in part.told.items():
                        told[name] = told.get(name, 0.0) + value
        told |= self.edits.sums()
        learned = [p for p in self.parameters() if p.requires_grad]
        if processes.count() > 1 and not self.sharded:
            processes.sum_gradients(learned)
        norm = torch.nn.utils.get_total_norm([p.grad for p in learned if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        told = dict(zip(told, processes.summed(torch.stack(list(told.values()))).tolist(), strict=True))
        loss, size = told["loss"], float(norm)
        if not math.isfinite(loss) or not math.isfinite(size):
            raise Refused(
                f"The loss is {loss:.4g} and its gradient's norm {size:.4g} at step {self.step} of {self.steps}. Lower "
                f"learning_rate={self.learning_rate:g}, or warm up for longer; the weights are those before this step."
            )
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(learned, self.clip_norm, norm)
        rate = self.learning_rate * self.learning_rate_schedule(self.step, self.length)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        self.objective.settle(self.model)
        self.tokens += batch.tokens
        self.record(**self.edits.means(told), learning_rate=rate, grad_norm=size, held_out_loss=held_out)
        self.step += 1
        if self.step == self.steps and self.held_out:
            self.record(held_out_loss=self.held_out_loss(self.held_out))

    def part(self, micro_batch: MicroBatch, term: Any, of: Step) -> PassLosses:
        """Losses of one pass, in the trainer's precision. Autocast caches no copy of a weight, which would go stale with the
        step, and hold sharded weights in one piece."""
        mixed = self.trainer.precision == "bf16-mixed"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed, cache_enabled=False):
            return self.learning(micro_batch, term, of)

    @torch.no_grad()
    def held_out_loss(self, batches: Batches) -> float:
        """Loss in nats per learned token of held-out batches, without dropout."""
        self.model.eval()
        nats, learned = torch.zeros((), device=self.device), sum(step.learned for step in batches)
        for step in batches:
            for micro_batch in step.micro_batches:
                here = MicroBatch(*(tensor.to(self.device) for tensor in micro_batch))
                nats += self.part(here, HELD_OUT, step).loss * step.learned
        self.model.train()
        if isinstance(self.learning, FSDPModule):
            self.learning.reshard()  # otherwise done by a backward pass, and none follows
        return float(processes.summed(nats)) / learned

    def record(self, **taken: float | None) -> None:
        """Records one line of the curves: a step, before its update. The last line, after all steps, has only a held-out
        loss."""
        names = (*self.objective.measures, *self.edits.measures, "learning_rate", "grad_norm", "held_out_loss")
        record = {"step": self.step, "tokens": self.tokens, **{name: taken.get(name) for name in names}}
        self.history.append(record)
        said = {name: value for name, value in record.items() if name != "step" and value is not None}
        tell(self.own_loggers, said, self.step)


def interval(name: str, every: float | str, batches: Batches) -> int:
    """Number of steps between two held-out losses, from a setting that is a fraction of the run, steps or tokens."""
    return max(1, round(steps_of(name, every, Length(len(batches), batches.tokens_of_a_step))))


class Learning(nn.Module):
    """The objective of a model as one module, so that sharding sees embeddings and head in one forward pass."""

    def __init__(self, model: PreTrainedModel, objective: Imitation | Distillation):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, micro_batch: MicroBatch, term: Any, of: Step) -> PassLosses:
        if term is HELD_OUT:
            return PassLosses(self.objective.held_out(self.model, micro_batch, of), {})
        return self.objective.part(self.model, micro_batch, term, of)
