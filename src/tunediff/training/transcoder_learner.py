"""A transcoder adapter with all that trains it, and the module that does (arXiv 2602.20904). The adapter's own tensors learn,
wherever they lie; afterwards the dictionary holds them whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tunediff.activations import WholeSequences
from tunediff.dictionary import TranscoderAdapter
from tunediff.hookpoints import decoder_layers
from tunediff.models import ModelPair, replaceable
from tunediff.objectives import Distillation
from tunediff.schedules import Length, Schedule, check_schedules
from tunediff.shapes import BASE, TUNED
from tunediff.text import Batches
from tunediff.training.on_sequences import FineTuning, interval
from tunediff.training.trainable import trained_weights

UNKNOWN = Length(2**53, 1)  # the text has not been read: long enough for every number of steps or tokens


@dataclass
class TranscoderLearner:
    """An adapter that learns from whole sequences.

    l1_schedule, learning_rate_schedule   factors of the sparsity coefficient and of the learning rate over the run
    history   one record of numbers per step; the last has only a held-out loss
    error     always None: an exception ends the run
    """

    name: str
    dictionary: TranscoderAdapter
    objective: Distillation
    sequences: WholeSequences
    l1_schedule: Schedule
    learning_rate_schedule: Schedule
    learning_rate: float
    betas: tuple[float, float]
    clip_norm: float | None
    history: list[dict[str, float | None]] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.objective.teach(self.dictionary, self.l1_schedule)
        self.check(UNKNOWN)

    def check(self, length: Length) -> None:
        """Raises Refused where a schedule does not fit the run."""
        check_schedules(self.schedules(), length)

    def schedules(self) -> dict[str, Schedule]:
        """All schedules, by their names in the config."""
        found = {"l1_schedule": self.l1_schedule, "optimizer.learning_rate_schedule": self.learning_rate_schedule}
        own = self.dictionary.sparsity.schedules()
        return found | {f"dictionary.sparsity.{name}": schedule for name, schedule in own.items()}

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
        for parameter in self.dictionary.parameters():
            parameter.requires_grad_(True)
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
