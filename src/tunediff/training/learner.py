"""A dictionary, or a transcoder adapter, with all that trains it: objective, schedules, optimizer settings and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunediff.activations import Reader, View, WholeSequences
from tunediff.dictionary import LearningDictionary, TranscoderAdapter
from tunediff.hookpoints import decoder_layers
from tunediff.models import ModelPair, replaceable
from tunediff.objectives import Distillation, Objective
from tunediff.schedules import Constant, Length, Schedule, check_schedules
from tunediff.shapes import BASE, TUNED, Refused
from tunediff.text import Batches
from tunediff.training.on_sequences import FineTuning, interval
from tunediff.training.recipe import trained_weights
from tunediff.training.resampling import Resampling

UNKNOWN = Length(2**53, 1)  # the text has not been read: long enough for every number of steps or tokens


@dataclass
class AnyLearner:
    """The settings and the outcome that all learners have.

    l1_schedule, learning_rate_schedule   factors of the sparsity coefficient and of the learning rate over the run
    history   one record of numbers per logged step
    error     the exception that ended its training; None while it trains
    """

    name: str
    dictionary: Any
    objective: Any
    l1_schedule: Schedule
    learning_rate_schedule: Schedule
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None

    def check(self, length: Length) -> None:
        """Raises Refused where a schedule does not fit the run."""
        check_schedules(self.schedules(), length)

    def schedules(self) -> dict[str, Schedule]:
        """All schedules, by their names in the config."""
        return {"l1_schedule": self.l1_schedule, "optimizer.learning_rate_schedule": self.learning_rate_schedule}


@dataclass
class Learner(AnyLearner):
    """One of the dictionaries that learn from a stream.

    compile   backend of torch.compile for the loss; null: none
    view      what it reads in place of the rows of its streams
    dead      indices of the dead latents at the last look
    """

    dictionary: LearningDictionary
    objective: Objective
    resampling: Resampling | None = None
    compile: str | None = None
    view: View | None = None
    dead: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

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
        super().check(length)
        if self.resampling is not None:
            self.resampling.check(length, self.dictionary)

    def schedules(self) -> dict[str, Schedule]:
        found = super().schedules()
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
        return Reader(self.dictionary.streams, normalisation.admits, normalisation.needs_moments, self.view)


@dataclass
class TranscoderLearner(AnyLearner):
    """An adapter that learns from whole sequences, inside the models (arXiv 2602.20904). The adapter's own tensors learn,
    wherever they lie; afterwards the dictionary holds them whole. The last record of its history has only a held-out loss,
    and an exception ends the run."""

    dictionary: TranscoderAdapter
    objective: Distillation
    sequences: WholeSequences = field(kw_only=True)

    def __post_init__(self) -> None:
        self.objective.teach(self.dictionary, self.l1_schedule)
        self.check(UNKNOWN)

    def schedules(self) -> dict[str, Schedule]:
        own = self.dictionary.sparsity.schedules()
        return super().schedules() | {f"dictionary.sparsity.{name}": schedule for name, schedule in own.items()}

    def module(
        self,
        pair: ModelPair,
        batches: Batches,
        *,
        held_out: Batches | None,
        loggers: Sequence[Any],
        state: Mapping[str, Any] | None,
        seed: int,
    ) -> FineTuning:
        """The Lightning module that trains it over the pair's models, which are loaded and stay unchanged."""
        self.check(Length(len(batches), batches.tokens_of_a_step))
        model = replaceable(pair.models[TUNED], pair.models[BASE], self.dictionary)
        model.requires_grad_(False)
        self.dictionary.requires_grad_(True)
        module = FineTuning(
            model,
            self.objective,
            batches,
            name=self.name,
            learning_rate=self.learning_rate,
            learning_rate_schedule=self.learning_rate_schedule,
            betas=self.betas,
            weight_decay=0.0,
            clip_norm=self.clip_norm,
            seed=seed,
            gradient_checkpointing=self.sequences.gradient_checkpointing,
            loggers=loggers,
            evaluate=held_out,
            evaluate_every=interval("activations.evaluate_every", self.sequences.evaluate_every, batches),
            state=state,
        )
        self.history = module.history
        return module

    def bring_back(self, model: nn.Module) -> None:
        """Copies the learned weights into the dictionary: those of a sharded model lie elsewhere. Every process calls it."""
        weights = trained_weights(model)
        names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
        for own, layer in zip(self.dictionary.layers, decoder_layers(model), strict=True):
            place = names[id(layer.get_submodule("mlp.adapted.transcoder"))]
            for name, parameter in own.named_parameters():
                if f"{place}.{name}" in weights:  # in the first process
                    parameter.data.copy_(weights[f"{place}.{name}"])
